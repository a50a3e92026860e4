//! The state directory: where the sandboxes of a user are known by their ids.
//!
//! ```text
//! $XDG_RUNTIME_DIR/sandbox/    or /tmp/sandbox-UID/; 0700, its lock is held for every change below
//!   ID/                        0700
//!     control                  unix socket; gone once the sandbox has ended
//!     lock                     locked as long as the supervisor lives
//!     info                     JSON: what it is, see Info
//!     output                   what a detached one printed
//!     status                   JSON: how a detached one ended, see Ended
//! ```
//!
//! Owns the making, finding and removing of all that. Every name is reached from a descriptor of its
//! directory, no symlink is followed and the owner is checked: /tmp is shared with strangers. A
//! supervisor that lives is known by its lock and never by its pid, which could be another process's.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Bytes in an id at most.
const ID_MAX: usize = 64;
/// Bytes that are read of a file of ours at most.
const FILE_MAX: u64 = 64 << 10;
/// The base directory can be removed by the last one that leaves whenever we have just found it.
const ATTEMPTS: u32 = 1000;
const DIRECTORY: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Why a sandbox has no state, or is not found: one sentence.
#[derive(Debug)]
pub enum StateError {
    /// An id of an impossible form.
    BadId(String, &'static str),
    /// Another sandbox has the id.
    InUse(String),
    /// No sandbox has the id.
    NotFound(String),
    /// No state directory can be made or used.
    NoPlace(PathBuf, String),
}

impl std::fmt::Display for StateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StateError::BadId(id, cause) => write!(
                f,
                "cannot use the id {id:?}: {cause}; choose at most {ID_MAX} letters, digits, dots, \
                 dashes and underscores"
            ),
            StateError::InUse(id) => write!(
                f,
                "the id {id} is in use by a running sandbox; choose another --id, or end that one \
                 with sandbox kill {id}"
            ),
            StateError::NotFound(id) => {
                write!(f, "no sandbox named {id}; sandbox ps lists those that run")
            }
            StateError::NoPlace(path, cause) => write!(
                f,
                "cannot use the state directory {}: {cause}; set XDG_RUNTIME_DIR to a directory of \
                 yours, mode 0700",
                path.display()
            ),
        }
    }
}

impl std::error::Error for StateError {}

/// What a sandbox is, as its supervisor wrote it down at the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its supervisor.
    pub pid: i32,
    /// The program and its arguments, as the user wrote them.
    pub command: Vec<String>,
    /// When it was started, in microseconds since 1970.
    pub started: u64,
    /// Whether it runs in the background.
    pub detached: bool,
}

/// How a detached sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit status; 128+N if signal N ended it.
    pub status: i32,
    /// When, in microseconds since 1970.
    pub ended: u64,
}

/// A sandbox that was found.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// What it is.
    pub info: Info,
    /// How it ended, if it has.
    pub ended: Option<Ended>,
    directory: OwnedFd,
    path: PathBuf,
}

impl Listed {
    /// Connects to its supervisor.
    pub fn connect(&self) -> std::io::Result<UnixStream> {
        UnixStream::connect(socket_path(&self.path, self.directory.as_fd()))
    }

    /// Where it prints, if it is a detached one.
    pub fn append_output(&self) -> std::io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.directory, "output", flags, Mode::empty()).map(File::from)?)
    }

    /// What it has printed, if it is a detached one.
    pub fn output(&self) -> std::io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.directory, "output", flags, Mode::empty()).map(File::from)?)
    }
}

/// A form of id that is safe as a file name and as a word of a shell.
///
/// # Errors
/// What is wrong with it.
pub fn check_id(id: &str) -> Result<(), StateError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let cause = if id.is_empty() {
        "it is empty"
    } else if id.len() > ID_MAX {
        "it is too long"
    } else if id.starts_with(['.', '-']) {
        "it begins with a dot or a dash"
    } else if !id.bytes().all(allowed) {
        "it contains other characters"
    } else {
        return Ok(());
    };
    Err(StateError::BadId(id.chars().take(ID_MAX).collect(), cause))
}

