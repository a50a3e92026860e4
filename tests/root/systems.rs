//! Making a system in a directory of its own, as debootstrap(8) does, and what packages ask for that bring users.

use std::path::Path;

use super::common::{LIMIT, Workspace, have, run, skip};
use super::{as_root, as_root_sh};

/// A tree with a shell in it, and what that needs: `copy PROGRAM...`.
const COPY: &str = "copy() { for it in \"$@\"; do it=$(command -v $it); mkdir -p tree$(dirname $it); cp -L $it tree$it
    for lib in $(ldd $it 2>/dev/null | grep -o '/[^ ]*'); do mkdir -p tree$(dirname $lib); cp -Lu $lib tree$lib; done; done; }";

/// Whether a tree can be made here, by the way that ordinary users' paths are.
fn lacks() -> Option<&'static str> {
    // (Where ordinary users need not have it on their PATH.)
    let chroot = if Path::new("/usr/sbin/chroot").exists() { None } else { Some("chroot") };
    chroot.or(if have("ldd") { None } else { Some("ldd") })
}

#[test]
fn a_system_is_made_in_a_directory() {
    let workspace = Workspace::new("root-system");
    if let Some(lacked) = lacks() {
        return skip(lacked);
    }
    let make = "mkdir -p tree/dev/pts tree/proc tree/etc tree/tmp; chmod 1777 tree/tmp
        mknod -m 666 tree/dev/null c 1 3; mknod -m 620 tree/dev/console c 5 1; chown 0:5 tree/dev/console
        ln -s /proc/self/fd tree/dev/fd; copy sh ls id chown chmod mkdir
        cat > second <<'END'
echo lost > /dev/null; mkdir /etc/d; chown 12:34 /etc/d; chmod 2750 /etc/d
ls -nd /etc/d; ls -n /dev; ls -A /proc; id -u
END
";
    let script = format!("set -e; umask 022; {COPY}; {make}chroot tree sh -e < second");
    let done = as_root_sh(&workspace, &script);
    done.success().out_has("drwxr-s--- 2 12 34 ").out_has("crw--w---- 1 0 5 5, 1 ");
    done.out_has("crw-rw-rw- 1 0 0 1, 3 ").out_has("\n0\n");
    // Nothing of it outside: neither a device nor another owner.
    let odd = "find tree ! -user $(id -u) -o -type c -o -perm /6000 ! -type d";
    workspace.native(&["sh", "-c", odd]).success().expect_out("");
}

/// A tree that is to be a root directory is given the sandbox's own procfs, with all that covers it.
#[test]
fn a_directory_gets_a_proc_of_the_sandboxs_own() {
    let workspace = Workspace::new("root-proc");
    if let Some(lacked) = lacks() {
        return skip(lacked);
    }
    let script =
        format!("set -e; {COPY}; mkdir -p tree/proc; copy sh readlink grep cat; ls -A tree/proc");
    as_root_sh(&workspace, &script).success().expect_out("");
    let shows = format!("/proc:{}", workspace.path().join("tree/proc").display());
    let second = "grep -c . /proc/self/status > x; test -s x; readlink /proc/1/exe || echo closed; readlink /proc/self/root
        cat /proc/kcore || echo no; echo 1 > /proc/sys/kernel/panic || echo no";
    let words = ["--root", "--ro", &shows];
    let argv = ["chroot", "tree", "sh", "-c", second];
    let done = workspace.inside_with(&words, &argv);
    done.success().expect_out("closed\n/\nno\nno\n");
    // It shows these processes and no others, and is as fast in its place as the first.
    let script =
        "cd tree/proc; test $(readlink self) = $(cd /proc; readlink self); echo [0-9]* | wc -w
        mv ../proc ../moved || rmdir ../proc || umount ../proc || echo no";
    let done = workspace.inside_with(&words, &["sh", "-c", script]);
    let shown: usize = done.success().out().lines().next().unwrap().parse().unwrap();
    assert!((2..20).contains(&shown), "{shown} processes");
    done.out_has("no\n");
    // In memory its place is made; what is around it makes nothing private; and it tells of no other processors.
    let place = |name: &str| workspace.path().join(name).display().to_string();
    let (memory, shows) = (place("tree"), format!("/proc:{}", place("tree/7/fd/proc")));
    let words =
        ["--root", "--cpus", "1", "--hide", "./other/**/.none", "--tmpfs", &memory, "--ro", &shows];
    let script = "cd tree/7/fd/proc && grep -c ^processor cpuinfo; grep -c ^Name self/status
        cat self/environ || cat $$/maps || echo no";
    let done = workspace.inside_with(&words, &["sh", "-c", script]);
    done.success().expect_out("1\n1\nno\n");
}

/// A daemon's package: its script makes a user and gives it a directory.
#[test]
fn a_package_brings_a_user_of_its_own() {
    let workspace = Workspace::new("root-daemon");
    if !have("dpkg-deb") || !Path::new("/usr/sbin/useradd").exists() {
        return skip("dpkg and useradd");
    }
    workspace.write(
        "p/DEBIAN/control",
        "Package: likeness-daemon\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n",
    );
    workspace.write(
        "p/DEBIAN/postinst",
        "#!/bin/sh\nset -e\nuseradd -r -M -U -d /var/lib/likeness -s /usr/sbin/nologin likeness\n\
         chown likeness:likeness /var/lib/likeness\nchmod 2750 /var/lib/likeness\n",
    );
    workspace.write("p/var/lib/likeness/data", "x\n");
    workspace.write("p/etc/likeness.conf", "x\n");
    let script = "chmod -R go+rX-w p; chmod 755 p/DEBIAN/postinst; dpkg-deb -b p a.deb > out
        dpkg -i a.deb > out 2>&1 || cat out; stat -c '%U %G %a' /var/lib/likeness; dpkg -s likeness-daemon | grep Status
        su -s /bin/sh likeness -c 'id -un; id -gn'";
    let mut command = workspace.sandbox();
    command.env("XDG_STATE_HOME", workspace.path().join("state"));
    command.args(["run", "--root", "--id", "daemon", "--overlay", "/", "--", "sh", "-ec", script]);
    let expected = "likeness likeness 2750\nStatus: install ok installed\nlikeness\nlikeness\n";
    run(command, b"", LIMIT).success().expect_out(expected);
    let mut command = workspace.sandbox();
    command.env("XDG_STATE_HOME", workspace.path().join("state")).args(["discard", "daemon"]);
    run(command, b"", LIMIT).success();
    as_root(&workspace, &["id", "likeness"]).failure();
}

/// A socket of the host's that root sees and root inside does not, since the directory is somebody else's.
#[test]
fn what_only_the_hosts_root_reaches_needs_no_cover() {
    use std::os::unix::fs::{PermissionsExt, chown};
    if !super::common::is_root() {
        return skip("other users");
    }
    let workspace = Workspace::new("root-closed");
    let closed = workspace.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(closed.join("socket")).unwrap();
    chown(&closed, Some(4321), Some(4321)).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    as_root_sh(&workspace, "ls closed/socket || echo no").success().expect_out("no\n");
    drop(socket);
}
