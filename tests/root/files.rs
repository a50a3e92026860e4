//! Files whose owners, permissions and devices are believed.

use std::path::Path;

use super::common::{LIMIT, Outcome, Workspace, guest, have, is_root, run, skip};
use super::{as_root, as_root_sh};

/// The same as the host's root sees it, who runs the program natively; a list of old for everybody else.
#[test]
fn calls_tell_of_files_what_root_would_be_told() {
    let workspace = Workspace::new("root-files");
    let program = guest("root_files");
    for place in ["native", "inside"] {
        workspace.write(&format!("{place}/.keep"), "");
    }
    let go = |place: &str| format!("cd {place} && {}", program.display());
    let inside = as_root_sh(&workspace, &go("inside"));
    inside.success().expect_out(include_str!("files.out"));
    if is_root() {
        workspace.native(&["sh", "-c", &go("native")]).same_as(&inside);
    }
}

/// More at once than threads serve them, and by numbers that mean something else to each of them.
#[test]
fn threads_that_look_at_once_are_told_of_their_own_files() {
    let workspace = Workspace::new("root-looks");
    let program = guest("root_looks");
    for place in ["native", "inside"] {
        workspace.write(&format!("{place}/.keep"), "");
    }
    let go = |place: &str| format!("cd {place} && {} 8 300", program.display());
    as_root_sh(&workspace, &go("inside")).success().expect_out("0 wrong\n");
    if is_root() {
        workspace.native(&["sh", "-c", &go("native")]).success().expect_out("0 wrong\n");
    }
}

/// What `find` says of a tree.
const LIST: &str = "find . -printf '%P %y %U %G %m %l\\n' | sort";

#[test]
fn an_archive_gives_its_files_their_owners() {
    let workspace = Workspace::new("root-archive");
    let script = format!(
        "set -e; umask 022; mkdir src src/d; echo a > src/a; chown 12:34 src/a; chmod 6755 src/a; echo b > src/d/b
         chown 5 src/d/b; chmod 0 src/d/b; ln -s a src/l; chown -h 7:8 src/l; mknod src/null c 1 3; mkfifo src/p
         chown 9:9 src/p; ln src/a src/hard; chown 3:4 src/d; chmod 2770 src/d; touch src/ro; chmod 444 src/ro
         tar -cf a.tar src; mkdir out; tar -C out --same-owner -xf a.tar; cp -a src copy
         (cd src; {LIST}) > 1; (cd out/src; {LIST}) > 2; (cd copy; {LIST}) > 3; cmp 1 2; cmp 1 3; cat 1 src/d/b
         echo lost > src/null; cat src/null"
    );
    let expected = " d 0 0 755 \na f 12 34 6755 \nd d 3 4 2770 \nd/b f 5 0 0 \nhard f 12 34 6755 \nl l 7 8 777 a\n\
                    null c 0 0 644 \np p 9 9 644 \nro f 0 0 444 \nb\n";
    as_root_sh(&workspace, &script).success().expect_out(expected);
    // To the host all of it is the user's, and nothing gives rights to anybody.
    let outside = workspace.native(&["find", "src", "copy", "-perm", "/6000", "-type", "f"]);
    outside.success().expect_out("");
    let others = workspace.native(&["sh", "-c", "find . ! -user $(id -u)"]);
    others.success().expect_out("");
}

#[test]
fn what_is_made_as_somebody_else_is_theirs() {
    let workspace = Workspace::new("root-made");
    if !have("setpriv") {
        return skip("setpriv");
    }
    let made = "cd dd; echo a > f; mkdir s; ln -s f l; mkfifo p; umask 077; set -C; echo c > h; chgrp 33 f; \
                chmod 4755 f; mv f g; chown 0 g || echo no; chgrp 0 g || echo no; mknod d c 1 3 || echo no";
    let script = format!(
        "mkdir dd; chown 33 dd; chmod 777 dd; umask 022; setpriv --reuid=33 --regid=34 --groups=33 sh -c '{made}'
         cd dd; {LIST}"
    );
    let expected = "no\nno\nno\n d 33 0 777 \ng f 33 33 4755 \nh f 33 34 600 \nl l 33 34 777 f\n\
                    p p 33 34 644 \ns d 33 34 755 \n";
    as_root_sh(&workspace, &script).success().expect_out(expected);
}

