//! Names of unix sockets.
//!
//! A socket's name is what bind(2) was given, so it is bound by exactly that path, whatever lies there
//! now: that is put aside meanwhile, and the socket's file is moved to where it was. (One whose file has been removed is bound
//! elsewhere: [`super::bygone`].)

use std::os::fd::OwnedFd;

use libc::{AF_UNIX, AT_FDCWD};
use nix::errno::Errno;

use super::{failed, of_maker};
use crate::save::error::RestoreError;
use crate::save::hand::HandError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::{BoundFile, Socket, Unix};

/// Longest path of a unix socket (sun_path in unix(7)).
const LONGEST: usize = 108;

/// struct sockaddr_un.
pub(super) fn address(name: &[u8]) -> Vec<u8> {
    let mut bytes = (AF_UNIX as u16).to_ne_bytes().to_vec();
    bytes.extend(&name[..name.len().min(LONGEST)]);
    if name.first().is_some_and(|first| *first != 0) && name.len() < LONGEST {
        bytes.push(0);
    }
    bytes
}

/// A name that is being given.
pub(super) struct Naming<'s> {
    name: &'s [u8],
    file: Option<&'s BoundFile>,
    socket: &'s Socket,
    /// What lay at the path was put here.
    aside: Option<Vec<u8>>,
    /// The maker's own directory before it went where a relative name leads from.
    home: Option<OwnedFd>,
    /// The maker's own root directory before it had that which the name leads from.
    root: Option<OwnedFd>,
}

fn at(directory: i32) -> u64 {
    i64::from(directory) as u64
}

/// One call on two paths.
fn rename(maker: &mut Maker<'_>, from: &[u8], to: &[u8]) -> Result<(), HandError> {
    let mut table = maker.hand.table();
    let (from, to) = (table.string(from), table.string(to));
    let arguments = [at(AT_FDCWD), from.address, at(AT_FDCWD), to.address, 0];
    table.call(libc::SYS_renameat2, arguments);
    maker.hand.run(&table).map(drop)
}

fn unlink(maker: &mut Maker<'_>, path: &[u8]) -> Result<(), HandError> {
    let arguments = |path| [at(AT_FDCWD), path, 0];
    maker.hand.call_path(libc::SYS_unlinkat, path, arguments).map(drop)
}

/// What lies at a path: device, inode, mode; `None`: nothing does.
fn about(maker: &mut Maker<'_>, path: &[u8]) -> Result<Option<(u64, u64, u32)>, HandError> {
    let mut table = maker.hand.table();
    let path = table.string(path);
    // struct stat of a 64-bit kernel begins with st_dev, st_ino, st_nlink, st_mode.
    let about = table.room(144);
    let arguments = [at(AT_FDCWD), path.address, about.address, libc::AT_SYMLINK_NOFOLLOW as u64];
    let call = table.attempt(libc::SYS_newfstatat, arguments);
    let done = maker.hand.run(&table)?;
    let found = (done.word(about, 0), done.word(about, 1), done.half(about, 6));
    Ok(done.result(call).ok().map(|_| found))
}

