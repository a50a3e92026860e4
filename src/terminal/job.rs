//! Suspending the supervisor's own job, as the kernel suspends an ordinary program's.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::unistd::{Pid, getpid, getsid};

use crate::sys::terminal::{DefaultAction, take_pending};

/// Stops the process group of this process by `signal`, one of the four stop signals, and returns
/// when it was continued; says whether it was stopped at all.
///
/// The whole group, because a terminal stops whole groups too, and a shell that runs us from a
/// script notices only then. The kernel drops the three signals that a terminal sends where nobody
/// is left to continue the group ("orphaned", setpgid(2)); then this returns `false` at once.
///
/// Works whether or not the caller has the signal blocked. The caller must be the only thread that
/// reads SIGCONT (or `false` may be returned after a stop); the SIGCONT that ended the stop is
/// consumed.
pub(super) fn stop(signal: Signal) -> nix::Result<bool> {
    // SIGSTOP stops even an orphan, for ever; a session leader is one by definition.
    if signal == Signal::SIGSTOP && getsid(None) == Ok(getpid()) {
        return Ok(false);
    }
    let _default = match signal {
        Signal::SIGSTOP => None,
        other => Some(DefaultAction::of(other)?),
    };
    let mut continued = SigSet::empty();
    continued.add(Signal::SIGCONT);
    let former = continued.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;

    // First sent, then let through: an equal signal that was pending already, as when the user
    // pressed the key twice, merges with ours instead of stopping us a second time.
    let sent = kill(Pid::from_raw(0), signal);
    if sent.is_ok() && signal != Signal::SIGSTOP {
        let mut stop = SigSet::empty();
        stop.add(signal);
        stop.thread_unblock()?;
    }
    // We were stopped here, and go on because SIGCONT arrived. It is pending, since it is blocked
    // and sending a stop signal had removed an older one (signal(7), "Signals for job control").
    let stopped = take_pending(Signal::SIGCONT);
    former.thread_set_mask()?;
    sent.map(|()| stopped)
}
