//! Calls on paths, performed by the sentry.
//!
//! Owns following a guest's path as the host's kernel would for that guest (`resolve`), what that means in procfs
//! (`own`), and what is done at its end: `open`, `change`,
//! `program`. A path is read once from the guest; from there on
//! everything is held by descriptors, so that nothing a guest changes meanwhile changes what was decided.
//! What the rules say of a name is not its own ([`Rules`]).
//!
//! The sentry has more rights than a guest. So whatever it does for one it does with that one's user, groups and
//! umask and without capabilities (`sys::disguise`); files of procfs, where the owner of a user namespace may look
//! at all in it, are judged besides.

mod change;
mod copies;
mod granted;
mod open;
mod own;
mod program;
mod resolve;
mod rules;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::{Arc, Mutex, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_file, readlink};
use nix::sys::stat::Mode;

pub(super) use change::New;
pub(super) use copies::Copies;
pub(super) use granted::could_open;
pub use open::{Opened, Wish};
pub(crate) use program::interpreter_of;
pub use resolve::{Landing, Resolver, Start, Thing};
pub use rules::{Content, NoRules, Rules, Verdict};

use crate::sys::disguise::{self, Disguise, Owner};
use crate::sys::{files, generated};

const HANDLE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// What the sentry needs to perform calls on paths, with [`Features::PATTERNS`](super::Features::PATTERNS) or
/// [`Features::TWINS`](super::Features::TWINS).
#[derive(Debug)]
pub(super) struct Paths {
    /// Immutable.
    rules: Arc<dyn Rules>,
    /// Of files that get it later, if there are any. Immutable.
    content: Option<Arc<dyn Content>>,
    /// The root of all guests, which none can change for all; known from the first call on.
    root: OnceLock<Root>,
    /// A guest can have a root of its own. Immutable.
    apart: bool,
    /// Whose rights have to be taken on, if any: those of all guests, which none can change either.
    owner: OnceLock<Option<Owner>>,
    /// Held while something is given another name, so that what was decided by the names is still true. A leaf
    /// of the lock order.
    renames: Mutex<()>,
}

/// A guest thread that waits for an answer.
#[derive(Clone, Copy)]
pub(super) struct Guest<'g> {
    /// As the host numbers it.
    pub(super) tid: i32,
    /// Whether the number still is that thread's.
    pub(super) is_valid: &'g dyn Fn() -> bool,
}

/// A root directory.
#[derive(Debug)]
pub struct Root {
    handle: OwnedFd,
    /// Where it is in its mount namespace.
    path: Vec<u8>,
}

impl Root {
    /// That of a process.
    ///
    /// # Errors
    /// It has ended, or may not be looked at.
    pub fn of(tid: i32) -> Result<Root, Errno> {
        let handle = open_file(format!("/proc/{tid}/root").as_str(), HANDLE, Mode::empty())?;
        let path = name_of(&handle)?;
        Ok(Root { handle, path })
    }

    /// The path of something below, as who has this root knows it.
    fn known(&self, path: Vec<u8>) -> Vec<u8> {
        match path.strip_prefix(&self.path[..]) {
            Some(rest) if self.path != b"/" && (rest.is_empty() || rest.starts_with(b"/")) => {
                if rest.is_empty() {
                    b"/".to_vec()
                } else {
                    rest.to_vec()
                }
            }
            _ => path,
        }
    }

    /// The path of what a handle stands for. One that is no path has no slash at its beginning.
    fn path_of(&self, handle: &OwnedFd) -> Result<Vec<u8>, Errno> {
        name_of(handle).map(|path| self.known(path))
    }
}

/// d_path of a descriptor (proc_pid_fd(5)).
fn name_of(handle: &OwnedFd) -> Result<Vec<u8>, Errno> {
    readlink(&*files::descriptor_path(handle.as_fd())).map(OsStringExt::into_vec)
}

impl Paths {
    /// `apart`: guests may call chroot(2).
    pub(super) fn new(
        rules: Arc<dyn Rules>,
        content: Option<Arc<dyn Content>>,
        apart: bool,
    ) -> Paths {
        let (root, owner, renames) = (OnceLock::new(), OnceLock::new(), Mutex::new(()));
        Paths { rules, content, root, apart, owner, renames }
    }

