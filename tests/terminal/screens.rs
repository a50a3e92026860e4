//! Programs that fill the screen: vim, less, tmux, an interactive shell with line editing.

use crate::common::{Workspace, have};
use crate::screen::Screen;

#[test]
fn vim_edits_a_file() {
    if !have("tmux") || !have("vim") {
        return;
    }
    let workspace = Workspace::new("vim");
    let screen = Screen::new(&workspace);
    screen.enters("$S -- vim -u NONE -i NONE -n file");
    screen.waits("an empty file", |text| text.lines().filter(|line| *line == "~").count() > 15);
    screen.types("ihello");
    screen.presses(&["Enter"]);
    screen.types("second line");
    screen.presses(&["Escape"]);
    // The window grows and vim fills it.
    screen.resizes(90, 30);
    screen.waits("30 rows", |text| text.lines().filter(|line| *line == "~").count() > 22);
    // A command inside vim, then Ctrl-Z of the whole and back.
    screen.enters(":read !echo from a command");
    // The line that was read, not the command as it was typed: a Ctrl-Z that comes while vim still runs
    // a command can be lost on vim, natively too.
    screen.waits("the line", |text| text.lines().any(|line| line == "from a command"));
    screen.presses(&["C-z"]);
    screen.shows("Stopped");
    screen.enters("fg");
    screen.waits("vim again", |text| text.lines().filter(|line| *line == "~").count() > 15);
    screen.enters(":wq");
    screen.prompts();
    assert_eq!(workspace.read("file"), "hello\nsecond line\nfrom a command\n");
    screen.enters("echo after$((1)); stty -a | grep -o ' icanon\\| echo '");
    screen.shows("after1");
}

#[test]
fn less_pages_and_quits() {
    if !have("tmux") || !have("less") {
        return;
    }
    let workspace = Workspace::new("less");
    let lines: String = (1..=500).map(|number| format!("line {number}\n")).collect();
    workspace.write("text", lines);
    let screen = Screen::new(&workspace);
    // From a file, and from a pipe, where its keys come from /dev/tty.
    for command in ["$S -- less text", "$S -- cat text | $S -- less", "cat text | $S -- less"] {
        screen.enters(&format!("clear; LESSHISTFILE=- {command}"));
        screen.waits("line 23", |text| text.lines().any(|line| line == "line 23"));
        screen.types(" ");
        screen.waits("line 46", |text| text.lines().any(|line| line == "line 46"));
        screen.types("G");
        screen.shows("line 500");
        screen.enters("?line 123");
        screen.waits("line 123 at the top", |text| text.starts_with("line 123\n"));
        screen.types("q");
        screen.prompts();
    }
}

/// Whether a line parts two panes; it is drawn in ASCII where the locale is C.
fn is_split(text: &str) -> bool {
    text.lines().any(|line| line.len() >= 80 && (line.contains("qqqq") || line.contains("────")))
}

#[test]
fn tmux_inside() {
    if !have("tmux") {
        return;
    }
    let workspace = Workspace::new("tmux");
    let screen = Screen::new(&workspace);
    let shell = "bash --norc --noprofile";
    screen.enters(&format!(
        "clear; TMUX= $S --env PS1='in> ' --env SHELL=/bin/sh -- tmux -f /dev/null new-session '{shell}'"
    ));
    screen.shows_a_line("in>");
    screen.enters("echo first$((1))");
    screen.shows("first1");
    screen.presses(&["C-b"]);
    screen.types(":");
    screen.enters(&format!("split-window '{shell}'"));
    screen.waits("two panes", |text| text.matches("in>").count() >= 2 && is_split(text));
    screen.enters("echo second$((2))");
    screen.waits("a prompt in the second pane", |text| {
        text.split_once("second2").is_some_and(|(_, after)| after.contains("in>"))
    });
    screen.presses(&["C-d"]);
    screen.waits("one pane", |text| !is_split(text));
    screen.enters("tmux detach");
    screen.waits("the end of the inner tmux", |text| text.contains("[detached"));
    screen.prompts();
}

#[test]
fn line_editing_at_a_shell_inside() {
    if !have("tmux") {
        return;
    }
    let workspace = Workspace::new("editing");
    workspace.write("completed-name", "content of it\n");
    let screen = Screen::new(&workspace);
    screen.enters("clear; $S --env PS1='in> ' -- bash --norc --noprofile");
    screen.shows_a_line("in>");
    screen.types("cat compl");
    screen.presses(&["Tab", "Enter"]);
    screen.shows("content of it");
    screen.types("echo onX");
    screen.presses(&["BSpace"]);
    screen.types("e$((1))");
    screen.presses(&["Enter"]);
    screen.shows("one1");
    screen.presses(&["Up", "Up", "Enter"]);
    screen.waits("the line again", |text| text.matches("content of it").count() == 2);
    screen.resizes(100, 30);
    screen.enters("stty size");
    // A ^D that comes before the shell reads its next line itself is the end of an empty one, and lost on it.
    screen.waits("a prompt behind the size", |text| {
        text.split_once("30 100").is_some_and(|(_, after)| after.contains("in>"))
    });
    screen.presses(&["C-d"]);
    screen.prompts();
}

#[test]
fn lines_begin_at_the_left() {
    if !have("tmux") {
        return;
    }
    let workspace = Workspace::new("left");
    let screen = Screen::new(&workspace);
    screen.enters(
        "clear; $S -- seq 5; (sleep 0.1; seq 6 8) | $S -- cat; $S -- sh -c 'seq 9 10 >&2' | cat",
    );
    screen.waits("the last number", |text| text.lines().any(|line| line.trim() == "10"));
    let text = screen.prompts();
    let shown: Vec<&str> = text.lines().collect();
    let numbers: Vec<String> = (1..=10).map(|number| number.to_string()).collect();
    assert!(shown.windows(10).any(|window| window == numbers), "{text}");
}
