//! Interpreters and runtimes: python, go, node.

use crate::common::{Workspace, have};

#[test]
fn python_with_threads_subprocesses_and_multiprocessing() {
    if !have("python3") {
        return;
    }
    let workspace = Workspace::new("python");
    workspace.write("work.py", include_str!("inputs/work.py"));
    workspace.same(&["python3", "-B", "work.py"]).out_has("all done\n");
}

#[test]
fn go_with_thousands_of_goroutines() {
    if !have("go") {
        return;
    }
    let workspace = Workspace::new("go");
    workspace.write("go.mod", "module example.test/work\n\ngo 1.19\n");
    workspace.write("main.go", include_str!("inputs/work.go"));
    let here = workspace.path().display();
    let script = format!(
        "export GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local GOSUMDB=off CGO_ENABLED=0 \
         GOCACHE={here}/cache GOPATH={here}/path GOENV=off HOME={here}
         go build -o work . && for i in 1 2 3; do ./work || exit; done"
    );
    let outcome = workspace.same(&["sh", "-c", &script]);
    assert_eq!(outcome.out().matches("all done\n").count(), 3, "{}", outcome.report());
}

#[test]
fn node_with_files_workers_and_children() {
    if !have("node") {
        return;
    }
    let workspace = Workspace::new("node");
    workspace.write("work.js", include_str!("inputs/work.js"));
    workspace.same(&["node", "work.js"]).out_has("all done\n");
}
