//! A run without namespaces (`--walls landlock`): what Landlock allows of the host's files, a directory of the run's
//! own in place of /tmp, and the end of every process.
//!
//! Landlock only adds: what a rule grants for a directory holds for all below. So what is hidden is kept by granting
//! its neighbours instead of the directory that they all lie in, and so on up to the root. A split directory itself
//! can be listed, and what comes to be in it later cannot be opened.
//!
//! Without a pid namespace init has two ways to end everything. It is the subreaper of all guests; and a signal to all
//! processes reaches those in its Landlock domain alone (LANDLOCK_SCOPE_SIGNAL), at once, under the lock that fork(2)
//! takes (kill_something_info in kernel/signal.c, copy_process in kernel/fork.c).

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::ops::Bound;
use std::os::fd::{AsFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::confine;
use super::plan::{PlanError, c_path};
use crate::config::{HOST_SOCKET, MountKind, RunSpec, Why, quoted};
use crate::overlay::remove_directory;
use crate::sentry::{Grounds, Stat};
use crate::sys::landlock::{self, Access};
use crate::sys::{files, socket, spawn};

/// Landlock with scopes for signals (Linux 6.12). Before, nothing keeps signals in that the kernel sends in a
/// process's name (F_SETOWN in fcntl(2)).
const ABI: i32 = 6;
/// More rules than any host should need: each holds an inode in memory.
const MOST_RULES: usize = 100_000;
/// Variables that name a place for temporary files.
const TEMPORARY: [&str; 4] = ["TMPDIR", "TMP", "TEMP", "TEMPDIR"];
const DEVICES: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts/ptmx"];

/// What is prepared for such a run. Dropping it removes the run's own directory.
#[derive(Debug)]
pub struct Apart {
    marks: BTreeMap<PathBuf, Mark>,
    /// In place of /tmp.
    own: PathBuf,
}

/// What a place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Readable,
    Writable,
    Hidden,
    Devices,
}

impl Apart {
    /// Prepares `spec` on this host.
    ///
    /// # Errors
    /// Landlock cannot be a wall here; a descriptor would lead out; there is no place for the directory.
    pub fn new(spec: &RunSpec) -> Result<Apart, PlanError> {
        let abi = confine::abi(spec);
        if abi < ABI {
            return Err(PlanError::new(format!(
                "cannot use --walls landlock: this kernel has {}, and signals stay inside only from ABI {ABI} on; \
                 boot Linux 6.12 or later, with landlock in the list lsm= of its command line",
                if abi == 0 { "no Landlock".to_owned() } else { format!("Landlock's ABI {abi}") }
            )));
        }
        (0..3).chain(spec.descriptors.iter().copied()).try_for_each(refuse_datagrams)?;
        let place = std::env::temp_dir().join("sandbox-tmp-XXXXXX");
        let own = nix::unistd::mkdtemp(&place).map_err(|errno| {
            PlanError::new(format!(
                "cannot make a directory {} in place of a private /tmp: {}; set TMPDIR to a directory of yours",
                quoted(&place),
                errno.desc()
            ))
        })?;
        // Its own path: that is what the sentry compares.
        let own = own.canonicalize().unwrap_or(own);
        Ok(Apart { marks: marks(spec), own })
    }

    /// The run, whose programs keep temporary files in the directory of their own.
    pub fn complete(&self, spec: &RunSpec) -> RunSpec {
        let is_writable = |place: &OsStr| {
            let mut places = spec.mounts.iter().filter(|it| it.kind.is_writable());
            places.any(|it| Path::new(place).starts_with(&it.target))
        };
        let mut environment = spec.environment.clone();
        environment.retain(|(name, value)| {
            let is_ours = TEMPORARY.iter().any(|it| name == *it);
            !is_ours || is_writable(value)
        });
        if !environment.iter().any(|(name, _)| name == "TMPDIR") {
            environment.push(("TMPDIR".into(), self.own.clone().into()));
        }
        RunSpec { environment, ..spec.clone() }
    }

    /// Where guests may change files.
    pub fn grounds(&self) -> Grounds {
        let of = |mark| {
            let all = self.marks.iter().filter(move |(_, it)| **it == mark);
            all.map(|(path, _)| path.clone())
        };
        let writable = of(Mark::Writable).chain([self.own.clone()]).collect();
        Grounds { writable, hidden: of(Mark::Hidden).collect() }
    }

    /// What Landlock is to allow.
    pub(super) fn rules(&self) -> Result<Vec<(CString, Access)>, PlanError> {
        let mut rules = vec![(self.own.clone(), Access::all())];
        for (path, mark) in &self.marks {
            match mark {
                Mark::Readable => self.grant(path, &mut rules)?,
                Mark::Writable => rules.push((path.clone(), Access::all())),
                Mark::Hidden => {}
                Mark::Devices => {
                    rules.push((path.clone(), Access::READ_DIR));
                    for name in DEVICES {
                        if let Ok(device) = path.join(name).canonicalize() {
                            rules.push((device, Access::OF_FILES - Access::EXECUTE));
                        }
                    }
                }
            }
        }
        rules.iter().map(|(path, access)| Ok((c_path(path)?, *access))).collect()
    }

