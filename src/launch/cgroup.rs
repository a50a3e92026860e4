//! The control groups of one run: made before its init makes any process, removed with it.
//!
//! A group is called `sandbox-PID-NUMBER`, and its maker holds a lock (flock(2)) on the directory as
//! long as it or the run's init lives: init is a copy of the supervisor and keeps the descriptor. So
//! a group without a holder is a dead run's, and the next run removes it. Where such a group can be
//! made and what is written into it is decided in `config`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::config::{CgroupPlan, CpuFile};
use crate::timekeeping::GroupClock;

const PREFIX: &str = "sandbox-";

/// The groups of a run. Dropping it removes them; every process in them must have ended.
#[derive(Debug, Default)]
pub(super) struct Cgroups(Vec<Group>);

#[derive(Debug)]
struct Group {
    path: PathBuf,
    cpu_usage: Option<CpuFile>,
    memory: bool,
    pids: bool,
    /// Held for the lock on it.
    _lock: Flock<File>,
}

/// Why there is no group: what was done, to what, and what came of it.
#[derive(Debug)]
pub struct CgroupError {
    /// Operation and object.
    what: String,
    error: io::Error,
}

impl std::fmt::Display for CgroupError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "cannot {}: {}; run without --memory, --pids and --cpu-time, or as a user to whom no control \
             group was given (resource limits take its place then)",
            self.what, self.error
        )
    }
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let what = format!("{what} {}", path.display());
    |error| CgroupError { what, error }
}

impl Cgroups {
    /// Makes what `plans` say and moves `pid`, which has no child yet, in.
    pub(super) fn make(plans: &[CgroupPlan], pid: i32) -> Result<Cgroups, CgroupError> {
        let mut made = Cgroups::default();
        for plan in plans {
            remove_stale(&plan.parent);
            let group = Group::make(plan)?;
            // From here on it is removed whatever follows.
            made.0.push(group);
            let Some(group) = made.0.last() else { continue };
            for (file, value) in &plan.settings {
                let path = group.path.join(file);
                match fs::write(&path, value) {
                    // Swap is not accounted for by this kernel.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => done.map_err(failed("write the limit", &path))?,
                }
            }
            let procs = group.path.join("cgroup.procs");
            fs::write(&procs, pid.to_string())
                .map_err(failed("move the sandbox into its control group by", &procs))?;
        }
        Ok(made)
    }

    /// The clock of the group that counts CPU time, if one does.
    pub(super) fn cpu_clock(&self) -> Option<GroupClock> {
        self.0.iter().find_map(|group| match group.cpu_usage? {
            CpuFile::Usage => GroupClock::nanoseconds(&group.path.join("cpuacct.usage")).ok(),
            CpuFile::Stat => GroupClock::statistics(&group.path.join("cpu.stat")).ok(),
        })
    }

    /// The group that keeps the limit of processes.
    pub(super) fn pids(&self) -> Option<&Path> {
        self.0.iter().find(|group| group.pids).map(|group| group.path.as_path())
    }

    /// The group that keeps the memory limit.
    pub(super) fn memory(&self) -> Option<&Path> {
        self.0.iter().find(|group| group.memory).map(|group| group.path.as_path())
    }
}

impl Group {
    fn make(plan: &CgroupPlan) -> Result<Group, CgroupError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = plan.parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                // Of another pid namespace, or a dead one's that a process is still in.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                done => done.map_err(failed("make the control group", &path))?,
            }
            // Between the two somebody may have taken it for a dead run's.
            match lock(&path) {
                Ok(Some(lock)) => {
                    let &CgroupPlan { cpu_usage, memory, pids, .. } = plan;
                    return Ok(Group { path, cpu_usage, memory, pids, _lock: lock });
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(failed("lock the control group", &path)(error));
                }
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // All processes have been waited for: init's end waits for the rest (zap_pid_ns_processes).
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a control group stays behind");
        }
    }
}

/// The directory, locked; `None`: somebody else holds the lock, or the path leads elsewhere now.
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    let file = match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, errno)) => return Err(errno.into()),
    };
    let same =
        fs::metadata(path).is_ok_and(|now| file.metadata().is_ok_and(|it| it.ino() == now.ino()));
    Ok(same.then_some(file))
}

/// Removes the groups of runs that ended without doing so.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if ours && let Ok(Some(_lock)) = lock(&entry.path()) {
            // A group with processes in it cannot be removed.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory in place of a cgroup file system.
    fn parent() -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sandbox-cgroup-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn plan(parent: &Path) -> CgroupPlan {
        CgroupPlan {
            parent: parent.into(),
            settings: Vec::new(),
            cpu_usage: None,
            memory: true,
            pids: false,
        }
    }

    #[test]
    fn a_group_is_removed_with_its_owner_and_a_dead_ones_by_the_next() {
        let parent = parent();
        let group = Group::make(&plan(&parent)).unwrap();
        let path = group.path.clone();
        remove_stale(&parent);
        assert!(path.exists(), "a group in use was removed");
        drop(group);
        assert!(!path.exists());
        fs::create_dir(parent.join("sandbox-1-0")).unwrap();
        fs::create_dir(parent.join("other")).unwrap();
        remove_stale(&parent);
        assert!(!parent.join("sandbox-1-0").exists() && parent.join("other").exists());
        fs::remove_dir_all(parent).unwrap();
    }
}
