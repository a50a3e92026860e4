//! A rehearsal of overlays: a child makes those of a run in namespaces of its own.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::walls::{enter_own, make_private};
use super::{Board, Tried, in_child};
use crate::sys::{files, mount};

/// The directories of one overlay.
#[derive(Debug)]
pub struct OverlayPlaces {
    lower: CString,
    upper: CString,
    work: CString,
}

impl OverlayPlaces {
    /// `None`: one of the paths has a NUL in it.
    #[must_use]
    pub fn new(lower: &Path, upper: &Path, work: &Path) -> Option<Self> {
        let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).ok();
        Some(OverlayPlaces { lower: path(lower)?, upper: path(upper)?, work: path(work)? })
    }
}

/// The outcomes of entering the namespaces, and of the overlays.
const NAMESPACES: usize = 0;
const OVERLAYS: usize = 1;

/// Makes the overlays, which go at once. `false`: there are no namespaces for it.
///
/// # Errors
/// What the kernel says of the first that it refuses.
pub fn rehearse_overlays(all: &[OverlayPlaces]) -> Result<bool, Errno> {
    // Written out before the fork: the child must not allocate.
    let uid_map = format!("0 {} 1\n", nix::unistd::geteuid());
    let gid_map = format!("0 {} 1\n", nix::unistd::getegid());
    let outcomes = in_child(|board: &Board| {
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
        let entered = enter_own(flags, uid_map.as_bytes(), gid_map.as_bytes());
        if board.put(NAMESPACES, entered.and_then(|()| make_private())) {
            board.put(OVERLAYS, all.iter().try_for_each(make));
        }
    });
    match (outcomes.at(NAMESPACES), outcomes.at(OVERLAYS)) {
        (Tried::Works, Tried::Refused(errno)) => Err(errno),
        (_, overlays) => Ok(overlays.works()),
    }
}

/// Child side.
fn make(places: &OverlayPlaces) -> Result<(), Errno> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let lower = files::open(&places.lower, flags, 0)?;
    let upper = files::open(&places.upper, flags, 0)?;
    let work = files::open(&places.work, flags, 0)?;
    mount::overlay((None, lower.as_fd()), upper.as_fd(), work.as_fd(), 0).map(drop)
}
