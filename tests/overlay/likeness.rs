//! The same work natively and in an overlay leads to the same tree.

use super::common::{have, is_root};
use super::desk::{Desk, Unmount, both, expected, same_trees, tree};

const FILES: &str = r#"
            echo new > new; echo more >> src/f1; : > src/f2; rm src/f3; chmod 600 src/f4
            cp docs/long docs/longer; sed -i 5d docs/long; echo x > 'with space/new one'
            printf y | dd of=sparse bs=1 seek=100000 conv=notrunc status=none
            truncate -s 40M hole; printf z | dd of=hole bs=1 seek=20000000 conv=notrunc status=none
            touch -d '1999-09-09 09:09:09' new
        "#;

const DIRECTORIES: &str = r#"
            mkdir -p a/b/c; echo x > a/b/c/x; rmdir empty; rm -r docs; mkdir docs; echo only > docs/this
            mv src moved; mv moved/deep/er .; chmod 700 linked; mkdir -m 1777 shared; mkdir -m 2755 grouped
            mv a/b z; mkdir -p closed/in; echo y > closed/in/y; chmod 500 closed/in
        "#;

const TYPES: &str = r#"
            rm -r docs; echo file > docs; rm tool; mkdir tool; echo t > tool/t; rm src/f1; ln -s f2 src/f1
            rm docs; mkdir docs; mkfifo docs/link; rm pipe; echo plain > pipe; rm -r empty; mkfifo empty
            rm -r src/deep; ln -s ../linked src/deep; mkfifo -m 620 fresh
        "#;

const LINKS: &str = r#"
            ln src/f1 src/other; ln -s /etc/hosts absolute; ln -sfn elsewhere docs/link; rm docs/dangling
            echo one > one; ln one two; ln two src/three; cp -a one four; ln docs/long docs/again
            mkdir new; echo n > new/n; ln new/n new/m; ln new/n outside; rm linked/b
        "#;

/// Works natively in the copy and inside on the overlay; then the host's tree is as it was, the list says
/// exactly what was done, and a commit makes it what the copy is.
#[track_caller]
fn alike(test: &str, script: &str) {
    both(|| alike_at(&Desk::new(test), script));
}

#[track_caller]
fn alike_at(desk: &Desk, script: &str) {
    let before = tree(&desk.host);
    desk.sh(&desk.copy, script).success();
    let after = tree(&desk.copy);
    desk.inside("like", script).success().err_has("sandbox diff like");
    same_trees("the host's tree has changed", &tree(&desk.host), &before);
    // Another run with it goes on with what is there.
    let look = "find . ! -type d -printf '%P %y %m %s %l\\n' | sort; find . -type d -printf '%P %m\\n' | sort; \
        find . -type f -readable -print0 | sort -z | xargs -0 cksum";
    let (inside, natively) = (desk.inside("like", look), desk.sh(&desk.copy, look));
    inside.success().expect_out(&natively.out());
    assert_eq!(desk.diff("like"), expected(&before, &after), "the list is not what was done");
    desk.words(&["commit", "like"]).success();
    same_trees("the commit did not do the same", &tree(&desk.host), &after);
    desk.nothing_is_kept();
}

#[test]
fn files_are_written_changed_and_removed() {
    alike("files", FILES);
}

#[test]
fn directories_come_and_go_and_move() {
    alike("directories", DIRECTORIES);
}

#[test]
fn types_change() {
    alike("types", TYPES);
}

#[test]
fn links_are_made_and_broken() {
    alike("links", LINKS);
}

#[test]
fn extended_attributes_are_kept() {
    if !have("python3") {
        return;
    }
    alike(
        "attributes",
        r#"
            python3 - <<'EOF'
import os
os.setxattr("src/f1", "user.one", b"1")
os.setxattr("src", "user.directory", b"\0\1")
open("fresh", "w").close()
os.setxattr("fresh", "user.long", b"x" * 500)
EOF
            echo more >> src/f1
        "#,
    );
}

#[test]
fn odd_names_are_names() {
    if !have("python3") {
        return;
    }
    alike(
        "names",
        r#"
            python3 - <<'EOF'
import os
for name in [b"new\nline", b"\xff\xfe", b"-rf", b"tab\there", b"'quote'", b"\\", b" ", b"*", b"x" * 255,
             b".sandbox-commit-0.0", b"\x1b[31mred"]:
    open(name, "w").write("odd")
    os.mkdir(b"d" + name[:200]); open(b"d" + name[:200] + b"/" + name, "w").write("in")
EOF
        "#,
    );
}

#[test]
fn archives_are_unpacked() {
    alike(
        "archives",
        r#"
            tar cf packed.tar src docs linked; mkdir out; tar xf packed.tar -C out; tar xf packed.tar --overwrite
            mkdir -p inst; install -D -m 755 tool inst/usr/bin/tool; install -D -m 644 src/f1 inst/usr/share/f
            cp -a linked inst/linked; rm packed.tar
        "#,
    );
}

#[test]
fn git_cleans_up() {
    both(|| {
        if !have("git") {
            return;
        }
        // Its own files have times and numbers in them: the tree is compared without.
        let desk = Desk::new("git");
        let script = "export HOME=$PWD GIT_CONFIG_GLOBAL=/dev/null; git init -q .; echo '*.o' > .gitignore; \
        git add src .gitignore; git -c user.name=n -c user.email=e commit -qm x; echo o > src/x.o; mkdir -p build/a; \
        git clean -fdxq; git status --short; rm -rf .git";
        desk.sh(&desk.copy, script).success();
        let before = tree(&desk.host);
        desk.inside("git", script).success();
        same_trees("the host's tree has changed", &tree(&desk.host), &before);
        assert_eq!(desk.diff("git"), expected(&before, &tree(&desk.copy)));
        desk.words(&["commit", "git"]).success();
        // Directories in which names only came and went are as they were.
        let timeless = |root| {
            let mut tree = tree(root);
            tree.values_mut().filter(|it| it.kind == 'd').for_each(|it| it.modified = None);
            tree
        };
        let (host, copy) = (timeless(&desk.host), timeless(&desk.copy));
        same_trees("the commit did not do the same", &host, &copy);
    });
}

#[test]
fn an_overlay_on_another_file_system_is_copied_from() {
    both(|| {
        if !is_root() {
            return;
        }
        let desk = Desk::new("elsewhere");
        let state = desk.space.path().join("state");
        let _unmount = Unmount::tmpfs(&state, "size=200m");
        for script in [FILES, LINKS, DIRECTORIES, TYPES] {
            let fresh = Desk::new("elsewhere");
            std::os::unix::fs::symlink(&state, fresh.space.path().join("state")).unwrap();
            alike_at(&fresh, script);
        }
    });
}
