//! Rules about names that come later, for who takes itself for root.

use std::path::Path;

use super::common::{
    LIMIT, Workspace, command_line, finish, guest, have, is_root, run, skip, start, wait_for,
};

/// What is believed of files is believed of what the sentry makes in a guest's place, too.
#[test]
fn what_is_made_where_names_are_judged_is_believed() {
    let workspace = Workspace::new("root-rules");
    if !have("setpriv") {
        return skip("setpriv");
    }
    let made = "cd dd; echo a > f; mkdir s; ln -s f l; mkfifo p; umask 077; set -C; echo c > h; echo d > x.none || echo no
        chmod 4755 f; mv f g; mkdir t.none || echo no; ln -s a u.none || echo no";
    let script = format!(
        "mkdir dd; chown 33 dd; chmod 777 dd; umask 022; setpriv --reuid=33 --regid=34 --groups=33 sh -c '{made}'
         mknod dd/n c 1 3; chown 5:6 dd/n; mknod dd/v.none c 1 3 || echo no; echo lost > dd/n; cd dd
         find . -printf '%P %y %U %G %m %l\n' | sort"
    );
    let expected = "no\nno\nno\nno\n d 33 0 777 \ng f 33 34 4755 \nh f 33 34 600 \nl l 33 34 777 f\nn c 5 6 644 \n\
                    p p 33 34 644 \ns d 33 34 755 \n";
    let words = ["--root", "--hide", "./**/*.none"];
    workspace.inside_with(&words, &["sh", "-c", &script]).success().expect_out(expected);
}

/// The calls about files do under such rules what they do without.
#[test]
fn root_notices_nothing_of_rules_that_match_nothing() {
    let workspace = Workspace::new("root-unmatched");
    let program = guest("root_files");
    workspace.write("inside/.keep", "");
    let script = format!("cd inside && {}", program.display());
    let words = ["--root", "--hide", "./**/*.none"];
    let done = workspace.inside_with(&words, &["sh", "-c", &script]);
    done.success().expect_out(include_str!("files.out"));
}

/// A name is judged by where it is in the view of all, whatever root a guest has chosen.
#[test]
fn a_root_of_ones_own_makes_no_other_name() {
    let workspace = Workspace::new("root-rules-chroot");
    if !Path::new("/usr/sbin/chroot").exists() || !have("python3") {
        return skip("chroot and python3");
    }
    workspace.write("tree/plain", "plain\n");
    let script = r#"
import os
os.mkdir('tree/sub'); os.symlink('/late.pem', 'tree/link'); os.symlink('../../../plain', 'tree/sub/up')
open('wait', 'w').close(); input()
outside = os.open('.', os.O_PATH); file = os.open('tree/late.pem', os.O_PATH)
os.chroot('tree'); os.chdir('/')
for path in ('late.pem', '/late.pem', '/sub/../late.pem', '/../../late.pem', 'link', '/sub/../link'):
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT):
        try: print('SECRET', path, os.read(os.open(path, flags), 9))
        except PermissionError: pass
for path in ('new.pem', '/sub/new.pem'):
    try: print('SECRET', os.open(path, os.O_RDWR | os.O_CREAT))
    except PermissionError: pass
try: print('SECRET', os.rename('late.pem', 'x'))
except PermissionError: pass
try: print('SECRET', os.link('late.pem', 'x'))
except PermissionError: pass
print(open('/sub/up').read(), end='')
with open('/made', 'w') as made: print('made', file=made)
# Out of the tree again, as the kernel allows it to root.
os.fchdir(outside)
try: print('SECRET', os.open('tree/late.pem', os.O_RDONLY))
except PermissionError: pass
print(open('tree/made').read(), os.listdir('tree/sub'))
"#;
    let mut command = workspace.sandbox();
    command.args(["--root", "--deny", "./**/*.pem", "--", "python3", "-c", script]);
    command.stdin(std::process::Stdio::piped());
    let words = command_line(&command);
    let child = start(command);
    wait_for("the program inside", || workspace.has("wait"));
    workspace.write("tree/late.pem", "SECRET\n");
    let done = finish(child, words, b"go\n", LIMIT);
    done.success().expect_out("plain\nmade\n ['up']\n");
    assert_eq!(workspace.read("tree/late.pem"), "SECRET\n");
}

/// A file of somebody else's that a rule keeps read-only is not even copied; another is, as without rules.
#[test]
fn what_is_read_only_is_not_made_ones_own() {
    if !is_root() {
        return skip("other users");
    }
    let workspace = Workspace::new("root-rules-copies");
    workspace.write("d/.keep", "");
    let sandbox = || {
        let mut command = workspace.sandbox();
        command.env("XDG_STATE_HOME", workspace.path().join("state"));
        command
    };
    let mut command = sandbox();
    command.args([
        "run",
        "--root",
        "--id",
        "kept",
        "--overlay",
        "d",
        "--rw",
        ".",
        "--ro",
        "./**/*.lock",
    ]);
    let script = "touch wait; read line; echo x >> d/a.lock; chmod 640 d/a.lock; chown 7 d/a.lock
        chmod 640 d/c; mv d/a.lock d/b; echo x >> d/c";
    command.args(["--", "sh", "-c", script]).stdin(std::process::Stdio::piped());
    let words = command_line(&command);
    let child = start(command);
    wait_for("the program inside", || workspace.has("wait"));
    for name in ["d/a.lock", "d/c"] {
        let path = workspace.write(name, "text\n");
        std::os::unix::fs::chown(path, Some(4321), Some(4321)).unwrap();
    }
    finish(child, words, b"go\n", LIMIT).success().err_has("Read-only file system");
    // (What was only copied is no change to `diff`.)
    let layer =
        workspace.native(&["find", "state", "-name", "a.lock", "-o", "-name", "c", "-type", "f"]);
    assert!(layer.success().out().ends_with("/c\n") && layer.out().lines().count() == 1);
    let mut command = sandbox();
    command.args(["discard", "kept"]);
    run(command, b"", LIMIT).success();
}
