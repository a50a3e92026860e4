//! New processes, and placing them on processors: set_robust_list(2), sched_setaffinity(2).
//!
//! Where a limit needs the CPU clock, a new process has to be noticed: it has no timer yet that would
//! wake the ticker. The calls that make processes are not trapped for that, since a signal between the
//! trap and the RECV makes fork(2) fail with EINTR, which programs do not expect. What is trapped is what
//! a new process does itself, with no signal pending: it executes a program (`exec`), or registers its
//! robust futexes, as the C library does in the child of a fork and at the start of each program.

use nix::errno::Errno;

use super::args::{CpuMask, In, Len, Pid, RobustList, UInt};
use crate::notify::Answer;
use crate::sentry::call::Call;
use crate::sys::spawn;

/// Watches set_robust_list(2).
pub fn set_robust_list(call: &Call<'_>, _head: In<RobustList>, _len: Len) -> Answer {
    call.kernel.note_activity();
    Answer::Continue
}

/// As many processors as any host has (NR_CPUS is at most 8192).
const LARGEST_MASK: u32 = 8192 / 8;

/// Serves sched_setaffinity(2) where the run has a set of processors: the guest's wish is cut down to
/// it. Not continued, since the mask lies in memory that may change.
pub fn sched_setaffinity(call: &Call<'_>, pid: Pid, size: UInt, mask: In<CpuMask>) -> Answer {
    let Some(allowed) = call.kernel.allowed_cpus() else { return Answer::Continue };
    let mut bytes = vec![0; size.0.min(LARGEST_MASK) as usize];
    let wished = match call.memory().read(mask.address, &mut bytes) {
        Ok(()) => spawn::CpuMask::from_bytes(&bytes).intersection(allowed),
        Err(errno) => return Answer::Fail(errno),
    };
    if wished.is_empty() {
        return Answer::Fail(Errno::EINVAL);
    }
    let tid = match pid.0 {
        ..0 => return Answer::Fail(Errno::ESRCH),
        0 => call.received().tid,
        pid => match call.kernel.find_thread(call.received().tid, pid) {
            Some(tid) => tid,
            None => return Answer::Fail(Errno::ESRCH),
        },
    };
    // All guests have one user, whose threads each of them may place (check_same_owner in
    // kernel/sched/syscalls.c), and the supervisor is that user or root.
    if !call.trapped().is_valid() {
        return Answer::Fail(Errno::ESRCH);
    }
    spawn::set_affinity_of(tid, &wished).map(|()| 0).into()
}
