//! What a run's description needs to know of the host, read once.
//!
//! Owns every look at the real host that `config` takes, so that a test can describe another one:
//! a [`Host`] whose `root` is a temporary directory finds its files there. Decides nothing.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, Gid, Uid, User};

use super::IdRange;
use super::listing::Listing;
use super::paths::{Found, Kind, Place, Trouble, walk};
use crate::sys::generated;

/// The caller and the machine, as far as a run depends on them.
pub struct Host {
    /// The directory under which absolute paths are looked up: `/`, or another one in a test.
    pub root: PathBuf,
    /// The caller's working directory (getcwd(3)), or why there is none.
    pub cwd: Result<PathBuf, Errno>,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// The caller's environment, in order.
    pub environment: Vec<(OsString, OsString)>,
    /// The lines of /proc/self/uid_map: which ids exist for the caller.
    pub uid_ranges: Vec<IdRange>,
    /// The lines of /proc/self/gid_map.
    pub gid_ranges: Vec<IdRange>,
    /// The caller's open descriptors.
    pub descriptors: BTreeSet<RawFd>,
    /// Where unix sockets of the caller's network namespace are bound, as paths.
    pub sockets: Vec<PathBuf>,
    /// Where the host's processes can be seen besides /proc.
    pub process_views: Vec<PathBuf>,
    /// Where file systems are mounted, and of which type each is, in the order of their mounting.
    pub mounts: Vec<(PathBuf, String)>,
    /// The kernel has time namespaces (/proc/self/ns/time, Linux 5.6 with CONFIG_TIME_NS).
    pub time_namespaces: bool,
    /// The processors that the caller may use (sched_getaffinity(2)), in ascending order.
    pub cpus: Vec<usize>,
    /// The caller's hard limit of open descriptors.
    pub open_files_limit: u64,
    /// The caller's hard limit of the size of a file.
    pub file_size_limit: u64,
    /// Directories that no guest may see, whatever shows what lies above them.
    pub private: Vec<PathBuf>,
    /// Likewise: where the changes of overlays are kept, or could be.
    pub stores: Vec<PathBuf>,
    /// The user database.
    pub accounts: Box<dyn Accounts>,
    /// What was found at a path, so that ten thousand rules about one directory look at its
    /// ancestors once.
    pub(crate) seen: RefCell<HashMap<OsString, Result<Found, Errno>>>,
    /// The directories that were listed.
    pub(crate) listed: RefCell<HashMap<OsString, Rc<Listing>>>,
    /// Where directories lead in which several paths lie.
    pub(crate) led: RefCell<HashMap<OsString, Result<Place, Trouble>>>,
}

/// A user as passwd(5) describes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// The user database.
pub trait Accounts {
    /// The user of that name.
    fn by_name(&self, name: &str) -> Result<Option<Account>, Errno>;
    /// The user of that id.
    fn by_uid(&self, uid: u32) -> Result<Option<Account>, Errno>;
    /// The groups of `account`, its primary one among them (getgrouplist(3)).
    fn groups(&self, account: &Account) -> Result<Vec<u32>, Errno>;
}

impl Host {
    /// This process and this machine. What cannot be read is taken as absent: the launch will say
    /// what is missing if it turns out to matter.
    pub fn current() -> Self {
        let mounts = mounts(&generated::contents("/proc/self/mountinfo").unwrap_or_default());
        Host {
            root: PathBuf::from("/"),
            cwd: nix::unistd::getcwd(),
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
            environment: std::env::vars_os().collect(),
            uid_ranges: id_ranges("/proc/self/uid_map"),
            gid_ranges: id_ranges("/proc/self/gid_map"),
            descriptors: open_descriptors(),
            sockets: sockets(&generated::contents("/proc/net/unix").unwrap_or_default()),
            process_views: process_views(&mounts),
            mounts,
            time_namespaces: Path::new("/proc/self/ns/time").exists(),
            cpus: own_cpus(),
            open_files_limit: hard_limit(Resource::RLIMIT_NOFILE),
            file_size_limit: hard_limit(Resource::RLIMIT_FSIZE),
            private: Vec::new(),
            stores: Vec::new(),
            accounts: Box::new(SystemAccounts),
            seen: RefCell::default(),
            listed: RefCell::default(),
            led: RefCell::default(),
        }
    }

