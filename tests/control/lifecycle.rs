//! From `run --id` and `run --detach` to `wait`, and what is left when somebody dies on the way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{LIMIT, finish, run, start, wait_for};
use crate::desk::{Desk, has_asked, process_state};

#[test]
fn a_detached_one_is_listed_and_waited_for_and_then_forgotten() {
    let desk = Desk::new("detached");
    desk.detach_idle("x");
    let row = desk.listed("x").unwrap();
    assert_eq!(row["state"], "running");
    assert_eq!(row["detached"], true);
    assert_eq!(row["tasks"], 2);
    assert_eq!(row["command"][0], "sh");
    desk.sandbox(&["ps"]).success().out_has("running").out_has("sh -c trap");
    desk.sandbox(&["ps", "x"]).success().out_has("sleep 1000");
    let waiter = desk.begin(&["wait", "x"]);
    wait_for("the waiter", || has_asked(&waiter));
    desk.sandbox(&["kill", "x"]).success().expect_out("");
    finish(waiter, "wait".into(), b"", LIMIT).expect_status(7);
    desk.expect_nothing();
}

#[test]
fn a_status_is_kept_until_somebody_has_asked_for_it() {
    let desk = Desk::new("status");
    for status in [0, 3] {
        desk.detach("x", &format!("exit {status}"));
        desk.sandbox(&["wait", "x"]).expect_status(status).expect_out("").expect_err("");
        desk.sandbox(&["wait", "x"]).one_line_error(125, &["no sandbox named x", "sandbox ps"]);
    }
    desk.detach("x", "kill -USR1 $$");
    wait_for("its end", || desk.listed("x").unwrap()["state"] == "exited");
    assert_eq!(desk.listed("x").unwrap()["status"], 128 + libc::SIGUSR1);
    desk.sandbox(&["ps"]).success().out_has("exited(138)");
    for verb in ["pause", "stats", "ps", "events"] {
        desk.sandbox(&[verb, "x"]).one_line_error(125, &["has ended with status 138"]);
    }
    // A new run takes the id, and kill forgets.
    desk.detach("x", "exit 5");
    wait_for("its end", || desk.listed("x").unwrap()["state"] == "exited");
    desk.sandbox(&["kill", "x"]).success();
    desk.expect_nothing();
}

#[test]
fn several_may_wait() {
    let desk = Desk::new("waiters");
    desk.detach_idle("x");
    let waiters: Vec<_> = (0..5).map(|_| desk.begin(&["wait", "x"])).collect();
    wait_for("the waiters", || waiters.iter().all(has_asked));
    desk.sandbox(&["kill", "x"]).success();
    for waiter in waiters {
        finish(waiter, "wait".into(), b"", LIMIT).expect_status(7);
    }
    desk.expect_nothing();
}

#[test]
fn an_id_has_one_owner_and_a_form() {
    let desk = Desk::new("ids");
    desk.detach_idle("x.Y-1_");
    desk.sandbox(&["run", "--id", "x.Y-1_", "--", "true"])
        .one_line_error(125, &["x.Y-1_", "in use", "--id"]);
    desk.sandbox(&["run", "--detach", "--id", "x.Y-1_", "--", "true"])
        .one_line_error(125, &["in use"]);
    // The refusals have not disturbed it.
    desk.sandbox(&["ps", "x.Y-1_"]).success();
    desk.sandbox(&["run", "--id", "other", "--", "true"]).success();
    let long = "x".repeat(65);
    for bad in ["", ".x", "a/b", "..", "a b", "ü", &long] {
        desk.sandbox(&["run", "--id", bad, "--", "true"]).one_line_error(125, &["the id"]);
        desk.sandbox(&["wait", bad]).one_line_error(125, &["the id"]);
    }
    desk.sandbox(&["kill", "x.Y-1_", "KILL"]).success();
    desk.sandbox(&["wait", "x.Y-1_"]).expect_status(137);
    desk.expect_nothing();
}

