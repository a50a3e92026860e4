//! Pipes and files as standard streams: handed through untouched.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::common::{LIMIT, Outcome, Workspace, finish, guest, run, sandbox_program, start};

/// Runs a script of the outer shell, in which `$S` is the program under test.
#[track_caller]
fn outer(workspace: &Workspace, script: &str) -> Outcome {
    let mut command = workspace.command("bash");
    command.args(["-c", script]).env("S", sandbox_program());
    run(command, b"", LIMIT)
}

/// What a script leaves in the file `f`: with `$R` standing for nothing, and for `sandbox --`.
#[track_caller]
fn same_file(name: &str, script: &str, content: &str) {
    let workspace = Workspace::new(name);
    let sandbox = format!("{} --", sandbox_program().display());
    for prefix in ["", &sandbox] {
        workspace.write("f", "1\n2\n3\n4\n");
        let mut command = workspace.command("bash");
        command.args(["-c", script]).env("R", prefix);
        let outcome = run(command, b"", LIMIT);
        outcome.success().expect_err("");
        assert_eq!(workspace.read("f"), content, "with {prefix:?}\n{}", outcome.report());
    }
}

#[test]
fn writers_of_one_file_share_its_offset() {
    same_file("offset", "(echo a; $R echo b; echo c) > f", "a\nb\nc\n");
    same_file(
        "children",
        "(echo a; $R sh -c 'echo b; sh -c \"echo c\"'; echo d) > f",
        "a\nb\nc\nd\n",
    );
    same_file("both", "(echo a; $R sh -c 'echo b; echo c >&2'; echo d) > f 2>&1", "a\nb\nc\nd\n");
}

#[test]
fn append_mode_is_kept() {
    same_file("append", "($R echo a; echo b) >> f", "1\n2\n3\n4\na\nb\n");
    same_file("appenders", "$R sh -c ': > f; echo a' >> f; echo b >> f", "a\nb\n");
}

#[test]
fn readers_of_one_file_share_its_offset() {
    // head(1) puts the offset back to where it stopped reading lines.
    same_file("head", "($R head -n1; cat) < f > g; mv g f", "1\n2\n3\n4\n");
    same_file("lines", "(read x; $R sh -c 'read x; echo $x'; cat) < f > g; mv g f", "2\n3\n4\n");
    same_file("seek", "(cat; $R cat) < f > g; mv g f", "1\n2\n3\n4\n");
    same_file("update", "($R sh -c 'read x; echo n >&0'; cat) <> f > g", "1\nn\n3\n4\n");
}

#[test]
fn a_read_only_file_outside_the_view_can_be_read() {
    let workspace = Workspace::new("outside");
    let hidden = Workspace::in_tmp("hidden");
    let file = hidden.write("file", "first\nsecond\n");
    let script = format!("($S -- head -n1; cat) < {}", file.display());
    outer(&workspace, &script).success().expect_out("first\nsecond\n").expect_err("");
    let script = format!("(echo a; $S -- echo b; echo c) > {}", file.display());
    outer(&workspace, &script).success().expect_err("");
    assert_eq!(fs::read_to_string(file).unwrap(), "a\nb\nc\n");
}

#[test]
fn pipes_end_when_their_writers_do() {
    let workspace = Workspace::new("pipes");
    outer(&workspace, "printf 'a\\nb\\n' | $S -- cat | tr a-z A-Z").success().expect_out("A\nB\n");
    outer(&workspace, "$S -- sh -c 'echo out; echo err >&2' 2>&1 >/dev/null").expect_out("err\n");
    outer(&workspace, "echo x | $S -- sh -c 'cat; cat' | $S -- wc -c | tr -d ' '")
        .expect_out("2\n");
    outer(&workspace, "$S -- cat < /dev/null").success().expect_out("");
    outer(&workspace, "seq 3 | ($S -- head -c 2 >/dev/null; cat)").success();
}

#[test]
fn closed_streams_lead_nowhere() {
    let workspace = Workspace::new("closed");
    let program = guest("open_streams");
    for (fd, redirection) in ["<&-", ">&-", "2>&-"].iter().enumerate() {
        let place = |run: &str| {
            outer(&workspace, &format!("{run} {} seen {redirection}", program.display())).success();
            workspace.read("seen").lines().nth(fd).unwrap().to_owned()
        };
        assert_eq!(place(""), "closed", "{redirection} closes nothing");
        let inside = place("$S --");
        assert!(["closed", "/dev/null"].contains(&&*inside), "{redirection} leads to {inside}");
    }
}

