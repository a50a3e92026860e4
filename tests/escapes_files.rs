//! Writing outside the writable paths, by every road: each attack does its damage natively and none
//! inside.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use common::attack::{Attack, must_be_refused, raw};
use common::{
    LIMIT, Workspace, command_line, copy_program, finish, guest, is_root, run, sandbox_program,
    skip, start, wait_for,
};
use libc::{O_CREAT, O_RDONLY, O_TRUNC, O_WRONLY};

#[test]
fn by_an_absolute_path() {
    let attack = Attack::new("absolute");
    let outcome = attack.must_not_change("echo damage > $V/victim");
    outcome.failure().err_has("Read-only file system");
}

#[test]
fn by_every_call_that_takes_a_path() {
    let attack = Attack::new("calls");
    attack.workspace.write("own", "mine\n");
    for script in [
        "echo damage > $V/new",
        "echo damage >> $V/victim",
        "rm $V/victim",
        "rm -r $V/directory",
        "mkdir $V/new",
        "mkfifo $V/new",
        "ln -s nowhere $V/new",
        "ln $V/victim $V/new",
        "mv $V/victim $V/new",
        "mv own $V/victim",
        "mv $V/victim .",
        "chmod 600 $V/victim",
        "touch -d 2001-01-01 $V/victim",
        "truncate -s 0 $V/victim",
        "chmod 700 $V",
        "cp own $V/directory/inner",
    ] {
        attack.must_not_change(script);
    }
}

#[test]
fn by_the_parent_directory() {
    let attack = Attack::new("parent");
    attack.must_not_change("echo damage > ../$(basename $V)/victim");
    attack.must_not_change("echo damage > $W/../$(basename $V)/directory/../victim");
}

#[test]
fn by_a_symlink() {
    let attack = Attack::new("symlink");
    attack.must_not_change("ln -s $V/victim link && echo damage > link");
    attack.must_not_change("ln -s $V link && echo damage > link/new");
    attack.must_not_change("ln -s /proc/self/root link && echo damage > link$V/victim");
}

#[test]
fn by_a_hard_link() {
    let attack = Attack::new("hard");
    attack.must_not_change("ln $V/victim hard && echo damage > hard").failure();
    // A link without a name of its own (linkat with AT_EMPTY_PATH or through /proc/self/fd).
    attack.must_not_change("ln -L /proc/self/fd/3 hard 3< $V/victim && echo damage > hard");
}

#[test]
fn by_proc_self_root() {
    let attack = Attack::new("root");
    attack.must_not_change("echo damage > /proc/self/root$V/victim");
    attack.must_not_change("echo damage > /proc/$$/root$V/victim");
    attack.must_not_change("echo damage > /proc/self/task/$$/root$V/victim");
}

#[test]
fn by_the_root_of_the_first_process() {
    let attack = Attack::new("init-root");
    // Natively this needs root, and the first process of a container may be out of reach even so.
    attack.must_not_change_inside("echo damage > /proc/1/root$V/victim");
    attack.must_not_change_inside("cd /proc/1/cwd && echo damage > .$V/victim");
}

#[test]
fn by_the_current_directory() {
    let attack = Attack::new("cwd");
    attack.must_not_change("cd $V; echo damage > victim");
    attack.must_not_change("cd $V; echo damage > /proc/self/cwd/victim");
    attack.must_not_change("echo damage > /proc/self/cwd/../$(basename $V)/victim");
}

#[test]
fn by_opening_a_descriptor_again() {
    let attack = Attack::new("again");
    attack.must_not_change("echo damage 3< $V/victim > /proc/self/fd/3");
    attack.must_not_change("echo damage 3< $V/victim > /dev/fd/3");
    attack.must_not_change("cd $V; echo damage 3< . > /proc/self/fd/3/victim");
    // Another process's descriptor, once it is there.
    attack.must_not_change(
        "sleep 100 3< $V/victim & i=0
         until [ -e /proc/$!/fd/3 ] || [ $i = 3000 ]; do i=$((i + 1)); sleep 0.01; done
         echo damage > /proc/$!/fd/3; kill $!",
    );
}

