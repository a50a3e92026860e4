//! Files in memory, made again: what [`crate::save::capture::trees`] saw.
//!
//! The maker makes them all, with modes that let content in; owners, modes, attributes and times come
//! when everything else has been made, since others change directories too (a socket that is bound, a
//! file that is made and removed). Sockets are made then as well, where nobody has bound one.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError};
use crate::save::restore::batch::{Batch, Failure};
use crate::save::restore::maker::{Maker, Sink};
use crate::save::state::{Tree, TreeEntry, TreeKind};

const HERE: u64 = libc::AT_FDCWD as i64 as u64;
/// Most of a file that is written in one table with others.
const PIECE: usize = 32 << 10;

/// Makes all trees. `targets`: the file systems in memory that this sandbox has for itself.
pub fn restore(maker: &mut Maker<'_>, targets: &[PathBuf]) -> Result<(), RestoreError> {
    let sandbox = maker.sandbox;
    for tree in &sandbox.trees {
        let target = Path::new(OsStr::from_bytes(&tree.target));
        if !targets.iter().any(|known| known == target) {
            let what =
                "the image has files for {}, where this sandbox has no file system in memory";
            let what = what.replace("{}", &target.display().to_string());
            return Err(RestoreError::refused(what));
        }
        check(tree)?;
        make(maker, tree)?;
    }
    if !sandbox.trees.is_empty() {
        maker.finishes.push(Box::new(|maker| {
            let trees = &maker.sandbox.trees;
            trees.iter().try_for_each(|tree| finish(maker, tree))
        }));
    }
    Ok(())
}

fn place(tree: &Tree, index: usize) -> String {
    let path = tree.entries.get(index).map_or(&[][..], |entry| &entry.path);
    let target = Path::new(OsStr::from_bytes(&tree.target));
    target.join(OsStr::from_bytes(path)).display().to_string()
}

fn failed(tree: &Tree) -> impl Fn(Failure) -> RestoreError {
    |failure| {
        let what = format!("cannot make {} again", place(tree, failure.subject));
        RestoreError::failed(what, failure.error)
    }
}

/// Whether the paths are such that each file is made in a directory of the same tree: nothing leads
/// out of it then, whatever symbolic links there are.
pub(super) fn check(tree: &Tree) -> Result<(), RestoreError> {
    let mut kinds: HashMap<&[u8], bool> = HashMap::new();
    for (index, entry) in tree.entries.iter().enumerate() {
        let path: &[u8] = &entry.path;
        let directory = entry.kind == TreeKind::Directory;
        let above = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => &path[..slash],
            None => &[],
        };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let proper = !matches!(name, b"" | b"." | b"..") && !path.contains(&0);
        let fits = match index {
            0 => path.is_empty() && directory,
            _ => proper && kinds.get(above) == Some(&true),
        };
        let linked = match &entry.kind {
            TreeKind::Link(first) => kinds.get(&first[..]) == Some(&false),
            TreeKind::Symlink(target) => !target.contains(&0) && !target.is_empty(),
            TreeKind::Small { content, size } => content.len() as u64 <= *size,
            _ => true,
        };
        if !fits || !linked || kinds.insert(path, directory).is_some() {
            let what = format!("the image is damaged: {} cannot be so", place(tree, index));
            return Err(RestoreError::refused(what));
        }
    }
    Ok(())
}

/// The maker's descriptor for the root of a tree.
fn open_root(hand: &mut Hand, tree: &Tree) -> Result<i32, HandError> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let arguments = |at| [HERE, at, flags as u64, 0];
    hand.call_path(libc::SYS_openat, &tree.target, arguments).map(|fd| fd as i32)
}

fn make(maker: &mut Maker<'_>, tree: &Tree) -> Result<(), RestoreError> {
    let of = |error| failed(tree)(Failure { subject: 0, error });
    let root = open_root(maker.hand, tree).map_err(of)?;
    // The next one that it opens gets the lowest number that is free (open(2)): always the same.
    let next = maker.hand.call(libc::SYS_dup, [root as u64]).map_err(of)?;
    maker.hand.call(libc::SYS_close, [next]).map_err(of)?;
    let mask = maker.hand.call(libc::SYS_umask, [0]).map_err(of)?;
    let ours = Arc::new(maker.courier.take(maker.hand, root).map_err(of)?);

    let mut batch = Batch::new(maker.hand);
    for (index, entry) in tree.entries.iter().enumerate().skip(1) {
        batch.reserve(6, 2 * entry.path.len() + 4096).map_err(failed(tree))?;
        make_entry(&mut batch, entry, index, root as u64, next).map_err(failed(tree))?;
        if let TreeKind::File { object, .. } = entry.kind {
            let path = CString::new(entry.path.to_vec())
                .map_err(|_| of(HandError::Own("name it", nix::errno::Errno::EINVAL)))?;
            let sink = Sink::Below { directory: ours.clone(), path };
            maker.sinks.insert(object, sink);
        }
    }
    batch.finish().map_err(failed(tree))?;
    maker.hand.call(libc::SYS_umask, [mask]).map_err(of)?;
    maker.hand.call(libc::SYS_close, [root as u64]).map_err(of)?;
    Ok(())
}

