//! Which entry of the image stands for which object of the kernel.
//!
//! Open file descriptions have no number that user space can see. kcmp(2) tells whether two descriptors
//! stand for the same one and orders those that do not, so that what was found is kept sorted; and only
//! descriptions of the same inode are ever compared, which keeps the lists short.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use crate::save::state::{Identity, Object};
use crate::sentry::SavedDevice;
use crate::sys::descriptors::{self, Place};

/// Device and inode.
pub type Inode = (u64, u64);

/// What was found so far.
#[derive(Debug, Default)]
pub struct Known {
    /// Descriptions by inode, each with a descriptor of it, in the order of kcmp(2).
    groups: HashMap<Inode, Vec<(Place, u32)>>,
    /// Descriptions that stand for streams of the caller.
    pub(super) streams: HashMap<u32, u32>,
    /// Files without a name: number and content.
    pub(super) deleted: HashMap<Inode, (u32, Object)>,
    /// Pipes and FIFOs.
    pub(super) pipes: HashMap<Inode, PipeEnds>,
    /// Pipes that the sentry keeps full: random devices of `--deterministic`.
    pub(in crate::save) devices: HashMap<Inode, SavedDevice>,
    /// Epoll descriptions, whose targets are looked for once all tables are known.
    pub(super) epolls: Vec<Waiting<crate::sys::fdinfo::Watched>>,
    /// What mapped files are like, by path.
    pub(super) identities: HashMap<Vec<u8>, Identity>,
    /// Files in layers of overlays, by path: what was mapped of one before it was copied up is the host's. (The kernel
    /// does not mark all copies.)
    pub(super) in_layers: HashSet<Vec<u8>>,
    /// Bytes of content of layers that lie beside their entries.
    pub(in crate::save) inline: u64,
    /// Memory that has an inode.
    shared: HashMap<Inode, u32>,
    /// Inotify descriptions, whose paths are.
    pub(super) watchers: Vec<Waiting<crate::sys::fdinfo::Watch>>,
    /// Where files of guests were found: where to look for what is watched first.
    pub(super) directories: Vec<Vec<u8>>,
    /// The root of the guests' whole file view, where some of them may have another one (chroot(2)).
    pub(in crate::save) view: Option<Arc<OwnedFd>>,
    /// Files that guests were let change past their file view (`--ask files`).
    pub(in crate::save) changed_files: HashSet<Inode>,
    /// Descriptors of the sentry's own that stand for a description nobody else may hold.
    pub(super) held: Vec<OwnedFd>,
}

/// A pipe and what is known of its ends.
#[derive(Debug)]
pub(super) struct PipeEnds {
    pub(super) index: u32,
    /// Who holds it, for complaints.
    pub(super) holder: String,
    /// Guests hold a reading, a writing end.
    pub(super) found: [bool; 2],
    /// Somebody does.
    pub(super) open: [bool; 2],
    /// It has a name: outsiders may come and go.
    pub(super) named: bool,
    /// Which stream of a later program it is.
    pub(super) given: Option<u32>,
}

/// A description that is completed at the end.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) file: u32,
    pub(super) place: Place,
    /// Who holds it, for complaints.
    pub(super) holder: String,
    /// The root of its file view.
    pub(super) root: Arc<OwnedFd>,
    pub(super) items: Vec<T>,
}

impl Known {
    /// The path by which the sentry knows the root of the guests' whole file view; `pid`: any of them.
    pub(in crate::save) fn view_of(&self, pid: i32) -> String {
        match &self.view {
            Some(view) => format!("/proc/self/fd/{}", view.as_raw_fd()),
            None => format!("/proc/{pid}/root"),
        }
    }

    /// All descriptions, each by a descriptor of it.
    pub(super) fn descriptions(&self) -> impl Iterator<Item = (Place, u32)> {
        self.groups.values().flatten().copied()
    }

    /// The random devices that guests have open.
    pub(in crate::save) fn open_devices(&self) -> Vec<SavedDevice> {
        let open = self.devices.iter().filter_map(|(inode, device)| {
            let pipe = self.pipes.get(inode)?.index;
            Some(SavedDevice { pipe, ..device.clone() })
        });
        let mut open: Vec<_> = open.collect();
        open.sort_unstable_by_key(|device| device.pipe);
        open
    }

    /// The description that a descriptor stands for, or where it would have to be put in.
    pub(super) fn find(&self, inode: Inode, place: Place) -> Result<Result<u32, usize>, Errno> {
        self.search(inode, |known| descriptors::compare(known, place))
    }

    /// The description for which `compare` says Equal. It is asked how a known one compares to that.
    pub(super) fn search(
        &self,
        inode: Inode,
        compare: impl Fn(Place) -> Result<Ordering, Errno>,
    ) -> Result<Result<u32, usize>, Errno> {
        let group = self.groups.get(&inode).map_or(&[][..], Vec::as_slice);
        let found = descriptors::search(group, |(known, _)| compare(*known))?;
        Ok(found.map(|at| group[at].1))
    }

    /// Puts a description in where [`Known::find`] said.
    pub(super) fn insert(&mut self, inode: Inode, at: usize, place: Place, file: u32) {
        self.groups.entry(inode).or_default().insert(at, (place, file));
    }

    /// The entry of [`crate::save::state::Sandbox::shared`] for memory that has this inode, as descriptors and
    /// /proc/PID/maps tell of it.
    pub fn shared_by_inode(&self, inode: Inode) -> Option<u32> {
        self.shared.get(&inode).copied()
    }

    /// Says which entry that is.
    pub fn shared_is(&mut self, inode: Inode, index: u32) {
        self.shared.insert(inode, index);
    }
}
