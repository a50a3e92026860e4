//! Terminal settings: what the guest gets, what output looks like, and that all is put back.

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{ControlFlags, LocalFlags, Termios};

use crate::common::leftovers::marked_processes;
use crate::common::{Workspace, have, wait_for};
use crate::user::{PROMPT, User};

#[test]
fn the_guest_has_a_terminal_of_its_own_like_the_outer_one() {
    let workspace = Workspace::new("own");
    let mut user = User::at_a_shell(&workspace);
    user.enters("stty erase ^H intr ^G -echoctl; echo =$(stty -g)=", "\r\n=");
    let outside = user.wait_for("=\r\n");
    user.wait_for(PROMPT);
    user.enters("$S -- sh -c 'echo =$(stty -g)='", "\r\n=");
    assert_eq!(user.wait_for("=\r\n"), outside);
    user.wait_for(PROMPT);
    user.enters("$S -- sh -c 'tty; tty < /dev/tty'", "/dev/pts/0\r\n");
    user.wait_for(PROMPT);
    user.enters("$S -- sh -c 'stty -echo; stty -a' | grep -c -- '-echo '", "1\r\n");
    user.wait_for(PROMPT);
    // What the guest did to its own terminal is not seen outside.
    user.enters("$S -- stty -icanon intr ^A; echo =$(stty -g)=", "\r\n=");
    assert_eq!(user.wait_for("=\r\n"), outside);
}

#[test]
fn window_size_is_carried() {
    let workspace = Workspace::new("size");
    let mut user = User::at_a_shell(&workspace);
    user.resizes(33, 101);
    let guest = r#"trap "stty size; exit 5" WINCH; stty size; while :; do sleep 0.1; done"#;
    user.enters(&format!("$S -- sh -c '{guest}'"), "33 101\r\n");
    user.resizes(44, 122);
    user.wait_for("44 122\r\n");
    user.wait_for(PROMPT);
    // A change that comes while it is stopped is seen afterwards.
    user.enters("$S -- cat", "cat\r\n");
    user.enters("word", "word\r\nword\r\n");
    user.types("\x1a");
    user.wait_for(PROMPT);
    user.resizes(20, 60);
    let before = user.modes();
    user.enters("fg", "cat\r\n");
    // The kernel turns a Ctrl-D that it took in before the terminal became raw into a NUL.
    wait_for("the raw terminal", || user.modes() != before);
    user.types("\x04");
    user.wait_for(PROMPT);
    let guest =
        r#"echo up$((1)); until [ "$(stty size)" = "21 61" ]; do sleep 0.05; done; echo ok$((1))"#;
    user.enters(&format!("$S -- sh -c 'kill -STOP $$; {guest}'"), PROMPT);
    user.resizes(21, 61);
    user.enters("fg", "ok1");
    user.wait_for(PROMPT);
}

#[test]
fn output_is_processed_once() {
    let workspace = Workspace::new("staircase");
    let mut user = User::at_a_shell(&workspace);
    user.enters("$S -- printf 'a\\nb\\n\\tc\\n'; echo over$((1))", "\r\n");
    assert_eq!(user.wait_for("over1"), "a\r\nb\r\n\tc\r\n");
    user.wait_for(PROMPT);
    // A guest that wants its output raw gets it raw.
    user.enters("$S -- sh -c 'stty -opost; printf \"a\\nb\\n\"'; echo over$((2))", "\r\n");
    assert_eq!(user.wait_for("over2"), "a\nb\n");
    user.wait_for(PROMPT);
    // Beside another program that writes to the same terminal.
    user.enters(
        "$S -- sh -c 'echo to$((1)) >&2; until [ -e said ]; do sleep 0.01; done' | \
         (until [ -e seen ]; do sleep 0.01; done; echo from$((1)); : >said; cat); echo over$((3))",
        "\r\n",
    );
    let first = user.wait_for("to1");
    workspace.write("seen", "");
    // Both terminals add a carriage return there: one too many is not seen.
    let seen = format!("{first}to1{}", user.wait_for("over3")).replace("\r\r\n", "\r\n");
    assert_eq!(seen, "to1\r\nfrom1\r\n");
    user.wait_for(PROMPT);
    // Bytes of any kind pass.
    user.enters("$S -- printf '\\303\\251\\001\\033[0m\\377'; echo over$((4))", "\r\n");
    assert_eq!(user.wait_for("over4"), "\u{e9}\u{1}\u{1b}[0m\u{fffd}");
}

