//! `--root=sub-ids`: users and owners inside are the kernel's, and what they leave can be listed, given and removed.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::common::{
    LIMIT, Outcome, Workspace, command_line, finish, have, is_root, run, sandbox_program, skip,
    start, wait_for,
};

/// Says why these tests have nothing to do here, if so: they are for ordinary users who have ids.
fn lacks_ids() -> bool {
    let has = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        let name = user.map_or_else(String::new, |user| user.name);
        text.lines().any(|line| line.split(':').next() == Some(name.as_str()))
    };
    let lacking = is_root() || !has("/etc/subuid") || !has("/etc/subgid") || !have("newuidmap");
    if lacking {
        skip("ordinary user with subordinate ids, or newuidmap");
    }
    lacking
}

const FLAG: &str = "--root=sub-ids";

/// A sandbox whose overlays are kept in the workspace.
fn sandbox(workspace: &Workspace, words: &[&str]) -> Command {
    let mut command = workspace.sandbox();
    command.env("XDG_STATE_HOME", workspace.path().join("state")).args(words);
    command
}

fn sandbox_sh(workspace: &Workspace, words: &[&str], script: &str) -> Outcome {
    let mut command = sandbox(workspace, words);
    command.args(["--", "sh", "-c", script]);
    run(command, b"", LIMIT)
}

fn verb(workspace: &Workspace, words: &[&str]) -> Outcome {
    run(sandbox(workspace, words), b"", LIMIT)
}

/// The test's own place has nothing of others in it when it is removed.
fn clear(workspace: &Workspace) {
    let script = "for it in *; do test \"$it\" = state || rm -r \"$it\" || exit; done";
    sandbox_sh(workspace, &[FLAG], script).success();
}

#[test]
fn owners_are_the_kernels() {
    if lacks_ids() {
        return;
    }
    let workspace = Workspace::new("sub-ids-owners");
    if !have("setpriv") {
        return skip("setpriv");
    }
    let script = "id -u; id -G; touch f; chown 33:34 f; mkdir d; chown 5:60 d
        stat -c '%u:%g' f d; setpriv --reuid=33 --regid=34 --groups=7,34 sh -c '
            id -u; id -g; id -G; echo x >> f && echo wrote
            stat -L -c %u /proc/self; echo x 2>/dev/null > root || echo kept out
            chown 6 f 2>/dev/null || echo kept
            kill -0 $PPID 2>/dev/null || echo not mine'
        touch root; chmod 600 root
        setpriv --reuid=1000 --regid=1000 --clear-groups sh -c 'cat root 2>/dev/null || echo closed'";
    sandbox_sh(&workspace, &[FLAG], script).success().expect_out(
        "0\n0\n33:34\n5:60\n33\n34\n34 7\nwrote\n33\nkept out\nkept\nnot mine\nclosed\n",
    );
    let stat = std::fs::metadata(workspace.path().join("f")).unwrap();
    let own = nix::unistd::geteuid().as_raw();
    assert!(stat.uid() != own && stat.uid() > 65_535, "{}", stat.uid());
    // To the kernel it is another user, from whom nothing can be removed outside.
    std::fs::write(workspace.path().join("f"), "y").unwrap_err();
    clear(&workspace);
}

#[test]
fn an_archive_keeps_its_owners() {
    if lacks_ids() {
        return;
    }
    let workspace = Workspace::new("sub-ids-tar");
    if !have("tar") {
        return skip("tar");
    }
    let script =
        "mkdir t t/closed; echo a > t/a; chown 101:102 t/a; chown 103 t/closed; chmod 700 t/closed
        tar -cf t.tar t; rm -r t; tar -xpf t.tar; stat -c '%n %u:%g %a' t/a t/closed
        tar -tvf t.tar --numeric-owner t/a | cut -d' ' -f2";
    let done = sandbox_sh(&workspace, &[FLAG], script);
    done.success().expect_out("t/a 101:102 644\nt/closed 103:0 700\n101/102\n");
    clear(&workspace);
}

