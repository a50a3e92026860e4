//! What the program's caller set up and the language's runtime changes before `main`.
//!
//! Rust's runtime ignores SIGPIPE at its start, so afterwards nobody can tell whether the caller
//! did (`trap '' PIPE` in a shell, a service manager). A constructor of the program runs earlier.

use std::sync::atomic::{AtomicBool, Ordering};

static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

/// Whether SIGPIPE was ignored when this program was executed (signal(7): dispositions to ignore
/// survive execve(2)).
pub fn sigpipe_ignored() -> bool {
    PIPE_IGNORED.load(Ordering::Relaxed)
}

// The C library calls every entry of this section before `main`.
//
// SAFETY: the section holds pointers to functions without a result, which may be given arguments
// that they do not take; this is one.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = note_sigpipe;

/// Runs before the runtime: uses nothing of it but an atomic.
extern "C" fn note_sigpipe() {
    // SAFETY: an all-zero sigaction is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; the kernel writes one sigaction.
    if unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &mut action) } == 0 {
        PIPE_IGNORED.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
    }
}