/// The directory that holds the state of all sandboxes of this user.
#[derive(Debug)]
struct Base {
    parent: OwnedFd,
    name: String,
    directory: OwnedFd,
    path: PathBuf,
}

/// Nobody else changes anything below the base while this lives.
struct Locked {
    base: Base,
    _lock: Flock<OwnedFd>,
}

/// What is known about an id.
enum Standing {
    Alive,
    Ended(Ended),
    /// Its supervisor was killed, or never came to write anything.
    Stale,
}

/// $XDG_RUNTIME_DIR where it is ours and private, else /tmp: (directory, its path, name in it).
fn place() -> Result<(OwnedFd, PathBuf, String), StateError> {
    let uid = Uid::effective().as_raw();
    let flags = OFlag::O_DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
    if let Some(path) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && path.is_absolute()
        && let Ok(parent) = open(&path, flags, Mode::empty())
        && fstat(&parent).is_ok_and(|stat| is_private(&stat, uid))
    {
        let real = std::fs::read_link(format!("/proc/self/fd/{}", parent.as_raw_fd()));
        return Ok((parent, real.unwrap_or(path), "sandbox".to_owned()));
    }
    let path = PathBuf::from("/tmp");
    match open(&path, flags, Mode::empty()) {
        Ok(parent) => Ok((parent, path, format!("sandbox-{uid}"))),
        Err(errno) => Err(StateError::NoPlace(path, errno.desc().to_owned())),
    }
}

/// Where the state of all sandboxes of this user lies, or would lie.
pub fn base_path() -> Option<PathBuf> {
    place().ok().map(|(_, above, name)| above.join(name))
}

fn is_private(stat: &FileStat, uid: u32) -> bool {
    stat.st_uid == uid && stat.st_mode & 0o077 == 0
}

impl Base {
    /// Finds it; with `make` it is made where it is missing.
    fn open(make: bool) -> Result<Option<Base>, StateError> {
        let (parent, above, name) = place()?;
        let path = above.join(&name);
        let fail = |errno: Errno| StateError::NoPlace(path.clone(), errno.desc().to_owned());
        for _ in 0..ATTEMPTS {
            let made = make
                && match mkdirat(&parent, name.as_str(), Mode::S_IRWXU) {
                    Ok(()) => true,
                    Err(Errno::EEXIST) => false,
                    Err(errno) => return Err(fail(errno)),
                };
            let directory = match openat(&parent, name.as_str(), DIRECTORY, Mode::empty()) {
                Ok(directory) => directory,
                Err(Errno::ENOENT) if make => continue,
                Err(Errno::ENOENT) => return Ok(None),
                Err(errno) => return Err(fail(errno)),
            };
            if made {
                // Whatever the umask.
                fchmod(&directory, Mode::S_IRWXU).map_err(fail)?;
            }
            let stat = fstat(&directory).map_err(fail)?;
            if !is_private(&stat, Uid::effective().as_raw()) {
                let cause = "it is not yours, or others may enter it".to_owned();
                return Err(StateError::NoPlace(path, cause));
            }
            return Ok(Some(Base { parent, name, directory, path }));
        }
        Err(fail(Errno::EAGAIN))
    }