/// What counts on the host, or opens a wall, is not root's inside either.
#[test]
fn the_walls_stand() {
    if lacks_ids() {
        return;
    }
    let workspace = Workspace::new("sub-ids-walls");
    let script = "touch f
        for call in 'chmod 4755 f' 'mknod n c 1 3' 'mount -t tmpfs none .' 'unshare -U true' 'unshare -m true' \
            'chown 4294967 f' 'nice -n -5 true' 'dd of=/proc/sys/user/max_user_namespaces' 'touch /etc/hostname'; do
            echo 1 | $call 2>err && test ! -s err && echo \"SECRET $call\"
        done
        kill -KILL 1; kill -TERM 1; echo there
        chown 33 f; chmod 4755 f 2>/dev/null; stat -c %a f
        grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status";
    let capabilities =
        [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31].iter().fold(0_u64, |set, it| set | 1 << it);
    let set = format!("{capabilities:016x}");
    sandbox_sh(&workspace, &[FLAG], script)
        .success()
        .expect_out(&format!("there\n644\nCapEff:\t{set}\nCapBnd:\t{set}\nNoNewPrivs:\t1\n"));
    clear(&workspace);
}

#[test]
fn a_root_directory_of_ones_own_can_be_had() {
    if lacks_ids() {
        return;
    }
    let workspace = Workspace::new("sub-ids-chroot");
    if !have("python3") {
        return skip("python3");
    }
    let script = "import os; os.mkdir('t'); os.chroot('t'); os.chdir('/'); print(os.listdir('.'))
open('made', 'w').close(); os.chown('made', 42, 43); print(os.stat('made').st_uid)
os.setgroups([9]); os.setgid(43); os.setuid(42); print(os.getresuid(), os.getgroups())
try: os.setuid(0)
except PermissionError: print('no way back')";
    let mut command = sandbox(&workspace, &[FLAG, "--", "python3", "-c", script]);
    command.stdin(std::process::Stdio::null());
    let done = run(command, b"", LIMIT);
    done.success().expect_out("[]\n42\n(42, 42, 42) [9]\nno way back\n");
    clear(&workspace);
}

/// Everything that an overlay has of others can be told, and goes with it.
#[test]
fn an_overlay_is_listed_and_discarded() {
    if lacks_ids() {
        return;
    }
    let workspace = Workspace::new("sub-ids-overlay");
    workspace.write("d/kept", "kept\n");
    let words = ["run", FLAG, "--id", "mapped", "--overlay", "d"];
    let script =
        "cd d; mkdir -p a/b; echo x > a/b/f; chown -R 33:34 a; chmod 700 a/b a; chown 5 kept";
    sandbox_sh(&workspace, &words, script).success().err_has("sandbox diff mapped");
    let native = workspace.native(&["ls", "-R", "state/sandbox/overlays/mapped/layers/0/upper/a"]);
    native.failure();
    let diff = verb(&workspace, &["diff", "mapped"]);
    diff.expect_status(1);
    let lines: Vec<String> = diff
        .out()
        .lines()
        .map(|line| line.replace(&workspace.path().display().to_string(), ""))
        .collect();
    assert_eq!(lines, ["A /d/a", "A /d/a/b", "A /d/a/b/f", "P /d/kept"], "{}", diff.report());
    // A later run goes on with it, with the same ids alone.
    let again = sandbox_sh(&workspace, &words, "stat -c %u:%g d/a/b/f d/kept; cat d/kept");
    again.success().expect_out("33:34\n5:0\nkept\n");
    for words in [
        &["run", "--id", "mapped", "--overlay", "d"][..],
        &["run", "--root", "--id", "mapped", "--overlay", "d"],
    ] {
        let other = sandbox_sh(&workspace, words, "true");
        other.one_line_error(125, &["mapped", "--root=sub-ids", "discard"]);
    }
    verb(&workspace, &["discard", "mapped"]).success();
    assert!(!workspace.has("state/sandbox/overlays/mapped"));
    assert_eq!(workspace.read("d/kept"), "kept\n");
}

