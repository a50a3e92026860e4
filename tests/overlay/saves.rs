//! Runs with overlays that are saved and go on: from the image, or where they were. The guest program finds
//! everything as it left it, and what it has changed in the end is what it changes when nothing interrupts it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::common::{Outcome, copy_program, guest, is_root, wait_for};
use super::desk::{Desk, Tree, Unmount, expected, same_trees, tree};

/// A desk with the guest program in the tree, and what the program makes of a copy of it natively.
struct Bench {
    desk: Desk,
    before: Tree,
    after: Tree,
    /// Of the host, and can be written: what the program prints.
    out: PathBuf,
}

impl Bench {
    fn new(test: &str) -> Bench {
        let desk = Desk::new(test);
        for place in [&desk.host, &desk.copy] {
            copy_program(&guest("save_overlay"), &place.join("save_overlay"));
            // The kernel does not mark its copy of such a file as one.
            fs::create_dir(place.join("two")).unwrap();
            fs::write(place.join("two/a"), "two names\n").unwrap();
            fs::hard_link(place.join("two/a"), place.join("two/b")).unwrap();
        }
        let out = desk.space.path().join("out");
        fs::create_dir(&out).unwrap();
        let before = tree(&desk.host);
        desk.sh(&desk.copy, "touch go; ./save_overlay").success().out_has("all is well");
        let mut after = tree(&desk.copy);
        close(&mut after);
        Bench { desk, before, after, out }
    }

    fn words(&self, words: &[&str]) -> Outcome {
        self.desk.words(words)
    }

    /// Starts the program in an overlay of this directory; it has done the first half when this returns.
    fn begin(&self, overlay: &str, flags: &[&str]) {
        let out = self.out.join("it");
        let script = format!("exec ./save_overlay >> {} 2>&1", out.display());
        let place = self.out.to_str().unwrap();
        let own = ["run", "--detach", "--id", "it", "--overlay", overlay, "--rw", place];
        let all = [&own[..], flags, &["--", "sh", "-c", &script]].concat();
        self.words(&all).success();
        wait_for("the program", || self.said().contains("up\n"));
    }

    fn said(&self) -> String {
        fs::read_to_string(self.out.join("it")).unwrap_or_default()
    }

    /// Saves it, which ends it.
    fn save(&self) {
        self.words(&["save", "it", "-o", "../image"]).success();
        self.words(&["wait", "it"]).expect_status(137);
    }

    fn restore(&self, id: &str, flags: &[&str]) {
        let own = ["restore", "../image", "--detach", "--id", id];
        self.words(&[&own[..], flags].concat()).success();
    }

    /// It does the second half, and finds all as it was.
    #[track_caller]
    fn ends_well(&self, id: &str) {
        fs::write(self.out.join("it"), "").unwrap();
        // (The program may end before touch(1) does, and the sandbox with it.)
        self.words(&["exec", id, "--", "touch", "go"]);
        let status = self.words(&["wait", id]).status;
        assert!(status == 0 && self.said() == "all is well\n", "status {status}:\n{}", self.said());
        same_trees("the host's tree has changed", &tree(&self.desk.host), &self.before);
    }

    /// The list is that of a run that nothing has interrupted, and a commit does the same.
    #[track_caller]
    fn is_alike(&self, id: &str) {
        assert_eq!(self.desk.diff(id), expected(&self.before, &self.after), "the list of {id}");
        self.words(&["commit", id]).success();
        let mut found = tree(&self.desk.host);
        close(&mut found);
        same_trees("the commit did not do the same", &found, &self.after);
        self.desk.nothing_is_kept();
    }
}

/// What a closed file holds, and when a directory was changed in which something was done at the end, is not
/// compared.
fn close(tree: &mut Tree) {
    for (path, entry) in tree.iter_mut() {
        if ["src", "docs", "new"].iter().any(|name| path == Path::new(name)) {
            entry.modified = None;
        }
    }
}

#[test]
fn what_a_run_has_changed_is_in_its_image() {
    let bench = Bench::new("saved");
    bench.begin(".", &[]);
    bench.save();
    bench.restore("it", &[]);
    bench.ends_well("it");
    bench.is_alike("it");
}

