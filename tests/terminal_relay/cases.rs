//! What a user of a terminal relies on.
//!
//! Words that a guest is to print are spelled so that their echo does not contain them: `a$((1))b`.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::roles::CRASH;
use crate::user::{PATIENCE, User};

pub(crate) type Case = (&'static str, fn());

pub(crate) const ALL: &[Case] = &[
    ("bytes_go_both_ways", bytes_go_both_ways),
    ("the_guest_gets_the_terminals_modes", the_guest_gets_the_terminals_modes),
    ("window_size_is_carried", window_size_is_carried),
    ("ctrl_c_reaches_the_guest", ctrl_c_reaches_the_guest),
    ("ctrl_c_passes_a_flood_nobody_reads", ctrl_c_passes_a_flood_nobody_reads),
    ("ctrl_z_and_fg", ctrl_z_and_fg),
    ("bg_and_a_read_and_fg", bg_and_a_read_and_fg),
    ("started_in_the_background", started_in_the_background),
    ("stopped_and_continued_from_outside", stopped_and_continued_from_outside),
    ("no_output_is_lost_at_the_end", no_output_is_lost_at_the_end),
    ("a_slave_left_open_does_not_hold_up_the_end", a_slave_left_open_does_not_hold_up_the_end),
    ("a_pty_nobody_has_open_is_not_the_end", a_pty_nobody_has_open_is_not_the_end),
    ("hangup_reaches_the_guest", hangup_reaches_the_guest),
    ("a_pipeline_shares_the_terminal", a_pipeline_shares_the_terminal),
    ("a_reader_in_a_pipeline_gets_the_terminal", a_reader_in_a_pipeline_gets_the_terminal),
    ("a_session_leader_is_not_stopped", a_session_leader_is_not_stopped),
    ("an_orphan_in_the_background_ends", an_orphan_in_the_background_ends),
    ("modes_are_restored_by_a_panic", modes_are_restored_by_a_panic),
    ("modes_are_restored_on_the_fatal_road", modes_are_restored_on_the_fatal_road),
    ("pasted_text_is_not_lost", pasted_text_is_not_lost),
    ("inherited_descriptors_stay_blocking", inherited_descriptors_stay_blocking),
    ("an_idle_relay_sleeps", an_idle_relay_sleeps),
];

fn bytes_go_both_ways() {
    let script =
        "box 'printf name$((0))?; read x; echo got-$((1))-$x; exit 7'; echo status=$?; read hold";
    let mut user = User::watching(script, &[]);
    let before = user.modes();
    user.wait_for("name0?");
    assert!(user.is_raw());
    user.types("zoë\r");
    // The guest's own pty turns the return key into a newline and echoes it.
    assert_eq!(user.wait_for("got-1-zoë\r\n"), "zoë\r\n");
    user.wait_for("status=7");
    assert_eq!(modes(&user.modes()), modes(&before));
    assert!(user.log().contains("start foreground [true, true, true]"), "{}", user.log());
    assert!(user.log().contains("finish Ok(())\nexit 7\n"), "{}", user.log());
}

fn the_guest_gets_the_terminals_modes() {
    let script = "stty erase ^H intr ^G -echoctl; echo =$(stty -g)=; box 'echo =$(stty -g)='";
    let mut user = User::watching(script, &[]);
    user.wait_for("=");
    let outside = user.wait_for("=");
    user.wait_for("=");
    assert_eq!(user.wait_for("="), outside);
}

fn window_size_is_carried() {
    let mut user = User::at_a_shell();
    user.resizes(33, 101);
    let guest = r#"trap "stty size; kill \$!; exit" WINCH; stty size; sleep 1000 & wait"#;
    user.types(&format!("box '{guest}'\r"));
    user.wait_for("33 101\r\n");
    user.resizes(44, 122);
    user.wait_for("44 122\r\n");
    user.wait_for("ready> ");
}

fn ctrl_c_reaches_the_guest() {
    let mut user = User::at_a_shell();
    let guest =
        r#"trap "echo caught\$((1)); kill \$!; exit 3" INT; echo up$((1)); sleep 1000 & wait"#;
    user.types(&format!("box '{guest}'; echo status=$?=\r"));
    user.wait_for("up1");
    user.types("\x03");
    user.wait_for("caught1");
    user.wait_for("status=3=");

    user.types("box 'echo up$((2)); exec sleep 1000'; echo status=$?=\r");
    user.wait_for("up2");
    user.types("\x03");
    user.wait_for("ready> ");
    assert!(user.log().ends_with("exit 130\n"), "{}", user.log());
}

fn ctrl_c_passes_a_flood_nobody_reads() {
    let mut user = User::at_a_shell();
    let mut signpost = user.listens();
    user.types(
        "box 'trap \"echo hit > fifo; exit 9\" INT; yes flood$((1))line'; echo status=$?=\r",
    );
    user.wait_for("flood1line");
    // Nobody looks at the terminal meanwhile: it fills up, and so does everything behind it.
    user.types("\x03");
    signpost.wait_for("hit");
    user.wait_for("status=9=");
    assert!(!user.is_raw());
}

/// A guest that repeats what it is told.
const PARROT: &str = r#"echo up$((1)); while read x; do echo "<$x>"; done; echo over$((1))"#;

fn ctrl_z_and_fg() {
    let mut user = User::at_a_shell();
    let before = user.modes();
    user.types(&format!("box '{PARROT}'\r"));
    user.wait_for("up1");
    user.types("one\r");
    user.wait_for("<one>");
    user.types("\x1a");
    user.wait_for("Stopped");
    user.wait_for("ready> ");
    assert_eq!(modes(&user.modes()), modes(&before));
    user.types("echo shell$((1))\r");
    user.wait_for("shell1");
    user.resizes(40, 100);
    user.types("fg\r");
    user.wait_for("box '");
    user.wait_for("\r\n");
    user.types("two\r");
    user.wait_for("<two>");
    user.becomes_raw();
    user.types("\x04");
    user.wait_for("over1");
    user.wait_for("ready> ");
    assert_eq!(modes(&user.modes()), modes(&before));
    assert!(user.log().contains("stopped SIGTSTP\nresume foreground\n"), "{}", user.log());
}

fn bg_and_a_read_and_fg() {
    let mut user = User::at_a_shell();
    user.types(&format!("box '{PARROT}'\r"));
    user.wait_for("up1");
    user.types("\x1a");
    user.wait_for("Stopped");
    user.types("bg\r");
    // It reads, in the background: that stops the job as it stops any other.
    user.types("wait %1; jobs; echo shell$((1))\r");
    user.wait_for("Stopped ");
    user.wait_for("shell1");
    assert!(!user.is_raw());
    user.types("fg\r");
    user.wait_for("box '");
    user.wait_for("\r\n");
    user.types("three\r");
    user.wait_for("<three>");
    user.types("\x04");
    user.wait_for("over1");
    user.wait_for("ready> ");
    let log = user.log();
    assert!(log.contains("stopped SIGTSTP\nresume background\nstopped SIGTTIN\n"), "{log}");
    assert!(log.ends_with("resume foreground\nfinish Ok(())\nexit 0\n"), "{log}");
}

fn started_in_the_background() {
    let mut user = User::at_a_shell();
    user.types(&format!("box '{PARROT}' & wait %1; jobs\r"));
    user.wait_for("up1");
    user.wait_for("Stopped ");
    assert!(!user.is_raw());
    user.types("fg\r");
    user.wait_for("box '");
    user.wait_for("\r\n");
    user.types("four\r");
    user.wait_for("<four>");
    user.becomes_raw();
    user.types("\x04");
    user.wait_for("over1");
    assert!(user.log().contains("start background"), "{}", user.log());
}

fn stopped_and_continued_from_outside() {
    let mut user = User::at_a_shell();
    user.types(&format!("box '{PARROT}'\r"));
    user.wait_for("up1");
    kill(Pid::from_raw(user.supervisor()), Signal::SIGSTOP).unwrap();
    user.wait_for("Stopped");
    user.wait_for("ready> ");
    assert!(!user.is_raw());
    user.types("fg\r");
    user.wait_for("box '");
    user.wait_for("\r\n");
    user.types("five\r");
    user.wait_for("<five>");
    user.becomes_raw();
    user.types("\x04");
    user.wait_for("over1");
    user.wait_for("ready> ");
    assert!(!user.is_raw());
}

fn no_output_is_lost_at_the_end() {
    let expected: String = (1..=100_000).map(|number| format!("{number}\r\n")).collect();
    let mut user = User::watching("while read go; do box 'seq 100000'; echo end$((1)); done", &[]);
    for _ in 0..20 {
        user.types("go\r");
        let seen = user.wait_for("end1");
        let seen = seen.strip_prefix("\r\n").unwrap_or(&seen);
        let seen = seen.split_once("go\r\n").map_or(seen, |(_, rest)| rest);
        let missing = expected.lines().zip(seen.lines()).find(|(a, b)| a != b);
        assert!(seen == expected, "{} of {} bytes, {missing:?}", seen.len(), expected.len());
    }
}

fn a_slave_left_open_does_not_hold_up_the_end() {
    let guest = "(trap \"\" HUP INT; exec setsid sleep 1000) & echo $! > holder; echo last$((1))";
    let mut user = User::watching(&format!("box '{guest}'; echo end$((1))"), &[]);
    user.wait_for("last1");
    user.wait_for("end1");
    let holder = fs::read_to_string(user.place.join("holder")).unwrap();
    // `setsid` forks if it leads a group, which it does not here: the number is the sleeper's.
    kill(Pid::from_raw(holder.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
}

fn a_pty_nobody_has_open_is_not_the_end() {
    let guest = "exec </dev/null >/dev/null 2>&1; read go < fifo; echo back$((1)) > /dev/tty";
    let mut user = User::at_a_shell();
    let mut signpost = user.listens();
    user.types(&format!("box '{guest}'\r"));
    signpost.says("go\n");
    user.wait_for("back1");
    user.wait_for("ready> ");
}

fn hangup_reaches_the_guest() {
    let guest = r#"trap "echo hup > fifo; kill \$!; exit 0" HUP; echo up$((1)); sleep 1000 & wait"#;
    let mut user = User::at_a_shell();
    let mut signpost = user.listens();
    user.types(&format!("box '{guest}'\r"));
    user.wait_for("up1");
    user.unplugs();
    signpost.wait_for("hup");
    assert!(user.log().contains("hangup\n"), "{}", user.log());
}

fn a_pipeline_shares_the_terminal() {
    let guest = "echo up$((1)) > /dev/tty; read go < fifo; echo through";
    let mut user = User::at_a_shell();
    let before = user.modes();
    let mut signpost = user.listens();
    user.types(&format!("box '{guest}' | tr a-z A-Z; echo shell$((1))\r"));
    user.wait_for("up1");
    assert_eq!(modes(&user.modes()), modes(&before));
    assert!(user.log().contains("start background [true, false, true]"), "{}", user.log());
    signpost.says("go\n");
    user.wait_for("THROUGH");
    user.wait_for("shell1");
}

fn a_reader_in_a_pipeline_gets_the_terminal() {
    let guest = "cat; printf key$((0))? > /dev/tty; read x < /dev/tty; echo got-$((1))-$x";
    let mut user = User::at_a_shell();
    user.types(&format!("echo piped | box '{guest}'\r"));
    user.wait_for("key0?");
    user.types("k\r");
    user.wait_for("got-1-k");
    user.wait_for("ready> ");
    let log = user.log();
    assert!(log.contains("start background [false, true, true]"), "{log}");
    assert!(log.contains("stopped SIGTTIN\nresume foreground\n"), "{log}");
}

fn a_session_leader_is_not_stopped() {
    let guest = "kill -TSTP $$; echo on$((1)); kill -STOP $$; echo on$((2))";
    let mut user = User::watching(&format!("exec box '{guest}'"), &[]);
    user.wait_for("on1");
    user.wait_for("on2");
    assert_eq!(user.waits_for_the_end(), 0);
}

fn an_orphan_in_the_background_ends() {
    let mut user = User::at_a_shell();
    let mut signpost = user.listens();
    // The subshell, the only one who could continue the group, is gone when the guest reads.
    let guest = "trap \"echo hup > fifo; exit 5\" HUP; read go < gate; read x < /dev/tty";
    user.types(&format!("mkfifo gate; (box '{guest}' < /dev/null &)\r"));
    user.wait_for("ready> ");
    user.types("echo go > gate\r");
    signpost.wait_for("hup");
    assert!(user.log().contains("stopped SIGTTIN\nhangup\n"), "{}", user.log());
}

fn modes_are_restored_by_a_panic() {
    modes_are_restored("panic");
}

fn modes_are_restored_on_the_fatal_road() {
    modes_are_restored("fatal");
}

fn modes_are_restored(crash: &str) {
    let script = "box 'echo up$((1)); kill -STOP $$'; echo end$((1)); read hold";
    let mut user = User::watching(script, &[(CRASH, crash)]);
    let before = user.modes();
    // What the guest wrote just before may be lost in such an end.
    user.wait_for("end1");
    assert_eq!(modes(&user.modes()), modes(&before));
    assert!(user.log().ends_with("stopped SIGSTOP\n"), "{}", user.log());
}

fn pasted_text_is_not_lost() {
    let guest = "stty -echo; echo up$((1)); head -n 2000 | md5sum; stty echo";
    let mut user = User::at_a_shell();
    user.types(&format!("box '{guest}'\r"));
    user.wait_for("up1");
    // Far more than all the buffers on the way hold. The newline is one already: the kernel turns
    // only returns into newlines, and the checksum is of newlines.
    let text: String = (0..2000).map(|n| format!("line {n} of what was pasted\n")).collect();
    for part in text.as_bytes().chunks(1024) {
        user.types(std::str::from_utf8(part).unwrap());
    }
    fs::write(user.place.join("pasted"), text).unwrap();
    let inside = user.wait_for("  -");
    user.wait_for("ready> ");
    user.types("md5sum < pasted\r");
    user.wait_for("\r\n");
    assert_eq!(inside.trim(), user.wait_for("  -"));
}

fn inherited_descriptors_stay_blocking() {
    let flags = "grep flags /proc/self/fdinfo/0 /proc/self/fdinfo/1";
    let mut user = User::watching(&format!("{flags}; echo =; box true; {flags}; echo ="), &[]);
    let before = user.wait_for("=\r\n");
    assert!(before.contains("flags:"), "{before}");
    assert_eq!(user.wait_for("=\r\n"), before);
}

fn an_idle_relay_sleeps() {
    let mut user = User::at_a_shell();
    user.types("box 'echo up$((1)); exec cat'\r");
    user.wait_for("up1");
    // That nothing happens can only be seen by giving it time to. (On a busy machine it has something left to do
    // for a while.)
    let deadline = Instant::now() + PATIENCE;
    let mut before = wakeups(user.supervisor());
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = wakeups(user.supervisor());
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "it wakes up again and again: {before:?}, {now:?}");
        before = now;
    }
    user.types("\x04");
    user.wait_for("ready> ");
}

/// How often the threads of `pid` went to sleep or were put aside, so far.
fn wakeups(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let lines = status.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| line.contains("ctxt_switches")).collect()
}

/// Attributes in a form that can be compared and shown.
fn modes(termios: &libc::termios) -> (u32, u32, u32, u32, [u8; libc::NCCS]) {
    (termios.c_iflag, termios.c_oflag, termios.c_cflag, termios.c_lflag, termios.c_cc)
}