#[test]
fn a_writer_without_readers_dies_of_it() {
    let workspace = Workspace::new("sigpipe");
    let script = "$S -- yes | head -n1; echo \"${PIPESTATUS[0]}\"";
    outer(&workspace, script).success().expect_out("y\n141\n").expect_err("");
    // The same inside, and where the caller ignores SIGPIPE, which stays so.
    let script = "$S -- bash -c 'yes | head -n1; echo \"${PIPESTATUS[0]}\"'";
    outer(&workspace, script).success().expect_out("y\n141\n");
    let script = "trap '' PIPE; $S -- yes 2>said | head -n1; echo \"${PIPESTATUS[0]}\"; cat said";
    outer(&workspace, script).success().out_has("y\n1\n").out_has("Broken pipe");
}

#[test]
fn a_reader_that_goes_away_does_not_hold_the_sandbox() {
    let workspace = Workspace::new("reader-gone");
    let script = "$S -- sh -c 'while echo x 2>/dev/null; do :; done; exit 9' | read -r x
                  echo \"${PIPESTATUS[0]}\"";
    let outcome = outer(&workspace, script);
    assert!(["141\n", "9\n"].contains(&outcome.out().as_str()), "{}", outcome.report());
}

#[test]
fn no_output_is_lost_in_a_pipe() {
    let workspace = Workspace::new("pipe-output");
    for _ in 0..20 {
        let outcome = workspace.inside(&["seq", "100000"]);
        outcome.success();
        assert_eq!(outcome.stdout.len(), 588_895);
        assert!(outcome.stdout.ends_with(b"\n99999\n100000\n"));
    }
}

#[test]
fn big_inputs_and_outputs() {
    let workspace = Workspace::new("big");
    let script = "head -c 50000000 /dev/zero | $S -- tee copy | md5sum; md5sum < copy";
    let outcome = outer(&workspace, script);
    let lines: Vec<String> = outcome.success().out().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn sockets_and_fifos_as_streams() {
    let workspace = Workspace::new("sockets");
    outer(&workspace, "mkfifo p; echo through > p & $S -- cat < p")
        .success()
        .expect_out("through\n");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut command = workspace.sandbox();
    command.args(["--", "sh", "-c", "read -r x; echo \"got $x\" >&0"]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let child = start(command);
    std::io::Write::write_all(&mut &ours, b"word\n").unwrap();
    finish(child, "socket".to_owned(), b"", LIMIT).success();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut &ours, &mut answer).unwrap();
    assert_eq!(answer, "got word\n");
}

#[test]
fn descriptors_beyond_the_streams_are_closed_unless_asked_for() {
    let workspace = Workspace::new("descriptors");
    workspace.write("f", "");
    let script = "exec 7>f; $S -- sh -c 'echo x >&7' 2>said; echo $?; cat f";
    assert!(outer(&workspace, script).out().starts_with("2\n"));
    outer(&workspace, "exec 7>f; $S --fd 7 -- sh -c 'echo x >&7'; cat f").expect_out("x\n");
}

#[test]
fn streams_stay_blocking() {
    let workspace = Workspace::new("blocking");
    let mut pipe = Command::new("bash");
    pipe.current_dir(workspace.path());
    // O_NONBLOCK is octal 04000; it is shared by everybody who holds the pipe.
    let script = "sleep 1000 | ($S -- true; grep flags /proc/self/fdinfo/0) & wait $!";
    pipe.args(["-c", &script.replace("sleep 1000", "true")]).env("S", sandbox_program());
    pipe.stdin(Stdio::null()).process_group(0);
    let outcome = run(pipe, b"", LIMIT);
    let flags = outcome.success().out();
    let octal = flags.split_whitespace().last().unwrap();
    assert_eq!(u32::from_str_radix(octal, 8).unwrap() & 0o4000, 0, "{flags}");
}

#[test]
fn outputs_opened_for_reading_and_writing() {
    let workspace = Workspace::new("update");
    let path = workspace.write("f", "0123456789");
    let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut command = workspace.sandbox();
    let script = "dd bs=1 count=3 of=/dev/null status=none; printf abc >&0; printf XY >&1";
    command.args(["--", "sh", "-c", script]).stdin(open()).stdout(open());
    assert!(command.status().unwrap().success());
    assert_eq!(workspace.read("f"), "XY2abc6789");
    let mut command = workspace.sandbox();
    command.args(["--", "cat"]).stdin(File::open(&path).unwrap()).stdout(Stdio::piped());
    assert_eq!(command.output().unwrap().stdout, b"XY2abc6789");
}
