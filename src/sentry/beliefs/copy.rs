//! Files of others in an overlay, made the user's own before a guest changes them.
//!
//! To write to a file of the host's, the kernel copies it into the layer with its owner, which it cannot where that id
//! is not there inside (EOVERFLOW, ovl_copy_up_one in fs/overlayfs/copy_up.c). So the sentry puts a copy of the user's
//! own in its place, through the overlay and under the same name; its owner becomes a belief. A file that nobody
//! may read has a hollow one in its place: empty.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fstat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, ftruncate, symlinkat, unlinkat};

use super::{Belief, FileBeliefs, NAME, Real, Spot};
use crate::sys::copy::copy_content;
use crate::sys::{beneath, files, random};

/// One that is being copied. Ends when this value does.
struct Turn<'b> {
    beliefs: &'b FileBeliefs,
    identity: (u64, u64),
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut copying = self.beliefs.copying.lock().unwrap_or_else(PoisonError::into_inner);
        copying.remove(&self.identity);
        self.beliefs.copied.notify_all();
    }
}

impl FileBeliefs {
    /// Puts a copy of the user's own in the place of the file of somebody else at `spot`, which lies in an overlay. Gives
    /// what stands for what is there then. Takes as long as the file is large.
    pub(in crate::sentry) fn make_own(&self, spot: &Spot) -> Result<OwnedFd, Errno> {
        let before = spot.look()?;
        let identity = (before.st_dev, before.st_ino);
        let _turn = self.take_turn(identity);
        let file = spot.handle()?;
        let stat = fstat(&file)?;
        if (stat.st_dev, stat.st_ino) != identity || self.is_own(&Real::of(&stat)) {
            // Somebody has made it another one meanwhile.
            return Ok(file);
        }
        let temporary = OsString::from(format!(".sandbox-own-{:016x}", random::number()?));
        let made = self.copy(&file, &stat, spot, &temporary).and_then(|()| {
            // What has been removed or replaced meanwhile stays so. (To exchange the two, so that nothing could come
            // between, the kernel would have to copy up the other's: ovl_rename in fs/overlayfs/dir.c.)
            let now = spot.look()?;
            if (now.st_dev, now.st_ino) != identity {
                return Err(Errno::ESTALE);
            }
            renameat(&spot.parent, temporary.as_os_str(), &spot.parent, spot.name.as_os_str())
        });
        if made.is_err() {
            let _ = unlinkat(&spot.parent, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
        match made {
            Ok(()) | Err(Errno::ESTALE) => spot.handle(),
            Err(errno) => Err(errno),
        }
    }

    fn take_turn(&self, identity: (u64, u64)) -> Turn<'_> {
        let mut copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        while !copying.insert(identity) {
            copying = self.copied.wait(copying).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { beliefs: self, identity }
    }

    fn copy(
        &self,
        file: &OwnedFd,
        stat: &FileStat,
        spot: &Spot,
        temporary: &OsString,
    ) -> Result<(), Errno> {
        let temporary = temporary.as_os_str();
        let (uid, gid) = self.inside(&Real::of(stat));
        let mut belief = Belief { uid: Some(uid), gid: Some(gid), ..Belief::default() };
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let to = openat(&spot.parent, temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                match files::open_descriptor(file.as_fd(), libc::O_RDONLY) {
                    Ok(from) => {
                        let size = stat.st_size as u64;
                        ftruncate(&to, stat.st_size)?;
                        copy_content(from.as_fd(), (to.as_fd(), 0), size, &mut |_| {})?;
                    }
                    Err(Errno::EACCES | Errno::EPERM) => belief.hollow = true,
                    Err(errno) => return Err(errno),
                }
                copy_attributes(file.as_fd(), to.as_fd());
                self.set_permissions(to.as_fd(), stat.st_mode)?;
                let mode =
                    self.of(&files::descriptor_path(to.as_fd()), &Real::of(&fstat(&to)?)).mode;
                self.set(to.as_fd(), &Belief { mode, ..belief })?;
            }
            libc::S_IFLNK => {
                let target = readlinkat(file, "")?;
                symlinkat(target.as_os_str(), &spot.parent, temporary)?;
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let to = openat(&spot.parent, temporary, flags, Mode::empty())?;
                self.set(to.as_fd(), &belief)?;
            }
            // The user's own directories lie in front of those of others (`overlay::front`); devices, pipes and sockets
            // of others stay theirs.
            _ => return Err(Errno::EPERM),
        }
        let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
        let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(&spot.parent, temporary, &accessed, &modified, flags)
    }
}

/// Attributes of users, as far as they can be read.
fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let (from, to) = (files::descriptor_path(from), files::descriptor_path(to));
    for name in beneath::attribute_names(&from).unwrap_or_default() {
        let is_own = name.starts_with(NAME.to_bytes());
        if let (false, true, Ok(name)) =
            (is_own, name.starts_with(b"user."), std::ffi::CString::new(name.clone()))
            && let Ok(value) = beneath::attribute(&from, &name)
        {
            let _ = beneath::set_attribute(&to, &name, &value);
        }
    }
}
