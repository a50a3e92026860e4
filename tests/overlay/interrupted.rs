//! A commit that is killed, or finds no room: every path is old or new, and the next commit finishes it.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::common::{LIMIT, is_root, run};
use super::desk::{Desk, Tree, Unmount, same_trees, tree};

const SEED: &str = "for n in $(seq 1 40); do mkdir d$n; for m in $(seq 1 10); do echo old $n $m > d$n/f$m; done; done
    for n in $(seq 41 60); do mkdir d$n; echo old > d$n/x; done
    find . -exec touch -h -d '2001-02-03 04:05:06' {} +";
const WORK: &str =
    "for n in $(seq 1 40); do for m in $(seq 1 10); do echo new $n $m > d$n/f$m; done; done
    for n in $(seq 41 50); do rm -r d$n; done
    for n in $(seq 51 60); do rm -r d$n; echo file > d$n; done
    for n in $(seq 1 20); do mkdir -p n$n/a; seq 1 200 > n$n/a/s; ln n$n/a/s n$n/t; done
    head -c 3000000 /dev/urandom > big";

/// Every path is as it was or as it will be, but for copies that are not in their place.
fn old_or_new(now: &Tree, old: &Tree, new: &Tree) {
    for path in old.keys().chain(new.keys()) {
        let same = |other: &Tree| match (now.get(path), other.get(path)) {
            (Some(one), Some(other)) => one.kind == other.kind && one.content == other.content,
            (None, None) => true,
            _ => false,
        };
        assert!(same(old) || same(new), "{path:?} is neither old nor new: {:?}", now.get(path));
    }
    for path in now.keys() {
        let copy =
            path.iter().any(|name| name.to_str().is_some_and(|it| it.contains("sandbox-commit-")));
        assert!(copy || old.contains_key(path) || new.contains_key(path), "{path:?} is nobody's");
    }
}

#[test]
fn a_killed_commit_is_finished_by_the_next() {
    let desk = Desk::seeded("killed", SEED);
    let old = tree(&desk.host);
    desk.inside("k", WORK).success();
    let commit = |desk: &Desk| {
        let mut command = desk.sandbox();
        command.args(["commit", "k"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    // How long a whole one takes is found on the first twin of it; then it is killed at many moments.
    let new = {
        let mut twin = desk.sandbox();
        twin.args(["run", "--id", "twin", "--overlay", ".", "--", "bash", "-euc", WORK]);
        run(twin, b"", LIMIT).success();
        let copy = desk.space.path().join("twin");
        let mut save = desk.space.command("cp");
        save.arg("-a").arg(&desk.host).arg(&copy);
        run(save, b"", LIMIT).success();
        desk.words(&["discard", "twin"]).success();
        desk.sh(&copy, &WORK.replace("head -c 3000000 /dev/urandom > big", "")).success();
        tree(&copy)
    };
    let mut finished = false;
    for step in 0..40u32 {
        let mut child = commit(&desk);
        let end = Instant::now() + Duration::from_millis(u64::from(step * 7));
        while Instant::now() < end && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(300));
        }
        let _ = child.kill();
        finished = child.wait().unwrap().success();
        let mut now = tree(&desk.host);
        now.remove(Path::new("big"));
        old_or_new(&now, &old, &new);
        if finished {
            break;
        }
    }
    if !finished {
        // Or the last one was killed when all was done.
        let last = desk.words(&["commit", "k"]);
        assert!(last.status == 0 || last.err().contains("no overlay is kept"), "{}", last.report());
    }
    let mut now = tree(&desk.host);
    assert_eq!(now.remove(Path::new("big")).map(|it| it.content.len()), Some(3_000_000));
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&now), names(&new), "something is left over, or lacks");
    old_or_new(&now, &new, &new);
    desk.nothing_is_kept();
}

#[test]
fn a_full_disk_changes_nothing_and_more_room_finishes_it() {
    if !is_root() {
        return;
    }
    let desk = Desk::seeded("full", "true");
    let _unmount = Unmount::tmpfs(&desk.host, "size=1m");
    fs::write(desk.host.join("f"), "old").unwrap();
    let before = tree(&desk.host);
    desk.inside(
        "f",
        "echo new > f; head -c 3000000 /dev/zero | tr '\\0' x > big; mkdir d; echo z > d/z",
    )
    .success();
    let outcome = desk.words(&["commit", "f"]);
    outcome.one_line_error(125, &["big", "No space left on device", "nothing was committed"]);
    same_trees("the host's tree has changed", &tree(&desk.host), &before);
    let mut more = desk.space.command("mount");
    more.args(["-o", "remount,size=10m"]).arg(&desk.host);
    run(more, b"", LIMIT).success();
    desk.words(&["commit", "f"]).success();
    assert_eq!(fs::metadata(desk.host.join("big")).unwrap().len(), 3_000_000);
    assert_eq!(fs::read_to_string(desk.host.join("f")).unwrap(), "new\n");
    desk.nothing_is_kept();
}
