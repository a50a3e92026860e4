//! What the sentry is told of names: which of them rules cover, and which files still lack their content.

use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::FileStat;

/// What rules say of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the mount that it lies on decides.
    Plain,
    /// It is not there.
    Hidden,
    /// It may not be opened.
    Denied,
    /// It may not be changed.
    ReadOnly,
}

impl Verdict {
    /// Whether what has this name may be read, or changed; ENOENT, EACCES or EROFS.
    pub fn permit(self, changes: bool) -> Result<(), Errno> {
        match self {
            Verdict::Plain => Ok(()),
            Verdict::Hidden => Err(Errno::ENOENT),
            Verdict::Denied => Err(Errno::EACCES),
            Verdict::ReadOnly if changes => Err(Errno::EROFS),
            Verdict::ReadOnly => Ok(()),
        }
    }
}

/// None at all.
#[derive(Debug)]
pub struct NoRules;

impl Rules for NoRules {
    fn verdict(&self, _: &[u8]) -> Verdict {
        Verdict::Plain
    }

    fn same_below(&self, _: &[u8], _: &[u8]) -> bool {
        true
    }
}

/// Rules about paths that may come to be. Paths are absolute, as guests know them, without `.`, `..` and links.
pub trait Rules: std::fmt::Debug + Send + Sync {
    /// What they say of a path.
    fn verdict(&self, path: &[u8]) -> Verdict;

    /// Whether they say the same of whatever lies in these two directories.
    fn same_below(&self, one: &[u8], other: &[u8]) -> bool;
}

/// Files that get their content when they are first opened.
pub trait Content: std::fmt::Debug + Send + Sync {
    /// Whether what a descriptor stands for (O_PATH) is one that still lacks it. If not, and it is about to be opened
    /// for writing, that is noted.
    fn lacks(&self, file: BorrowedFd<'_>, stat: &FileStat, changes: bool) -> bool;

    /// Gives it its content. Call it with the sentry's own rights. It takes as long as copying takes.
    ///
    /// # Errors
    /// What the host says of reading it, and of writing it elsewhere.
    fn fetch(&self, file: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Gives it to what a path leads to from a working directory, as guests know both, and to what interprets that:
    /// before an exec whose path the sentry cannot read.
    ///
    /// # Errors
    /// As [`Content::fetch`].
    fn fetch_program(&self, path: &Path, workdir: &Path) -> Result<(), Errno>;
}
