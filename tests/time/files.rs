//! The time stamps of files.

use crate::common::{Workspace, have};
use crate::{Y2020, host};

const MAKEFILE: &str = "lib.a: a.o b.o\n\tar rcU $@ $^\n\n%.o: %.c\n\tcc -c -o $@ $<\n";

#[test]
fn make_under_a_frozen_clock_gives_the_same_archive_twice() {
    if !have("make") || !have("ar") {
        return;
    }
    let mut archives = Vec::new();
    for number in 0..2 {
        let workspace = Workspace::new(&format!("make{number}"));
        workspace.write("a.c", "int a(void) { return 1; }\n");
        workspace.write("b.c", "int b(void) { return 2; }\n");
        workspace.write("Makefile", MAKEFILE);
        workspace.inside_with(&["--time", "2020-01-01T00:00:00Z,frozen"], &["make"]).success();
        let archive = std::fs::read(workspace.path().join("lib.a")).expect("the archive");
        assert!(archive.windows(10).any(|bytes| bytes == b"1577836800"), "no stamp of 2020");
        archives.push(archive);
    }
    assert_eq!(archives[0], archives[1]);
}

#[test]
fn files_of_the_run_show_its_time_and_others_their_own() {
    let workspace = Workspace::new("stamps");
    workspace.write("old", "");
    workspace.native(&["touch", "-d", "@1000000000", "old"]).success();
    // Each way to name a file: by path, relative, through a directory, a symlink, a descriptor.
    let script = "touch new; mkdir d; touch d/new; ln -s new link; ln -s $PWD/new far; cd d
        stat -L -c %Y ../new $OLDPWD/new new ../link ../far; stat -c %Y ../link
        stat -L -c %Y /dev/fd/3 3<new; stat -c %Y /tmp; cd ..; ls --time-style=+%s -l new | cut -d' ' -f6
        find . -newermt 2021-01-01 ! -name old; stat -c %Y old; touch -d @5000 new; stat -c %Y new";
    let at = ["--time", "2020-01-01T00:00:00Z,frozen"];
    let outcome = workspace.inside_with(&at, &["sh", "-c", script]);
    let text = outcome.success().out();
    let wanted = [format!("{Y2020}\n").repeat(9), "1000000000\n5000\n".into()].concat();
    assert_eq!(text, wanted, "{}", outcome.report());
    // The files themselves carry the host's time.
    let stamp = workspace.native(&["stat", "-c", "%Y", "d/new"]).success().out();
    let stamp: i64 = stamp.trim().parse().expect("seconds");
    assert!((host() - 600..=host()).contains(&stamp), "{stamp}");
    // Another run shows what the first one made as it is.
    let outcome = workspace.inside_with(&at, &["stat", "-c", "%Y", "d/new"]);
    outcome.success().expect_out(&format!("{stamp}\n"));
}

#[test]
fn python_sees_the_same_stamps_by_every_call() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("python");
    let script = "import os\n\
        f = open('x', 'w'); f.write('x'); f.flush()\n\
        print({int(os.stat('x').st_mtime), int(os.fstat(f.fileno()).st_mtime),\
               int(os.lstat('x').st_ctime), int(next(os.scandir('.')).stat().st_mtime)})";
    let at = ["--time", "2020-01-01T00:00:00Z,frozen"];
    let outcome = workspace.inside_with(&at, &["python3", "-B", "-c", script]);
    outcome.success().expect_out(&format!("{{{Y2020}}}\n"));
}
