//! Permissions and device nodes, where the guest takes itself for root: chmod(2), mknod(2) and their kin.
//!
//! The sentry makes the change in the guest's place. What would give rights to whoever executes a file, and
//! devices, are there in belief alone.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{self as nix_stat, fstat};

use super::args::{AtFlags, Dev, DirFd, Fd, Mode, Path};
use super::creations::make_node;
use super::{believed, owners, paths, watch};
use crate::notify::Answer;
use crate::sentry::beliefs::{Belief, Device, FileBeliefs, MODE, find_open, flags_of};
use crate::sentry::call::Call;
use crate::sentry::credentials::Capability;
use crate::sentry::paths::umask_of;

const CURRENT: DirFd = DirFd(libc::AT_FDCWD);
/// What gives rights to whoever executes a file.
pub(super) const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// Serves chmod(2).
pub fn chmod(call: &Call<'_>, path: Path, mode: Mode) -> Answer {
    watch::chmod(call, path, mode);
    set_at(call, CURRENT, path, mode, AtFlags(0))
}

/// Serves fchmodat(2).
pub fn fchmodat(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode) -> Answer {
    watch::fchmodat(call, dirfd, path, mode);
    set_at(call, dirfd, path, mode, AtFlags(0))
}

/// Serves fchmodat2(2).
pub fn fchmodat2(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode, flags: AtFlags) -> Answer {
    watch::fchmodat2(call, dirfd, path, mode, flags);
    set_at(call, dirfd, path, mode, flags)
}

/// Serves fchmod(2).
pub fn fchmod(call: &Call<'_>, fd: Fd, mode: Mode) -> Answer {
    let why = || owners::of_descriptor(call.received().tid, fd.0);
    set(call, mode, open_file(call, fd), why)
}

fn set_at(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode, flags: AtFlags) -> Answer {
    let file = believed::target(call, dirfd, path, flags.0 as i32);
    set(call, mode, file, || owners::of_path(call, dirfd, path, flags))
}

/// What an open descriptor stands for, if it is one that stands for more than a path.
pub(super) fn open_file(call: &Call<'_>, fd: Fd) -> Option<OwnedFd> {
    let tid = call.received().tid;
    flags_of(tid, fd.0).filter(|flags| flags & libc::O_PATH == 0)?;
    believed::valid(call, find_open(tid, fd.0))
}

/// The kernel makes the call, or says why it cannot be made; but never with a set-id bit.
fn kernels(mode: Mode, why: impl FnOnce() -> Option<Errno>) -> Answer {
    match mode.0 & SET_ID != 0 {
        true => Answer::Fail(why().unwrap_or(Errno::EPERM)),
        false => Answer::Continue,
    }
}

/// `why`: what is wrong with the file, if anything.
fn set(
    call: &Call<'_>,
    mode: Mode,
    file: Option<OwnedFd>,
    why: impl FnOnce() -> Option<Errno>,
) -> Answer {
    let (Some(beliefs), Some(file)) = (call.kernel.beliefs(), file) else {
        return kernels(mode, why);
    };
    if fstat(&file).is_ok_and(|it| it.st_mode & libc::S_IFMT == libc::S_IFLNK) {
        return kernels(mode, || Some(Errno::EOPNOTSUPP));
    }
    match believed::own(call, beliefs, file) {
        None => kernels(mode, why),
        Some(Err(errno)) => Answer::Fail(errno),
        Some(Ok(file)) => match believed::is_owner_or(call, beliefs, &file, Capability::FOwner) {
            true => {
                let set = || beliefs.set_permissions(file.as_fd(), mode.0);
                believed::change(call, beliefs, set).map(|()| 0).into()
            }
            false => Answer::Fail(Errno::EPERM),
        },
    }
}

/// Serves mknod(2).
pub fn mknod(call: &Call<'_>, path: Path, mode: Mode, dev: Dev) -> Answer {
    watch::mknod(call, path, mode, dev);
    make(call, CURRENT, path, mode, dev)
}

/// Serves mknodat(2).
pub fn mknodat(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode, dev: Dev) -> Answer {
    watch::mknodat(call, dirfd, path, mode, dev);
    make(call, dirfd, path, mode, dev)
}

fn make(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode, dev: Dev) -> Answer {
    let is_block = match mode.0 & libc::S_IFMT {
        libc::S_IFCHR => false,
        libc::S_IFBLK => true,
        _ if mode.0 & SET_ID == 0 => {
            return make_node(call, dirfd, path, mode).unwrap_or(Answer::Continue);
        }
        _ => return Answer::Fail(Errno::EPERM),
    };
    let Some(beliefs) = call.kernel.beliefs() else { return kernels(mode, || None) };
    if !believed::has(call, Capability::MkNod) {
        return Answer::Fail(Errno::EPERM);
    }
    let Ok(text) = call.memory().read_string(path.0) else { return Answer::Continue };
    let Ok(umask) = umask_of(call.received().tid) else { return Answer::Continue };
    let device = Device { is_block, number: number(dev) };
    let bits = mode.0 & MODE & !umask;
    let become_it = |made: &OwnedFd| become_device(beliefs, made, bits, device);
    if let Some(answer) = paths::make_plain(call, (dirfd, path), 0o600, become_it) {
        return answer;
    }
    // (Without a place the kernel says why; a device it makes none.)
    let Some(spot) = believed::spot(call, beliefs, dirfd, &text) else {
        return kernels(mode, || None);
    };
    let made = believed::change(call, beliefs, || {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let own = nix_stat::Mode::S_IRUSR | nix_stat::Mode::S_IWUSR;
        let file = openat(&spot.parent, spot.name.as_os_str(), flags, own)?;
        become_device(beliefs, &file, bits, device)
    });
    made.map(|()| 0).into()
}

fn become_device(
    beliefs: &FileBeliefs,
    file: &OwnedFd,
    mode: u32,
    device: Device,
) -> Result<(), Errno> {
    beliefs.set_permissions(file.as_fd(), mode & !SET_ID)?;
    let belief = Belief { mode: Some(mode), device: Some(device), ..Belief::default() };
    beliefs.set(file.as_fd(), &belief)
}

/// A number as the C library has it of one as the kernel takes it (new_decode_dev in include/linux/kdev_t.h).
fn number(dev: Dev) -> u64 {
    libc::makedev((dev.0 & 0xf_ff00) >> 8, dev.0 & 0xff | dev.0 >> 12 & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices_are_read_as_the_kernel_does() {
        assert_eq!(number(Dev(0x103)), libc::makedev(1, 3));
        assert_eq!(number(Dev(0x1203_4567 & 0xfff0_0000 | 0x4567)), libc::makedev(0x45, 0x12067));
    }
}