    /// Finds it and locks it. The lock is held for moments only.
    fn lock(make: bool) -> Result<Option<Locked>, StateError> {
        for _ in 0..ATTEMPTS {
            let Some(base) = Base::open(make)? else { return Ok(None) };
            let fail = |errno: Errno| StateError::NoPlace(base.path.clone(), errno.desc().into());
            // A description of its own, so that only this lock is given back with it.
            let own = openat(&base.parent, base.name.as_str(), DIRECTORY, Mode::empty());
            let own = match own {
                Ok(own) => own,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(fail(errno)),
            };
            let lock =
                Flock::lock(own, FlockArg::LockExclusive).map_err(|(_, errno)| fail(errno))?;
            // It may have been removed, and another one made, while we waited.
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            let there = fstatat(&base.parent, base.name.as_str(), flags);
            if let (Ok(there), Ok(own), Ok(kept)) = (there, fstat(&*lock), fstat(&base.directory))
                && same(&there, &own)
                && same(&there, &kept)
            {
                return Ok(Some(Locked { base, _lock: lock }));
            }
        }
        Err(StateError::NoPlace(PathBuf::from("sandbox"), "it keeps vanishing".to_owned()))
    }
}

fn same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

impl Locked {
    /// The directory of an id, if there is one of ours.
    fn entry(&self, id: &str) -> Option<OwnedFd> {
        let directory = openat(&self.base.directory, id, DIRECTORY, Mode::empty()).ok()?;
        let stat = fstat(&directory).ok()?;
        (stat.st_uid == Uid::effective().as_raw()).then_some(directory)
    }

    /// How the sandbox of this directory stands.
    fn standing(entry: BorrowedFd<'_>) -> Standing {
        if let Some(ended) = read_json(entry, "status") {
            return Standing::Ended(ended);
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(lock) = openat(entry, "lock", flags, Mode::empty()) else { return Standing::Stale };
        // Nobody but a supervisor locks it without the lock on the base.
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(_) => Standing::Stale,
            Err((_, Errno::EWOULDBLOCK)) => Standing::Alive,
            Err(_) => Standing::Stale,
        }
    }

