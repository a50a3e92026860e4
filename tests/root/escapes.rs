//! What root inside must not reach. The walls are those of every run; here is what its ids and capabilities could
//! open.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::common::attack::{Attack, REFUSALS, must_be_refused, raw};
use super::common::{Workspace, guest, is_root, skip};
use super::{as_root, as_root_sh};

/// The real rights are three capabilities, and no exec gives more.
#[test]
fn rights_are_those_that_are_documented() {
    let workspace = Workspace::new("root-rights");
    let few = format!("{:016x}", 1_u64 << 1 | 1 << 10 | 1 << 18);
    let words = |name: &str| format!("{name}:\t{few}\n");
    as_root(&workspace, &["cat", "/proc/self/status"])
        .success()
        .out_has(&words("CapPrm"))
        .out_has(&words("CapEff"))
        .out_has(&words("CapBnd"))
        .out_has("CapInh:\t0000000000000000\n")
        .out_has("CapAmb:\t0000000000000000\n")
        .out_has("NoNewPrivs:\t1\n");
}

#[test]
fn calls_that_would_open_walls_are_refused() {
    let workspace = Workspace::new("root-calls");
    fs::create_dir(workspace.path().join("place")).unwrap();
    const CALLS: &[(&str, &str)] = &[
        ("mount", "165 s:none s:place s:tmpfs 0 0"),
        ("mount proc", "165 s:proc s:place s:proc 0 0"),
        ("bind", "165 s:/ s:place 0 0x1000 0"),
        ("remount", "165 0 s:/ 0 0x1020 0"),
        ("umount", "166 s:/tmp 2"),
        ("pivot_root", "155 s:place s:place"),
        ("unshare mount", "272 0x20000"),
        ("unshare user", "272 0x10000000"),
        ("unshare net", "272 0x40000000"),
        ("sethostname", "170 s:mine 4"),
        ("reboot", "169 0xfee1dead 672274793 0x1234567 0"),
        ("keyctl", "250 0 0 0 0 0"),
        ("open_by_handle_at", "304 0 z:16 0"),
        ("a raw socket", "41 2 3 1"),
        ("a packet socket", "41 17 3 0"),
        ("bpf", "321 0 z:64 64"),
        ("swapoff", "168 s:place"),
        ("iopl", "172 3"),
        ("quotactl", "179 0 0 0 0"),
        ("settimeofday", "164 z:16 0"),
        ("acct", "163 s:place"),
        ("init_module", "175 z:8 8 z:8"),
        ("kexec_load", "246 0 0 0 0"),
        ("a lower nice value", "141 0 0 -20"),
        ("real time", "144 0 2 h:01000000"),
        ("fsopen", "430 s:tmpfs 0"),
        ("open_tree", "428 -100 s:/ 1"),
        ("move_mount", "429 -100 s:place -100 s:/ 0"),
    ];
    let calls: Vec<(&str, String)> =
        CALLS.iter().map(|(name, call)| (*name, (*call).to_owned())).collect();
    must_be_refused(&workspace, &["--root"], &calls);
}

/// A changed root that is left again by a descriptor leads to the root of the same file view.
#[test]
fn a_changed_root_is_left_only_for_the_own_one() {
    let workspace = Workspace::new("root-chroot");
    fs::create_dir(workspace.path().join("cell")).unwrap();
    let hidden = Workspace::in_tmp("root-hidden");
    hidden.write("secret", "secret\n");
    let secret = hidden.path().join("secret").display().to_string();
    let up = format!("s:{}", ["..", "/"].concat().repeat(40));
    let calls = format!(
        "{open} s:. 0 , {chroot} s:cell , {open} s:/cell 0 , {fchdir} =0 , {chdir} {up} , {chroot} s:. , \
         {open} s:{secret} 0 , {open} s:/cell 0 , {open} s:/proc/self/status 0",
        open = libc::SYS_open,
        chroot = libc::SYS_chroot,
        fchdir = libc::SYS_fchdir,
        chdir = libc::SYS_chdir,
    );
    let outcome = as_root(&workspace, &raw(&calls));
    let answers: Vec<String> = outcome.success().out().lines().map(str::to_owned).collect();
    assert_eq!((&*answers[1], &*answers[3], &*answers[4], &*answers[5]), ("0", "0", "0", "0"));
    // In the cell there is nothing, and outside it no more than before.
    assert_eq!((&*answers[2], &*answers[6], &*answers[7]), ("ENOENT", "ENOENT", "ENOENT"));
    assert!(answers[8].parse::<i32>().is_ok(), "{answers:?}");
}

