//! `--pids`: the kernel keeps the limit; the sentry finds out that it was reached, and says so once.
//!
//! A control group counts the forks that it has refused. A resource limit tells nobody: where one keeps
//! the limit, the sentry counts the processes while guests run. To trap the calls that make them would
//! be exact, and is not done: a signal that arrives between the trap and the RECV makes fork(2) fail with
//! EINTR where its handler does not restart calls, and dash gives up then ("Cannot fork").

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::Interest;

use super::kernel::Kernel;
use crate::sys::ready::watch_changes;
use crate::timekeeping::{Consumer, Reading};

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
}

impl Pids {
    pub(super) fn new(limit: PidsLimit) -> Pids {
        Pids { limit, reached: AtomicBool::new(false) }
    }
}

/// Counts the processes and threads where a resource limit keeps the limit.
#[derive(Debug)]
pub(super) struct PidsWatch {
    kernel: Weak<Kernel>,
    limit: u64,
}

/// Less than a processor needs to make a process.
const FASTEST: Duration = Duration::from_micros(20);

impl PidsWatch {
    pub(super) fn new(kernel: Weak<Kernel>, limit: u64) -> PidsWatch {
        PidsWatch { kernel, limit }
    }
}

impl Consumer for PidsWatch {
    fn look(&mut self, reading: &Reading<'_>) -> Option<Duration> {
        // Whoever has ended counts until somebody has waited for it (release_task in kernel/exit.c).
        let there = reading.processes.iter().map(|it| u64::from(it.threads.max(1))).sum();
        let left = self.limit.saturating_sub(there);
        if left > 0 {
            return Some(FASTEST * u32::try_from(left).unwrap_or(u32::MAX));
        }
        let kernel = self.kernel.upgrade()?;
        kernel.pids_reached(kernel.pids()?);
        None
    }
}

impl Kernel {
    fn pids(&self) -> Option<&Pids> {
        let pids = self.accounting.limits()?.pids.as_ref()?;
        (!pids.reached.load(Ordering::Relaxed)).then_some(pids)
    }

    fn pids_reached(&self, pids: &Pids) {
        if !pids.reached.swap(true, Ordering::Relaxed) {
            let count = pids.limit.count;
            self.limit_reached(
                "pids",
                format!("there were {count} processes and threads, and no more can be made"),
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
    use crate::timekeeping::Relative;

    #[test]
    fn more_processes_are_looked_at_sooner() {
        let one = |pid| Relative {
            pid,
            inode: 1,
            parent: 1,
            state: 'S',
            threads: 2,
            children: Duration::ZERO,
        };
        let mut watch = PidsWatch::new(Weak::new(), 10);
        let mut look =
            |processes: &[Relative]| watch.look(&Reading { cpu: Duration::ZERO, processes });
        assert_eq!(look(&[one(2)]), Some(FASTEST * 8));
        assert_eq!(look(&[one(2), one(3), one(4)]), Some(FASTEST * 4));
        // Nobody is left to be told.
        assert_eq!(look(&[2, 3, 4, 5, 6].map(one)), None);
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