impl<'s> Naming<'s> {
    /// Gives `fd` of the maker's the name of `unix`. Until [`Naming::settle`] it lies at the path that
    /// it was bound by.
    pub(super) fn begin(
        maker: &mut Maker<'_>,
        fd: i32,
        unix: &'s Unix,
        socket: &'s Socket,
    ) -> Result<Naming<'s>, RestoreError> {
        let name = unix.name.as_ref().map_or(&[][..], |name| name);
        let mut naming =
            Naming { name, file: unix.file.as_ref(), socket, aside: None, home: None, root: None };
        if naming.file.is_some() {
            naming.go_there(maker)?;
            naming.put_aside(maker)?;
        }
        let address = address(name);
        let length = address.len() as u64;
        let bound = maker.hand.call_with(libc::SYS_bind, &address, |at| [fd as u64, at, length]);
        bound.map_err(|error| {
            RestoreError::failed(format!("cannot bind {}", super::name(socket)), error)
        })?;
        Ok(naming)
    }

    /// The name as others than the maker know it, and where it leads from, for who is to go there, if it has to be.
    pub(super) fn place(
        &self,
        maker: &mut Maker<'_>,
    ) -> Result<(&'s [u8], Option<OwnedFd>), RestoreError> {
        let (directory, name) = match (&self.root, self.name.iter().rposition(|it| *it == b'/')) {
            // Its path in the whole view may be longer than a name can be.
            (Some(_), Some(slash)) => (&self.name[..slash + 1], &self.name[slash + 1..]),
            _ if self.home.is_some() => (&b"."[..], self.name),
            _ => return Ok((self.name, None)),
        };
        let directory = maker.open(directory, libc::O_PATH | libc::O_DIRECTORY, 0);
        directory.map(|it| (name, Some(it))).map_err(|error| self.error(error))
    }

    /// A handle of the socket's file, for the sentry. An abstract name has none.
    pub(super) fn handle(&self, maker: &mut Maker<'_>) -> Result<Option<OwnedFd>, RestoreError> {
        if self.file.is_none() {
            return Ok(None);
        }
        let handle = maker.open(self.name, libc::O_PATH | libc::O_NOFOLLOW, 0);
        handle.map(Some).map_err(|error| self.error(error))
    }

    fn error(&self, error: HandError) -> RestoreError {
        let path = String::from_utf8_lossy(self.name);
        RestoreError::failed(format!("cannot bind a unix socket to {path}"), error)
    }

    /// A relative name leads from the directory that its owner was in: the one that the path of the
    /// file ends in it, if it does.
    fn go_there(&mut self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        if self.name.starts_with(b"/") {
            return self.enter_root(maker);
        }
        let known = self.file.and_then(|file| file.path.as_ref());
        let relative = self.name.strip_prefix(b"./").unwrap_or(self.name);
        let directory = known
            .and_then(|path| path.strip_suffix(relative))
            .filter(|directory| directory.ends_with(b"/"))
            .ok_or_else(|| {
                RestoreError::refused(format!(
                    "the unix socket {} was bound by a relative path, and its file was moved, so nobody knows \
                     where; bind it by an absolute path",
                    String::from_utf8_lossy(self.name)
                ))
            })?;
        let home = maker.open(b".", libc::O_PATH | libc::O_DIRECTORY, 0);
        self.home = Some(home.map_err(|error| self.error(error))?);
        let gone = maker.hand.call_path(libc::SYS_chdir, directory, |path| [path]);
        gone.map(drop).map_err(|error| self.error(error))
    }

    /// An absolute name leads from the root directory of who gave it: the one that the path of the file ends in it, if that
    /// is longer (chroot(2)).
    fn enter_root(&mut self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        let path = self.file.and_then(|file| file.path.as_ref());
        let above = path.and_then(|path| path.strip_suffix(self.name)).unwrap_or_default();
        if above.is_empty() || maker.sandbox.root.is_none() {
            return Ok(());
        }
        let root = maker.open(b"/", libc::O_PATH | libc::O_DIRECTORY, 0);
        let root = root.map_err(|error| self.error(error))?;
        let entered = maker.hand.call_path(libc::SYS_chroot, above, |path| [path]);
        entered.map_err(|error| self.error(error))?;
        self.root = Some(root);
        Ok(())
    }

    /// The maker has its own root directory again. (A working directory outside of it stays so: chroot(2).)
    fn leave_root(&mut self, maker: &mut Maker<'_>) -> Result<(), HandError> {
        let Some(root) = self.root.take() else { return Ok(()) };
        let fd = maker.give(root)?;
        let mut table = maker.hand.table();
        let here = table.string(b".");
        table.call(libc::SYS_fchdir, [fd as u64]);
        table.call(libc::SYS_chroot, [here.address]);
        table.call(libc::SYS_close, [fd as u64]);
        maker.hand.run(&table).map(drop)
    }

    fn put_aside(&mut self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        let found = about(maker, self.name).map_err(|error| self.error(error))?;
        if found.is_none() {
            return Ok(());
        }
        // No guest runs that could come upon it; a name beside the other, on the same file system.
        let aside = [self.name, b".restoring"].concat();
        rename(maker, self.name, &aside).map_err(|error| self.error(error))?;
        self.aside = Some(aside);
        Ok(())
    }

    /// Moves the socket's file to where it was, and back what lay there.
    pub(super) fn settle(mut self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        let Some(file) = self.file else { return Ok(()) };
        self.change(maker, file).map_err(|error| self.error(error))?;
        let moved = match &file.path {
            Some(path) if self.root.is_none() => {
                let is_there = self.is_at(maker, path).map_err(|error| self.error(error))?;
                (!is_there).then_some(path)
            }
            _ => None,
        };
        if let Some(path) = moved {
            rename(maker, self.name, path).map_err(|error| self.error(error))?;
        }
        let stays = moved.is_none();
        match self.aside.take() {
            Some(aside) if stays => self.replace(maker, &aside)?,
            Some(aside) => {
                rename(maker, &aside, self.name).map_err(|error| self.error(error))?;
            }
            None => {}
        }
        self.leave_root(maker).map_err(|error| self.error(error))?;
        if let Some(home) = self.home.take() {
            go(maker, &home).map_err(|error| self.error(error))?;
        }
        Ok(())
    }

    /// Whether the path is where it was bound, if by way of symbolic links.
    fn is_at(&self, maker: &mut Maker<'_>, path: &[u8]) -> Result<bool, HandError> {
        Ok(path == self.name || about(maker, path)? == about(maker, self.name)?)
    }

    fn change(&self, maker: &mut Maker<'_>, file: &BoundFile) -> Result<(), HandError> {
        let mut table = maker.hand.table();
        let path = table.string(self.name);
        let owner = [at(AT_FDCWD), path.address, file.owner.0.into(), file.owner.1.into(), 0];
        // Owners that the guest cannot give stay the maker's.
        table.attempt(libc::SYS_fchownat, owner);
        let mode = u64::from(file.mode & 0o7777);
        table.attempt(libc::SYS_fchmodat, [at(AT_FDCWD), path.address, mode]);
        maker.hand.run(&table).map(drop)
    }

    /// What lay at the path was the socket's own file, or that of an earlier run of it; anything else is
    /// the guest's and stays.
    fn replace(&self, maker: &mut Maker<'_>, aside: &[u8]) -> Result<(), RestoreError> {
        let found = about(maker, aside).map_err(|error| self.error(error))?;
        if found.is_some_and(|(_, _, mode)| mode & libc::S_IFMT == libc::S_IFSOCK) {
            return unlink(maker, aside).map_err(|error| self.error(error));
        }
        unlink(maker, self.name).map_err(|error| self.error(error))?;
        rename(maker, aside, self.name).map_err(|error| self.error(error))?;
        Err(failed(self.socket, "put a file in place of another for")(Errno::EEXIST))
    }
}

