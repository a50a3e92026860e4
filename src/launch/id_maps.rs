//! The users and groups of a user namespace (user_namespaces(7)): writing its maps, and taking on its ids.
//!
//! Anybody may map their own id. Subordinate ones take rights in the namespace above, which newuidmap(1) and newgidmap(1)
//! have: they look whether the caller was given those ids.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::config::IdRange;
use crate::overlay::Ids;
use crate::sys::{errno_of, files, message, spawn};

/// Where programs of the system are. The search path is the caller's, and may lead to what a guest has written.
const PLACES: [&str; 6] =
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/run/wrappers/bin"];

/// Why the maps could not be written.
#[derive(Debug)]
pub enum MapError {
    /// The kernel refuses this file of /proc/PID.
    Kernel(&'static str, Errno),
    /// There is no such program.
    Missing(&'static str),
    /// This program does not write the map, and says why.
    Refused(&'static str, String),
    /// A namespace that has the ids cannot be made or entered.
    Namespace(Errno),
}

impl std::fmt::Display for MapError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MapError::Kernel(file, errno) => {
                let why = super::host::explain_refusal(*errno);
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                write!(f, "cannot write {file} of the new user namespace: {}{why}", errno.desc())
            }
            MapError::Missing(program) => write!(
                f,
                "cannot map subordinate ids: there is no {program} in {}; install it (apt install uidmap on Debian and \
                 Ubuntu, shadow-utils on Fedora, shadow on others), or use --root, which takes none",
                PLACES.join(", ")
            ),
            MapError::Refused(program, said) => write!(
                f,
                "cannot map subordinate ids: {program} refuses it ({said}); it has to be set-user-id root, not to be \
                 started with no_new_privs, and to find the ids in /etc/subuid and /etc/subgid; or use --root, \
                 which takes none"
            ),
            MapError::Namespace(errno) => f.write_str(&super::host::explain_userns_refusal(*errno)),
        }
    }
}

/// Gives the user namespace of a process its maps.
///
/// # Errors
/// The kernel, or the program that has the rights for more ids than one, refuses it.
pub(super) fn write(
    pid: Pid,
    (users, groups): (&[IdRange], &[IdRange]),
    gives_up_groups: bool,
) -> Result<(), MapError> {
    let is_own = |map: &[IdRange]| map.iter().map(|it| u64::from(it.count)).sum::<u64>() <= 1;
    let by_kernel = nix::unistd::geteuid().is_root() || is_own(users) && is_own(groups);
    if !by_kernel {
        ask("newuidmap", pid, users)?;
        return ask("newgidmap", pid, groups);
    }
    if gives_up_groups {
        // An ordinary user has to, before.
        write_proc(pid, "setgroups", b"deny")?;
    }
    write_proc(pid, "uid_map", text(users).as_bytes())?;
    write_proc(pid, "gid_map", text(groups).as_bytes())
}

fn write_proc(pid: Pid, file: &'static str, text: &[u8]) -> Result<(), MapError> {
    let open = File::options().write(true).open(format!("/proc/{pid}/{file}"));
    open.and_then(|mut open| open.write_all(text))
        .map_err(|error| MapError::Kernel(file, errno_of(&error)))
}

fn text(map: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.count);
    map.iter().map(line).collect()
}

/// Where a program of the system is, if it is there.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file())
}

/// Has a program of the system write one of the maps.
fn ask(program: &'static str, pid: Pid, map: &[IdRange]) -> Result<(), MapError> {
    let place = self::program(program).ok_or(MapError::Missing(program))?;
    let numbers = map.iter().flat_map(|it| [it.inside, it.outside, it.count]);
    let asked = Command::new(place)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| MapError::Refused(program, error.to_string()))?;
    if asked.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&asked.stderr);
    let said = said.lines().find(|line| !line.trim().is_empty()).map(str::trim);
    let said =
        said.map_or_else(|| asked.status.to_string(), |line| line.escape_debug().to_string());
    Err(MapError::Refused(program, said))
}

/// This process becomes root of a user namespace of its own with these ids, for the rest of its life: what belongs to
/// them it can read, give and remove. It must have no other thread.
///
/// # Errors
/// The ids are not the caller's (any more), or no namespace can be made.
pub fn take_on(ids: &Ids) -> Result<(), MapError> {
    let (ours, theirs) = message::pair().map_err(MapError::Namespace)?;
    let ends = Ends { own: theirs.as_raw_fd(), other: ours.as_raw_fd() };
    // Somebody has to be there to be mapped by those in the namespace above.
    let (pid, pidfd) =
        spawn::spawn(libc::CLONE_NEWUSER, &ends, wait_for_end).map_err(MapError::Namespace)?;
    drop(theirs);
    let pid = Pid::from_raw(pid);
    let (users, groups) = ids.maps();
    let entered = write(pid, (&users, &groups), false).and_then(|()| {
        setns(pidfd.as_fd(), CloneFlags::CLONE_NEWUSER).map_err(MapError::Namespace)
    });
    drop(ours);
    let _ = waitpid(pid, None);
    entered
}

/// The two ends of a socket.
struct Ends {
    own: RawFd,
    other: RawFd,
}

/// Child side: there until the other end is closed.
fn wait_for_end(ends: &Ends) -> ! {
    let _ = files::close_now(ends.other);
    let socket = files::adopt(ends.own);
    let _ = message::receive(socket.as_fd(), &mut [0; 1]);
    spawn::exit_now(0)
}