#[test]
fn an_image_is_one_moment_of_what_goes_on() {
    let bench = Bench::new("saved-live");
    bench.begin(".", &[]);
    bench.words(&["save", "it", "-o", "../image", "--leave-running"]).success();
    let then = bench.desk.diff("it");
    bench.ends_well("it");
    // It is kept, and not what the image knows of.
    let refused = bench.words(&["restore", "../image", "--detach"]);
    refused.one_line_error(125, &["the overlay that is kept of it has changes", "--id"]);
    assert_eq!(bench.desk.diff("it"), expected(&bench.before, &bench.after));
    bench.restore("again", &[]);
    assert_eq!(bench.desk.diff("again"), then, "what was done after the save is in the image");
    bench.ends_well("again");
    bench.words(&["discard", "it"]).success();
    bench.is_alike("again");
}

#[test]
fn one_image_is_restored_twice_and_once_more() {
    let bench = Bench::new("saved-twice");
    bench.begin(".", &[]);
    bench.save();
    bench.restore("one", &[]);
    bench.restore("two", &["--lazy"]);
    bench.ends_well("one");
    // What was restored is saved again, and goes on from there.
    bench.words(&["save", "two", "-o", "../image"]).success();
    bench.words(&["wait", "two"]).expect_status(137);
    bench.restore("two", &[]);
    bench.ends_well("two");
    for id in ["it", "one"] {
        bench.words(&["discard", id]).success();
    }
    bench.is_alike("two");
}

#[test]
fn a_packed_image_goes_through_a_pipe() {
    let bench = Bench::new("saved-piped");
    bench.begin(".", &[]);
    let script = "\"$0\" save it -o - --compress zstd | \"$0\" restore - --detach --id there";
    let mut pipe = bench.desk.space.command("bash");
    let sandbox = bench.desk.sandbox();
    pipe.args(["-euo", "pipefail", "-c", script]).arg(sandbox.get_program());
    pipe.current_dir(&bench.desk.host);
    sandbox.get_envs().for_each(|(name, value)| {
        value.map(|value| pipe.env(name, value));
    });
    super::common::run(pipe, b"", super::common::LIMIT).success();
    bench.words(&["wait", "it"]).expect_status(137);
    bench.ends_well("there");
    bench.words(&["discard", "it"]).success();
    bench.is_alike("there");
}

#[test]
fn an_overlay_of_everything_is_saved() {
    let bench = Bench::new("saved-all");
    bench.begin("/", &[]);
    bench.save();
    let report = bench.words(&["inspect", "../image"]);
    report.success().out_has("overlay   / (");
    bench.restore("it", &[]);
    bench.ends_well("it");
    bench.is_alike("it");
}

#[test]
fn an_overlay_elsewhere_is_restored_there_or_in_the_usual_place() {
    let bench = Bench::new("saved-place");
    let place = bench.desk.space.path().join("place");
    let flags = ["--overlay-dir", place.to_str().unwrap()];
    bench.begin(".", &flags);
    bench.save();
    bench.restore("it", &flags);
    bench.ends_well("it");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    bench.restore("usual", &[]);
    bench.ends_well("usual");
    let [flag, place] = flags;
    bench.words(&["discard", "it", flag, place]).success();
    bench.is_alike("usual");
}

/// Everything below the store, with what can be told of it.
fn stored(desk: &Desk) -> Tree {
    let mut found = tree(&desk.store());
    // Whoever looks for it takes it.
    found.retain(|path, _| path.file_name() != Some("lock".as_ref()));
    found
}

#[test]
fn a_restore_that_fails_leaves_the_store_as_it_was() {
    let bench = Bench::new("saved-fails");
    bench.begin(".", &[]);
    bench.save();
    let before = stored(&bench.desk);
    // A file of the host's that the program has open.
    let file = bench.desk.host.join("with space/na me");
    let (text, times) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap());
    fs::write(&file, "another one, and longer").unwrap();
    for id in ["it", "other"] {
        let refused = bench.words(&["restore", "../image", "--detach", "--id", id]);
        refused.one_line_error(125, &["with space/na me", "has changed"]);
        same_trees("the store has changed", &stored(&bench.desk), &before);
    }
    fs::write(&file, text).unwrap();
    let times = fs::FileTimes::new().set_modified(times.modified().unwrap());
    fs::File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
    // Its content is cut off.
    let image = bench.desk.space.path().join("image");
    let whole = fs::read(&image).unwrap();
    fs::write(bench.desk.space.path().join("cut"), &whole[..whole.len() - 4096]).unwrap();
    let cut = bench.words(&["restore", "../cut", "--detach"]);
    cut.one_line_error(125, &["cut"]);
    same_trees("the store has changed", &stored(&bench.desk), &before);
    // As it is that of the image, it goes for that.
    bench.restore("it", &[]);
    bench.ends_well("it");
    bench.is_alike("it");
}

