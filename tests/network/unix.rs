//! `--unix`: a socket of the host that programs may connect to.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::common::{Workspace, have, wait_for};

/// Says a word to so many that connect, and is gone.
fn listen(path: &Path, word: &'static str, times: usize) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(times) {
            let _ = stream.unwrap().write_all(word.as_bytes());
        }
    });
}

const ASK: &str = "import socket, errno, sys
s = socket.socket(socket.AF_UNIX)
number = s.connect_ex(sys.argv[1])
print(errno.errorcode[number] if number else s.recv(9).decode(), flush=True)
";

#[test]
fn a_socket_that_is_named_is_reached_and_no_other() {
    if !have("python3") {
        return;
    }
    let (workspace, shown, hidden) =
        (Workspace::new("unix"), Workspace::new("u"), Workspace::in_tmp("u"));
    workspace.write("ask.py", ASK);
    // (A name of a socket has 107 bytes at most: they are bound by a short one.)
    let link = hidden.path().join("s");
    std::os::unix::fs::symlink(shown.path(), &link).unwrap();
    for name in ["a", "b"] {
        listen(&link.join(name), "hello", usize::MAX);
        listen(&hidden.path().join(name), "hello", usize::MAX);
    }
    let path = |workspace: &Workspace, name: &str| {
        workspace.path().join(name).to_str().unwrap().to_owned()
    };
    for place in [&shown, &hidden] {
        let ask = |flags: &[&str], name: &str| {
            // By a short name, too: from its directory.
            let script = format!(
                "cd {} && exec python3 {} {name}",
                place.path().display(),
                path(&workspace, "ask.py")
            );
            workspace.inside_with(flags, &["sh", "-c", &script])
        };
        let (a, b) = (path(place, "a"), path(place, "b"));
        ask(&["--unix", &a], "a").success().expect_out("hello\n");
        let other = ask(&["--unix", &a], "b");
        other.success().expect_out("ENOENT\n");
        ask(&["--unix", &a, "--unix", &b, "--overlay", "/"], "b").success().expect_out("hello\n");
    }
    let refused = |flags: &[&str], words: &[&str]| {
        workspace.inside_with(flags, &["true"]).one_line_error(125, words);
    };
    let file = path(&workspace, "ask.py");
    refused(&["--unix", &file], &["ask.py", "is no socket"]);
    refused(&["--unix", "/tmp/none/such"], &["--unix /tmp/none/such", "there is no"]);
    refused(&["--unix", "@name"], &["abstract", "--net host"]);
    refused(&["--unix", &path(&shown, "a"), "--walls", "landlock"], &["--walls landlock"]);
    // A daemon that comes back is found where its directory shows.
    let again = |place: &Workspace, bind: &Path, flags: &[&str], expected: &str| {
        let _ = std::fs::remove_file(workspace.path().join("asked"));
        listen(bind, "hello", 1);
        let ask = format!(
            "cd {}; python3 {file} c; touch {w}/asked; while [ ! -e {w}/new ]; do sleep 0.02; done; python3 {file} c",
            place.path().display(),
            w = workspace.path().display()
        );
        let mut command = workspace.sandbox();
        command.args(flags).args(["--unix", &path(place, "c"), "--", "sh", "-c", &ask]);
        let child = crate::common::start(command);
        wait_for("the first answer", || workspace.has("asked"));
        std::fs::remove_file(bind).unwrap();
        listen(bind, "again", 1);
        workspace.write("new", "");
        let outcome = crate::common::finish(child, "--unix".to_owned(), b"", crate::common::LIMIT);
        outcome.success().expect_out(expected);
        std::fs::remove_file(workspace.path().join("new")).unwrap();
    };
    again(&shown, &link.join("c"), &[], "hello\nagain\n");
    let of_hidden = hidden.path().join("c");
    again(&hidden, &of_hidden, &[], "hello\nECONNREFUSED\n");
    std::fs::remove_file(&of_hidden).unwrap();
    let shows = ["--ro", hidden.path().to_str().unwrap()];
    again(&hidden, &of_hidden, &shows, "hello\nagain\n");
}
