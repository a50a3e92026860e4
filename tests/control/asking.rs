//! `sandbox ask`: questions and answers over the control socket.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::Value;

use crate::common::{Workspace, wait_for};
use crate::desk::Desk;

/// A sandbox that asks.
struct Asked {
    desk: Desk,
    beside: Workspace,
}

impl Asked {
    fn new(test: &str) -> Asked {
        let asked =
            Asked { desk: Desk::new(test), beside: Workspace::new(&format!("{test}-beside")) };
        for name in ["one", "two"] {
            asked.beside.write(&format!("home/.ssh/{name}"), format!("secret {name}\n"));
        }
        asked
    }

    /// Starts a script of the shell, detached.
    fn begin(&self, flags: &[&str], script: &str) {
        let words = [&["run", "--detach", "--id", "it"], flags, &["--", "sh", "-c", script]];
        let mut command = self.desk.command(&words.concat());
        command.env("HOME", self.beside.path().join("home"));
        crate::common::run(command, b"", crate::common::LIMIT).success().expect_out("it\n");
    }

    fn follow(&self) -> Follower {
        let mut command = self.desk.command(&["ask", "it", "--follow", "--json"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let answers = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Follower { child, answers, lines }
    }

    /// What the program has said when it has ended.
    #[track_caller]
    fn end(&self) -> String {
        self.desk.sandbox(&["wait", "it"]);
        self.desk.sandbox(&["ps", "--json"]).success();
        self.desk.workspace.read("said")
    }

    #[track_caller]
    fn events(&self) -> String {
        self.desk.sandbox(&["events", "it"]).success().out()
    }
}

struct Follower {
    child: Child,
    answers: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    #[track_caller]
    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no line: {line:?}"))
    }

    /// The next question: its number.
    #[track_caller]
    fn asks(&mut self, name: &str) -> u64 {
        let question = self.next();
        assert_eq!(question["kind"], "read", "{question}");
        assert!(question["path"].as_str().unwrap().ends_with(name), "{question}");
        assert!(question["text"].as_str().unwrap().contains("wants to read the hidden file"));
        question["number"].as_u64().unwrap()
    }

    fn says(&mut self, words: &str) {
        writeln!(self.answers, "{words}").unwrap();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_program_answers_and_whoever_leaves_gives_back() {
    let asked = Asked::new("asking-answers");
    let cat = "for name in one two two one; do cat ~/.ssh/$name; done >said 2>&1";
    asked.desk.workspace.native(&["mkfifo", "go"]).success();
    asked.begin(&["--ask", "files"], &format!("{cat}; read -r x <go"));
    let mut one = asked.follow();
    let number = one.asks("/one");
    // Another one is told of what is open, and what becomes of it.
    let mut two = asked.follow();
    assert_eq!(two.asks("/one"), number);
    let listed = asked.desk.sandbox(&["ask", "it", "--json"]);
    let listed: Value = serde_json::from_str(listed.success().out().trim()).unwrap();
    assert_eq!((&listed["number"], &listed["comm"]), (&number.into(), &"cat".into()));
    asked.desk.sandbox(&["ask", "it", "--answer", &number.to_string(), "once"]).success();
    for follower in [&mut one, &mut two] {
        let settled = follower.next();
        assert_eq!((&settled["number"], &settled["settled"]), (&number.into(), &"once".into()));
    }
    let next = one.asks("/two");
    asked
        .desk
        .sandbox(&["ask", "it", "--answer", &number.to_string(), "once"])
        .one_line_error(125, &["no question", "is open"]);
    drop(one);
    assert_eq!(two.asks("/two"), next);
    two.says(&format!("{next} always"));
    assert_eq!(two.next()["settled"], "always");
    let last = two.asks("/one");
    // Nobody is left.
    drop(two);
    wait_for("the end of the question", || {
        asked.events().contains(&format!("answered: {last}: nobody"))
    });
    let events = asked.events();
    assert!(events.contains(&format!("asked: {number}: cat (")), "{events}");
    assert!(events.contains(&format!("answered: {next}: always, by control: ")), "{events}");
    std::fs::write(asked.desk.workspace.path().join("go"), "x\n").unwrap();
    let said = asked.end();
    assert!(said.starts_with("secret one\nsecret two\nsecret two\ncat: "), "{said}");
}

#[test]
fn a_pause_and_a_save_take_a_question_back_and_it_is_asked_anew() {
    let asked = Asked::new("asking-pauses");
    asked.begin(&["--ask", "files"], "cat ~/.ssh/one >said 2>&1");
    let mut follower = asked.follow();
    let first = follower.asks("/one");
    asked.desk.sandbox(&["pause", "it"]).success();
    assert_eq!(follower.next()["settled"], "withdrawn");
    asked.desk.sandbox(&["resume", "it"]).success();
    let second = follower.asks("/one");
    assert!(second > first);
    asked.desk.sandbox(&["save", "it", "-o", "image", "--leave-running"]).success();
    assert_eq!(follower.next()["settled"], "withdrawn");
    let third = follower.asks("/one");
    follower.says(&format!("{third} once"));
    assert_eq!(asked.end(), "secret one\n");
}

#[test]
fn what_cannot_be_is_said_and_nobody_is_waited_for_long() {
    let asked = Asked::new("asking-errors");
    // (Somebody may come in the first five seconds.)
    asked.begin(&["--ask", "files"], "cat ~/.ssh/one >said 2>&1; cat ~/.ssh/two >>said 2>&1");
    let said = asked.end();
    assert_eq!(said.matches("No such file or directory").count(), 2, "{said}");
    asked.desk.detach_idle("quiet");
    asked
        .desk
        .sandbox(&["ask", "quiet"])
        .one_line_error(125, &["it asks nothing", "--ask net,files"]);
    asked.desk.sandbox(&["kill", "quiet"]).success();
    let refused = |words: &[&str], parts: &[&str]| {
        let words = [&["run"], words, &["--", "true"]].concat();
        asked.desk.sandbox(&words).one_line_error(125, parts);
    };
    refused(&["--ask", "files", "--root"], &["--ask files with --root"]);
    refused(&["--ask", "files", "--hide", "*.x"], &["--ask files with --hide '*.x'", "pattern"]);
    refused(&["--ask", "net", "--net", "host"], &["--ask net with --net host"]);
    refused(&["--ask-save", "x"], &["--ask-save x", "add --ask net"]);
    refused(&["--ask", "files", "--ask-save", "x"], &["the program can change what lies there"]);
    let wrong = asked.desk.sandbox(&["ask", "it", "--answer", "1", "yes"]);
    wrong.one_line_error(125, &["answer once, always, no or never"]);
}