#[test]
fn a_place_without_room_is_left_as_it_was() {
    if !is_root() {
        return super::common::skip("root, to mount a file system");
    }
    let bench = Bench::new("saved-room");
    bench.begin(".", &[]);
    bench.words(&["exec", "it", "--", "sh", "-c", "head -c 9000000 /dev/urandom > new/many"]);
    bench.save();
    let place = bench.desk.space.path().join("small");
    let small = Unmount::tmpfs(&place, "size=3m,mode=700");
    let words = ["restore", "../image", "--detach", "--overlay-dir", place.to_str().unwrap()];
    bench.words(&words).one_line_error(125, &["new/many", "No space left on device"]);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    drop(small);
    // Where there is room it goes on.
    bench.restore("it", &[]);
    bench.words(&["kill", "it", "KILL"]).success();
    bench.words(&["wait", "it"]).expect_status(137);
    bench.words(&["discard", "it"]).success();
}

#[test]
fn a_restore_that_is_killed_leaves_what_is_kept() {
    let bench = Bench::new("saved-killed");
    bench.begin(".", &[]);
    bench.save();
    let before = bench.desk.diff("it");
    // It reads from a pipe that does not end: whatever it has made by then, it waits for more.
    let image = fs::read(bench.desk.space.path().join("image")).unwrap();
    let mut command = bench.desk.sandbox();
    command.args(["restore", "-"]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut restore = command.spawn().unwrap();
    let mut pipe = restore.stdin.take().unwrap();
    pipe.write_all(&image[..image.len() - 4096]).unwrap();
    let begun = bench.desk.store().join(".it.sandbox-restoring");
    wait_for("the restore", || begun.join("description").exists());
    restore.kill().unwrap();
    restore.wait().unwrap();
    assert!(begun.exists());
    // Whoever looks for an overlay sweeps. (An init that was made holds the locks for the moment in which it ends, too; so
    // long an ordinary user's list does not look into directories that are closed.)
    let closed = PathBuf::from("closed/secret");
    let open: Vec<_> = before.iter().filter(|(_, path)| *path != closed).cloned().collect();
    wait_for("the sweep", || {
        let list = bench.desk.diff("it");
        assert!(list == before || !is_root() && list == open, "{list:?}");
        !begun.exists() && list == before
    });
    let again = ["restore", "../image", "--detach", "--id", "it"];
    wait_for("the next restore", || bench.words(&again).status == 0);
    // (What it has replaced goes once it is on the disk.)
    wait_for("the sweep", || !begun.exists());
    bench.ends_well("it");
    bench.is_alike("it");
}

#[test]
fn changes_that_an_image_does_not_know_of_are_kept() {
    let bench = Bench::new("saved-known");
    bench.begin(".", &[]);
    bench.save();
    // Another run goes on with what is kept.
    bench.desk.inside("it", "echo more > more").success();
    let refused = bench.words(&["restore", "../image", "--detach"]);
    refused.one_line_error(125, &["the overlay that is kept of it", "sandbox discard it"]);
    assert!(bench.desk.diff("it").contains(&('A', PathBuf::from("more"))));
    // So does one that uses it just now.
    let busy = ["run", "--detach", "--id", "it", "--overlay", ".", "--", "sleep", "1000"];
    bench.words(&busy).success();
    let in_use = bench.words(&["restore", "../image", "--detach", "--id", "it"]);
    in_use.failure();
    bench.words(&["kill", "it", "KILL"]).success();
    bench.words(&["wait", "it"]).expect_status(137);
    bench.words(&["discard", "it"]).success();
    bench.restore("it", &[]);
    bench.ends_well("it");
    bench.is_alike("it");
}

#[test]
fn what_was_committed_meanwhile_is_no_change_any_more() {
    let bench = Bench::new("saved-committed");
    bench.begin(".", &[]);
    bench.save();
    // (The program has a file of the host open, which is to stay what it was.)
    bench.words(&["commit", "it", "--only", "new/a", "--only", "src/f2"]).success();
    bench.restore("it", &[]);
    let listed = bench.desk.diff("it");
    assert!(!listed.iter().any(|(_, path)| path == Path::new("src/f2")), "{listed:?}");
    assert!(listed.contains(&('A', PathBuf::from("new/b"))), "{listed:?}");
    bench.words(&["kill", "it", "KILL"]).success();
    bench.words(&["wait", "it"]).expect_status(137);
    bench.words(&["discard", "it"]).success();
}

#[test]
fn what_the_host_has_changed_since_the_run_began_is_a_conflict_after_a_restore_too() {
    let bench = Bench::new("saved-conflict");
    bench.begin(".", &[]);
    bench.save();
    fs::write(bench.desk.host.join("src/f1"), "the host's").unwrap();
    bench.restore("it", &["--files", "changed-ok"]);
    bench.words(&["exec", "it", "--", "sh", "-c", "echo later >> src/f2"]).success();
    bench.words(&["kill", "it", "KILL"]).success();
    bench.words(&["wait", "it"]).expect_status(137);
    let refused = bench.words(&["commit", "it"]);
    refused.expect_status(1).err_has("src/f1").err_lacks("src/f2");
    bench.words(&["discard", "it"]).success();
}

#[test]
fn only_its_owner_can_look_into_what_is_being_restored() {
    let bench = Bench::new("saved-mode");
    bench.begin(".", &[]);
    bench.save();
    bench.restore("it", &[]);
    let mode = fs::metadata(bench.desk.store().join("it")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    bench.ends_well("it");
    bench.is_alike("it");
}

#[test]
fn another_users_files_keep_their_owners() {
    if !is_root() {
        return super::common::skip("root");
    }
    let desk = Desk::new("saved-owners");
    let seed = "mkdir d; echo x > d/f; chown 1234:4321 d d/f; chmod 2777 d; chmod 646 d/f";
    desk.sh(&desk.host, seed).success();
    let script = "echo y >> d/f; : > d/g; : > up; exec sleep 1000";
    let own = ["run", "--detach", "--id", "it", "--overlay", ".", "--", "sh", "-c", script];
    desk.words(&own).success();
    wait_for("the files", || desk.diff("it").iter().any(|(_, path)| path == Path::new("up")));
    desk.words(&["save", "it", "-o", "../image"]).success();
    desk.words(&["wait", "it"]).expect_status(137);
    desk.words(&["restore", "../image", "--detach"]).success();
    let look = desk.words(&["exec", "it", "--", "stat", "-c", "%u:%g %a %s", "d/f", "d/g"]);
    look.success().expect_out("1234:4321 646 4\n0:4321 644 0\n");
    let upper = desk.store().join("it/layers/0/upper");
    let owner = |path: &str| {
        let found = fs::metadata(upper.join(path)).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(owner("d"), (1234, 4321, 0o2777));
    assert_eq!(owner("d/f"), (1234, 4321, 0o646));
    desk.words(&["kill", "it", "KILL"]).success();
    desk.words(&["wait", "it"]).expect_status(137);
    desk.words(&["discard", "it"]).success();
    desk.nothing_is_kept();
}

#[test]
fn exceptions_in_an_overlay_are_restored_as_parts_of_it() {
    let bench = Bench::new("saved-excepted");
    let host = &bench.desk.host;
    fs::create_dir_all(host.join("keys/shown")).unwrap();
    fs::write(host.join("keys/secret"), "secret\n").unwrap();
    fs::write(host.join("keys/shown/old"), "old\n").unwrap();
    for hides in ["--hide", "--deny"] {
        let script = "echo new > keys/shown/new; cd keys/shown; echo up; until test -e go; do sleep 0.02; done; \
                      cat old new; cat ../secret; rm old; ls";
        let (out, place) = (bench.out.join("it"), bench.out.to_str().unwrap());
        let script = format!("exec > {} 2>/dev/null; {script}", out.display());
        let run = ["run", "--detach", "--id", "it", "--overlay", ".", "--rw", place];
        let rules = [hides, "keys", "--allow", "keys/shown", "--", "sh", "-c", &script];
        bench.words(&[&run[..], &rules].concat()).success();
        wait_for("the program", || bench.said().contains("up\n"));
        bench.save();
        bench.restore("it", &[]);
        bench.words(&["exec", "it", "--", "touch", "keys/shown/go"]);
        bench.words(&["wait", "it"]).expect_status(0);
        assert_eq!(bench.said(), "up\nold\nnew\ngo\nnew\n", "{hides}");
        let changed = ["keys/shown/go", "keys/shown/new"].map(|path| ('A', PathBuf::from(path)));
        let mut expected = changed.to_vec();
        expected.push(('D', "keys/shown/old".into()));
        assert_eq!(bench.desk.diff("it"), expected, "{hides}");
        bench.words(&["discard", "it"]).success();
    }
    assert_eq!(fs::read_to_string(host.join("keys/shown/old")).unwrap(), "old\n");
}
