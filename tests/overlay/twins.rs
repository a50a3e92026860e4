//! Overlays where the kernel makes none: what is special about them. That they are like the others, the others' tests
//! say (`desk::both`).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::common::{LIMIT, guest, have, is_root, run, sandbox_program, skip, wait_for};
use super::desk::{Desk, expected, same_trees, tree};

const WITHOUT: [&str; 2] = ["--without", "overlayfs"];

/// Starts a program that goes on until something is written to `pipe`.
fn begin(desk: &Desk, id: &str, script: &str) {
    let script = format!("{script}; echo done > ready; read x < pipe; echo y > late");
    let words = ["run", "--detach", "--id", id, "--overlay", ".", "--without", "overlayfs", "--"];
    desk.words(&[&words[..], &["sh", "-c", &script]].concat()).success();
    let there = || desk.words(&["exec", id, "--", "test", "-e", "ready"]).status == 0;
    wait_for("the program's first changes", there);
}

#[test]
fn what_takes_overlayfs_is_refused_by_name() {
    let desk = Desk::new("refused");
    let asked =
        |words: &[&str]| desk.words(&[&WITHOUT[..], words, &["--", "touch", "ran"]].concat());
    for (words, named) in [
        (&["--overlay", "/"][..], "--overlay /"),
        (&["--overlay", ".", "--root"], "--root"),
        (&["--overlay", ".", "--fake-fsync"], "--fake-fsync"),
        (&["--overlay", ".", "--record-files", "../record"], "--record-files"),
    ] {
        asked(words).one_line_error(125, &[named, "it takes overlayfs", "--without overlayfs"]);
    }
    assert!(!desk.host.join("ran").exists());
    desk.nothing_is_kept();
}

#[test]
fn a_run_that_goes_on_has_no_list_yet_and_cannot_be_saved() {
    let desk = Desk::new("goes-on");
    begin(&desk, "live", "echo x > src/f1");
    desk.words(&["diff", "live"]).one_line_error(2, &["live", "where there is no overlayfs"]);
    desk.words(&["commit", "live"]).one_line_error(125, &["in use by a running sandbox"]);
    desk.words(&["discard", "live"]).one_line_error(125, &["in use by a running sandbox"]);
    let saved = desk.words(&["save", "live", "-o", "../image", "--leave-running"]);
    saved.failure().err_has("cannot save a sandbox whose overlay is made without overlayfs");
    // (It may be killed with the rest, once the program has read that.)
    desk.words(&["exec", "live", "--", "sh", "-c", "echo > pipe"]);
    desk.words(&["wait", "live"]).success();
    desk.words(&["commit", "live"]).success().expect_out("committed: 2 added, 1 changed\n");
}

