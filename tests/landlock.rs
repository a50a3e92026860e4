//! Landlock: as a second wall behind the mounts, which changes nothing that programs see, and as the wall of a run without
//! namespaces (`--walls landlock`).

mod common;

use std::fs;
use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{
    LIMIT, Leftovers, Outcome, Workspace, command_line, finish, guest, have, run, sandbox_program,
    skip, start, wait_for,
};

const WEAK: [&str; 2] = ["--walls", "landlock"];

/// Whether the host's Landlock can be a wall of its own (ABI 6, Linux 6.12).
fn is_there() -> bool {
    let doctor = run(
        {
            let mut command = Command::new(sandbox_program());
            command.args(["doctor", "--json"]);
            command
        },
        b"",
        LIMIT,
    );
    let there = doctor.out().contains("runs without namespaces");
    if !there {
        skip("Landlock of ABI 6");
    }
    there
}

#[track_caller]
fn weakly(workspace: &Workspace, argv: &[&str]) -> Outcome {
    workspace.inside_with(&WEAK, argv)
}

/// What works, and how what does not fails, in all places of a view.
const TOUR: &str = r#"
try() { "$@" >/dev/null 2>&1; echo "$? $(LC_ALL=C "$@" 2>&1 >/dev/null | sed 's/.*: //')"; }
mkdir -p a/b c; echo x >a/b/file
try mv a/b c/b; try mv c/b/file a/file; try ln a/file c/again; try rm c/again; try mkfifo c/fifo
try truncate -s 2 a/file; try sh -c ': >>a/file'; try sh -c ': >a/new'; try ln -s file a/link; try rmdir c/b
try touch /usr/none; try rm /bin/sh; try mv /bin/sh a; try ln /bin/sh a/sh; try truncate -s 0 /etc/passwd
try sh -c ': >>/etc/passwd'; try mkdir /etc/none; try mv a/file /usr/none; try mknod /dev/none c 1 3
try touch /tmp/file; try mv /tmp/file /tmp/other; try mv /tmp/other a/other; try rm /tmp/other
try touch /dev/shm/file; try mv /dev/shm/file /dev/shm/other; try touch /run/none
try sh -c 'echo x >/dev/null'; try sh -c 'echo x >/dev/full'; try cat /dev/kmsg; try cat /proc/kcore
try sh -c 'echo 1 >/proc/self/oom_score_adj'; try sh -c 'echo 1 >/proc/sys/vm/swappiness'; try ls /proc/1/fd
try cat /dev/stdin; try sh -c 'cat </dev/stdin'; try sh -c 'echo x >/dev/stdout'; try sh -c 'echo x >/proc/self/fd/1'
try cat hidden; try cat denied; try sh -c ': >hidden'; try rm shown/file; try mv shown/file a/; try touch shown/new
try sh -c 'cat <&3'; try cat /dev/fd/3; try sh -c 'echo >>/dev/fd/3'
"#;

#[test]
fn the_second_wall_changes_nothing_that_programs_see() {
    let workspace = Workspace::new("second-wall");
    for name in ["hidden", "denied", "shown/file", "given"] {
        workspace.write(name, "text\n");
    }
    let here = workspace.path().to_str().unwrap();
    let tour = |more: &[&str]| {
        for name in ["a", "c"] {
            let _ = fs::remove_dir_all(workspace.path().join(name));
        }
        let rules = format!("--hide {here}/hidden --deny {here}/denied --ro {here}/shown --fd 3");
        let script =
            format!("exec 3<given; exec \"$0\" {rules} {} -- sh -c \"$1\" <given", more.join(" "));
        let mut command = workspace.command("sh");
        command.args(["-c", &script]).arg(sandbox_program()).arg(TOUR);
        run(command, b"", LIMIT)
    };
    let without = tour(&["--without", "landlock"]);
    without.success().out_has("Read-only file system");
    tour(&[]).same_as(&without);
    tour(&["--landlock=false"]).same_as(&without);
}