    /// Lets everything at and below `path` be read but for what is marked itself.
    fn grant(&self, path: &Path, rules: &mut Vec<(PathBuf, Access)>) -> Result<(), PlanError> {
        if rules.len() > MOST_RULES {
            return Err(PlanError::new(format!(
                "cannot use --walls landlock: to keep what is hidden apart from what lies beside it would take more \
                 than {MOST_RULES} rules; hide less"
            )));
        }
        if !self.has_marks_below(path) {
            rules.push((path.to_owned(), Access::READ));
            return Ok(());
        }
        rules.push((path.to_owned(), Access::READ_DIR));
        // What the caller may not list the guests may not either.
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let place = entry.path();
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if !is_link && !self.marks.contains_key(&place) {
                self.grant(&place, rules)?;
            }
        }
        Ok(())
    }

    fn has_marks_below(&self, path: &Path) -> bool {
        let mut after = self.marks.range::<Path, _>((Bound::Excluded(path), Bound::Unbounded));
        after.next().is_some_and(|(place, _)| place.starts_with(path))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Err(error) = remove_directory(&self.own) {
            tracing::warn!(%error, path = %self.own.display(), "a directory of a run stays behind");
        }
    }
}

fn marks(spec: &RunSpec) -> BTreeMap<PathBuf, Mark> {
    let mut marks = BTreeMap::from([(PathBuf::from("/"), Mark::Readable)]);
    for mount in &spec.mounts {
        let mark = match mount.kind {
            MountKind::ReadOnly { .. } | MountKind::Proc | MountKind::Sys => Mark::Readable,
            MountKind::Writable { .. } => Mark::Writable,
            MountKind::Dev => Mark::Devices,
            // Whoever connects to a socket asks the sentry.
            MountKind::HiddenFile if mount.why == Why::Default(HOST_SOCKET) => continue,
            _ => Mark::Hidden,
        };
        marks.insert(mount.target.clone(), mark);
    }
    marks
}

/// A datagram socket of the unix family would reach every socket of the host, by addresses that no filter sees.
fn refuse_datagrams(fd: RawFd) -> Result<(), PlanError> {
    let Ok(copy) = files::duplicate(fd) else { return Ok(()) };
    let of = |name| {
        let bytes = socket::option(copy.as_fd(), libc::SOL_SOCKET, name, 4).ok()?;
        bytes.first_chunk::<4>().map(|it| i32::from_ne_bytes(*it))
    };
    if of(libc::SO_DOMAIN) == Some(libc::AF_UNIX) && of(libc::SO_TYPE) == Some(libc::SOCK_DGRAM) {
        return Err(PlanError::new(format!(
            "descriptor {fd} is a datagram socket, which reaches all others of the host; pass a pipe"
        )));
    }
    Ok(())
}

/// What the caller's children were before there was a sandbox. Dropping it ends all others.
#[derive(Debug)]
pub(super) struct Others {
    before: Vec<i32>,
}

impl Others {
    /// The caller becomes the one that orphans are given to.
    pub(super) fn begin() -> Result<Others, Errno> {
        spawn::become_subreaper()?;
        Ok(Others { before: children().collect() })
    }

    /// Ends what init has left behind: nothing, unless something has ended init itself.
    pub(super) fn end(&self) {
        loop {
            let mut found = false;
            for pid in children().filter(|pid| !self.before.contains(pid)) {
                found = true;
                let pid = Pid::from_raw(pid);
                let _ = kill(pid, Signal::SIGKILL);
                // Its children come to this process when it has ended.
                let _ = waitpid(pid, Some(WaitPidFlag::__WALL));
            }
            if !found {
                return;
            }
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.end();
    }
}

/// The caller's children.
fn children() -> impl Iterator<Item = i32> {
    let own = std::process::id() as i32;
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(move |pid: &i32| Stat::read(*pid).is_some_and(|stat| stat.parent == own))
}

/// Makes sure that a signal to all processes would leave the supervisor alone. Child side.
pub(super) fn check_scope() -> Result<(), Errno> {
    let supervisor = nix::unistd::getppid().as_raw();
    match spawn::kill(supervisor, 0) {
        Err(Errno::EPERM) => Ok(()),
        _ => Err(Errno::ENOTRECOVERABLE),
    }
}

/// Ends all in the caller's Landlock domain but itself, and waits for them. Only after [`check_scope`]. Child side.
pub(super) fn end_all() {
    let _ = spawn::kill(-1, libc::SIGKILL);
    while spawn::await_end().is_ok() {}
}

/// Keeps the program from sending signals to its keeper. Child side.
pub(super) fn below_keeper() -> Result<(), Errno> {
    confine::below_others(0, landlock::SCOPES)
}