/// As in a project's directory with the setgid bit.
#[test]
fn files_of_another_group_take_beliefs() {
    if !is_root() {
        return skip("a group to give a file to");
    }
    let workspace = Workspace::new("root-group");
    workspace.write("f", "");
    let file = workspace.path().join("f");
    std::os::unix::fs::chown(&file, None, Some(1234)).unwrap();
    let script = "stat -c '%u %g' f; chown 0:0 f; stat -c '%u %g' f; chown 5:6 f; chmod 4640 f; stat -c '%u %g %a' f";
    as_root_sh(&workspace, script).success().expect_out("0 1234\n0 0\n5 6 4640\n");
    let real = workspace.native(&["stat", "-c", "%u %g %a", "f"]);
    real.success().expect_out("0 1234 640\n");
}

/// A run with overlays that are kept in the workspace.
fn overlaid(workspace: &Workspace, words: &[&str]) -> Outcome {
    let mut command = workspace.sandbox();
    command.env("XDG_STATE_HOME", workspace.path().join("state")).args(words);
    run(command, b"", LIMIT)
}

#[test]
fn files_of_the_hosts_root_can_be_changed_in_an_overlay() {
    let workspace = Workspace::new("root-overlay");
    let inside = |script: &str| {
        let words =
            ["run", "--root", "--id", "kept", "--overlay", "/etc", "--", "sh", "-ec", script];
        overlaid(&workspace, &words)
    };
    let before = workspace.native(&["sh", "-c", "cat /etc/passwd; ls -ln /etc"]);
    let changes = "tail -n 1 /etc/passwd > first; echo x:x:7:7::/:/bin/sh >> /etc/passwd; tail -n 1 /etc/passwd
        ln /etc/group /etc/group.again; mv /etc/group /etc/group.moved; rm -r /etc/default
        mkdir /etc/new; echo y > /etc/new/file; chown 5:6 /etc/new/file; chmod 4755 /etc/new/file
        touch -d 2001-02-03 /etc/profile; chown 8 /etc/profile; test -w /etc/profile; ls /etc/new";
    inside(changes).success().expect_out("x:x:7:7::/:/bin/sh\nfile\n");
    let look =
        "tail -n 1 /etc/passwd; stat -c '%u %g %a' /etc/new/file /etc/profile /etc/group.again
        test ! -e /etc/default; test ! -e /etc/group; stat -c %u /etc /etc/passwd";
    let expected = "x:x:7:7::/:/bin/sh\n5 6 4755\n8 0 644\n0 0 644\n0\n0\n";
    inside(look).success().expect_out(expected);
    let diff = overlaid(&workspace, &["diff", "kept"]);
    let lines = "D /etc/default\nD /etc/group\nA /etc/group.again\nA /etc/group.moved\nA /etc/new\n\
                 A /etc/new/file (5:6 4755)\nM /etc/passwd\nP /etc/profile (8:0)\n";
    diff.expect_status(1).expect_out(lines);
    workspace.native(&["sh", "-c", "cat /etc/passwd; ls -ln /etc"]).same_as(&before);
    overlaid(&workspace, &["discard", "kept"]).success();
}

#[test]
fn users_can_be_added() {
    let workspace = Workspace::new("root-useradd");
    if !Path::new("/usr/sbin/useradd").exists() {
        return skip("useradd");
    }
    let script =
        "useradd -M -u 4321 somebody; id -u somebody; touch f; chown somebody f; stat -c %U f";
    let words = ["run", "--root", "--overlay", "/etc", "--", "sh", "-ec", script];
    let done = overlaid(&workspace, &words);
    done.success().expect_out("4321\nsomebody\n");
}

/// Built and installed inside, owners and all.
#[test]
fn a_package_is_built_and_installed() {
    let workspace = Workspace::new("root-dpkg");
    if !have("dpkg-deb") || !have("dpkg") {
        return skip("dpkg");
    }
    workspace.write(
        "p/DEBIAN/control",
        "Package: likeness\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n",
    );
    workspace.write("p/usr/bin/tool", "#!/bin/sh\n");
    workspace.write("p/var/lib/likeness/data", "x\n");
    let script = format!(
        "umask 022; chmod -R go+rX-w p; chmod 4755 p/usr/bin/tool; chown -R 33:34 p/var/lib/likeness
         chmod 2750 p/var/lib/likeness; dpkg-deb -b p a.deb >/dev/null
         mkdir -p r/var/lib/dpkg/info r/var/lib/dpkg/updates; touch r/var/lib/dpkg/status
         dpkg --root=$PWD/r -i a.deb >/dev/null; cd r; {LIST} | grep -v dpkg"
    );
    let expected = " d 0 0 755 \nusr d 0 0 755 \nusr/bin d 0 0 755 \nusr/bin/tool f 0 0 4755 \nvar d 0 0 755 \n\
                    var/lib d 0 0 755 \nvar/lib/likeness d 33 34 2750 \nvar/lib/likeness/data f 33 34 644 \n";
    as_root(&workspace, &["sh", "-ec", &script]).success().expect_out(expected);
}