/// The standard input was opened by the caller, through the caller's own mount, which is writable:
/// opening it again by its magic link must not lead back to that mount.
#[test]
fn by_opening_the_standard_input_again() {
    let attack = Attack::new("stdin");
    let script = "echo damage > /proc/self/fd/0; echo damage > /dev/stdin; \
                  echo damage 1<> /proc/self/fd/0; cat";
    let shell = |program: &str| {
        let mut command = attack.workspace.command("sh");
        let words = format!("exec {program} < {}", attack.file().display());
        command.args(["-c", &words]).env("SCRIPT", script);
        command
    };
    let (changed, outcome) = attack.changed_by(&mut shell("sh -c \"$SCRIPT\""));
    assert!(changed, "the attack does nothing natively\n{}", outcome.report());
    let sandbox = format!("{} -- sh -c \"$SCRIPT\"", sandbox_program().display());
    attack.must_survive(&mut shell(&sandbox)).out_has("untouched");
}

#[test]
fn by_opening_an_inherited_descriptor_again() {
    let attack = Attack::new("inherited");
    let words = format!(
        "exec {} --fd 7 -- sh -c 'echo damage > /proc/self/fd/7; cat <&7' 7< {}",
        sandbox_program().display(),
        attack.file().display()
    );
    let mut command = attack.workspace.command("sh");
    attack.must_survive(command.args(["-c", &words])).out_has("untouched");
}

/// A directory as a standard stream would be a handle on the caller's mount: files below it, and by
/// `..` every file of the host, could be written.
#[test]
fn by_a_directory_as_a_standard_stream() {
    let attack = Attack::new("directory");
    let open = |path: &str, flags| format!("{} 0 s:{path} {flags} 0644", libc::SYS_openat);
    let below = open("victim", O_WRONLY | O_TRUNC);
    let new = open("new", O_WRONLY | O_CREAT);
    let name = attack.victim.path().file_name().unwrap().to_str().unwrap();
    let above = open(&format!("../{name}/victim"), O_WRONLY | O_TRUNC);
    let enter = format!("{} 0 , {} s:made 0755", libc::SYS_fchdir, libc::SYS_mkdir);
    let all = [below, new, above, enter].join(" , ");
    for descriptor in ["0", "1", "2"] {
        // The guest's answers go nowhere: one of its outputs is the directory.
        let calls = all.replace(" 0 s:", &format!(" {descriptor} s:"));
        let enter = format!("{} ", libc::SYS_fchdir);
        let calls = calls.replace(&format!("{enter}0"), &format!("{enter}{descriptor}"));
        let with_stream = |mut command: Command| {
            command.arg("-c").arg(format!("exec \"$@\" {descriptor}< \"$V\"")).arg("sh");
            command.env("V", attack.victim.path());
            command
        };
        let mut native = with_stream(attack.workspace.command("sh"));
        let (changed, outcome) = attack.changed_by(native.args(raw(&calls)));
        assert!(changed, "the attack does nothing natively\n{}", outcome.report());
        let mut inside = with_stream(attack.workspace.command("sh"));
        inside.arg(sandbox_program()).arg("--").args(raw(&calls));
        // Refused with a message, or run without the handle: either keeps the victim.
        let (changed, outcome) = attack.changed_by(&mut inside);
        assert!(!changed, "descriptor {descriptor}\n{}", outcome.report());
    }
}

