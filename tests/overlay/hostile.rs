//! What a guest leaves in an overlay, and what the host has in its place, leads nowhere else.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use sandbox::sys::beneath::{attribute_names, set_attribute};

use super::common::{LIMIT, Outcome, have, is_root, run, skip};
use super::desk::{Desk, Unmount, both, same_trees, tree};

#[test]
fn a_link_of_the_hosts_leads_no_commit_elsewhere() {
    both(|| {
        let desk = Desk::new("leads");
        let outside = desk.space.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("f1"), "outside\n").unwrap();
        desk.inside("l", "echo in > src/f1; echo in > src/deep/er/new; rm src/f2").success();
        // Between the run and the commit a directory on the way becomes a link.
        fs::rename(desk.host.join("src"), desk.space.path().join("away")).unwrap();
        symlink(&outside, desk.host.join("src")).unwrap();
        let outcome = desk.words(&["commit", "l", "--force"]);
        assert_eq!(fs::read_to_string(outside.join("f1")).unwrap(), "outside\n");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{}", outcome.report());
        assert_eq!(fs::read_to_string(desk.space.path().join("away/f2")).unwrap(), "file 2\n");
    });
}

#[test]
fn a_link_of_the_guests_is_committed_as_one() {
    both(|| {
        let desk = Desk::new("guests");
        let outside = desk.space.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        let script =
            format!("rm -r src; ln -s {} src; ln -s / root; ln -s .. up", outside.display());
        desk.inside("g", &script).success();
        desk.words(&["commit", "g"]).success();
        assert_eq!(fs::read_link(desk.host.join("src")).unwrap(), outside);
        assert!(outside.join("kept").exists());
        desk.inside("g", "rm src root; mkdir src; echo x > src/x; rm -r up").success();
        desk.words(&["commit", "g"]).success();
        assert!(desk.host.join("src/x").exists() && !outside.join("x").exists());
    });
}

#[test]
fn no_name_of_a_guests_is_taken_for_one_of_the_overlays_own() {
    both(|| {
        if !have("python3") {
            return;
        }
        let desk = Desk::new("own");
        // Neither a removal nor a replaced directory can be forged.
        let script = r#"
        python3 - <<'EOF'
import os
for what in (lambda: os.mknod("src/f1x", 0o020000 | 0o600, 0), lambda: os.setxattr("src", "user.overlay.opaque", b"y"),
             lambda: os.setxattr("tool", "user.overlay.whiteout", b"y"),
             lambda: os.setxattr("docs", "user.overlay.redirect", b"/src")):
    try:
        what()
    except OSError as error:
        print(error.errno)
open("still", "w").write("x")
EOF
    "#;
        desk.inside("own", script).success();
        let before = tree(&desk.host);
        let changes = desk.diff("own");
        assert!(changes.iter().all(|(letter, _)| *letter != 'D'), "{changes:?}");
        desk.words(&["commit", "own"]).success();
        let mut after = tree(&desk.host);
        assert_eq!(after.remove(Path::new("still")).map(|it| it.content), Some(b"x".to_vec()));
        let names = |tree: &super::desk::Tree| tree.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&after), names(&before));
    });
}

#[test]
fn a_socket_is_left_out() {
    both(|| {
        if !have("python3") {
            return;
        }
        let desk = Desk::new("socket");
        desk.inside(
            "s",
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'; echo x > y",
        )
        .success();
        desk.words(&["commit", "s"]).success().err_has("sock is not committed");
        assert!(!desk.host.join("sock").exists() && desk.host.join("y").exists());
        desk.nothing_is_kept();
    });
}

#[test]
fn a_tree_deeper_than_any_path_can_be_dropped() {
    both(|| {
        if !have("python3") {
            return;
        }
        let desk = Desk::new("deep");
        let before = tree(&desk.host);
        let script = "python3 -c '\nimport os\nfor n in range(600):\n os.mkdir(\"deeper-and-deeper\"); os.chdir(\"deeper-and-deeper\")'";
        desk.inside("deep", script).success();
        let listed = desk.words(&["diff", "deep"]);
        listed.expect_status(1).err_has("too deep to be committed");
        // What is below the first directory whose path is longer than a path can be is not looked at.
        assert_eq!(listed.out().lines().count(), 4096 / "deeper-and-deeper/".len() + 1);
        desk.words(&["commit", "deep"])
            .one_line_error(125, &["File name too long", "nothing was committed"]);
        desk.words(&["discard", "deep"]).success();
        same_trees("the host's tree has changed", &tree(&desk.host), &before);
        desk.nothing_is_kept();
    });
}