#[test]
fn a_later_run_has_an_overlay_whose_root_was_given_away() {
    if lacks_ids() {
        return;
    }
    let workspace = Workspace::new("sub-ids-given-away");
    workspace.write("d/kept", "kept\n");
    let words = ["run", FLAG, "--id", "away", "--overlay", "d"];
    sandbox_sh(&workspace, &words, "chown 33:34 d; chmod 700 d").success();
    let again = sandbox_sh(&workspace, &words, "stat -c '%u:%g %a' d; cat d/kept; touch d/new");
    again.success().expect_out("33:34 700\nkept\n");
    verb(&workspace, &["discard", "away"]).success();
    assert!(!workspace.has("state/sandbox/overlays/away"));
}

#[test]
fn a_commit_gives_the_host_the_owners() {
    if lacks_ids() {
        return;
    }
    let workspace = Workspace::new("sub-ids-commit");
    workspace.write("d/kept", "kept\n");
    let words = ["run", FLAG, "--id", "given", "--overlay", "d"];
    let script =
        "cd d; mkdir a; echo x > a/f; chown -R 33:34 a; chmod 700 a; echo y >> kept; echo z > mine";
    sandbox_sh(&workspace, &words, script).success();
    verb(&workspace, &["commit", "given"]).success();
    assert!(!workspace.has("state/sandbox/overlays/given"));
    assert_eq!(workspace.read("d/kept"), "kept\ny\n");
    let own = nix::unistd::geteuid().as_raw();
    let uid = |name: &str| std::fs::metadata(workspace.path().join(name)).unwrap().uid();
    assert_eq!((uid("d/mine"), uid("d/kept")), (own, own));
    assert_ne!(uid("d/a"), own);
    sandbox_sh(&workspace, &[FLAG], "stat -c %u:%g d/a/f; cat d/a/f")
        .success()
        .expect_out("33:34\nx\n");
    clear(&workspace);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    if lacks_ids() {
        return;
    }
    let workspace = Workspace::new("sub-ids-refused");
    for (words, named) in [
        (&["--time", "+1d"][..], "--time"),
        (&["--deterministic"], "--deterministic"),
        (&["--record-files", "list.json"], "--record-files"),
        (&["--hide", "./**/*.pem"], "patterns"),
        (&["--user", "5:5"], "--user"),
        (&["--walls", "landlock"], "--walls landlock"),
    ] {
        let words: Vec<&str> = [FLAG].iter().chain(words).copied().collect();
        sandbox_sh(&workspace, &words, "true").one_line_error(125, &["--root", named]);
    }
    sandbox_sh(&workspace, &["--root=nobody"], "true")
        .one_line_error(125, &["--root=nobody", "sub-ids"]);
    let mut command = sandbox(&workspace, &["run", FLAG, "--id", "unsaved", "--", "sh", "-c"]);
    command.arg("touch begun; read line").stdin(std::process::Stdio::piped());
    let words = command_line(&command);
    let child = start(command);
    wait_for("the program inside", || workspace.has("begun"));
    verb(&workspace, &["save", "unsaved", "-o", "image"]).failure().err_has("--root=sub-ids");
    let inside = verb(&workspace, &["exec", "unsaved", "--", "id", "-u"]);
    inside.success().expect_out("0\n");
    finish(child, words, b"go\n", LIMIT).success();
}

/// Whoever was given no ids is told of the file, and the host's root of what it would be inside.
#[test]
fn whoever_has_no_ids_is_told() {
    let workspace = Workspace::new("sub-ids-none");
    if !is_root() {
        return skip("root to become others from");
    }
    sandbox_sh(&workspace, &[FLAG], "true").one_line_error(125, &["as root", "--root"]);
    if !have("setpriv") {
        return skip("setpriv");
    }
    // A number that no user has.
    let program = sandbox_program();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=61234", "--regid=61234", "--clear-groups"]).arg(&program);
    command.args([FLAG, "--", "true"]).current_dir("/").env("HOME", "/");
    let done = run(command, b"", LIMIT);
    if done.err().contains("setpriv: failed to execute") {
        return skip("program that other users may execute");
    }
    done.one_line_error(125, &["/etc/subuid", "61234", "usermod --add-subuids"]);
}
