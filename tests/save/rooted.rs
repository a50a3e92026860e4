//! Runs with `--root`: whom programs have become, whose files are, and which root directory somebody has, goes on.

use std::fs;

use crate::common::{LIMIT, guest, have, is_root, run, skip, wait_for};
use crate::desk::{Desk, Way};

#[test]
fn the_guest_program_is_root_natively() {
    if !is_root() {
        return skip("root");
    }
    let desk = Desk::new("rooted-native");
    desk.touch("go");
    let mut command = desk.workspace.command(guest("save_root"));
    command.args(["up", "go", "own"]);
    run(command, b"", LIMIT).success().expect_out("all so\n");
}

#[test]
fn whom_programs_have_become_and_whose_files_are_goes_on() {
    for way in [Way::LeftRunning, Way::Restored, Way::RestoredTwice] {
        let desk = Desk::new(&format!("rooted-{way:?}"));
        desk.begin_with(&["--root"], "save_root", "up go own /tmp/own");
        desk.save(way);
        desk.touch("go");
        desk.ends_well("all so\n");
        desk.is_clean();
    }
}

#[test]
fn so_it_does_in_an_overlay_of_everything() {
    for way in [Way::LeftRunning, Way::RestoredTwice] {
        let desk = Desk::new(&format!("rooted-overlay-{way:?}"));
        let place = desk.workspace.path().to_str().unwrap().to_owned();
        let options = ["--root", "--overlay", "/", "--rw", &place];
        desk.begin_with(&options, "save_root", "up go /usr/own /tmp/own own");
        desk.save(way);
        desk.touch("go");
        desk.ends_well("all so\n");
        // What it has made is shown with the owners that it has given it.
        desk.sandbox(&["diff", "it"]).out_has("A /usr/own/plain (5:6 4755)");
        desk.sandbox(&["discard", "it"]).success();
    }
}

/// What the image was saved of goes on as well, and each is as it was.
#[test]
fn an_image_of_what_goes_on_is_restored_beside_it() {
    let desk = Desk::new("rooted-beside");
    desk.begin_with(&["--root"], "save_root", "up go /tmp/own");
    desk.save(Way::LeftRunning);
    desk.touch("go");
    let told = desk.sandbox(&["restore", "image", "--id", "other", "--files", "changed-ok"]);
    told.success().err_has("what was saved may do what its run was given: --root");
    desk.ends_well("all so\n");
}

/// Nobody has the whole file view any more.
#[test]
fn all_live_in_another_root_directory() {
    if !fs::exists("/usr/sbin/chroot").unwrap() || !fs::exists("/usr/lib64").unwrap() {
        return skip("chroot and a merged /usr");
    }
    for way in [Way::LeftRunning, Way::Restored, Way::RestoredTwice] {
        let desk = Desk::new(&format!("rooted-cell-{way:?}"));
        let inner = "cd /share; echo ready >&4; read -r word <&3
            echo \"$word: $(pwd) $(/bin/id -u) $(/bin/id -g)\"; cd /../..; test -d share && test ! -e /usr && echo well";
        desk.workspace.write("inner", inner);
        let script = "mkfifo fifo; exec 3<>fifo 4>said >out 2>&1
            exec chroot --userspec=5:6 /usr /bin/sh -c \"$(cat inner)\"";
        let run = ["run", "--detach", "--id", "it", "--root", "--", "sh", "-c", script];
        desk.sandbox(&run).success();
        wait_for("the shell", || {
            desk.workspace.has("said") && desk.workspace.read("said") == "ready\n"
        });
        desk.save(way);
        fs::write(desk.workspace.path().join("fifo"), "word\n").unwrap();
        desk.ends_well("word: /share 5 6\nwell\n");
    }
}

/// It has become somebody else and ended, and nobody has waited for it yet.
#[test]
fn who_has_ended_as_somebody_else_can_still_be_waited_for() {
    if !have("python3") {
        return skip("python3");
    }
    for way in [Way::LeftRunning, Way::RestoredTwice] {
        let desk = Desk::new(&format!("rooted-ended-{way:?}"));
        let script = "import os\nos.mkfifo('fifo')\npid = os.fork()\n\
            if pid == 0:\n    os.setuid(5)\n    os._exit(7)\n\
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\nos.setuid(6)\nopen('up', 'w').close()\n\
            open('fifo').read()\nprint(os.waitpid(pid, 0)[1] >> 8, os.getuid())\n";
        desk.workspace.write("script", script);
        let run = ["run", "--detach", "--id", "it", "--root", "--", "sh", "-c"];
        desk.sandbox(&[&run[..], &["exec python3 script > out 2>&1"]].concat()).success();
        wait_for("the program", || desk.workspace.has("up"));
        desk.save(way);
        fs::write(desk.workspace.path().join("fifo"), "").unwrap();
        desk.ends_well("7 6\n");
        desk.is_clean();
    }
}

#[test]
fn a_root_directory_that_is_gone_is_refused_by_name() {
    if !have("python3") {
        return skip("python3");
    }
    let desk = Desk::new("rooted-gone");
    let script = "import os, time\nos.mkdir('cell')\nready, told = os.pipe()\n\
        if os.fork() == 0:\n    os.chroot('cell')\n    os.write(told, b'x')\n    time.sleep(1000)\n\
        os.read(ready, 1)\nos.rmdir('cell')\nopen('up', 'w').close()\ntime.sleep(1000)\n";
    let run = ["run", "--detach", "--id", "it", "--root", "--", "python3", "-c", script];
    desk.sandbox(&run).success();
    wait_for("the program", || desk.workspace.has("up"));
    let refused = desk.sandbox(&["save", "it", "-o", "image"]);
    refused.one_line_error(125, &["root directory", "cell", "end it first"]);
    // It goes on.
    desk.sandbox(&["exec", "it", "--", "id", "-u"]).success().expect_out("0\n");
}