/// Enters the namespaces of a process and makes a mount there writable (MS_REMOUNT | MS_BIND).
const OPEN_UP: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
spaces = [os.open(f"/proc/{sys.argv[1]}/ns/{name}", os.O_RDONLY) for name in ("user", "mnt")]
done = [libc.setns(space, 0) for space in spaces]
done.append(libc.mount(None, sys.argv[2].encode(), None, 4096 | 32, None))
assert done == [0, 0, 0], (done, os.strerror(ctypes.get_errno()))
"#;

/// A mount of a run is made writable by its user from outside.
#[track_caller]
fn open_up(id: &str, workspace: &Workspace, place: &Path) {
    let mut command = workspace.command(sandbox_program());
    command.args(["ps", id]);
    let listed = run(command, b"", LIMIT).out();
    let row = listed.lines().find(|line| line.contains(" sh "));
    let host = row.and_then(|row| row.split_whitespace().nth(2)).expect("the program");
    let mut command = workspace.command("python3");
    command.args(["-c", OPEN_UP, host]).arg(place);
    run(command, b"", LIMIT).success();
}

/// What becomes of changes in a place that is shown read-only, once its mount is writable: the errors, and the place.
fn without_a_mount(name: &str, flags: &[&str], restored: bool) -> (String, Workspace) {
    let (workspace, victim) = (Workspace::new(name), Workspace::new("second-wall-victim"));
    let id = workspace.mark().to_owned();
    victim.write("file", "untouched\n");
    let place = victim.path().to_str().unwrap();
    let script =
        "cd \"$1\"; echo runs; read line; (echo x >file) 2>&1; mkdir new 2>&1; mv file moved 2>&1";
    let start_with = |words: &[&str]| {
        let mut command = workspace.sandbox();
        command.args(words).stdin(Stdio::piped());
        (command_line(&command), start(command))
    };
    let run_it =
        [&["run", "--id", &id, "--ro", place], flags, &["--", "sh", "-c", script, "sh", place]];
    let (mut words, mut child) = start_with(&run_it.concat());
    let mut first = [0; 5];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("it runs");
    if restored {
        let verb = |words: &[&str]| {
            let mut command = workspace.command(sandbox_program());
            command.args(words);
            run(command, b"", LIMIT)
        };
        let image = workspace.path().join("image");
        let image = image.to_str().unwrap();
        verb(&["save", &id, "-o", image]).success();
        finish(child, words, b"", LIMIT);
        (words, child) = start_with(&["restore", image]);
        wait_for("the restored program", || verb(&["ps", &id]).out().contains(" sh "));
    }
    open_up(&id, &workspace, victim.path());
    (finish(child, words, b"\n", LIMIT).out(), victim)
}

#[test]
fn the_second_wall_stands_where_a_mount_does_not() {
    if !is_there() || !have("python3") {
        return;
    }
    let (out, victim) = without_a_mount("second-wall-off", &["--landlock=false"], false);
    assert!(out.is_empty() && victim.has("new") && victim.read("moved") == "x\n", "{out}");
    for restored in [false, true] {
        let name = if restored { "second-wall-again" } else { "second-wall-alone" };
        let (out, victim) = without_a_mount(name, &[], restored);
        assert_eq!(out.matches("Permission denied").count(), 3, "{out}");
        assert_eq!(victim.read("file"), "untouched\n");
        assert!(!victim.has("new") && !victim.has("moved"));
    }
}

#[test]
fn what_a_program_does_with_its_own_works_without_namespaces() {
    if !is_there() {
        return;
    }
    let workspace = Workspace::new("apart-inside");
    let program = guest("apart");
    let outside = workspace.native_and_undone(&[program.to_str().unwrap(), "inside"]);
    outside.success().expect_out("all works\n");
    weakly(&workspace, &[program.to_str().unwrap(), "inside"]).same_as(&outside);
}

