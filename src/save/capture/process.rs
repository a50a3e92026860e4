//! A stopped process: what it has beside memory, descriptors and threads.

use nix::errno::Errno;

use super::collector::Subject;
use super::threads;
use super::timers;
use crate::save::error::SaveError;
use crate::save::state::Process;
use crate::sys::agent::{Data, Place};
use crate::sys::generated;

/// Signals have the numbers 1 to this.
pub const SIGNALS: usize = 64;
/// Resource limits have the numbers 0 to below this (RLIM_NLIMITS).
pub const LIMITS: usize = 16;
/// sizeof(sigset_t) of the kernel.
pub const SET: u64 = 8;

/// What the hand is asked about the process.
struct Asked {
    actions: Vec<Data>,
    limits: Vec<Data>,
    timers: [Data; 3],
    subreaper: Data,
    personality: Place,
    umask: Place,
    /// Of its own, and of its children.
    used: [Data; 2],
}

/// Captures what belongs to the process as a whole into `process`, whose numbers are filled in.
pub fn capture(subject: &mut Subject<'_>, process: &mut Process) -> Result<(), SaveError> {
    let who = subject.to_string();
    let mut table = subject.hand.table();
    let asked = Asked {
        actions: (1..=SIGNALS)
            .map(|signal| {
                let old = table.room(32);
                table.call(libc::SYS_rt_sigaction, [signal as u64, 0, old.address, SET]);
                old
            })
            .collect(),
        limits: (0..LIMITS)
            .map(|limit| {
                let old = table.room(16);
                table.call(libc::SYS_prlimit64, [0, limit as u64, 0, old.address]);
                old
            })
            .collect(),
        timers: [0, 1, 2].map(|which| {
            let old = table.room(32);
            table.call(libc::SYS_getitimer, [which, old.address]);
            old
        }),
        subreaper: {
            let old = table.room(8);
            table.call(libc::SYS_prctl, [libc::PR_GET_CHILD_SUBREAPER as u64, old.address]);
            old
        },
        personality: table.call(libc::SYS_personality, [0xffff_ffff]),
        // Reading it means changing it: put back by the next call.
        umask: table.call(libc::SYS_umask, [0o77]),
        used: [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].map(|who| {
            let usage = table.room(threads::USAGE);
            table.call(libc::SYS_getrusage, [who as u64, usage.address]);
            usage
        }),
    };
    let back = table.call(libc::SYS_umask, [0]);
    table.forward(asked.umask, back, 0);
    subject.hand.post(table).map_err(SaveError::of(&who))?;
    files_of(subject, process)?;
    let done = subject.hand.collect().map_err(SaveError::of(&who))?;

    process.actions =
        asked.actions.iter().map(|it| [0, 1, 2, 3].map(|index| done.word(*it, index))).collect();
    process.limits = asked.limits.iter().map(|it| (done.word(*it, 0), done.word(*it, 1))).collect();
    process.interval_timers = asked.timers.map(|it| {
        let time = |at| done.word(it, at) * 1_000_000 + done.word(it, at + 1);
        (time(0), time(2))
    });
    process.subreaper = done.half(asked.subreaper, 0) != 0;
    process.personality = done.result(asked.personality).unwrap_or(0) as u32;
    process.umask = done.result(asked.umask).unwrap_or(0o22) as u32;
    let [own, children] = asked.used.map(|usage| threads::used(&done, usage));
    process.cpu_us = [own[0], own[1], children[0], children[1]];
    process.timers = timers::capture(subject)?;
    let failed =
        |errno: Errno| SaveError::failed(format!("{who}: its pending signals"), errno.desc());
    let stopped = subject.hand.stopped().map_err(SaveError::of(&who))?;
    process.pending = threads::pending_of(stopped, true).map_err(failed)?;
    Ok(())
}

/// Those of the children that have stopped, which the subject has not been told yet and can be.
pub fn unheard_stops(subject: &mut Subject<'_>, children: &[i32]) -> Result<Vec<i32>, SaveError> {
    let who = subject.to_string();
    let mut all = Vec::new();
    for some in children.chunks(256) {
        let mut table = subject.hand.table();
        let options = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let asked: Vec<(i32, Data)> = some
            .iter()
            .map(|child| {
                let told = table.room(128);
                let kind = u64::from(libc::P_PID);
                let arguments = [kind, *child as u64, told.address, options as u64, 0];
                table.attempt(libc::SYS_waitid, arguments);
                (*child, told)
            })
            .collect();
        let done = subject.hand.run(&table).map_err(SaveError::of(&who))?;
        // si_signo is SIGCHLD, or nothing is told (waitid(2)).
        let told = asked.iter().filter(|(_, told)| done.half(*told, 0) != 0);
        all.extend(told.map(|(child, _)| *child));
    }
    Ok(all)
}

/// What /proc tells.
fn files_of(subject: &Subject<'_>, process: &mut Process) -> Result<(), SaveError> {
    use std::os::unix::ffi::OsStringExt;
    let pid = subject.pid;
    let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).map_err(|error| {
        SaveError::failed(format!("{subject}: its working directory cannot be read"), error)
    })?;
    let directory = directory.into_os_string().into_vec();
    process.directory_gone = directory.ends_with(b" (deleted)");
    process.directory = serde_bytes::ByteBuf::from(directory);
    let adjustment = generated::text(format!("/proc/{pid}/oom_score_adj"));
    process.oom_score_adj = adjustment.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Ok(())
}
