//! What a run with `--root` believes: who its guests are, and whose files are that take no attribute.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use super::{Found, guest_number};
use crate::save::error::SaveError;
use crate::save::sockets::Detail;
use crate::save::state::{FileKind, Tree, TreeEntry, TreeKind};
use crate::sentry::beliefs::FileSearch;
use crate::sentry::{Kernel, SavedRoot};

/// File systems of the sandbox's own that are not captured as trees. In them files are known by name, too.
const OTHERS: [&str; 2] = ["/dev/pts", "/dev/mqueue"];

/// What is believed, once all guests (their numbers for the host and for the guest) have been gone through and stand still.
/// None: nothing is.
pub fn capture(
    kernel: &Kernel,
    guests: &[(i32, i32)],
    found: &Found,
) -> Result<Option<SavedRoot>, SaveError> {
    let Some(mut search) = kernel.search_files() else { return Ok(None) };
    if !search.is_done() {
        let view = view(guests, found)
            .map_err(|errno| SaveError::failed("the file view of the sandbox", errno.desc()))?;
        found.trees.iter().for_each(|tree| in_tree(&mut search, &view, tree, |_| true));
        let layers = found.overlay.iter().flat_map(|overlay| &overlay.layers);
        layers.for_each(|layer| in_tree(&mut search, &view, &layer.tree, takes_no_attribute));
        OTHERS.into_iter().for_each(|place| in_directory(&mut search, &view, place));
        // Whoever restores them binds them anew, wherever they are.
        let sockets = found.collector.files.iter().filter_map(|file| bound(&file.kind));
        sockets.for_each(|path| look(&mut search, view.as_fd(), path));
    }
    for ((tid, fd), file) in found.collector.known.descriptions() {
        let kind = found.collector.files.get(file as usize).map(|file| &file.kind);
        if kind.is_some_and(|kind| kind.is_nameless()) {
            search.open(file, &format!("/proc/{tid}/fd/{fd}"));
        }
    }
    let files = search.finish();
    // (Who has ended does nothing any more, and cannot be made to be somebody.)
    let ended = found.processes.iter().filter(|process| process.zombie.is_some());
    let ended: HashSet<i32> = ended.map(|process| process.pid).collect();
    let living = guests.iter().copied().filter(|(_, guest)| !ended.contains(guest));
    let living: Vec<(i32, i32)> = living.collect();
    let guests = kernel.credentials().saved(&living, guest_number);
    Ok(Some(SavedRoot { guests, files }))
}

/// The root of the guests' whole file view.
fn view(guests: &[(i32, i32)], found: &Found) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let view = |pid| open(&*found.collector.known.view_of(pid), flags, Mode::empty());
    // (Of one that has ended it cannot be had.)
    let mut last = Errno::ESRCH;
    for (pid, _) in guests {
        match view(*pid) {
            Ok(view) => return Ok(view),
            Err(errno) => last = errno,
        }
    }
    Err(last)
}

/// Layers lie on file systems that have attributes of users; these can have none anywhere (xattr(7)).
fn takes_no_attribute(entry: &TreeEntry) -> bool {
    matches!(entry.kind, TreeKind::Symlink(_) | TreeKind::Fifo | TreeKind::Socket)
}

fn in_tree(
    search: &mut FileSearch<'_>,
    view: &OwnedFd,
    tree: &Tree,
    is_wanted: impl Fn(&TreeEntry) -> bool,
) {
    for entry in tree.entries.iter().filter(|entry| is_wanted(entry)) {
        if search.is_done() {
            return;
        }
        let slash: &[u8] = if tree.target.ends_with(b"/") { b"" } else { b"/" };
        look(search, view.as_fd(), &[&tree.target, slash, &entry.path].concat());
    }
}

fn in_directory(search: &mut FileSearch<'_>, view: &OwnedFd, place: &str) {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let Ok(listing) = opened(view.as_fd(), place.as_bytes(), flags).and_then(Dir::from_fd) else {
        return;
    };
    for entry in listing.into_iter().flatten() {
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            look(search, view.as_fd(), &[place.as_bytes(), b"/", name].concat());
        }
    }
}

/// Where the file of a socket's name is.
fn bound(kind: &FileKind) -> Option<&[u8]> {
    let FileKind::Socket(socket) = kind else { return None };
    let Detail::Unix(unix) = &socket.detail else { return None };
    unix.file.as_ref()?.path.as_ref().map(|path| &path[..])
}

fn look(search: &mut FileSearch<'_>, view: BorrowedFd<'_>, path: &[u8]) {
    if let Ok(file) = opened(view, path, OFlag::O_PATH) {
        search.at(path, file.as_fd());
    }
}

/// Opens what is at a path of the view, over no link.
fn opened(view: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat2(view, OsStr::from_bytes(path), OpenHow::new().flags(flags).resolve(resolve))
}
