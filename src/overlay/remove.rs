//! Removing a tree that somebody else filled, however deep it is and whatever its modes are.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::changes::set_mode;
use super::entry::{Type, look, names};
use super::store::DIRECTORY;

/// The end of the name of a heap.
const SUFFIX: &str = ".sandbox-removed";

/// Removes the directory at `path` with all that is in it; that it is not there is no error.
pub(crate) fn remove_directory(path: &Path) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL);
    };
    let parent = nix::fcntl::open(parent, DIRECTORY, Mode::empty())?;
    remove_tree(parent.as_fd(), name)
}

/// Removes `name` in `parent` with all that is in it; that it is not there is no error.
///
/// Nothing is followed. A directory that is not empty has its directories moved up one by one, so that a
/// tree of any depth takes a few descriptors: paths that are deeper than a path can be long are easily
/// made.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    if !is_directory(parent, name)? {
        return gone(unlinkat(parent, name, UnlinkatFlags::NoRemoveDir));
    }
    if gone(unlinkat(parent, name, UnlinkatFlags::RemoveDir)).is_ok() {
        return Ok(());
    }
    // What is a heap already needs no other: that one would be nobody's if this removal is killed, too.
    let is_own = is_heap(name);
    let heap = if is_own { name.to_owned() } else { heap(name) };
    match mkdirat(parent, heap.as_os_str(), Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    gone(open_up(parent, &heap))?;
    let directory = openat(parent, heap.as_os_str(), DIRECTORY, Mode::empty())?;
    let mut count = 0;
    let mut heap_up = |from: BorrowedFd<'_>, name: &OsStr| {
        // To move a directory elsewhere is to write its "..".
        open_up(from, name)?;
        loop {
            count += 1;
            match renameat(from, name, &directory, Path::new(&count.to_string())) {
                // An earlier attempt, which was killed, has left one of that name.
                Err(Errno::EEXIST | Errno::ENOTEMPTY) => {}
                done => return done,
            }
        }
    };
    if !is_own {
        gone(heap_up(parent, name))?;
    }
    loop {
        let heaped = names(directory.as_fd())?;
        if heaped.is_empty() {
            break;
        }
        for one in heaped {
            if !is_directory(directory.as_fd(), &one)? {
                gone(unlinkat(&directory, one.as_os_str(), UnlinkatFlags::NoRemoveDir))?;
                continue;
            }
            gone(open_up(directory.as_fd(), &one))?;
            let inside = match openat(&directory, one.as_os_str(), DIRECTORY, Mode::empty()) {
                Ok(inside) => inside,
                // Somebody else removes the same.
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            };
            for name in names(inside.as_fd())? {
                match gone(unlinkat(&inside, name.as_os_str(), UnlinkatFlags::NoRemoveDir)) {
                    // It is a directory (may_delete in fs/namei.c).
                    Err(Errno::EISDIR) => {}
                    done => {
                        done?;
                        continue;
                    }
                }
                if unlinkat(&inside, name.as_os_str(), UnlinkatFlags::RemoveDir).is_err() {
                    gone(heap_up(inside.as_fd(), &name))?;
                }
            }
            match gone(unlinkat(&directory, one.as_os_str(), UnlinkatFlags::RemoveDir)) {
                // And has put something in it meanwhile: it comes up again.
                Ok(()) | Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    gone(unlinkat(parent, heap.as_os_str(), UnlinkatFlags::RemoveDir))
}

/// Removes what removals that were killed have left in `parent`.
pub(super) fn sweep(parent: BorrowedFd<'_>) {
    for name in names(parent).unwrap_or_default() {
        if is_heap(&name) {
            let _ = remove_tree(parent, &name);
        }
    }
}

/// Where the directories of `name` are moved to while it is removed.
pub(super) fn heap(name: &OsStr) -> OsString {
    let mut heap = OsString::from(".");
    heap.push(name);
    heap.push(SUFFIX);
    heap
}

/// Whether a name is one of those.
pub(super) fn is_heap(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") && name.as_bytes().ends_with(SUFFIX.as_bytes())
}

/// Makes a directory one that its owner can look into and change.
fn open_up(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let mode = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_mode;
    if mode & libc::S_IRWXU == libc::S_IRWXU {
        return Ok(());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    set_mode(directory.as_fd(), libc::S_IRWXU)
}

fn is_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    Ok(look(parent, name)?.is_some_and(|stat| Type::of(&stat) == Type::Directory))
}

fn gone(done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(Errno::ENOENT) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::fcntl::AT_FDCWD;

    use super::*;

    #[test]
    fn a_deep_tree_without_rights_goes_and_nothing_that_it_points_to() {
        let base = std::env::temp_dir().join(format!("sandbox-remove-{}", std::process::id()));
        std::fs::create_dir_all(base.join("kept")).unwrap();
        std::fs::write(base.join("kept/file"), "x").unwrap();
        let root = openat(AT_FDCWD, &base, DIRECTORY, Mode::empty()).unwrap();
        mkdirat(&root, "tree", Mode::S_IRWXU).unwrap();
        // Deeper than a path can be long.
        let mut at = openat(&root, "tree", DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..600 {
            mkdirat(&at, "a-directory", Mode::S_IRWXU).unwrap();
            at = openat(&at, "a-directory", DIRECTORY, Mode::empty()).unwrap();
        }
        symlink("../kept", base.join("tree/link")).unwrap();
        std::fs::create_dir(base.join("tree/closed")).unwrap();
        std::fs::create_dir(base.join("tree/closed/in")).unwrap();
        std::fs::write(base.join("tree/closed/in/file"), "x").unwrap();
        let closed = std::fs::Permissions::from_mode(0o0);
        std::fs::set_permissions(base.join("tree/closed/in"), closed.clone()).unwrap();
        std::fs::set_permissions(base.join("tree/closed"), closed).unwrap();
        remove_tree(root.as_fd(), "tree".as_ref()).unwrap();
        remove_tree(root.as_fd(), "tree".as_ref()).unwrap();
        assert_eq!(names(root.as_fd()).unwrap(), ["kept"]);
        assert!(base.join("kept/file").exists());
        remove_tree(root.as_fd(), "kept".as_ref()).unwrap();
        // What a removal that was killed has left; whoever is killed while removing that leaves it, and nothing else.
        let heap = base.join(heap("tree".as_ref()));
        std::fs::create_dir_all(heap.join("2/s/t")).unwrap();
        std::fs::write(heap.join("file"), "x").unwrap();
        sweep(root.as_fd());
        assert!(names(root.as_fd()).unwrap().is_empty());
        std::fs::remove_dir(base).unwrap();
    }
}
