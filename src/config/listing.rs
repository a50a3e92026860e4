//! What a directory holds, read once, where many names in it are asked for.
//!
//! Owns the question when a name that is not in a list is not in the directory either. Asks nothing of
//! what the names stand for.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC};
use nix::sys::statfs::{TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs};

/// File systems that list every name under which something can be found. Others may know more names than
/// they list (a automounter's, `.snapshot` of a file server), and then each one has to be tried.
const COMPLETE: [FsType; 5] =
    [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC, OVERLAYFS_SUPER_MAGIC];

/// The names in a directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// As they are written; none if the directory cannot be read.
    pub(crate) names: Vec<OsString>,
    /// The same in lower case, where there are no others.
    all: Option<HashSet<Vec<u8>>>,
}

impl Listing {
    /// Reads the directory at `path`.
    pub(crate) fn of(path: &Path) -> Listing {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(mut directory) = Dir::open(path, flags, Mode::empty()) else {
            return Listing::default();
        };
        let kind = fstatfs(&directory).map(|found| found.filesystem_type());
        let mut complete = kind.is_ok_and(|kind| COMPLETE.contains(&kind));
        let mut names = Vec::new();
        for entry in directory.iter() {
            match entry {
                Ok(entry) if [c".", c".."].contains(&entry.file_name()) => {}
                Ok(entry) => names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned()),
                Err(_) => complete = false,
            }
        }
        let all = complete.then(|| folded(&names)).flatten();
        Listing { names, all }
    }

    /// Surely nothing is found under `name`, which is in ASCII.
    pub(crate) fn lacks(&self, name: &OsStr) -> bool {
        let name = name.as_bytes();
        name.is_ascii()
            && self.all.as_ref().is_some_and(|all| !all.contains(&name.to_ascii_lowercase()))
    }
}

/// A directory may ignore case (ext4's casefold feature). Beyond ASCII that follows rules which only the
/// kernel knows: `None` then.
fn folded(names: &[OsString]) -> Option<HashSet<Vec<u8>>> {
    let fold = |name: &OsString| name.is_ascii().then(|| name.as_bytes().to_ascii_lowercase());
    names.iter().map(fold).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_lacking_only_where_that_is_certain() {
        let names = |names: &[&str]| Listing {
            names: Vec::new(),
            all: folded(&names.iter().map(OsString::from).collect::<Vec<_>>()),
        };
        let plain = names(&[".SSH", "snap"]);
        assert!(plain.lacks(OsStr::new(".aws")));
        assert!(!plain.lacks(OsStr::new(".ssh")) && !plain.lacks(OsStr::new("snap")));
        assert!(!plain.lacks(OsStr::new("\u{17f}nap")));
        // KELVIN SIGN folds to k.
        assert!(!names(&[".\u{212a}ube"]).lacks(OsStr::new(".aws")));
        assert!(!Listing::of(Path::new("/proc/self")).lacks(OsStr::new("nothing")));
        let unreadable = Listing::of(Path::new("/nowhere"));
        assert!(unreadable.names.is_empty() && !unreadable.lacks(OsStr::new("x")));
    }

    #[test]
    fn a_directory_is_read_without_itself() {
        let names = Listing::of(Path::new("/")).names;
        assert!(names.contains(&"usr".into()) && !names.contains(&"..".into()), "{names:?}");
    }
}