/// Run by the host's root, the sentry could open what its guests cannot.
#[test]
fn what_is_closed_to_guests_is_so_to_whom_acts_for_them() {
    if !is_root() {
        return skip("the host's root");
    }
    let workspace = Workspace::new("root-closed");
    workspace.write("closed/f", "");
    let closed = workspace.path().join("closed");
    for (path, mode) in [(closed.join("f"), 0o666), (closed.clone(), 0o700)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    }
    let calls = format!(
        "{mknod} s:closed/tape 0x21b6 0x103 , {mknod} s:closed/plain 0x81b6 0 , {stat} s:closed/f z:144 , \
         {chmod} s:closed/f 0 , {setuid} 5 , {mkdir} s:closed/d 0x1ff , {open} s:closed/new 0x41 0x1a4",
        mknod = libc::SYS_mknod,
        stat = libc::SYS_stat,
        chmod = libc::SYS_chmod,
        setuid = libc::SYS_setuid,
        mkdir = libc::SYS_mkdir,
        open = libc::SYS_open,
    );
    let expected = "EACCES\nEACCES\nEACCES\nEACCES\n0\nEACCES\nEACCES\n";
    as_root(&workspace, &raw(&calls)).success().expect_out(expected);
    assert_eq!(fs::read_dir(closed).unwrap().count(), 1);
}

/// What the sentry changes in a guest's place is found from that one's root, too.
#[test]
fn parents_end_at_a_changed_root() {
    let workspace = Workspace::new("root-parents");
    fs::create_dir(workspace.path().join("cell")).unwrap();
    workspace.write("outside", "");
    let calls = format!(
        "{chroot} s:cell , {chdir} s:/ , {chmod} s:../outside 0 , {mkdir} s:../made 0x1ff , {chmod} s:../made 0x9ff",
        chroot = libc::SYS_chroot,
        chdir = libc::SYS_chdir,
        chmod = libc::SYS_chmod,
        mkdir = libc::SYS_mkdir,
    );
    as_root(&workspace, &raw(&calls)).success().expect_out("0\n0\nENOENT\n0\n0\n");
    let mode = fs::metadata(workspace.path().join("outside")).unwrap().permissions().mode();
    assert!(mode & 0o600 == 0o600 && workspace.path().join("cell/made").is_dir(), "{mode:o}");
}

#[test]
fn the_first_process_and_keepers_are_out_of_reach() {
    let workspace = Workspace::new("root-init");
    let program = guest("read_process");
    as_root(&workspace, &[program.to_str().unwrap(), "1"]).success().out_lacks("read");
    let calls = [
        format!("{} {} 1 0 0", libc::SYS_ptrace, libc::PTRACE_ATTACH),
        format!("{} {} 1 0 0", libc::SYS_ptrace, libc::PTRACE_SEIZE),
        format!("{} s:/proc/1/mem 2", libc::SYS_open),
        format!("{} s:/proc/1/root 0", libc::SYS_open),
        format!("{} s:/proc/1/environ 0", libc::SYS_open),
        format!("{} s:/proc/1/ns/mnt 0", libc::SYS_open),
        format!("{} s:/proc/1/cwd 0", libc::SYS_open),
        format!("{} s:/proc/1/fd/0 0", libc::SYS_open),
    ];
    let outcome = as_root(&workspace, &raw(&calls.join(" , ")));
    outcome.success();
    for (call, answer) in calls.iter().zip(outcome.out().lines()) {
        assert!(REFUSALS.contains(&answer), "{call} answers {answer}");
    }
    as_root_sh(&workspace, "kill -9 1; kill -STOP 1; echo alive").success().out_has("alive\n");
}