    /// The value of a variable of the caller, unless it is unset or empty.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        let found = self.environment.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    }

    /// The caller's home directories, as written: `$HOME`, the one in the user database, and that
    /// of the user who became root with sudo(8) or pkexec(1).
    pub fn homes(&self) -> Vec<PathBuf> {
        let mut homes: Vec<PathBuf> =
            self.variable("HOME").map(PathBuf::from).into_iter().collect();
        let ids = ["SUDO_UID", "PKEXEC_UID"].iter().filter(|_| self.uid == 0);
        let before = ids.filter_map(|name| self.variable(name)?.to_str()?.parse().ok());
        for uid in std::iter::once(self.uid).chain(before) {
            homes.extend(self.accounts.by_uid(uid).ok().flatten().map(|account| account.home));
        }
        homes.retain(|home| home.is_absolute() && home != Path::new("/"));
        homes.dedup();
        homes
    }

    /// Forgets what was seen of files: they may have changed.
    pub fn look_anew(&mut self) {
        self.seen = RefCell::default();
        self.listed = RefCell::default();
        self.led = RefCell::default();
    }

    /// Where `path` (absolute) leads on the host, its symlinks followed.
    pub(crate) fn walk(&self, path: &Path) -> Result<Place, Trouble> {
        self.walk_from_parent(path).unwrap_or_else(|| walk(path, |at| self.look(at)))
    }

    /// The same in one step from where its parent leads, which is remembered; `None` where it takes more.
    fn walk_from_parent(&self, path: &Path) -> Option<Result<Place, Trouble>> {
        let (parent, name) = (path.parent()?, path.file_name()?);
        let known = self.led.borrow().get(parent.as_os_str()).cloned();
        let place = known.unwrap_or_else(|| {
            let place = walk(parent, |at| self.look(at));
            self.led.borrow_mut().insert(parent.as_os_str().to_owned(), place.clone());
            place
        });
        let Place { path: mut at, kind } = place.ok()?;
        at.push(name);
        let kind = match kind {
            Kind::Missing => Kind::Missing,
            Kind::File => return None,
            Kind::Directory => match self.look(&at).ok()? {
                Found::Missing => Kind::Missing,
                Found::Directory => Kind::Directory,
                Found::File => Kind::File,
                Found::Link(_) => return None,
            },
        };
        Some(Ok(Place { path: at, kind }))
    }

    /// What is at `path`, its last component not followed.
    pub(crate) fn look(&self, path: &Path) -> Result<Found, Errno> {
        if self.is_lacking(path) {
            return Ok(Found::Missing);
        }
        if let Some(known) = self.seen.borrow().get(path.as_os_str()) {
            return known.clone();
        }
        let found = Found::at(&self.real(path));
        self.seen.borrow_mut().insert(path.as_os_str().to_owned(), found.clone());
        found
    }

    /// Its directory was listed, and it is not in the list.
    fn is_lacking(&self, path: &Path) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        self.listed.borrow().get(parent.as_os_str()).is_some_and(|listing| listing.lacks(name))
    }

    /// The names in a directory; none if it cannot be read. It is read once.
    pub(crate) fn names(&self, directory: &Path) -> Rc<Listing> {
        if let Some(known) = self.listed.borrow().get(directory.as_os_str()) {
            return Rc::clone(known);
        }
        let listing = match self.is_lacking(directory) {
            true => Rc::default(),
            false => Rc::new(Listing::of(&self.real(directory))),
        };
        let name = directory.as_os_str().to_owned();
        self.listed.borrow_mut().insert(name, Rc::clone(&listing));
        listing
    }

    /// Whether the caller may use `path` so (eaccess(3), with the effective ids).
    pub(crate) fn access(&self, path: &Path, how: AccessFlags) -> Result<(), Errno> {
        nix::unistd::eaccess(&self.real(path), how)
    }

    /// Where a path of this host really is.
    pub(super) fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// The lines of a uid_map or gid_map file (user_namespaces(7)).
fn id_ranges(file: &str) -> Vec<IdRange> {
    let text = generated::text(file).unwrap_or_default();
    text.lines().filter_map(parse_id_range).collect()
}

/// `inside outside count`.
fn parse_id_range(line: &str) -> Option<IdRange> {
    let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
    let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
    Some(IdRange { inside, outside, count })
}

