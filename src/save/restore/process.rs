//! What a process has beside memory, descriptors and threads.

use super::threads;
use crate::save::capture::process::SET;
use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError};
use crate::save::state::{Process, Space};
use crate::sys::agent::{Failed, Table};

/// Gives the process what does not run by itself, and its only thread as well: one that makes others is equipped
/// behind that, since they begin with what it has (sched_fork in kernel/sched/core.c), and may not come back from it.
/// Comes after its memory: a working directory can be anywhere. [`settle`] comes next.
pub fn equip(
    hand: &mut Hand,
    process: &Process,
    space: &Space,
    who: &str,
) -> Result<(), RestoreError> {
    let mut table = hand.table();
    for (index, action) in process.actions.iter().enumerate() {
        let signal = index as u64 + 1;
        if matches!(signal as i32, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        let bytes: Vec<u8> = action.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let new = table.data(&bytes);
        table.call(libc::SYS_rt_sigaction, [signal, new.address, 0, SET]);
    }
    table.call(libc::SYS_umask, [u64::from(process.umask)]);
    table.call(libc::SYS_personality, [u64::from(process.personality)]);
    if process.subreaper {
        table.call(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as u64, 1]);
    }
    flags(&mut table, space);
    let directory = table.string(&process.directory);
    table.call(libc::SYS_chdir, [directory.address]);
    if let [only] = &process.threads[..] {
        threads::equipment(&mut table, only);
    }
    hand.post(table).map_err(RestoreError::of(who))
}

/// Whether its threads beside the first need nothing more that takes capabilities, once they have been equipped:
/// neither do filters come, nor what they have apart.
pub fn is_furnished_for_good(process: &Process) -> bool {
    process.filters.is_empty() && process.threads.iter().all(|thread| thread.apart.is_none())
}

/// It has all of that, and is in its working directory.
pub fn settle(hand: &mut Hand, process: &Process, who: &str) -> Result<(), RestoreError> {
    hand.rest().map_err(|error| match error {
        HandError::Call(Failed { number, .. }) if number == libc::SYS_chdir as u64 => {
            let show = String::from_utf8_lossy(&process.directory);
            RestoreError::of(format!("{who} cannot enter its working directory {show}"))(error)
        }
        error => RestoreError::of(who)(error),
    })
}

/// Its root directory, by its path in the whole view, becomes its own (chroot(2)).
pub fn change_root(hand: &mut Hand, root: &[u8], who: &str) -> Result<(), RestoreError> {
    let show = String::from_utf8_lossy(root);
    let changed = hand.call_path(libc::SYS_chroot, root, |path| [path]);
    let what = format!("{who} cannot have {show} for its root directory again");
    changed.map(drop).map_err(RestoreError::of(what))
}

/// Flags of the process and its memory as a whole.
fn flags(table: &mut Table, space: &Space) {
    let [no_huge_pages, merge, deny] = space.flags;
    if no_huge_pages != 0 {
        table.attempt(libc::SYS_prctl, [libc::PR_SET_THP_DISABLE as u64, 1, 0, 0, 0]);
    }
    const PR_SET_MEMORY_MERGE: u64 = 67;
    const PR_SET_MDWE: u64 = 65;
    if merge != 0 {
        table.attempt(libc::SYS_prctl, [PR_SET_MEMORY_MERGE, 1, 0, 0, 0]);
    }
    if deny != 0 {
        table.call(libc::SYS_prctl, [PR_SET_MDWE, deny, 0, 0, 0]);
    }
    for command in (0..32).map(|bit| 1u64 << bit).filter(|bit| space.membarrier & bit != 0) {
        table.attempt(libc::SYS_membarrier, [command, 0]);
    }
}

/// The resource limits: once nothing has to be done any more that they may be too low for.
pub fn limit(table: &mut Table, process: &Process) {
    for (limit, (soft, hard)) in process.limits.iter().enumerate() {
        let bytes = [soft.to_ne_bytes(), hard.to_ne_bytes()].concat();
        let new = table.data(&bytes);
        // A hard limit above the restoring user's own cannot be had.
        table.attempt(libc::SYS_prlimit64, [0, limit as u64, new.address, 0]);
    }
}

/// How soon it is killed where memory runs out, which all that a restore makes have from init at first. Less soon than the
/// restoring user's programs it cannot be made (oom_score_adj_min in proc_pid_oom_score_adj(5)).
pub fn spare(hand: &Hand, process: &Process, spared: Option<i32>) {
    if spared != Some(process.oom_score_adj) {
        let _ = std::fs::write(sparing(hand.tid()), process.oom_score_adj.to_string());
    }
}

/// The same of a process as it is.
pub fn spared(pid: i32) -> Option<i32> {
    std::fs::read_to_string(sparing(pid)).ok()?.trim().parse().ok()
}

fn sparing(pid: i32) -> String {
    format!("/proc/{pid}/oom_score_adj")
}

/// Whether others than its user may look into the process. From here on the restoring user may not, if nobody may.
pub fn close(table: &mut Table, space: &Space) {
    // (2, "for root only", cannot be asked for.)
    table.call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, u64::from(space.dumpable.min(1))]);
}

/// Loads the process's own seccomp filters for one of its threads: nothing that they might deny comes
/// afterwards, but for what the save has found allowed. (That no privilege can be gained any more, which
/// the kernel wants for this, holds for all that init makes.)
pub fn confine(hand: &mut Hand, process: &Process, who: &str) -> Result<(), RestoreError> {
    // What concerns other threads, or who loaded it, has no place here.
    const KEPT: u64 = libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    for (flags, program) in &process.filters {
        let mut table = hand.table();
        let instructions = table.data(program);
        let count = (program.len() / size_of::<libc::sock_filter>()) as u64;
        // struct sock_fprog
        let bytes = [count.to_ne_bytes(), instructions.address.to_ne_bytes()].concat();
        let loaded = table.data(&bytes);
        let mode = u64::from(libc::SECCOMP_SET_MODE_FILTER);
        table.call(libc::SYS_seccomp, [mode, u64::from(*flags) & KEPT, loaded.address]);
        hand.run(&table).map_err(RestoreError::of(format!("{who}: its seccomp filters")))?;
    }
    Ok(())
}