#[test]
fn attributes_that_would_be_more_on_the_host_are_left_out() {
    if !have("python3") {
        return;
    }
    let desk = Desk::new("withheld");
    // A guest can set the second one on Linux 6.7 and later.
    let script = r#"
        echo in >> tool; echo in >> src/f1
        python3 - <<'EOF'
import os
open("fresh", "w").write("x")
os.setxattr("fresh", "user.plain", b"1")
try:
    os.setxattr("fresh", "user.overlay.opaque", b"y")
    print("set")
except OSError:
    pass
EOF
    "#;
    let set = desk.inside("w", script);
    let upper = desk.store().join("w/layers/0/upper");
    let name = |path: std::path::PathBuf| std::ffi::CString::new(path.into_os_string().into_vec());
    // cap_net_bind_service, as vfs_cap_data of capabilities(7) has it.
    let capability = [&[1, 0, 0, 2, 0, 4][..], &[0; 14]].concat();
    if is_root() {
        let set = |path, attribute, value: &[u8]| {
            set_attribute(&name(path).unwrap(), attribute, value).unwrap();
        };
        set(upper.join("fresh"), c"security.sandbox-test", b"label");
        set(upper.join("tool"), c"security.capability", &capability);
        set(upper.join("src/f1"), c"security.capability", &capability);
        set(desk.host.join("src/f1"), c"security.capability", &capability);
    }
    let listed = desk.words(&["diff", "w"]);
    if set.out() == "set\n" {
        listed.err_has("the attribute user.overlay.opaque of");
    }
    if is_root() {
        listed.err_has("/tool is not committed");
        assert!(!listed.err().contains("/f1 is not"), "{}", listed.report());
    }
    desk.words(&["commit", "w", "--force"]).success();
    let names = |file| attribute_names(&name(desk.host.join(file)).unwrap()).unwrap();
    assert_eq!(names("fresh"), [b"user.plain"]);
    assert!(names("tool").is_empty());
    if is_root() {
        assert_eq!(names("src/f1"), [b"security.capability"]);
    }
    desk.nothing_is_kept();
}

#[test]
fn an_overlay_of_another_version_is_named() {
    let desk = Desk::new("version");
    desk.inside("v", "echo x > y").success();
    let description = desk.store().join("v/description");
    let text = fs::read(&description).unwrap();
    let later = [b"sandbox overlay 2\n", &text[18..]].concat();
    fs::write(&description, later).unwrap();
    desk.words(&["diff", "v"]).one_line_error(2, &["it has the form 2", "knows 1"]);
    desk.inside("v", "true").one_line_error(125, &["it has the form 2", "sandbox discard v"]);
    fs::write(&description, &text[..30]).unwrap();
    desk.words(&["commit", "v"]).one_line_error(125, &["its description is damaged"]);
}

/// `--overlay /`, with a home in the workspace.
fn everywhere(desk: &Desk, id: &str, script: &str) -> Outcome {
    let mut command = desk.sandbox();
    command.env("HOME", desk.space.path().join("home"));
    command.args(["run", "--id", id, "--overlay", "/", "--", "sh", "-c", script]);
    run(command, b"", LIMIT)
}

