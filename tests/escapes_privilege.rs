//! Gaining rights, or leaving something behind that gives them: setuid programs and files, new user
//! namespaces, other namespaces, capabilities.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use common::attack::{Attack, REFUSALS, hex, must_be_refused, raw};
use common::{
    LIMIT, Workspace, copy_program, guest, is_root, run, sandbox_program, skip, try_guest,
};
use libc::{O_CREAT, O_RDWR, O_WRONLY};

/// Files of the workspace with the setuid bit.
fn privileged_files(workspace: &Workspace) -> Vec<String> {
    let entries = fs::read_dir(workspace.path()).unwrap().flatten();
    let privileged = entries.filter(|entry| {
        let metadata = entry.path().symlink_metadata().unwrap();
        let mode = metadata.permissions().mode();
        metadata.is_file() && mode & 0o4000 != 0
    });
    privileged.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A setuid file in the writable directory would hand its owner's rights to whoever runs it on the
/// host, outside all walls.
#[test]
fn a_setuid_file_cannot_be_left_behind() {
    let workspace = Workspace::new("setuid-file");
    let set_up = || {
        for name in ["a", "b", "c", "d"] {
            workspace.write(name, "#!/bin/sh\n");
        }
    };
    set_up();
    const FCHMODAT2: i64 = 452;
    let opened = format!("{} s:a {O_RDWR}", libc::SYS_open);
    let how = hex(&[(O_CREAT | O_WRONLY) as u64, 0o4755, 0].map(u64::to_ne_bytes).concat());
    let calls = [
        ("umask", format!("{} 0", libc::SYS_umask)),
        ("open a file", opened),
        ("chmod", format!("{} s:b 04755", libc::SYS_chmod)),
        ("fchmod", format!("{} =1 04755", libc::SYS_fchmod)),
        ("fchmodat", format!("{} -100 s:c 04755", libc::SYS_fchmodat)),
        ("fchmodat2", format!("{FCHMODAT2} -100 s:d 04755 0")),
        ("fchmodat2 of a descriptor", format!("{FCHMODAT2} =1 s: 04755 {}", libc::AT_EMPTY_PATH)),
        ("open", format!("{} s:new1 {} 04755", libc::SYS_open, O_CREAT | O_WRONLY)),
        ("openat", format!("{} -100 s:new2 {} 04755", libc::SYS_openat, O_CREAT | O_WRONLY)),
        ("openat2", format!("{} -100 s:new3 {how} 24", libc::SYS_openat2)),
        ("creat", format!("{} s:new4 04755", libc::SYS_creat)),
        ("mknod", format!("{} s:new5 0104755 0", libc::SYS_mknod)),
        ("mknodat", format!("{} -100 s:new6 0104755 0", libc::SYS_mknodat)),
        // The kernel looks at the low 16 bits alone (umode_t), and so must a filter.
        ("chmod, high bits", format!("{} s:b 0x1000109ed", libc::SYS_chmod)),
    ];
    let all: Vec<&str> = calls.iter().map(|(_, call)| call.as_str()).collect();
    let argv = raw(&all.join(" , "));
    workspace.native(&argv).success();
    let native = privileged_files(&workspace);
    assert!(native.len() >= 8, "the attack does little natively: {native:?}");
    for entry in fs::read_dir(workspace.path()).unwrap().flatten() {
        fs::remove_file(entry.path()).unwrap();
    }
    set_up();
    let outcome = workspace.inside(&argv);
    outcome.success();
    assert_eq!(privileged_files(&workspace), [""; 0], "{}", outcome.report());
    for ((name, _), answer) in calls.iter().zip(outcome.out().lines()).skip(2) {
        // A call that makes a file may also make it without the bit.
        let harmless = name.starts_with("chmod") || name.starts_with("fchmod");
        assert!(REFUSALS.contains(&answer) || !harmless, "{name} answers {answer}");
    }
}

/// The usual programs and the roads around chmod: moving, copying, installing, linking an unnamed
/// file.
#[test]
fn a_setuid_file_cannot_be_left_behind_by_programs() {
    let workspace = Workspace::new("setuid-tools");
    for script in [
        "cp /bin/true a; chmod 4755 a",
        "cp /bin/true a; chmod u+s a",
        "install -m 4755 /bin/true a",
        "mkdir -m 755 sub; cp /bin/true sub/a; chmod 6755 sub/a; mv sub/a a",
        "t=/tmp/$SANDBOX_TEST_MARK; cp /bin/true $t; chmod 4755 $t; cp -p $t a; mv $t b",
    ] {
        let native = workspace.native_and_undone(&["sh", "-c", script]);
        native.success();
        workspace.inside_sh(script);
        assert_eq!(privileged_files(&workspace), [""; 0], "{script}");
    }
}

/// File capabilities are the other way to the same end (capabilities(7)).
#[test]
fn a_file_cannot_be_given_capabilities() {
    let workspace = Workspace::new("file-caps");
    workspace.write("a", "");
    // A vfs_cap_data of version 2 with CAP_NET_RAW, effective.
    let value = "h:0100000200200000000000000000000000000000";
    let setxattr = format!("{} s:a s:security.capability {value} 20 0", libc::SYS_setxattr);
    must_be_refused(&workspace, &[], &[("setxattr", setxattr)]);
    let getxattr = format!("{} s:a s:security.capability z:64 64", libc::SYS_getxattr);
    workspace.native(&raw(&getxattr)).expect_out("errno 61\n");
}

/// A setuid program of root, run by an ordinary user: it runs, with no more than the user's rights.
#[test]
fn a_setuid_program_gains_nothing() {
    if !is_root() {
        return skip("root, to make a setuid program of another user");
    }
    let workspace = Workspace::new("setuid-run");
    fs::set_permissions(workspace.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = workspace.path().join("rights");
    copy_program(&guest("rights"), &program);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let as_nobody = |words: &[&std::ffi::OsStr]| {
        let mut command = workspace.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(words);
        run(command, b"", LIMIT)
    };
    let native = as_nobody(&[program.as_os_str()]);
    native.success();
    if !native.out().contains("euid 0") {
        return skip("setuid programs on this file system");
    }
    let sandbox = sandbox_program();
    let inside = as_nobody(&[sandbox.as_os_str(), "--".as_ref(), program.as_os_str()]);
    inside.success().out_has("euid 65534\n").out_has("effective 0000000000000000\n");
}

#[test]
fn rights_cannot_be_raised() {
    let workspace = Workspace::new("rights");
    let program = guest("rights");
    let outcome = workspace.inside(&[program.to_str().unwrap(), "raise"]);
    outcome
        .success()
        .out_has("effective 0000000000000000\n")
        .out_has("permitted 0000000000000000\n");
    outcome.out_has("no_new_privs 1\n").out_has("capset EPERM\n").out_has("ambient EPERM\n");
    outcome.out_has("clear no_new_privs EINVAL\n").out_has("securebits EPERM\n");
}

const NAMESPACES: &[(&str, u64)] = &[
    ("user", libc::CLONE_NEWUSER as u64),
    ("mount", libc::CLONE_NEWNS as u64),
    ("pid", libc::CLONE_NEWPID as u64),
    ("net", libc::CLONE_NEWNET as u64),
    ("ipc", libc::CLONE_NEWIPC as u64),
    ("uts", libc::CLONE_NEWUTS as u64),
    ("cgroup", libc::CLONE_NEWCGROUP as u64),
];

#[test]
fn new_namespaces_are_refused() {
    let workspace = Workspace::new("namespaces");
    const CHILD: u64 = libc::SIGCHLD as u64;
    for (name, flag) in NAMESPACES {
        let clone3 = |flags: u64| {
            // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack and so on.
            let mut words = [0u64; 11];
            (words[0], words[4]) = (flags, CHILD);
            hex(&words.map(u64::to_ne_bytes).concat())
        };
        let calls = [
            (*name, format!("{} {flag}", libc::SYS_unshare)),
            (*name, format!("{} {} 0 0 0 0", libc::SYS_clone, flag | CHILD)),
            // Only the lower half of the register counts for the kernel (kernel_clone_args).
            (*name, format!("{} {} 0 0 0 0", libc::SYS_clone, flag | CHILD | 1 << 32)),
            (*name, format!("{} {} 88", libc::SYS_clone3, clone3(*flag))),
        ];
        must_be_refused(&workspace, &[], &calls);
    }
    let time = ("time", format!("{} 0x80", libc::SYS_unshare));
    must_be_refused(&workspace, &[], &[time]);
    workspace.inside_sh("unshare -Ur id -u").failure().expect_out("");
    // What these calls are for otherwise goes on working.
    let program = guest("flip_clone");
    workspace.inside(&[program.to_str().unwrap(), "0"]).success().out_has("clone3 works");
}

/// One thread flips the flags of clone3 in memory while another calls it: a check that reads them
/// and a kernel that reads them again would let a new user namespace through.
#[test]
fn new_namespaces_are_refused_while_the_flags_change() {
    let workspace = Workspace::new("flip-clone");
    let program = guest("flip_clone");
    let argv = [program.to_str().unwrap(), "2000"];
    let native = workspace.native(&argv);
    native.success();
    if !native.out().contains("new user namespace") {
        return skip("user namespaces for this user on this host");
    }
    workspace.inside(&argv).success().out_lacks("new user namespace");
}

#[test]
fn namespaces_of_the_host_cannot_be_entered() {
    let workspace = Workspace::new("setns");
    let own = workspace.inside(&raw(&format!(
        "{} s:/proc/self/ns/net 0 , {} =0 0 , {} s:/proc/self/ns/user 0 , {} =2 0",
        libc::SYS_open,
        libc::SYS_setns,
        libc::SYS_open,
        libc::SYS_setns
    )));
    let answers: Vec<String> = own.success().out().lines().map(str::to_owned).collect();
    for index in [1, 3] {
        assert!(REFUSALS.contains(&&*answers[index]) || answers[index] == "EINVAL", "{answers:?}");
    }
    // A namespace of the host that the caller passes in, as the standard input.
    for kind in ["net", "mnt", "user", "pid", "uts", "ipc"] {
        let words = format!("exec \"$@\" < /proc/self/ns/{kind}");
        let mut command = workspace.command("sh");
        command.args(["-c", &words, "sh"]).arg(sandbox_program()).arg("--");
        command.args(raw(&format!("{} 0 0", libc::SYS_setns))).stdin(Stdio::null());
        let outcome = run(command, b"", LIMIT);
        let answer = outcome.line();
        let refused = outcome.status == 125 || REFUSALS.contains(&&*answer) || answer == "EINVAL";
        assert!(refused, "{kind}\n{}", outcome.report());
    }
}

/// A filter of the guest's own can only refuse more: the strictest answer wins (seccomp(2)).
#[test]
fn a_permissive_filter_changes_nothing() {
    let workspace = Workspace::new("permissive");
    let program = guest("permissive");
    let outcome = workspace.inside(&[program]);
    outcome.success().out_has("filter 0\n");
    outcome.out_has("unshare EPERM\n").out_has("bpf EPERM\n").out_has("chmod EPERM\n");
}

/// The kernel gives one listener to a chain of filters; a second is refused and changes nothing.
#[test]
fn a_second_listener_is_refused() {
    let workspace = Workspace::new("listener");
    let program = guest("permissive");
    workspace.native(&[program.to_str().unwrap(), "listener"]).success().out_has("filter 3\n");
    let outcome = workspace.inside(&[program.to_str().unwrap(), "listener"]);
    outcome.success().out_has("filter EBUSY\n").out_has("unshare EPERM\n");
}

/// Every entry to the kernel that the filter's numbers do not speak of.
#[test]
fn foreign_entries_are_closed() {
    let workspace = Workspace::new("foreign");
    let program = guest("entries");
    for entry in ["int80", "x32"] {
        let argv = [program.to_str().unwrap(), entry];
        let native = workspace.native(&argv);
        let inside = workspace.inside(&argv);
        // Killed by SIGSYS, or told that there is no such call; in any case it did not happen.
        let refused = inside.status == 128 + libc::SIGSYS || inside.line() == "ENOSYS";
        assert!(refused, "{entry}\n{}\nnatively\n{}", inside.report(), native.report());
    }
}

#[test]
fn a_32_bit_program_is_refused_with_a_message() {
    let program = match try_guest("thirty_two") {
        Ok(program) => program,
        Err(_) => return skip("compiler for 32-bit programs"),
    };
    let workspace = Workspace::new("thirty-two");
    if workspace.native(&[&program]).status != 7 {
        return skip("32-bit programs on this host");
    }
    let outcome = workspace.inside(&[&program]);
    // Not executed, or killed at its first call (SIGSYS).
    assert!([126, 128 + libc::SIGSYS].contains(&outcome.status), "{}", outcome.report());
    outcome.err_has("32-bit").err_has("thirty_two");
}

/// The attacks above are worth something only if the victim could be hurt: an owner's own setuid
/// bit, natively.
#[test]
fn the_setuid_bit_works_natively() {
    let attack = Attack::new("setuid-native");
    attack.must_not_change("chmod 4755 $V/victim");
    let mode = fs::metadata(attack.file()).unwrap().mode();
    assert_eq!(mode & 0o7000, 0);
}