/// How the maker reaches a socket that has its name: an address, and the directory that leads from, if it does. A name
/// may lead from another directory or root directory than the maker's.
pub(super) fn reach(
    maker: &mut Maker<'_>,
    unix: &Unix,
) -> Result<(Vec<u8>, Option<OwnedFd>), HandError> {
    let name = unix.name.as_ref().map_or(&[][..], |name| name);
    let path = unix.file.as_ref().and_then(|file| file.path.as_ref());
    let last = |path: &[u8]| path.iter().rposition(|it| *it == b'/').map_or(0, |slash| slash + 1);
    match path {
        Some(path) if path != name && path[last(path)..] == name[last(name)..] => {
            let (directory, name) = path.split_at(last(path));
            let directory = maker.open(directory, libc::O_PATH | libc::O_DIRECTORY, 0)?;
            Ok((address(name), Some(directory)))
        }
        _ => Ok((address(name), None)),
    }
}

/// Has `work` done with the maker in this directory.
pub(super) fn there<T>(
    maker: &mut Maker<'_>,
    directory: Option<&OwnedFd>,
    work: impl FnOnce(&mut Maker<'_>) -> Result<T, HandError>,
) -> Result<T, HandError> {
    let Some(directory) = directory else { return work(maker) };
    let home = maker.open(b".", libc::O_PATH | libc::O_DIRECTORY, 0)?;
    go(maker, directory)?;
    let done = work(maker);
    go(maker, &home)?;
    done
}

/// The maker's working directory becomes this.
fn go(maker: &mut Maker<'_>, directory: &OwnedFd) -> Result<(), HandError> {
    let fd = maker.give(directory)?;
    let mut table = maker.hand.table();
    table.call(libc::SYS_fchdir, [fd as u64]);
    table.call(libc::SYS_close, [fd as u64]);
    maker.hand.run(&table).map(drop)
}

/// A maker's descriptor, closed there.
pub(super) fn close(maker: &mut Maker<'_>, fd: i32) -> Result<(), RestoreError> {
    let closed = maker.hand.call(libc::SYS_close, [fd as u64]);
    closed.map(drop).map_err(of_maker("cannot close a socket"))
}
