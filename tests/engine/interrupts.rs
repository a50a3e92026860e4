//! A handler that waits: woken by what the kernel would be woken by, and by nothing else.
//!
//! syslog(2) READ waits for text in every run; tests/guests/interrupts.c waits in it.

use crate::common::{Outcome, Workspace, guest};

const THREADS: [&str; 3] = ["alone", "blocked", "idle"];
const DIRECTED: [&str; 2] = ["thread", "process"];

#[track_caller]
fn interrupts(options: &[&str], words: &[&str]) -> Outcome {
    let workspace = Workspace::new("interrupts");
    let program = guest("interrupts");
    let argv: Vec<_> =
        std::iter::once(program.as_os_str()).chain(words.iter().map(AsRef::as_ref)).collect();
    let outcome = workspace.inside_with(options, &argv);
    outcome.success();
    outcome
}

/// In each kind of process, with signals for the thread and for the process, with the newest kernel
/// and as with an old one.
#[track_caller]
fn in_every_process(mode: &str, threads: &[&str]) {
    for options in [&[][..], &["--without", "wait-killable"]] {
        for threads in threads {
            for directed in DIRECTED {
                interrupts(options, &[mode, threads, directed]);
            }
        }
    }
}

#[test]
fn a_signal_with_a_handler_interrupts() {
    in_every_process("interrupted", &THREADS);
}

#[test]
fn a_signal_whose_handler_asks_for_it_restarts_the_call_again_and_again() {
    in_every_process("restarted", &THREADS);
}

#[test]
fn ignored_and_blocked_signals_do_not_wake() {
    // (An idle thread does not block what the waiting one does.)
    in_every_process("ignored", &THREADS[..2]);
}

#[test]
fn what_is_waited_for_wakes() {
    in_every_process("text", &THREADS[..1]);
}

#[test]
fn stopping_and_continuing_restarts_the_call() {
    in_every_process("stopped", &["alone", "idle"]);
}

#[test]
fn killing_the_waiting_process_ends_its_call() {
    in_every_process("killed", &THREADS[..1]);
}

#[test]
fn the_end_of_the_process_ends_the_calls_of_its_threads() {
    in_every_process("exit", &THREADS[..1]);
}

#[test]
fn no_restart_code_leaks_whoever_takes_the_signals() {
    in_every_process("stress", &THREADS[..1]);
}

#[test]
fn a_received_call_waits_killable_unless_the_kernel_cannot() {
    let major_minor = nix::sys::utsname::uname().unwrap();
    let release = major_minor.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 19) {
        interrupts(&[], &["killable"]).expect_out("killable\n");
    } else {
        crate::common::skip("WAIT_KILLABLE_RECV in this kernel");
    }
    interrupts(&["--without", "wait-killable"], &["killable"]).expect_out("interruptible\n");
}