#[test]
fn nothing_outside_is_reached_without_namespaces() {
    if !is_there() {
        return;
    }
    let (workspace, victim) = (Workspace::new("apart"), Workspace::new("apart-victim"));
    let file = victim.write("file", "untouched\n");
    let (path, name) = (victim.path().join("socket"), victim.mark().to_owned());
    let _listener = UnixListener::bind(&path).expect("a socket");
    let _abstract =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name"))
            .expect("bound");
    let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat");
    let pid = other.id().to_string();
    let state = |path: &Path| {
        let it = path.metadata().expect("the victim");
        (it.mode(), it.ctime(), it.ctime_nsec(), it.nlink())
    };
    let before = state(&file);
    let program = guest("apart");
    let words = [
        program.to_str().unwrap(),
        "outside",
        &pid,
        file.to_str().unwrap(),
        path.to_str().unwrap(),
        &name,
    ];
    let outcome = weakly(&workspace, &words);
    assert!(other.try_wait().expect("cat").is_none(), "it was killed\n{}", outcome.report());
    drop(other.stdin.take());
    let _ = other.wait();
    outcome.success().out_lacks(" ok");
    for expected in
        ["kill EPERM", "unlink EACCES", "chmod EROFS", "connect EACCES", "clone3 ENOSYS"]
    {
        outcome.out_has(expected);
    }
    assert_eq!(state(&file), before);
    assert_eq!(victim.read("file"), "untouched\n");
}

#[test]
fn files_are_those_of_the_view_without_namespaces() {
    if !is_there() {
        return;
    }
    let home = Workspace::new("apart-home");
    home.write(".ssh/id_ed25519", "secret\n");
    home.write("notes", "notes\n");
    home.write("work/in", "in\n");
    let script = "cat in ../notes; cat ../.ssh/id_ed25519; echo out >out && cat out; echo x >../notes; \
                  cat /etc/hostname >/dev/null && ls / >/dev/null && echo read; \
                  echo mine >$TMPDIR/file && cat $TMPDIR/file; ls -ld $TMPDIR | cut -c1-10; echo $TMPDIR; \
                  touch /tmp/none; exit 7";
    let mut command = home.sandbox();
    command.current_dir(home.path().join("work")).env("HOME", home.path());
    command.args(WEAK).args(["--", "sh", "-c", script]);
    let outcome = run(command, b"", LIMIT);
    outcome.expect_status(7).err_has("id_ed25519: Permission denied").err_has("/tmp/none");
    let out = outcome.out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..6], ["in", "notes", "out", "read", "mine", "drwx------"], "{out}");
    assert!(!Path::new(lines[6]).exists(), "{} is left", lines[6]);
    assert_eq!(home.read("notes"), "notes\n");
    assert_eq!(home.read("work/out"), "out\n");
}

#[test]
fn everything_ends_with_the_program_and_with_the_supervisor_without_namespaces() {
    if !is_there() {
        return;
    }
    let workspace = Workspace::new("apart-ends");
    let leftovers = Leftovers::before(&workspace);
    // One that left its session and its parent, and one that makes successors.
    let tree =
        "(setsid sleep 1000 &) ; (setsid sh -c 'while :; do sleep 1000 & wait $!; done' &) ; ";
    let outcome = weakly(&workspace, &["sh", "-c", &format!("{tree} exit 3")]);
    outcome.expect_status(3).expect_err("");
    leftovers.check();
    let mut command = workspace.sandbox();
    command.args(WEAK).args(["--", "sh", "-c", &format!("{tree} echo runs; exec sleep 1000")]);
    // Its own directory stays behind where nobody is left to remove it.
    command.env("TMPDIR", workspace.path());
    let mut child = start(command);
    let mut first = [0; 5];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("it runs");
    child.kill().expect("killed");
    let _ = child.wait();
    wait_for("the end of all guests", || {
        common::leftovers::marked_processes(workspace.mark()).is_empty()
    });
}