#[test]
fn a_link_where_something_will_be_mounted_leads_no_mount_elsewhere() {
    let desk = Desk::new("mounts");
    let home = desk.space.path().join("home");
    fs::create_dir_all(home.join("plain")).unwrap();
    fs::write(home.join("plain/kept"), "kept\n").unwrap();
    let script = "ln -s / ~/.aws; ln -s .. ~/.kube; echo file > ~/.gnupg; mkdir ~/.netrc; \
        ln -s plain ~/.config; ls -A / > before";
    everywhere(&desk, "m", script).success();
    // Now the host has secrets at all these places, and a guest's link leads to each of them or away.
    for name in [".aws", ".kube", ".gnupg", ".config/gh"] {
        fs::create_dir_all(home.join(name)).unwrap();
        fs::write(home.join(name).join("hosts.yml"), "secret\n").unwrap();
    }
    fs::write(home.join(".netrc"), "secret\n").unwrap();
    let script = "ls -A /.. | cmp - before && stat -c %d:%i / /.. | uniq | wc -l; cat ~/plain/kept ~/.gnupg; \
        grep -rs secret ~ && echo found; readlink ~/.aws; ls -A ~/.netrc";
    let again = everywhere(&desk, "m", script);
    again.expect_out("1\nkept\nfile\n/\n").success();
    assert!(fs::read_dir(home.join("plain")).unwrap().count() == 1);
    // A rule of the user's at such a place is no secret: there the run ends before it has begun.
    let mut command = desk.sandbox();
    command.env("HOME", &home).args(["run", "--id", "m", "--overlay", "/", "--tmpfs"]);
    command.arg(home.join(".aws")).args(["--", "true"]);
    run(command, b"", LIMIT).one_line_error(125, &["/.aws", "an earlier run", "sandbox discard"]);
}

#[test]
fn a_link_in_one_directorys_overlay_leads_no_mount_elsewhere() {
    both(|| {
        let desk = Desk::new("inner");
        fs::create_dir(desk.host.join("other")).unwrap();
        desk.inside("i", "ln -s other hidden; ln -s / top; rm -r empty; ln -s other empty")
            .success();
        fs::create_dir_all(desk.host.join("hidden/deep")).unwrap();
        fs::create_dir(desk.host.join("top")).unwrap();
        let host = desk.host.display();
        let flags = ["hidden/deep", "top", "hidden"].map(|name| format!("--hide={host}/{name}"));
        let [deep, top, hidden] = &flags;
        let script = "touch other/free; ls -A / > a; ls -A /.. | cmp - a";
        let words =
            ["run", "--id", "i", "--overlay", ".", deep, top, hidden, "--", "sh", "-c", script];
        desk.words(&words).success().expect_out("");
        let rule = format!("--tmpfs={host}/empty");
        desk.words(&["run", "--id", "i", "--overlay", ".", &rule, "--", "true"])
            .one_line_error(125, &["/empty", "an earlier run", "sandbox discard"]);
    });
}

#[test]
fn an_overlay_in_which_the_place_of_a_part_is_taken_can_be_gone_on_with() {
    both(|| {
        if !is_root() {
            return skip("root, who can mount");
        }
        let desk = Desk::new("parts");
        // With a mount below it, each directory of the tree is an overlay of its own.
        let _mounted = Unmount::tmpfs(&desk.host.join("mnt"), "size=1m");
        desk.inside("p", "ln -s / part; echo file > other").success();
        for name in ["part/secret", "other/secret"] {
            fs::create_dir_all(desk.host.join(name)).unwrap();
        }
        let host = desk.host.display();
        let hidden = ["part", "other"].map(|name| format!("--hide={host}/{name}/secret"));
        let script = "readlink part; cat other; ls -A / > a; ls -A /.. | cmp - a";
        let [part, other] = &hidden;
        let words = ["run", "--id", "p", "--overlay", ".", part, other, "--", "sh", "-c", script];
        desk.words(&words).success().expect_out("/\nfile\n");
        let rule = format!("--rw={host}/other");
        desk.words(&["run", "--id", "p", "--overlay", ".", &rule, "--", "true"])
            .one_line_error(125, &["/other", "an earlier run", "sandbox discard"]);
    });
}

#[test]
fn a_run_goes_on_where_an_earlier_one_took_all_rights() {
    both(|| {
        let desk = Desk::new("rights");
        let flags = ["--id", "r", "--overlay", ".", "--workdir", "/", "--ro", "/"];
        let at = desk.host.display();
        let inside = |script: &str| desk.words(&[&flags[..], &["--", "sh", "-c", script]].concat());
        inside(&format!("echo x > {at}/y; chmod 0 {at}")).success();
        inside(&format!("chmod 755 {at}; cat {at}/y")).success().expect_out("x\n");
    });
}
