//! `--overlay /`.

use std::fs;

use super::common::{LIMIT, Outcome, Workspace, is_root, run, sandbox_program};
use super::desk::{Desk, same_trees, tree};

/// Runs a script with everything overlaid. It is given no chance where that is not so: the root has to be an
/// overlay, and nothing that can be written to of any other kind than those of the sandbox's own.
fn everywhere(desk: &Desk, id: &str, script: &str) -> Outcome {
    everywhere_with(&[], desk, id, script)
}

fn everywhere_with(flags: &[&str], desk: &Desk, id: &str, script: &str) -> Outcome {
    let sure = format!(
        "grep -q '^overlay / overlay ' /proc/self/mounts || exit 99\n\
         awk '$4 ~ /^rw/ && $3 !~ /^(overlay|tmpfs|proc|devpts|mqueue)$/ {{ exit 1 }}' /proc/self/mounts \
         || exit 98\n{script}"
    );
    let words = ["run", "--id", id, "--overlay", "/"];
    desk.words(&[&words[..], flags, &["--", "sh", "-c", &sure]].concat())
}

#[test]
fn everything_can_be_removed_inside_and_nothing_is_gone() {
    let desk = Desk::new("rm");
    let before = tree(&desk.host);
    let etc = tree("/etc".as_ref());
    // First something harmless, to be sure.
    everywhere(&desk, "try", "rm src/f1; touch probe").success();
    assert!(desk.host.join("src/f1").exists() && !desk.host.join("probe").exists());
    desk.words(&["discard", "try"]).success();
    // What is large is out of the way: to remove a million files takes minutes, natively as well.
    let mut flags = vec!["--ro=/usr".to_owned(), format!("--overlay={}", desk.host.display())];
    for entry in fs::read_dir("/").unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let kept = ["etc", "usr", "dev", "proc", "sys", "tmp", "run"];
        if kind.is_dir() && !kept.iter().any(|name| path.ends_with(name)) {
            flags.push(format!("--hide={}", path.display()));
        }
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let script = "rm -rf --no-preserve-root / 2>/dev/null; echo \"$?\"; [ -e src ] || echo gone";
    let outcome = everywhere_with(&flags, &desk, "rm", script);
    outcome.success().expect_out("1\ngone\n");
    same_trees("the host's tree has changed", &tree(&desk.host), &before);
    same_trees("the host's /etc has changed", &tree("/etc".as_ref()), &etc);
    assert!(fs::exists("/usr/bin/env").unwrap() && desk.host.join("src/f1").exists());
    let listed = desk.words(&["diff", "rm"]);
    listed.expect_status(1).out_has(&format!("D {}/src\n", desk.host.display()));
    if is_root() {
        listed.out_has("D /etc/passwd\n").out_has("D /etc/init.d\n");
    }
    desk.words(&["discard", "rm"]).success();
    everywhere(&desk, "after", "cat src/f1").success().expect_out("file 1\n");
}

#[test]
fn changes_all_over_are_listed_and_committed() {
    let desk = Desk::new("all");
    let home = Workspace::new("home");
    let script = format!(
        "echo a > here; echo b > {}/there; ln here hard; mv docs moved",
        home.path().display()
    );
    everywhere(&desk, "all", &script).success();
    assert!(!desk.host.join("here").exists());
    let listed = desk.words(&["diff", "all"]);
    listed.expect_status(1).out_has(&format!("A {}/there\n", home.path().display()));
    desk.words(&["commit", "all"]).success();
    assert_eq!(home.read("there"), "b\n");
    assert!(desk.host.join("moved/long").exists() && !desk.host.join("docs").exists());
    desk.nothing_is_kept();
}

#[test]
fn secrets_and_the_overlays_themselves_stay_hidden() {
    let desk = Desk::new("secrets");
    fs::create_dir_all(desk.space.path().join("home/.ssh")).unwrap();
    fs::write(desk.space.path().join("home/.ssh/id"), "secret").unwrap();
    let mut command = desk.sandbox();
    command.env("HOME", desk.space.path().join("home")).args(["--overlay", "/", "--", "sh", "-c"]);
    command.arg("cat ~/.ssh/id; ls ../state/sandbox/overlays; rm -rf ~/.ssh; mv ~/.ssh ~/x; ls -A /tmp /run");
    let outcome = run(command, b"", LIMIT);
    outcome.expect_out("/run:\n\n/tmp:\n").err_has(".ssh/id").err_has("overlays");
    assert!(desk.space.has("home/.ssh/id"));
}

#[test]
fn roots_own_files_are_changed_in_the_overlay_only() {
    if !is_root() {
        return;
    }
    let desk = Desk::new("root");
    let before = (tree("/etc".as_ref()), fs::read_to_string("/etc/passwd").unwrap());
    let script = "echo x >> /etc/passwd; rm -r /opt; touch /new-at-the-top /usr/local/new; \
        chmod 600 /etc/hostname; mkdir /srv/d; stat -c %a /etc/hostname";
    everywhere(&desk, "r", script).out_has("600\n");
    same_trees("the host's /etc has changed", &tree("/etc".as_ref()), &before.0);
    assert!(!fs::exists("/new-at-the-top").unwrap() && !fs::exists("/usr/local/new").unwrap());
    let listed = desk.words(&["diff", "r"]);
    for line in [
        "M /etc/passwd\n",
        "P /etc/hostname\n",
        "A /new-at-the-top\n",
        "A /usr/local/new\n",
        "A /srv/d\n",
    ] {
        listed.out_has(line);
    }
    desk.words(&["discard", "r"]).success();
}

#[test]
fn what_belongs_to_others_cannot_be_copied_up_by_an_ordinary_user() {
    if is_root() {
        return;
    }
    let desk = Desk::new("foreign");
    // /usr cannot be written natively either; the directories on the way to the working directory belong to
    // others, and in it everything can be.
    let outcome = everywhere(&desk, "f", "echo x > mine; touch /usr/x /x");
    outcome.failure().err_has("/usr/x").err_has("/x");
    assert_eq!(desk.diff("f"), [('A', "mine".into())]);
    desk.words(&["commit", "f"]).success();
    assert!(desk.host.join("mine").exists());
}

#[test]
fn where_no_new_sysfs_may_be_mounted_the_hosts_shows_read_only() {
    if !is_root() {
        return;
    }
    let desk = Desk::new("sysfs");
    // The kernel gives no new one where a part of the one in sight is covered.
    let script = "ls -d /sys/kernel/mm && ! mkdir /sys/new && ! rmdir /sys/kernel";
    let covered = "mount -t tmpfs none /sys/module && exec \"$@\"";
    let mut command = desk.space.command("unshare");
    command.args(["-m", "sh", "-c", covered, "sh"]).arg(sandbox_program());
    command.current_dir(&desk.host).env("XDG_STATE_HOME", desk.space.path().join("state"));
    command.env("XDG_RUNTIME_DIR", desk.space.path().join("run"));
    command.args(["--overlay", "/", "--", "sh", "-c", script]);
    run(command, b"", LIMIT).success().expect_out("/sys/kernel/mm\n");
}