fn make_entry(
    batch: &mut Batch<'_>,
    entry: &TreeEntry,
    index: usize,
    root: u64,
    next: u64,
) -> Result<(), Failure> {
    let path = batch.string(&entry.path);
    match &entry.kind {
        // It may be there already: something is mounted below.
        TreeKind::Directory => batch.attempt(index, libc::SYS_mkdirat, [root, path, 0o700]),
        TreeKind::File { size, .. } => make_file(batch, path, *size, &[], index, root, next)?,
        TreeKind::Small { content, size } => {
            make_file(batch, path, *size, content, index, root, next)?;
        }
        TreeKind::Link(first) => {
            let first = batch.string(first);
            batch.call(index, libc::SYS_linkat, [root, first, root, path, 0]);
        }
        TreeKind::Symlink(target) => {
            let target = batch.string(target);
            batch.call(index, libc::SYS_symlinkat, [target, root, path]);
        }
        TreeKind::Fifo => node(batch, index, root, path, libc::S_IFIFO),
        TreeKind::Whiteout => node(batch, index, root, path, libc::S_IFCHR),
        TreeKind::Socket => {}
    }
    Ok(())
}

fn node(batch: &mut Batch<'_>, index: usize, root: u64, path: u64, format: u32) {
    let mode = u64::from(format | 0o600);
    batch.call(index, libc::SYS_mknodat, [root, path, mode, 0]);
}

fn make_file(
    batch: &mut Batch<'_>,
    path: u64,
    size: u64,
    content: &[u8],
    index: usize,
    root: u64,
    next: u64,
) -> Result<(), Failure> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    batch.call(index, libc::SYS_openat, [root, path, flags as u64, 0o600]);
    if size > 0 {
        batch.call(index, libc::SYS_ftruncate, [next, size]);
    }
    for (number, piece) in content.chunks(PIECE).enumerate() {
        batch.reserve(3, piece.len())?;
        let (at, length) = (batch.data(piece).address, piece.len() as u64);
        let offset = (number * PIECE) as u64;
        batch.call(index, libc::SYS_pwrite64, [next, at, length, offset]);
    }
    batch.call(index, libc::SYS_close, [next]);
    Ok(())
}

/// Owners, modes, attributes and times.
fn finish(maker: &mut Maker<'_>, tree: &Tree) -> Result<(), RestoreError> {
    let of = |error| failed(tree)(Failure { subject: 0, error });
    let user = maker.hand.call(libc::SYS_geteuid, []).map_err(of)? as u32;
    let group = maker.hand.call(libc::SYS_getegid, []).map_err(of)? as u32;
    let root = open_root(maker.hand, tree).map_err(of)?;
    let mut batch = Batch::new(maker.hand);
    let all = || tree.entries.iter().enumerate();
    for (index, entry) in all().filter(|(_, entry)| entry.kind == TreeKind::Socket) {
        batch.reserve(1, entry.path.len() + 1).map_err(failed(tree))?;
        let path = batch.string(&entry.path);
        // Whoever holds it has bound it already.
        let mode = u64::from(libc::S_IFSOCK | 0o600);
        batch.attempt(index, libc::SYS_mknodat, [root as u64, path, mode, 0]);
    }
    // What is in a directory before the directory, which may let nobody in afterwards.
    for (index, entry) in all().rev() {
        if matches!(entry.kind, TreeKind::Link(_)) {
            continue;
        }
        // The root is as its mount has made it.
        let ours = index > 0 && (entry.uid, entry.gid) == (user, group);
        finish_entry(&mut batch, tree, entry, index, root as u64, ours).map_err(failed(tree))?;
    }
    batch.finish().map_err(failed(tree))?;
    maker.hand.call(libc::SYS_close, [root as u64]).map_err(of)?;
    Ok(())
}

fn finish_entry(
    batch: &mut Batch<'_>,
    tree: &Tree,
    entry: &TreeEntry,
    index: usize,
    root: u64,
    ours: bool,
) -> Result<(), Failure> {
    batch.reserve(4, 2 * entry.path.len() + tree.target.len() + 4096)?;
    let path = batch.string(if entry.path.is_empty() { b"." } else { &entry.path });
    if !ours {
        // All ones leave one as it is (chown(2)): an id that has no name inside.
        let (uid, gid) = (u64::from(entry.uid), u64::from(entry.gid));
        let flags = libc::AT_SYMLINK_NOFOLLOW as u64;
        batch.call(index, libc::SYS_fchownat, [root, path, uid, gid, flags]);
    }
    for (name, value) in &entry.attributes {
        batch.reserve(4, entry.path.len() + tree.target.len() + name.len() + value.len() + 64)?;
        let whole = [&tree.target, &b"/"[..], &entry.path].concat();
        let (whole, name) = (batch.string(&whole), batch.string(name));
        let data = batch.data(value);
        let arguments = [whole, name, data.address, value.len() as u64, 0];
        batch.call(index, libc::SYS_lsetxattr, arguments);
    }
    batch.reserve(2, entry.path.len() + 64)?;
    let path = batch.string(if entry.path.is_empty() { b"." } else { &entry.path });
    if !matches!(entry.kind, TreeKind::Symlink(_)) {
        // No file inside has the setuid bit (see the table of system calls).
        let mode = u64::from(entry.mode & 0o7777 & !libc::S_ISUID);
        batch.call(index, libc::SYS_fchmodat, [root, path, mode]);
    }
    let words = entry.times.iter().flat_map(|time| {
        let (seconds, rest) = (time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000));
        [seconds, rest]
    });
    let times: Vec<u8> = words.flat_map(i64::to_ne_bytes).collect();
    let times = batch.data(&times).address;
    let flags = libc::AT_SYMLINK_NOFOLLOW as u64;
    batch.call(index, libc::SYS_utimensat, [root, path, times, flags]);
    Ok(())
}

#[cfg(test)]
mod tests;
