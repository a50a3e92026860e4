//! Where guests may change files and look at them, in a run without a file view of its own (`--walls landlock`).
//!
//! Landlock decides what is opened, made, moved and removed. What it does not look at (modes, owners, times,
//! extended attributes, connections to sockets, watches: landlock(7), "Current limitations") the sentry does in the
//! guest's place, for files that these grounds hold.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::readlink;
use nix::sys::stat::fstat;

use crate::sys::files::descriptor_path;

/// The places, as the host names them. Immutable.
#[derive(Debug, Clone, Default)]
pub struct Grounds {
    /// What can be changed, with all that is below.
    pub writable: Vec<PathBuf>,
    /// What is not to be seen, with all that is below but for `writable`.
    pub hidden: Vec<PathBuf>,
}

impl Grounds {
    /// Whether guests may change what `file` stands for. What has no name any more is nobody else's, and neither is
    /// what never had one (pipes, files in memory).
    ///
    /// The name is read once. A guest can move a file only between places that it may write to, since Landlock keeps
    /// it from linking others there (REFER).
    pub fn may_change(&self, file: &impl AsFd) -> bool {
        let Ok(stat) = fstat(file) else { return false };
        stat.st_nlink == 0 || self.name_of(file).is_some_and(|name| self.is_writable(&name))
    }

    /// Whether guests may know what becomes of it.
    pub fn may_see(&self, file: &impl AsFd) -> bool {
        self.name_of(file).is_some_and(|name| {
            self.is_writable(&name) || !self.hidden.iter().any(|place| name.starts_with(place))
        })
    }

    fn is_writable(&self, name: &Path) -> bool {
        let is_anonymous = !name.as_os_str().as_bytes().starts_with(b"/");
        is_anonymous || self.writable.iter().any(|place| name.starts_with(place))
    }

    fn name_of(&self, file: &impl AsFd) -> Option<PathBuf> {
        readlink(&*descriptor_path(file.as_fd())).ok().map(PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn what_lies_below_a_writable_place_may_be_changed_and_nothing_else() {
        let place = std::env::temp_dir().join(format!("sandbox-grounds-{}", std::process::id()));
        let (inside, beside) = (place.join("in"), place.join("inner"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(&beside).unwrap();
        let grounds = Grounds { writable: vec![inside.clone()], hidden: vec![place.clone()] };
        let file = |path: PathBuf| {
            fs::write(&path, "").unwrap();
            File::open(path).unwrap()
        };
        let (own, other) = (file(inside.join("file")), file(beside.join("file")));
        assert!(grounds.may_change(&own) && grounds.may_see(&own));
        assert!(!grounds.may_change(&other) && !grounds.may_see(&other));
        assert!(grounds.may_see(&File::open("/").unwrap()));
        // Moved out by somebody else; then without a name.
        fs::rename(inside.join("file"), place.join("file")).unwrap();
        assert!(!grounds.may_change(&own));
        fs::remove_file(place.join("file")).unwrap();
        assert!(grounds.may_change(&own));
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        assert!(grounds.may_change(&pipe));
        fs::remove_dir_all(place).unwrap();
    }
}