#[test]
fn a_run_in_the_foreground_is_listed_too() {
    let desk = Desk::new("foreground");
    let child = desk.begin(&["--", "sh", "-c", "touch up; exec sleep 1000"]);
    wait_for("the program", || desk.workspace.has("up"));
    let rows = desk.ps();
    let id = rows[0]["id"].as_str().unwrap();
    assert!(id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(rows[0]["detached"], false);
    assert_eq!(rows[0]["pid"], child.id());
    desk.sandbox(&["logs", id]).one_line_error(125, &[id, "--detach"]);
    desk.sandbox(&["kill", id]).success();
    finish(child, "run".into(), b"", LIMIT).expect_status(128 + libc::SIGTERM);
    desk.expect_nothing();
}

#[test]
fn a_program_that_does_not_start_is_an_error_of_the_starter() {
    let desk = Desk::new("unstarted");
    let script = desk.workspace.write("data", "x");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).unwrap();
    for (program, status) in [("/nowhere/x", 127), ("./data", 126)] {
        desk.sandbox(&["run", "--detach", "--id", "x", "--", program])
            .one_line_error(status, &[program]);
    }
    desk.sandbox(&["run", "--detach", "--ro", "/nowhere", "--", "true"])
        .one_line_error(125, &["/nowhere"]);
    desk.sandbox(&["run", "--detach", "--dry-run", "--", "true"]).success().out_has("network");
    desk.expect_nothing();
}

#[test]
fn what_a_killed_supervisor_leaves_is_cleaned_up_by_whoever_meets_it() {
    let desk = Desk::new("stale");
    for next in [["run", "--id", "x", "--", "true"].as_slice(), &["ps"], &["--", "true"]] {
        desk.detach_idle("x");
        let supervisor = desk.supervisor("x");
        kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
        wait_for("its end", || matches!(process_state(supervisor), None | Some('Z')));
        // Its init, which ends with it, may hold the lock for a moment longer.
        wait_for("its state to be seen as stale", || {
            // (Given back by name: a child that another test starts just now has a copy of it for a moment.)
            fs::File::open(desk.state("x").join("lock"))
                .is_ok_and(|lock| lock.try_lock().is_ok() && lock.unlock().is_ok())
        });
        desk.sandbox(next).success();
        let left: Vec<_> = fs::read_dir(desk.runtime()).unwrap().collect();
        assert!(left.is_empty(), "after {next:?}: {left:?}");
    }
    desk.sandbox(&["wait", "x"]).one_line_error(125, &["no sandbox named x"]);
    desk.expect_nothing();
}

#[test]
fn whoever_waits_for_a_sandbox_whose_supervisor_is_killed_is_told() {
    let desk = Desk::new("killed");
    desk.detach_idle("x");
    let waiter = desk.begin(&["wait", "x"]);
    wait_for("the waiter", || has_asked(&waiter));
    kill(Pid::from_raw(desk.supervisor("x")), Signal::SIGKILL).unwrap();
    finish(waiter, "wait".into(), b"", LIMIT).one_line_error(125, &["x"]);
}

#[test]
fn a_detached_one_has_left_its_terminal_and_directory_of_temporary_files_alone() {
    let desk = Desk::new("session");
    desk.detach_idle("x");
    let supervisor = desk.supervisor("x");
    let stat = fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // Fields 6 and 7 of proc_pid_stat(5): session and terminal.
    assert_eq!((fields[3], fields[4]), (&*supervisor.to_string(), "0"));
    let link = |fd| fs::read_link(format!("/proc/{supervisor}/fd/{fd}")).unwrap();
    assert_eq!(link(0), PathBuf::from("/dev/null"));
    assert_eq!(link(1), desk.state("x").join("output"));
    assert_eq!(link(2), desk.state("x").join("output"));
    // Somebody could send it the signal of a closed terminal nevertheless: it is the program's.
    desk.sandbox(&["kill", "x", "HUP"]).success();
    desk.sandbox(&["wait", "x"]).expect_status(128 + libc::SIGHUP);
}

#[test]
fn a_detached_one_holds_nothing_else_of_its_starter() {
    let desk = Desk::new("inherited");
    let fifo = |name: &str| {
        let path = desk.workspace.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    };
    let (hold, pass) = (fifo("hold"), fifo("pass"));
    let script = "exec 7>hold 8>pass; \
                  exec \"$0\" run --detach --id x --fd 8 -- sh -c 'echo hi >&8; sleep 1000'";
    let mut command = desk.workspace.command("sh");
    command.args(["-c", script]).arg(crate::common::sandbox_program());
    command.env("XDG_RUNTIME_DIR", desk.runtime());
    let child = start(command);
    // Each is opened when the other side opens it.
    let mut read = fs::File::open(hold).unwrap();
    let mut passed = fs::File::open(pass).unwrap();
    finish(child, "run".into(), b"", LIMIT).success().expect_out("x\n");
    let mut word = [0; 3];
    std::io::Read::read_exact(&mut passed, &mut word).unwrap();
    assert_eq!(&word, b"hi\n");
    // Ends at once, although the sandbox runs on.
    assert_eq!(std::io::Read::read(&mut read, &mut word).unwrap(), 0);
    assert_eq!(desk.listed("x").unwrap()["state"], "running");
}

