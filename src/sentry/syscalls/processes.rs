//! Making processes and placing them on processors: clone(2), fork(2), sched_setaffinity(2).
//!
//! The calls that make processes are only watched, and only in runs whose limits need the CPU clock: a
//! new process has no timer that would wake the ticker. They continue whatever is seen.

use nix::errno::Errno;

use super::args::{Addr, CloneArgs, CloneFlags, CpuMask, In, InOut, Len, Out, Pid, PidCell, UInt};
use crate::notify::Answer;
use crate::sentry::call::Call;
use crate::sys::spawn;

/// Watches fork(2) and vfork(2).
pub fn fork(call: &Call<'_>) -> Answer {
    call.kernel.note_activity();
    Answer::Continue
}

/// Watches clone(2).
pub fn clone(
    call: &Call<'_>,
    _flags: CloneFlags,
    _stack: Addr,
    _parent_tid: Out<PidCell>,
    _child_tid: Out<PidCell>,
    _tls: Addr,
) -> Answer {
    fork(call)
}

/// Watches clone3(2).
pub fn clone3(call: &Call<'_>, _args: InOut<CloneArgs>, _size: Len) -> Answer {
    fork(call)
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