#[test]
fn by_mounting() {
    let attack = Attack::new("mount");
    for script in [
        "mount --bind $W $V && echo damage > $V/new",
        "mount -o remount,bind,rw $V && echo damage > $V/new",
        "mount -o remount,rw / && echo damage > $V/new",
        "mount --bind / $W && echo damage > $W$V/new",
        "mount -t tmpfs none $V && echo damage > $V/new",
        "mount --move $W $V; echo damage > $V/new",
        "umount -l $V; umount -l /; umount -R $W; echo damage > $V/new",
    ] {
        attack.must_not_change_inside(script);
    }
    let calls = [
        ("mount", format!("{} s:none s:/ s:tmpfs 0 0", libc::SYS_mount)),
        ("remount", format!("{} 0 s:/ 0 {} 0", libc::SYS_mount, libc::MS_REMOUNT | libc::MS_BIND)),
        ("umount2", format!("{} s:/tmp {}", libc::SYS_umount2, libc::MNT_DETACH)),
        ("pivot_root", format!("{} s:/tmp s:/tmp", libc::SYS_pivot_root)),
        ("chroot", format!("{} s:/", libc::SYS_chroot)),
        ("fsopen", format!("{} s:tmpfs 0", libc::SYS_fsopen)),
        ("fspick", format!("{} -100 s:/ 0", libc::SYS_fspick)),
        ("open_tree", format!("{} -100 s:/ 1", libc::SYS_open_tree)),
        ("move_mount", format!("{} -100 s:/tmp -100 s:/ 0", libc::SYS_move_mount)),
        ("mount_setattr", format!("{} -100 s:/ 0x8000 z:32 32", libc::SYS_mount_setattr)),
    ];
    must_be_refused(&attack.workspace, &[], &calls);
}

#[test]
fn by_a_device_node() {
    let attack = Attack::new("device");
    let listing = attack.workspace.inside_sh("find /dev -type b; echo end");
    listing.success().expect_out("end\n");
    let calls = [
        ("mknod b", format!("{} s:disk 060600 {}", libc::SYS_mknod, libc::makedev(8, 0))),
        ("mknod c", format!("{} s:kmem 020600 {}", libc::SYS_mknod, libc::makedev(1, 2))),
        ("mknodat", format!("{} -100 s:/tmp/d 060600 {}", libc::SYS_mknodat, libc::makedev(8, 0))),
    ];
    must_be_refused(&attack.workspace, &[], &calls);
    if !is_root() {
        return skip("root, to lay a device node into the guest's way");
    }
    // A node that lies on the host: its mount inside does not let it be opened.
    let path = attack.victim.path().join("memory");
    let node = attack.victim.native(&["mknod", "-m", "666", path.to_str().unwrap(), "c", "1", "5"]);
    if node.status != 0 {
        return skip("device nodes for root on this file system");
    }
    let open = format!("{} s:{} {O_RDONLY}", libc::SYS_open, path.display());
    attack.workspace.native(&raw(&open)).expect_out("3\n");
    attack.workspace.inside(&raw(&open)).expect_out("EACCES\n");
    let own = attack.workspace.path().join("memory");
    fs::rename(&path, &own).unwrap();
    let open = format!("{} s:{} {O_RDONLY}", libc::SYS_open, own.display());
    attack.workspace.inside(&raw(&open)).expect_out("EACCES\n");
}

/// The guest's first process is the sandbox itself: its program must not be replaced through
/// /proc/1/exe or through a descriptor of it that a guest kept until it was no longer running.
#[test]
fn by_the_program_of_the_first_process() {
    let attack = Attack::new("exe");
    let program = attack.victim.path().join("sandbox");
    copy_program(&sandbox_program(), &program);
    let mut command = attack.workspace.command(&program);
    let script = "echo damage > /proc/1/exe; exec 3< /proc/1/exe; echo damage > /proc/self/fd/3; \
                  for i in 1 2 3; do echo damage > /proc/$PPID/exe; done";
    attack.must_survive(command.args(["--", "sh", "-c", script]));
}

/// One thread flips a name between a file of the guest's own and the victim, and another opens it
/// for writing: no check may be made on one and the opening on the other.
#[test]
fn by_flipping_a_path_while_it_is_used() {
    let attack = Attack::new("flip");
    let program = guest("flip_path");
    // It wins a race or does not.
    wait_for("the attack to do anything natively", || {
        let mut native = attack.workspace.command(&program);
        let (changed, outcome) = attack.changed_by(native.arg(attack.file()).arg("2000"));
        outcome.success();
        changed
    });
    let mut inside = attack.workspace.sandbox();
    inside.arg("--").arg(&program).arg(attack.file()).arg("20000");
    attack.must_survive(&mut inside).success().out_has("opened own");
}

/// What a run writes into its own working directory stays there: the road that must be open.
#[test]
fn the_working_directory_can_be_written() {
    let attack = Attack::new("open");
    attack.workspace.inside_sh("echo mine > own; ln own hard; ln -s own soft").success();
    assert_eq!(attack.workspace.read("hard"), "mine\n");
    assert_eq!(attack.workspace.read("soft"), "mine\n");
}