/// The paths in /proc/net/unix (proc_net(5)): the eighth field, which may hold spaces. Names in the
/// abstract namespace begin with `@`, and the sandbox's own network namespace keeps those out.
fn sockets(table: &[u8]) -> Vec<PathBuf> {
    let path = |line: &[u8]| {
        let mut fields = line.splitn(8, |byte| *byte == b' ').skip(7);
        // The inode is padded with spaces.
        let path = fields.next()?.trim_ascii_start();
        let path = match path.iter().position(|byte| *byte == b'/') {
            Some(start) if path[..start].iter().all(|b| b.is_ascii_digit() || *b == b' ') => {
                &path[start..]
            }
            _ => return None,
        };
        Some(PathBuf::from(OsStr::from_bytes(path)))
    };
    table.split(|byte| *byte == b'\n').filter_map(path).collect()
}

/// The mounts of /proc/self/mountinfo (proc_pid_mountinfo(5)).
fn mounts(table: &[u8]) -> Vec<(PathBuf, String)> {
    let mount = |line: &[u8]| {
        let separator = line.windows(3).position(|words| words == b" - ")?;
        let kind = line[separator + 3..].split(|byte| *byte == b' ').next()?;
        let place = generated::unescape(line.split(|byte| *byte == b' ').nth(4)?);
        let place = PathBuf::from(OsString::from_vec(place));
        Some((place, String::from_utf8_lossy(kind).into_owned()))
    };
    table.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// Where there is a proc file system besides /proc itself, as a changed root has one: it shows the host's
/// processes.
fn process_views(mounts: &[(PathBuf, String)]) -> Vec<PathBuf> {
    let views = mounts.iter().filter(|(place, kind)| kind == "proc" && place != Path::new("/proc"));
    views.map(|(place, _)| place.clone()).collect()
}

/// What /proc/self/fd lists (proc_pid_fd(5)).
fn open_descriptors() -> BTreeSet<RawFd> {
    let directory = Path::new("/proc/self/fd");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let numbers: Vec<RawFd> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The descriptor that did the listing is in the list and gone by now.
    let open = |fd: &RawFd| directory.join(fd.to_string()).symlink_metadata().is_ok();
    numbers.into_iter().filter(open).collect()
}

fn own_cpus() -> Vec<usize> {
    let set = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

/// RLIM_INFINITY is the largest number.
fn hard_limit(resource: Resource) -> u64 {
    getrlimit(resource).map_or(u64::MAX, |(_, hard)| hard)
}

/// The user database of the host's libc (nsswitch.conf(5)).
struct SystemAccounts;

impl Accounts for SystemAccounts {
    fn by_name(&self, name: &str) -> Result<Option<Account>, Errno> {
        Ok(User::from_name(name)?.map(Account::from))
    }

    fn by_uid(&self, uid: u32) -> Result<Option<Account>, Errno> {
        Ok(User::from_uid(Uid::from_raw(uid))?.map(Account::from))
    }

    fn groups(&self, account: &Account) -> Result<Vec<u32>, Errno> {
        let name = CString::new(account.name.as_str()).map_err(|_| Errno::EINVAL)?;
        let groups = nix::unistd::getgrouplist(&name, Gid::from_raw(account.gid))?;
        Ok(groups.into_iter().map(Gid::as_raw).collect())
    }
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        let User { name, uid, gid, dir, shell, .. } = user;
        Account { name, uid: uid.as_raw(), gid: gid.as_raw(), home: dir, shell }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_line_is_three_numbers() {
        let line = "         0       1000          1";
        assert_eq!(parse_id_range(line), Some(IdRange { inside: 0, outside: 1000, count: 1 }));
        assert_eq!(parse_id_range("0 1000"), None);
        assert_eq!(parse_id_range("a b c"), None);
    }

    #[test]
    fn this_host_can_be_read() {
        let host = Host::current();
        assert!(host.cwd.as_ref().is_ok_and(|cwd| cwd.is_absolute()), "{:?}", host.cwd);
        assert!(!host.uid_ranges.is_empty() && !host.gid_ranges.is_empty());
        assert!(host.uid_ranges.iter().any(|r| r.inside <= host.uid));
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert!(open_descriptors().contains(&fd));
    }
}