    /// Removes the directory of an id with all that is in it.
    fn remove(&self, id: &str, entry: BorrowedFd<'_>) -> Result<(), Errno> {
        // What a run in the foreground has; most often that is all.
        for name in ["control", "lock", "info"] {
            let _ = unlinkat(entry, name, UnlinkatFlags::NoRemoveDir);
        }
        let remove = || unlinkat(&self.base.directory, id, UnlinkatFlags::RemoveDir);
        match remove() {
            Err(Errno::ENOTEMPTY) => {}
            done => return done,
        }
        for name in names(entry)? {
            unlinkat(entry, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
        }
        remove()
    }

    /// Removes what supervisors that were killed have left, and the base if nothing is in it.
    fn sweep(&self) {
        let base = &self.base;
        let remove = || unlinkat(&base.parent, base.name.as_str(), UnlinkatFlags::RemoveDir);
        if remove() != Err(Errno::ENOTEMPTY) {
            return;
        }
        let mut removed = false;
        for id in names(base.directory.as_fd()).unwrap_or_default() {
            if let Some(entry) = self.entry(&id)
                && matches!(Locked::standing(entry.as_fd()), Standing::Stale)
            {
                removed |= self.remove(&id, entry.as_fd()).is_ok();
            }
        }
        if removed {
            let _ = remove();
        }
    }

    fn listed(&self, id: &str, directory: OwnedFd, ended: Option<Ended>) -> Option<Listed> {
        let info = read_json(directory.as_fd(), "info")?;
        let path = self.base.path.join(id);
        Some(Listed { id: id.to_owned(), info, ended, directory, path })
    }
}

/// The names in a directory that can be ids or files of ours.
fn names(directory: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    let own = openat(directory, ".", DIRECTORY, Mode::empty())?;
    let mut listing = nix::dir::Dir::from_fd(own)?;
    let names = listing.iter().flatten();
    let names = names.filter_map(|entry| Some(entry.file_name().to_str().ok()?.to_owned()));
    Ok(names.filter(|name| name != "." && name != "..").collect())
}

/// A file of ours, as far as it is one.
fn read_json<T: DeserializeOwned>(directory: BorrowedFd<'_>, name: &str) -> Option<T> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty()).ok()?);
    let mut text = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn write_json(directory: BorrowedFd<'_>, name: &str, value: &impl Serialize) -> Result<(), Errno> {
    let text = serde_json::to_vec(value).map_err(|_| Errno::EINVAL)?;
    let mut file = File::from(make_file(directory, name)?);
    file.write_all(&text).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

fn make_file(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

/// A name by which bind(2) and connect(2) reach the socket: its path, or where that is longer than
/// an address can be (unix(7), 108 bytes) one through the descriptor of its directory.
fn socket_path(path: &Path, directory: BorrowedFd<'_>) -> PathBuf {
    let whole = path.join("control");
    if AsRef::<OsStr>::as_ref(&whole).len() < 108 {
        return whole;
    }
    PathBuf::from(format!("/proc/self/fd/{}/control", directory.as_raw_fd()))
}

/// Microseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// All sandboxes of this user, by id. Cleans up what killed ones have left.
///
/// # Errors
/// The state directory cannot be used.
pub fn list() -> Result<Vec<Listed>, StateError> {
    let Some(locked) = Base::lock(false)? else { return Ok(Vec::new()) };
    locked.sweep();
    let mut found = Vec::new();
    for id in names(locked.base.directory.as_fd()).unwrap_or_default() {
        let Some(entry) = locked.entry(&id) else { continue };
        let ended = match Locked::standing(entry.as_fd()) {
            Standing::Alive => None,
            Standing::Ended(ended) => Some(ended),
            Standing::Stale => continue,
        };
        found.extend(locked.listed(&id, entry, ended));
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

/// The sandbox of this id.
///
/// # Errors
/// There is none.
pub fn find(id: &str) -> Result<Listed, StateError> {
    check_id(id)?;
    let missing = || StateError::NotFound(id.to_owned());
    let locked = Base::lock(false)?.ok_or_else(missing)?;
    let entry = locked.entry(id).ok_or_else(missing)?;
    let ended = match Locked::standing(entry.as_fd()) {
        Standing::Alive => None,
        Standing::Ended(ended) => Some(ended),
        Standing::Stale => {
            let _ = locked.remove(id, entry.as_fd());
            locked.sweep();
            return Err(missing());
        }
    };
    locked.listed(id, entry, ended).ok_or_else(missing)
}

/// Forgets a sandbox that has ended, if it is still this one that the id stands for.
pub fn forget(id: &str, info: &Info) {
    if let Ok(Some(locked)) = Base::lock(false)
        && let Some(entry) = locked.entry(id)
        && matches!(Locked::standing(entry.as_fd()), Standing::Ended(_))
        && read_json::<Info>(entry.as_fd(), "info").as_ref() == Some(info)
    {
        let _ = locked.remove(id, entry.as_fd());
        locked.sweep();
    }
}

/// The state of a run, held by its supervisor. Dropped, it is removed unless it is to be remembered.
#[derive(Debug)]
pub struct Claim {
    id: String,
    info: Info,
    path: PathBuf,
    base: PathBuf,
    directory: OwnedFd,
    listener: Option<UnixListener>,
    /// What makes the sandbox a living one.
    _lock: Flock<OwnedFd>,
    /// It is remembered, or nothing of it is left.
    settled: bool,
}

impl Claim {
    /// Takes `id`, or one that nobody has, for a run of `command` that this process supervises.
    ///
    /// # Errors
    /// The id is in use or impossible, or there is no state directory.
    pub fn take(
        id: Option<&str>,
        command: Vec<String>,
        detached: bool,
    ) -> Result<Claim, StateError> {
        id.map_or(Ok(()), check_id)?;
        let none = || StateError::NoPlace(PathBuf::from("sandbox"), "it is missing".to_owned());
        let locked = Base::lock(true)?.ok_or_else(none)?;
        let info = Info { pid: std::process::id() as i32, command, started: now(), detached };
        let claimed = match id {
            Some(id) => locked.claim(id, &info),
            None => loop {
                match locked.claim(&random_id(), &info) {
                    Err(StateError::InUse(_)) => {}
                    done => break done,
                }
            },
        };
        if claimed.is_err() {
            locked.sweep();
        }
        claimed
    }

    /// The id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the run is in the background.
    pub fn is_detached(&self) -> bool {
        self.info.detached
    }

    /// Where the state of all sandboxes of this user lies: no guest may see it.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where requests arrive, once.
    pub fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// A new file for what a detached sandbox prints.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_output(&self) -> Result<OwnedFd, StateError> {
        make_file(self.directory.as_fd(), "output")
            .map_err(|errno| StateError::NoPlace(self.path.clone(), errno.desc().to_owned()))
    }

    /// The sandbox has ended with this exit status. A detached one is remembered, until somebody has
    /// asked for the status; the id is free from here on.
    pub fn ended(&mut self, status: i32) {
        if !self.info.detached {
            return self.remove();
        }
        let Ok(Some(locked)) = Base::lock(false) else { return };
        let (directory, ended) = (self.directory.as_fd(), Ended { status, ended: now() });
        self.settled = locked.is(&self.id, directory)
            && write_json(directory, "status", &ended).is_ok()
            && unlinkat(directory, "control", UnlinkatFlags::NoRemoveDir).is_ok();
    }

    /// Removes the state, if the id still stands for it.
    fn remove(&mut self) {
        let Ok(Some(locked)) = Base::lock(false) else { return };
        let (id, directory) = (&self.id, self.directory.as_fd());
        self.settled = locked.is(id, directory) && locked.remove(id, directory).is_ok();
        locked.sweep();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.settled {
            self.remove();
        }
    }
}

impl Locked {
    /// Makes the directory of `id` with all that belongs to a living sandbox.
    fn claim(&self, id: &str, info: &Info) -> Result<Claim, StateError> {
        let base = &self.base;
        let path = base.path.join(id);
        if let Some(entry) = self.entry(id) {
            if let Standing::Alive = Locked::standing(entry.as_fd()) {
                return Err(StateError::InUse(id.to_owned()));
            }
            self.remove(id, entry.as_fd())
                .map_err(|errno| StateError::NoPlace(path.clone(), errno.desc().to_owned()))?;
        }
        let made = self.make(id, info, &path);
        if made.is_err()
            && let Some(entry) = self.entry(id)
        {
            let _ = self.remove(id, entry.as_fd());
        }
        made.map_err(|errno| StateError::NoPlace(path, errno.desc().to_owned()))
    }

    fn make(&self, id: &str, info: &Info, path: &Path) -> Result<Claim, Errno> {
        mkdirat(&self.base.directory, id, Mode::S_IRWXU)?;
        let directory = openat(&self.base.directory, id, DIRECTORY, Mode::empty())?;
        fchmod(&directory, Mode::S_IRWXU)?;
        let lock = make_file(directory.as_fd(), "lock")?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        write_json(directory.as_fd(), "info", info)?;
        let listener = UnixListener::bind(socket_path(path, directory.as_fd()))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL)))?;
        Ok(Claim {
            id: id.to_owned(),
            info: info.clone(),
            path: path.to_owned(),
            base: self.base.path.clone(),
            directory,
            listener: Some(listener),
            _lock: lock,
            settled: false,
        })
    }

    /// Whether the directory of `id` is this one.
    fn is(&self, id: &str, directory: BorrowedFd<'_>) -> bool {
        let there = fstatat(&self.base.directory, id, AtFlags::AT_SYMLINK_NOFOLLOW);
        let kept = fstat(directory);
        there.is_ok_and(|there| {
            there.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
                && kept.is_ok_and(|kept| same(&there, &kept))
        })
    }
}

/// Eight hexadecimal digits.
fn random_id() -> String {
    use std::hash::{BuildHasher, Hasher};
    // Its keys come from the kernel's random numbers, and differ every time.
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("{:08x}", random as u32)
}