/// A file that the caller opened for writing as standard output is the guest's to write, and no
/// other file of that directory.
#[test]
fn by_the_directory_of_the_standard_output() {
    let attack = Attack::new("stdout");
    let log = attack.victim.path().join("log");
    let mut command = attack.workspace.sandbox();
    command.args(["--", "sh", "-c", "echo line; echo damage > /proc/self/fd/1/../victim"]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command.stdout(OpenOptions::new().create(true).append(true).open(&log).unwrap());
    command.status().unwrap();
    assert_eq!(attack.victim.read("log"), "line\n");
    assert_eq!(attack.victim.read("victim"), "untouched\n");
}

/// What is read-only or hidden below a writable directory stays where it is: no directory above it
/// can be moved aside, so that something else comes to its path.
#[test]
fn by_moving_what_lies_above_a_protected_place() {
    let workspace = Workspace::new("above");
    workspace.write("a/b/hooks/hook", "untouched\n");
    workspace.write("a/c/secret", "text\n");
    let script = "echo damage > a/b/hooks/hook; mv a/b a/aside; mv a/c a/gone; mv a away; \
                  mkdir -p a/b/hooks a/c; echo damage > a/b/hooks/hook; \
                  mv a/b/hooks a/b/aside; rm -rf a; cat a/c/secret; \
                  echo new > a/b/new && mv a/b/new a/b/newer && echo done";
    let mut command = workspace.sandbox();
    command.args(["--ro", "a/b/hooks", "--hide", "a/c/secret", "--", "sh", "-c", script]);
    run(command, b"", LIMIT).success().expect_out("done\n");
    assert_eq!(workspace.read("a/b/hooks/hook"), "untouched\n");
    assert_eq!(workspace.read("a/c/secret"), "text\n");
    assert_eq!(workspace.read("a/b/newer"), "new\n");
}

/// So it is with the way to what a rule lets be written there: it stays at the path that the user names.
#[test]
fn by_moving_what_lies_above_a_writable_place() {
    let workspace = Workspace::new("above-writable");
    workspace.write("a/b/own/file", "text\n");
    let script = "mv a away; mv a/b a/away; mv a/b/own a/b/away; rm -rf a/b/none; \
                  echo new > a/b/own/file && ls a a/b";
    let mut command = workspace.sandbox();
    command.args(["--rw", "a/b/own", "--", "sh", "-c", script]);
    run(command, b"", LIMIT).success().expect_out("a:\nb\n\na/b:\nown\n");
    assert_eq!(workspace.read("a/b/own/file"), "new\n");
}

/// A guest of another run with the same working directory exchanges a directory there for a link to the victim
/// while runs start that make mounts of the way to a hidden file in it: what is mounted, to be written to, must
/// be what was looked at.
#[test]
fn by_a_link_that_comes_while_the_view_is_built() {
    const ROUNDS: usize = 60;
    let attack = Attack::new("exchanged");
    attack.workspace.write("app/in/secret", "text\n");
    attack.victim.write("in/secret", "text\n");
    symlink(attack.victim.path(), attack.workspace.path().join("link")).unwrap();
    let mut other = attack.workspace.sandbox();
    other.arg("--").arg(guest("exchange")).args(["app", "link", "stop"]);
    let words = command_line(&other);
    let other = start(other);
    wait_for("the other run to exchange them", || attack.workspace.has("begun"));
    for _ in 0..ROUNDS {
        let mut command = attack.workspace.sandbox();
        command.args(["--hide", "app/in/secret", "--", "sh", "-c"]);
        command
            .arg("for d in $V app link; do echo damage > $d/victim; echo damage > $d/in/new; done");
        command.env("V", attack.victim.path());
        let outcome = run(command, b"", LIMIT);
        let kept = attack.victim.read("victim") == "untouched\n" && !attack.victim.has("in/new");
        if !kept {
            attack.workspace.write("stop", "");
        }
        assert!(kept, "the victim was changed\n{}", outcome.report());
    }
    attack.workspace.write("stop", "");
    finish(other, words, b"", LIMIT).success();
}
