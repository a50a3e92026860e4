//! `--ask`: questions on the terminal.

use std::time::Duration;

use crate::common::{Workspace, wait_for};
use crate::user::{PROMPT, User};

/// A secret in the home directory, and a directory that can only be read.
struct Place {
    workspace: Workspace,
    beside: Workspace,
}

impl Place {
    fn new(test: &str) -> Place {
        let place = Place {
            workspace: Workspace::new(test),
            beside: Workspace::new(&format!("{test}-beside")),
        };
        place.beside.write("home/.ssh/key", "secret\n");
        place.beside.write("home/.ssh/odd\x1b[2Jkey", "odd\n");
        place
    }

    fn shell(&self) -> User {
        let mut user = User::at_a_shell(&self.workspace);
        let beside = self.beside.path().display().to_string();
        user.enters(&format!("export HOME={beside}/home B={beside}; echo set$((1))"), "set1");
        user.wait_for(PROMPT);
        user
    }
}

impl User {
    /// Reads a question and answers it by a key. (What is typed before it can have been read is not for it, which is
    /// a matter of time alone: of 700 ms, which begin a moment after it is seen here, on a busy machine a longer one.)
    #[track_caller]
    fn answers(&mut self, question: &str, key: &str) {
        if !question.is_empty() {
            self.wait_for(question);
        }
        self.wait_for("not now? ");
        std::thread::sleep(Duration::from_millis(1300));
        self.types(key);
    }
}

#[test]
fn a_hidden_file_is_read_if_the_user_says_so() {
    let place = Place::new("asking-read");
    let mut user = place.shell();
    let before = user.modes();
    let cat = "$S --ask files -- cat ~/.ssh/key ~/.ssh/key";
    user.enters(cat, "cat (2) wants to read the hidden file ");
    for key in ["o", "o"] {
        user.answers("/home/.ssh/key", key);
        user.wait_for("once\r\nsecret\r\n");
    }
    user.wait_for(PROMPT);
    assert_eq!(user.modes(), before);
    user.enters(cat, "wants to read");
    user.answers("", "a");
    user.wait_for("always\r\nsecret\r\nsecret\r\n");
    user.wait_for(PROMPT);
    user.enters(cat, "wants to read");
    user.answers("", "n");
    user.wait_for("never\r\n");
    user.wait_for("No such file or directory");
    user.wait_for("(2 times): the answer was never; --allow PATH allows it");
    user.wait_for(PROMPT);
    // Ctrl-C is no for now, and ends nothing.
    user.enters(cat, "wants to read");
    user.answers("", "\x03");
    user.wait_for("no\r\n");
    user.answers("wants to read", "o");
    user.wait_for("once\r\n");
    user.wait_for("secret\r\n");
    user.wait_for(PROMPT);
    // What a guest writes moves nothing.
    user.enters("$S --ask files -- cat ~/.ssh/odd$'\\x1b'[2Jkey", "odd\\u{1b}[2Jkey");
    user.answers("", "o");
    user.wait_for("odd\r\n");
    user.wait_for(PROMPT);
    assert_eq!(user.modes(), before);
}

#[test]
fn what_can_only_be_read_is_changed_if_the_user_says_so() {
    let place = Place::new("asking-write");
    place.beside.write("old", "old\n");
    let mut user = place.shell();
    user.enters(
        "$S --ask files -- sh -c 'echo more >>$B/old; echo new >$B/new; cat $B/new $B/old'",
        "wants to",
    );
    user.answers("make or change the file", "o");
    user.answers("make or change the file", "o");
    user.wait_for("new\r\nold\r\nmore\r\n");
    user.wait_for(PROMPT);
    assert_eq!(
        (place.beside.read("old"), place.beside.read("new")),
        ("old\nmore\n".into(), "new\n".into())
    );
    // Rules that somebody has written are not asked about, nor what is no plain file.
    user.types("$S --ask files --ro $B --hide ~/.ssh/key -- sh -c 'echo >$B/x; cat ~/.ssh/key'\r");
    let said = user.wait_for(PROMPT);
    assert!(said.contains("Read-only file system") && !said.contains("wants to"), "{said}");
}

#[test]
fn answers_are_written_to_a_profile() {
    let place = Place::new("asking-save");
    let mut user = place.shell();
    let flags = "--ask files --ask-save $B/answers.toml";
    user.enters(&format!("$S {flags} -- cat ~/.ssh/key"), "wants to read");
    user.answers("s write it down", "s");
    user.answers("write it: a always, n never", "a");
    user.wait_for("always\r\nsecret\r\n");
    user.wait_for(PROMPT);
    let text = place.beside.read("answers.toml");
    assert!(
        text.starts_with("allow = [\n") && text.contains("/home/.ssh/key\", # asked"),
        "{text}"
    );
    user.enters("$S --profile $B/answers.toml -- cat ~/.ssh/key", "\r\nsecret\r\n");
    user.wait_for(PROMPT);
    user.enters(
        "$S --ask files --ask-save answers.toml -- true",
        "the program can change what lies there",
    );
}

#[test]
fn jobs_stop_and_others_go_on_while_a_question_is_open() {
    let place = Place::new("asking-jobs");
    let mut user = place.shell();
    // Stopped, it takes its question back, and asks anew.
    user.enters("$S --ask files -- cat ~/.ssh/key", "wants to read");
    user.answers("", "\x1a");
    user.wait_for("Stopped");
    user.wait_for(PROMPT);
    user.types("fg\r");
    user.answers("wants to read", "o");
    user.wait_for("once\r\nsecret\r\n");
    user.wait_for(PROMPT);
    // Others go on; one that dies takes its question along.
    let script = "cat ~/.ssh/key & read -r x <$B/go; touch other; read -r x <$B/go; kill $!; wait; echo over";
    user.enters("mkfifo $B/go; echo made$((1))", "made1");
    user.wait_for(PROMPT);
    user.enters(&format!("$S --ask files -- sh -c '{script}'"), "wants to read");
    std::fs::write(place.beside.path().join("go"), "x\n").unwrap();
    wait_for("the other program", || place.workspace.has("other"));
    std::fs::write(place.beside.path().join("go"), "x\n").unwrap();
    user.wait_for("withdrawn\r\nover\r\n");
    user.wait_for(PROMPT);
    // In the background it waits to be brought to the foreground; in a pipeline it asks at once.
    user.enters("$S --ask files -- cat ~/.ssh/key &", PROMPT);
    user.enters("until jobs | grep Stopped; do sleep 0.05; done", "Stopped");
    user.wait_for(PROMPT);
    user.types("fg\r");
    user.answers("wants to read", "o");
    user.wait_for("once\r\nsecret\r\n");
    user.wait_for(PROMPT);
    user.enters("$S --ask files -- cat ~/.ssh/key | tr a-z A-Z", "wants to read");
    user.answers("", "o");
    user.wait_for("SECRET\r\n");
    user.wait_for(PROMPT);
}