#[test]
fn files_outside_stay_as_they_are() {
    let attack = Attack::new("root-files");
    for script in [
        "echo x > $V/victim; chmod 777 $V/victim $V/directory; rm -rf $V/directory; touch $V/new",
        "chown 1:1 $V/victim; chown 0:0 $V; setfattr -n user.x -v y $V/victim; ln $V/victim $V/link",
        "mount -o remount,rw $V; mount -o remount,rw /; umount -l $V; umount /; echo x > $V/victim",
        "chroot $V sh -c 'echo x > /victim'; cd $V && chroot . sh -c 'echo x > victim'",
        "mkdir c; cd c; ln -s $V/victim link; chroot . sh -c 'echo x > /link'; echo x > /proc/1/root/$V/victim",
    ] {
        let mut command = attack.workspace.sandbox();
        command.args(["--root", "--", "sh", "-c", script]);
        command.env("V", attack.victim.path()).env("W", attack.workspace.path());
        attack.must_survive(&mut command);
    }
}

/// Neither a device nor a setuid bit comes to the host's file system.
#[test]
fn nothing_special_is_left_on_the_host() {
    let workspace = Workspace::new("root-special");
    workspace.write("program", "#!/bin/sh\n");
    let script = "chmod 2755 /proc/$$/cwd/program; mknod disk b 8 0; mknod tape c 1 1; head -c 1 disk; head -c 1 tape; chmod 6755 program; \
                  install -m 4755 /bin/true other; setcap cap_net_raw+ep program; true";
    as_root_sh(&workspace, script);
    let calls = [
        format!("{} s:made 0x40 0x5ed", libc::SYS_open),
        format!("{} s:made 0x41 0x5ed", libc::SYS_open),
        format!("{} s:made 0x5ed", libc::SYS_creat),
        format!("{} s:made 0x85ed 0", libc::SYS_mknod),
    ];
    let refused = "EPERM\n".repeat(calls.len());
    as_root(&workspace, &raw(&calls.join(" , "))).success().expect_out(&refused);
    for entry in fs::read_dir(workspace.path()).unwrap().flatten() {
        let metadata = entry.path().symlink_metadata().unwrap();
        let mode = metadata.permissions().mode();
        assert!(metadata.is_file() && mode & 0o6000 == 0, "{}: {mode:o}", entry.path().display());
        assert_eq!(metadata.rdev(), 0, "{}", entry.path().display());
    }
}

#[test]
fn settings_of_the_host_stay() {
    let workspace = Workspace::new("root-settings");
    let script = "for file in /proc/sys/kernel/hostname /proc/sys/vm/swappiness /proc/sys/kernel/core_pattern \
                  /proc/sys/user/max_user_namespaces /proc/sys/net/core/somaxconn /proc/sysrq-trigger; do \
                  (echo 1 > $file) 2>/dev/null && echo written $file; done; \
                  (echo -1000 > /proc/self/oom_score_adj) 2>/dev/null && echo adjusted; \
                  ulimit -Hn 99999999 2>/dev/null && echo raised; \
                  (echo '0 0 1' > /proc/self/uid_map) 2>/dev/null && echo mapped; true";
    as_root_sh(&workspace, script).success().expect_out("");
}

/// What root of the host may not open stays closed to root inside, too, and what is hidden stays hidden.
#[test]
fn files_of_others_stay_closed_to_an_ordinary_user() {
    if is_root() {
        return skip("ordinary user");
    }
    let workspace = Workspace::new("root-others");
    as_root_sh(&workspace, "cat /etc/shadow; cat /root/.profile; ls -A /root").expect_out("");
}