    /// See [`Content`].
    pub(super) fn content(&self) -> Option<&Arc<dyn Content>> {
        self.content.as_ref()
    }

    /// The root of all guests. It has to be known before one has another.
    pub(super) fn view(&self, Guest { tid, is_valid }: Guest<'_>) -> Result<&Root, Errno> {
        if let Some(root) = self.root.get() {
            return Ok(root);
        }
        let root = Root::of(tid)?;
        if is_valid() { Ok(self.root.get_or_init(|| root)) } else { Err(Errno::ESRCH) }
    }

    /// Has `what` done for a guest thread, with its rights.
    pub(super) fn with<T>(
        &self,
        guest: Guest<'_>,
        what: impl FnOnce(&Resolver<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Guest { tid, is_valid } = guest;
        let view = self.view(guest)?;
        let own = self.apart.then(|| Root::of(tid)).transpose()?;
        if own.is_some() && !is_valid() {
            return Err(Errno::ESRCH);
        }
        let _worn = self.owner(guest)?.map(Disguise::put_on).transpose()?;
        let root = own.as_ref().unwrap_or(view);
        let content = self.content.as_deref();
        what(&Resolver::new(tid, root, &*self.rules, is_valid).within(view, content))
    }

    /// Whose rights have to be taken on, if any ([`rights_to_take`]).
    fn owner(&self, guest: Guest<'_>) -> Result<Option<&Owner>, Errno> {
        if let Some(owner) = self.owner.get() {
            return Ok(owner.as_ref());
        }
        let owner = rights_to_take(guest)?;
        Ok(self.owner.get_or_init(|| owner).as_ref())
    }
}

/// Whose rights the sentry has to take on to act for a guest thread, if any: an ordinary user without capabilities has
/// those already.
pub(super) fn rights_to_take(guest: Guest<'_>) -> Result<Option<Owner>, Errno> {
    let has_more = nix::unistd::geteuid().is_root() || disguise::has_capabilities()?;
    has_more.then(|| owner_of(guest)).transpose()
}

/// Who a guest thread is to files.
pub(super) fn owner_of(Guest { tid, is_valid }: Guest<'_>) -> Result<Owner, Errno> {
    let owner = own::owner(&own::status(tid)?).ok_or(Errno::EPROTO)?;
    if is_valid() { Ok(owner) } else { Err(Errno::ESRCH) }
}

/// The file mode creation mask of a thread (proc_pid_status(5)).
///
/// # Errors
/// ESRCH: there is none; EPROTO: it is not told.
pub fn umask_of(tid: i32) -> Result<u32, Errno> {
    let status = own::status(tid)?;
    let mask = own::field(&status, "Umask").and_then(|text| u32::from_str_radix(text, 8).ok());
    mask.ok_or(Errno::EPROTO)
}

thread_local! {
    /// Whether this thread has a umask of its own.
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
}

/// Gives this thread the umask of a guest thread: with a default ACL it does not count (umask(2)), so that the mode
/// cannot be masked beforehand.
fn take_umask(tid: i32) -> Result<(), Errno> {
    if !OWN_UMASK.get() {
        disguise::own_umask()?;
        OWN_UMASK.set(true);
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(umask_of(tid)?));
    Ok(())
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// A name without the slashes behind it.
fn plain(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    &name[..end]
}

/// Whether a plain name is of what is not looked up by one.
fn is_dots(plain: &[u8]) -> bool {
    [&b""[..], b".", b".."].contains(&plain)
}

/// A path with another name at its end.
fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The number of the mount that a handle is on.
fn mount_of(handle: &OwnedFd) -> Result<u64, Errno> {
    match files::mount_number(handle.as_fd()) {
        Err(Errno::ENOSYS) => {}
        done => return done,
    }
    let path = format!("/proc/self/fdinfo/{}", handle.as_raw_fd());
    let text = generated::text(path).map_err(|_| Errno::EIO)?;
    own::field(&text, "mnt_id").and_then(|it| it.parse().ok()).ok_or(Errno::EPROTO)
}