#[test]
fn a_detached_program_that_stops_itself_can_be_continued() {
    let desk = Desk::new("stopped");
    desk.detach("x", "touch up-x; kill -STOP $$; exit 9");
    wait_for("the program's stop", || {
        let listed = desk.sandbox(&["ps", "x", "--json"]);
        listed.success().out().contains("\"state\":\"T\"")
    });
    assert_eq!(desk.listed("x").unwrap()["state"], "running");
    desk.sandbox(&["kill", "x", "CONT"]).success();
    desk.sandbox(&["wait", "x"]).expect_status(9);
}

#[test]
fn without_a_runtime_directory_the_state_is_below_tmp() {
    let desk = Desk::new("tmp");
    let uid = nix::unistd::geteuid().as_raw();
    let id = format!("test-{}", std::process::id());
    let state = PathBuf::from(format!("/tmp/sandbox-{uid}")).join(&id);
    // Not set, not private, not there.
    let open = desk.runtime().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    for runtime in [None, Some(open.as_os_str()), Some("/nowhere".as_ref())] {
        let sandbox = |words: &[&str]| {
            let mut command = desk.command(words);
            match runtime {
                Some(runtime) => command.env("XDG_RUNTIME_DIR", runtime),
                None => command.env_remove("XDG_RUNTIME_DIR"),
            };
            run(command, b"", LIMIT)
        };
        sandbox(&["run", "--detach", "--id", &id, "--", "sleep", "1000"]).success();
        for directory in [&*state, state.parent().unwrap()] {
            let directory = fs::symlink_metadata(directory).unwrap();
            assert!(directory.is_dir() && directory.uid() == uid);
            assert_eq!(directory.mode() & 0o7777, 0o700);
        }
        sandbox(&["ps"]).success().out_has(&id);
        // A guest that is shown the host's /tmp does not see it.
        let list = format!("ls /tmp/sandbox-{uid} 2>&1");
        sandbox(&["run", "--rw", "/tmp", "--", "sh", "-c", &list]).success().expect_out("");
        sandbox(&["kill", &id, "KILL"]).success();
        sandbox(&["wait", &id]).expect_status(137);
        assert!(!state.exists());
        // Other sandboxes of this user may be running, and come and go.
        wait_for("the end of an empty directory", || {
            let base = fs::read_dir(state.parent().unwrap());
            base.map_or(0, Iterator::count) > 0 || !state.parent().unwrap().exists()
        });
    }
}

#[test]
fn a_state_directory_that_is_not_ours_alone_is_not_used() {
    let desk = Desk::new("loose");
    let base = desk.runtime().join("sandbox");
    fs::create_dir(&base).unwrap();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o777)).unwrap();
    desk.sandbox(&["run", "--id", "x", "--", "true"]).one_line_error(125, &["XDG_RUNTIME_DIR"]);
    desk.sandbox(&["run", "--detach", "--", "true"]).one_line_error(125, &["XDG_RUNTIME_DIR"]);
    desk.sandbox(&["ps"]).one_line_error(125, &["XDG_RUNTIME_DIR"]);
    // A run that needs none goes on without, and -v says so.
    desk.sandbox(&["--", "true"]).success().expect_err("");
    desk.sandbox(&["-v", "--", "true"]).success().err_has("no verb will find this run");
    fs::remove_dir(&base).unwrap();
    // Nor is a link followed.
    let elsewhere = desk.workspace.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &base).unwrap();
    desk.sandbox(&["run", "--id", "x", "--", "true"]).one_line_error(125, &["XDG_RUNTIME_DIR"]);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn many_come_and_go_at_once() {
    let desk = Desk::new("crowd");
    let children: Vec<_> = (0..12).map(|_| desk.begin(&["--", "true"])).collect();
    for child in children {
        finish(child, "run".into(), b"", LIMIT).success().expect_err("");
    }
    desk.expect_nothing();
}
