//! `--pids`: the kernel keeps the limit; the sentry finds out that it was reached, and says so once.
//!
//! A control group counts the forks that it has refused. A resource limit tells nobody: where one keeps
//! the limit, the calls that make processes and threads are trapped, and the sentry counts. Every call
//! continues; the kernel decides.
//!
//! The count is an upper bound while no call is on its way: each call adds one, ends are found out by
//! looking at the processes, and that only when the bound has come to the limit. Calls of several
//! threads at a time can hide each other from one look; the next calls then come to another one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::Interest;

use super::kernel::Kernel;
use crate::notify::hand_over;
use crate::sys::ready::watch_changes;

/// A limit of processes and threads.
#[derive(Debug)]
pub struct PidsLimit {
    /// How many.
    pub count: u64,
    /// The control group that keeps it; `None`: a resource limit does.
    pub group: Option<PathBuf>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pids {
    /// Immutable.
    limit: PidsLimit,
    /// It was said.
    reached: AtomicBool,
    /// At most so many processes and threads there are. A leaf of the lock order.
    most: Mutex<u64>,
}

impl Pids {
    pub(super) fn new(limit: PidsLimit) -> Pids {
        Pids { limit, reached: AtomicBool::new(false), most: Mutex::default() }
    }

    /// Whether one more may be too many, for all that is known without looking.
    fn is_close(&self) -> bool {
        let mut most = self.most.lock().unwrap_or_else(PoisonError::into_inner);
        if *most < self.limit.count {
            *most += 1;
            return false;
        }
        true
    }

    /// So many there are, and one more is about to be made; gives whether that is too many.
    fn count(&self, there: u64) -> bool {
        *self.most.lock().unwrap_or_else(PoisonError::into_inner) = there + 1;
        there >= self.limit.count
    }
}

impl Kernel {
    fn pids(&self) -> Option<&Pids> {
        let pids = self.accounting.limits()?.pids.as_ref()?;
        (!pids.reached.load(Ordering::Relaxed)).then_some(pids)
    }

    /// A process or thread is about to be made.
    pub(super) fn note_made(&self) {
        let Some(pids) = self.pids().filter(|pids| pids.limit.group.is_none()) else { return };
        if !pids.is_close() {
            return;
        }
        hand_over();
        let there = {
            let mut clock = self.accounting.clock();
            if clock.look().is_err() {
                return;
            }
            // Whoever has ended counts until somebody has waited for it (release_task in
            // kernel/exit.c), a thread of a process at least.
            clock.processes().iter().map(|it| u64::from(it.threads.max(1))).sum()
        };
        if pids.count(there) {
            self.pids_reached(pids);
        }
    }

    fn pids_reached(&self, pids: &Pids) {
        if !pids.reached.swap(true, Ordering::Relaxed) {
            let count = pids.limit.count;
            self.limit_reached(
                "pids",
                format!("there were {count} processes and threads; no more could be made"),
                format!("the limit of {count} processes was reached (--pids)"),
            );
        }
    }

    /// Looks whether the control group has refused forks; gives whether there is nothing more to see.
    pub(super) fn look_at_pids_group(&self) -> bool {
        let Some(pids) = self.pids() else { return true };
        if pids.limit.group.as_deref().is_some_and(has_refused) {
            self.pids_reached(pids);
            return true;
        }
        false
    }
}

/// Whether a control group has refused forks for a limit of its own. (Before Linux 6.11, and in
/// version 1 still, forks that a group above has refused are counted with them: pids_event in
/// kernel/cgroup/pids.c. Where the group says how many it ever had, from Linux 6.6 on, that tells.)
fn has_refused(group: &Path) -> bool {
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    let text = fs::read_to_string(group.join("pids.events")).unwrap_or_default();
    let refused = text.lines().find_map(|line| line.strip_prefix("max ")?.parse::<u64>().ok());
    let full = match (number("pids.peak"), number("pids.max")) {
        (Some(peak), Some(max)) => peak >= max,
        _ => true,
    };
    refused.is_some_and(|count| count > 0) && full
}

/// Waits for a control group to tell that it has refused a fork. Needs a tokio context.
///
/// Of version 1 nothing is heard from Linux 6.11 on (pids_event tells those who watch
/// `pids.events.local`, a file that only version 2 has): there the look at the end finds it.
pub(super) fn watch_group(kernel: &Arc<Kernel>, group: &Path) -> std::io::Result<()> {
    let file = File::open(group.join("pids.events"))?;
    let events = watch_changes(file.try_clone()?)?;
    let kernel = Arc::downgrade(kernel);
    tokio::spawn(async move {
        loop {
            // Reading is what makes the next change tell (kernfs_fop_poll in fs/kernfs/file.c).
            if file.read_at(&mut [0; 64], 0).is_err()
                || kernel.upgrade().is_none_or(|kernel| kernel.look_at_pids_group())
            {
                return;
            }
            match events.ready(Interest::PRIORITY).await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processes_are_looked_at_only_when_there_may_be_too_many() {
        let pids = Pids::new(PidsLimit { count: 3, group: None });
        assert_eq!([pids.is_close(), pids.is_close(), pids.is_close()], [false; 3]);
        // Two have ended meanwhile.
        assert!(pids.is_close() && !pids.count(1));
        assert!(!pids.is_close());
        assert!(pids.is_close() && pids.count(3));
    }

    #[test]
    fn a_group_is_asked_whether_the_limit_was_its_own() {
        let group = std::env::temp_dir().join(format!("sandbox-pids-{}", std::process::id()));
        fs::create_dir_all(&group).unwrap();
        let write = |file: &str, text: &str| fs::write(group.join(file), text).unwrap();
        assert!(!has_refused(&group));
        write("pids.max", "4\n");
        write("pids.events", "max 0\n");
        assert!(!has_refused(&group));
        write("pids.events", "max 2\n");
        assert!(has_refused(&group));
        write("pids.peak", "3\n");
        assert!(!has_refused(&group));
        write("pids.peak", "4\n");
        assert!(has_refused(&group));
        fs::remove_dir_all(group).unwrap();
    }
}