#[test]
fn no_output_is_lost_at_the_end() {
    let workspace = Workspace::new("lost");
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
                      $S -- seq 100000; echo end $i $?; done";
    let mut user = User::watching(&workspace, script);
    let expected: String = (1..=100_000).map(|number| format!("{number}\r\n")).collect();
    for round in 1..=20 {
        let seen = user.wait_for(&format!("end {round} 0\r\n"));
        let (seen, expected) = (seen.len(), expected.len());
        assert_eq!(seen, expected, "round {round}");
    }
    user.waits_for_the_end();
}

#[test]
fn passwords_are_asked_for_on_the_terminal() {
    let workspace = Workspace::new("password");
    workspace.write("file", "line of the file\n");
    let mut user = User::at_a_shell(&workspace);
    let script = "exec 3</dev/tty; IFS= read -rsp \"Secret$((1)): \" x <&3; echo; read -r y; echo \"[$x|$y]\"";
    user.enters(&format!("$S -- bash -c '{script}' < file > answer"), "Secret1: ");
    user.types("hush\r");
    let echoed = user.wait_for(PROMPT);
    assert!(!echoed.contains("hush"), "{echoed:?}");
    assert_eq!(workspace.read("answer"), "\n[hush|line of the file]\n");
    if have("python3") {
        let script = "import getpass; print(\"<\" + getpass.getpass(\"Again\" + \": \") + \">\")";
        user.enters(&format!("$S -- python3 -c '{script}' < file | cat"), "Again: ");
        user.types("quiet\r");
        let echoed = user.wait_for("<quiet>");
        assert!(!echoed.contains("quiet"), "{echoed:?}");
        user.wait_for(PROMPT);
    }
}

/// A user whose terminal has settings that no shell sets, at a script that ends in `read hold`.
fn with_odd_settings(workspace: &Workspace, line: &str) -> (User, Termios) {
    let script = format!("read go; {line}; echo status=$?=; read hold");
    let mut user = User::watching(workspace, &script);
    let mut modes = user.modes();
    modes.local_flags.remove(LocalFlags::ECHOCTL | LocalFlags::ECHOK);
    modes.control_flags.insert(ControlFlags::CREAD | ControlFlags::HUPCL);
    modes.control_chars[nix::sys::termios::SpecialCharacterIndices::VERASE as usize] = 8;
    user.sets_modes(&modes);
    let modes = user.modes();
    user.types("\r");
    (user, modes)
}

#[test]
fn settings_are_put_back_however_it_ends() {
    for (line, status) in [
        ("$S -- true", 0),
        ("$S -- sh -c 'stty raw -echo; exit 3'", 3),
        ("$S -- no-such-program", 127),
        ("$S -- sh -c 'kill -SEGV $$'", 139),
        ("$S -- sh -c 'stty raw; kill -KILL $$'", 137),
        ("timeout --foreground 0.3 $S -- sh -c 'stty raw; sleep 1000'; true", 0),
    ] {
        let workspace = Workspace::new("put-back");
        let (mut user, before) = with_odd_settings(&workspace, line);
        user.wait_for(&format!("status={status}="));
        assert_eq!(user.modes(), before, "after {line}");
    }
}

#[test]
fn settings_are_put_back_after_the_guest_was_killed() {
    let workspace = Workspace::new("guest-killed");
    let line = "$S -- sh -c 'echo up > up; exec sleep 12345'";
    let (mut user, before) = with_odd_settings(&workspace, line);
    wait_for("the guest", || workspace.has("up"));
    wait_for("the raw terminal", || user.modes() != before);
    let guest = || {
        marked_processes(workspace.mark()).into_iter().find(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words == b"sleep\x0012345\0"
        })
    };
    wait_for("the guest's exec", || guest().is_some());
    kill(nix::unistd::Pid::from_raw(guest().unwrap()), Signal::SIGKILL).unwrap();
    user.wait_for("status=137=");
    assert_eq!(user.modes(), before);
}

#[test]
fn settings_are_put_back_when_the_supervisor_is_told_to_end() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let workspace = Workspace::new("told");
        let line = "sh -c 'echo $$ > pid; exec $S -- sh -c \"echo > up; exec sleep 1000\"'";
        let (mut user, before) = with_odd_settings(&workspace, line);
        wait_for("the guest", || workspace.has("up"));
        let supervisor = workspace.read("pid").trim().parse().unwrap();
        kill(nix::unistd::Pid::from_raw(supervisor), signal).unwrap();
        user.wait_for(&format!("status={}=", 128 + signal as i32));
        assert_eq!(user.modes(), before);
    }
}