#[test]
fn nothing_is_lost_with_a_run_that_is_killed() {
    let desk = Desk::new("killed");
    let work = "echo x > src/f1; cat src/f2 >/dev/null; rm src/f3; mv docs papers; echo new > new";
    let before = tree(&desk.host);
    begin(&desk, "k", work);
    let listed = desk.words(&["ps", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let row = rows.as_array().unwrap().iter().find(|row| row["id"] == "k").unwrap();
    let pid = row["pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::SIGKILL)
        .unwrap();
    // The next verb gathers what it has left.
    wait_for("its end", || desk.words(&["diff", "k"]).status == 1);
    same_trees("the host's tree has changed", &tree(&desk.host), &before);
    desk.sh(&desk.copy, &format!("{work}; echo done > ready")).success();
    let after = tree(&desk.copy);
    assert_eq!(desk.diff("k"), expected(&before, &after));
    desk.words(&["commit", "k"]).success();
    same_trees("the commit did not do the same", &tree(&desk.host), &after);
}

#[test]
fn programs_in_an_overlay_are_executed() {
    if !have("python3") {
        return;
    }
    let desk = Desk::new("programs");
    let seed = "mkdir bin; cp \"$(readlink -f \"$(command -v env)\")\" bin/own-env; ln -s own-env bin/linked
        printf '#!bin/own-env sh\\necho script $0\\n' > bin/script
        printf '#!bin/second\\nx\\n' > bin/third; printf '#!bin/own-env cat\\n' > bin/second
        chmod 755 bin/*; chmod 555 bin/own-env";
    desk.sh(&desk.host, seed).success();
    let inside = |words: &[&str]| {
        desk.words(&[&["run", "--overlay", "."][..], &WITHOUT, &["--"], words].concat())
    };
    inside(&["bin/linked", "echo", "direct"]).success().expect_out("direct\n");
    inside(&["./bin/script"]).success().expect_out("script ./bin/script\n");
    inside(&["bash", "-c", "PATH=$PWD/bin:$PATH; linked echo path; script"])
        .success()
        .out_has("path\nscript ");
    inside(&["./bin/third"]).success().expect_out("#!bin/own-env cat\n#!bin/second\nx\n");
    let by_descriptor = "import os\nfd = os.open('bin/own-env', os.O_PATH)\nos.execve(fd, ['env', 'echo', 'fd'], {})";
    inside(&["python3", "-c", by_descriptor]).success().expect_out("fd\n");
    begin(&desk, "later", "true");
    desk.words(&["exec", "later", "--", "bin/script"]).success().expect_out("script bin/script\n");
    desk.words(&["exec", "later", "--", "sh", "-c", "echo > pipe"]);
    desk.words(&["wait", "later"]).success();
}

#[test]
fn content_is_there_by_every_road() {
    if !have("python3") {
        return;
    }
    let desk = Desk::new("roads");
    let script = r#"
import mmap, os, threading
def whole(path): return open(path, "rb").read()
want = b"".join(b"%d\n" % n for n in range(1, 2001))
handle = os.open("docs/long", os.O_PATH)
directory = os.open("docs", os.O_DIRECTORY)
# Many at once, by different names.
names = ["docs/long", "/proc/self/fd/%d" % handle, "/proc/self/fd/%d/long" % directory, "src/../docs/long"]
found = []
threads = [threading.Thread(target=lambda n=n: found.append(whole(n))) for n in names * 8]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(found) == 32 and all(it == want for it in found), "many at once"
# Never opened before, under another name, and what takes its inode.
os.link("src/f1", "linked/f1"); os.rename("src/f2", "moved"); os.unlink("src/f3")
for n in range(50): open("fresh%d" % n, "x").write("new %d" % n)
assert whole("linked/f1") == b"file 1\n" and whole("moved") == b"file 2\n"
assert all(whole("fresh%d" % n) == b"new %d" % n for n in range(50)), "an inode of another file"
os.truncate("src/f4", 3)
assert whole("src/f4") == b"fil"
before = os.stat("src/deep/er/g1"); os.utime("src/deep/er/g1", (1, 2)); os.chmod("src/deep/er/g1", 0o400)
assert whole("src/deep/er/g1") == b"deep 1\n" and os.stat("src/deep/er/g1").st_mtime == 2
assert os.stat("src/deep/er/g1").st_ino == before.st_ino
fd = os.open("src/deep/er/g2", os.O_RDWR)
with mmap.mmap(fd, 0) as map:
    assert map[:] == b"deep 2\n"; map[0:4] = b"DEEP"
assert whole("src/deep/er/g2") == b"DEEP 2\n"
with open("src/deep/er/g3", "ab") as file: file.write(b"more\n")
assert whole("src/deep/er/g3") == b"deep 3\nmore\n"
os.rename("src/deep", "deeper")
assert whole("deeper/er/g4") == b"deep 4\n"
data = os.stat("sparse"); assert data.st_size == 300000
assert whole("sparse")[200000:200001] == b"x"
"#;
    let before = tree(&desk.host);
    desk.sh(&desk.copy, &format!("python3 - <<'EOF'\n{script}\nEOF")).success();
    let words = [
        "run",
        "--id",
        "r",
        "--overlay",
        ".",
        "--without",
        "overlayfs",
        "--",
        "python3",
        "-c",
        script,
    ];
    desk.words(&words).success();
    same_trees("the host's tree has changed", &tree(&desk.host), &before);
    let after = tree(&desk.copy);
    assert_eq!(desk.diff("r"), expected(&before, &after));
    desk.words(&["commit", "r"]).success();
    same_trees("the commit did not do the same", &tree(&desk.host), &after);
    desk.nothing_is_kept();
}

#[test]
fn what_was_only_read_is_no_change_even_if_the_host_changes_it() {
    let desk = Desk::new("read");
    desk.words(&[
        "run",
        "--id",
        "r",
        "--overlay",
        ".",
        "--without",
        "overlayfs",
        "--",
        "sh",
        "-c",
        "cat src/f1 src/f2 >/dev/null; echo x > new; chmod 600 src/f2; chmod 644 src/f2",
    ])
    .success();
    fs::write(desk.host.join("src/f1"), "by the host\n").unwrap();
    fs::write(desk.host.join("src/f4"), "by the host\n").unwrap();
    assert_eq!(desk.diff("r"), [('A', "new".into())]);
    desk.words(&["commit", "r"]).success().expect_out("committed: 1 added\n");
}

#[test]
fn a_file_of_somebody_elses_is_shown_with_the_rights_that_there_are() {
    if is_root() {
        return skip("an ordinary user");
    }
    let desk = Desk::new("closed");
    // What the user may not read is so inside, too, and what was not read is not lost.
    desk.sh(
        &desk.host,
        "echo secret > closed; chmod 0 closed; mkdir shut; echo in > shut/in; chmod 0 shut",
    )
    .success();
    let script = "cat closed; ls shut; echo x > new";
    let outcome = desk.words(&[
        "run",
        "--id",
        "c",
        "--overlay",
        ".",
        "--without",
        "overlayfs",
        "--",
        "sh",
        "-c",
        script,
    ]);
    outcome.success().err_has("closed: Permission denied").err_has("shut");
    assert_eq!(desk.diff("c"), [('A', "new".into())]);
    desk.words(&["commit", "c"]).success();
    assert_eq!(fs::metadata(desk.host.join("closed")).unwrap().size(), 7);
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(desk.host.join("shut"), open).unwrap();
    assert!(desk.host.join("shut/in").exists());
}

#[test]
fn an_overlay_is_a_place_for_one_then() {
    if !is_root() {
        return skip("root, who can mount");
    }
    let desk = Desk::new("stacked");
    let script = "mkdir u w m; mount -t overlay -o lowerdir=host,upperdir=u,workdir=w none m && cd m && \
        \"$0\" run --id s --overlay src --overlay-dir store -- sh -c 'cat src/f1; rm src/f2; echo x > src/f3' && \
        \"$0\" diff s --overlay-dir store | sed 's/.*\\/src/src/'; \"$0\" commit s --overlay-dir store && ls src && \
        cat src/f3";
    let mut command = desk.space.command("unshare");
    command.env("XDG_STATE_HOME", desk.space.path().join("state"));
    command.args(["-m", "sh", "-c", script]).arg(sandbox_program());
    run(command, b"", LIMIT).success().expect_out(
        "file 1\nsrc/f2\nsrc/f3\ncommitted: 1 changed, 1 deleted\ndeep\nf1\nf3\nf4\nx\n",
    );
}

#[test]
fn where_the_kernel_refuses_overlays_none_is_asked_of_it() {
    let desk = Desk::new("denied");
    // Who forbids fsopen(2) forbids overlays of users, and nothing else of a run.
    let mut command = desk.sandbox();
    let sandbox =
        std::mem::replace(&mut command, std::process::Command::new(guest("outer_filter")));
    command.arg("fsopen=EPERM").arg(sandbox.get_program()).current_dir(&desk.host);
    command.envs(sandbox.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args([
        "run",
        "-v",
        "--id",
        "d",
        "--overlay",
        ".",
        "--",
        "sh",
        "-c",
        "cat src/f1; echo x > y",
    ]);
    let outcome = run(command, b"", LIMIT);
    outcome.success().expect_out("file 1\n").err_has("overlays are kept without overlayfs");
    assert_eq!(desk.diff("d"), [('A', "y".into())]);
    // The kernel goes on with it.
    desk.inside("d", "cat y src/f2; rm y").success().expect_out("x\nfile 2\n");
    desk.nothing_is_kept();
}