#[test]
fn verbs_work_without_namespaces_as_far_as_they_can() {
    if !is_there() {
        return;
    }
    let workspace = Workspace::new("apart-verbs");
    let id = workspace.mark().to_owned();
    let mut command = workspace.sandbox();
    command.args(["run", "--id", &id]).args(WEAK).args(["--", "sh", "-c", "echo runs; read line"]);
    command.stdin(Stdio::piped());
    let words = command_line(&command);
    let mut child = start(command);
    let input = child.stdin.take();
    let mut first = [0; 5];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("it runs");
    let verb = |words: &[&str]| {
        let mut command = workspace.command(sandbox_program());
        command.args(words);
        run(command, b"", LIMIT)
    };
    verb(&["ps", &id]).success().out_has("sh");
    verb(&["pause", &id]).success();
    verb(&["resume", &id]).success();
    verb(&["exec", &id, "--", "echo", "later"]).success().expect_out("later\n");
    let image = workspace.path().join("image");
    let refused = verb(&["save", &id, "-o", image.to_str().unwrap()]);
    assert!(
        refused.status != 0 && refused.err().contains("--walls landlock"),
        "{}",
        refused.report()
    );
    verb(&["kill", &id, "KILL"]).success();
    finish(child, words, b"", LIMIT).expect_status(137);
    drop(input);
}

#[test]
fn what_takes_namespaces_is_refused_by_name() {
    let workspace = Workspace::new("apart-refused");
    let here = workspace.path().to_str().unwrap();
    for (flags, name) in [
        (vec!["--overlay", here], "--overlay"),
        (vec!["--tmpfs", "/mnt"], "--tmpfs"),
        (vec!["--hostname", "box"], "--hostname"),
        (vec!["--user", "12:12"], "--user"),
        (vec!["--deterministic"], "--deterministic"),
        (vec!["--root"], "--root"),
        (vec!["--net", "allow"], "--net allow"),
        (vec!["--allow-net", "example.org"], "--allow-net"),
        (vec!["--cpus", "1"], "--cpus"),
        (vec!["--ro", "/etc:/mnt"], "--ro /etc:/mnt"),
        (vec!["--without", "landlock"], "--walls landlock"),
    ] {
        let words: Vec<&str> = WEAK.iter().copied().chain(flags).collect();
        workspace.inside_with(&words, &["true"]).one_line_error(125, &["--walls landlock", name]);
    }
    let secret = workspace.write("secret", "");
    let words = [WEAK[0], WEAK[1], "--hide", secret.to_str().unwrap()];
    workspace.inside_with(&words, &["true"]).one_line_error(125, &["secret", "is writable"]);
}

#[test]
fn a_container_that_refuses_namespaces_can_be_lived_in() {
    if !is_there() {
        return;
    }
    let workspace = Workspace::new("apart-container");
    let under = |rules: &str, words: &[&str]| {
        let mut command = workspace.command(guest("outer_filter"));
        command.arg(rules).arg(sandbox_program()).args(words);
        run(command, b"", LIMIT)
    };
    let silent = under("namespaces=EPERM", &["--", "true"]);
    silent.one_line_error(125, &["user namespace", "--walls landlock"]);
    let words =
        ["--walls", "landlock", "--", "sh", "-c", "echo a | cat; touch /usr/none || exit 3"];
    under("namespaces=EPERM", &words).expect_status(3).expect_out("a\n");
    let rules = "namespaces=EPERM,clone3=ENOSYS,pidfd_getfd=EPERM,process_vm_readv=EPERM,process_vm_writev=EPERM";
    under(rules, &words).expect_status(3).expect_out("a\n");
    // Nothing is connected behind its back.
    let connect = guest("apart");
    let words = ["--walls", "landlock", "--", connect.to_str().unwrap(), "inside"];
    under(rules, &words).expect_status(1).expect_out("connect: Permission denied\n");
}
