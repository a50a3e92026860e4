//! The machine that a guest with limits is shown: sysinfo(2), and open(2) of the files of procfs that
//! describe memory, processors and load. Where these are trapped, /dev/kmsg is served too (`klog`); and
//! random devices, where a run is to repeat (`random`).
//!
//! A view, no wall: a guest that reaches the host's file by another path, or changes the path while it
//! is looked at, deceives itself. So every other path continues.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::args::{DirFd, Mode, OpenFlags, Out, Path, SysInfo};
use super::{klog, own_copies, random, watch};
use crate::notify::{Answer, Descriptor, hand_over};
use crate::sentry::Features;
use crate::sentry::call::Call;
use crate::sys::seccomp::Place;
use crate::sys::{files, memfd};

/// Serves sysinfo(2).
pub fn sysinfo(call: &Call<'_>, info: Out<SysInfo>) -> Answer {
    hand_over();
    match call.kernel.system_info() {
        Some(found) => call.memory().write(info.address, &found.bytes()).map(|()| 0).into(),
        None => Answer::Continue,
    }
}

/// Serves open(2).
pub fn open(call: &Call<'_>, pathname: Path, flags: OpenFlags, mode: Mode) -> Answer {
    show(call, DirFd(libc::AT_FDCWD), pathname, flags, mode)
}

/// Serves openat(2).
pub fn openat(
    call: &Call<'_>,
    dirfd: DirFd,
    pathname: Path,
    flags: OpenFlags,
    mode: Mode,
) -> Answer {
    show(call, dirfd, pathname, flags, mode)
}

/// With these the kernel answers, as it would for its own file.
const OTHERWISE: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_DIRECTORY | libc::O_PATH;

const KMSG: &[u8] = b"/dev/kmsg";

const NAME: &CStr = c"machine";

fn show(call: &Call<'_>, dirfd: DirFd, pathname: Path, flags: OpenFlags, mode: Mode) -> Answer {
    watch::note_open(call, dirfd, pathname, flags);
    if let Some(answer) = own_copies::before_open(call, dirfd, pathname, flags, mode) {
        return answer;
    }
    const SERVED: Features =
        Features::MACHINE_VIEW.union(Features::KMSG).union(Features::DETERMINISTIC);
    if !call.kernel.features().intersects(SERVED) {
        return Answer::Continue;
    }
    // (An absolute path makes nothing of the directory.)
    if flags.0 as i32 & OTHERWISE != libc::O_RDONLY {
        return Answer::Continue;
    }
    let Ok(path) = call.memory().read_string(pathname.0) else { return Answer::Continue };
    if let Some(answer) = random::open(call, dirfd, pathname, &path, flags) {
        return answer;
    }
    if !call.kernel.features().intersects(Features::MACHINE_VIEW | Features::KMSG) {
        return Answer::Continue;
    }
    if path == KMSG {
        return klog::open(call, flags);
    }
    if !matches!(path.as_slice(), b"/proc/meminfo" | b"/proc/stat" | b"/proc/loadavg") {
        return Answer::Continue;
    }
    hand_over();
    let Some(text) = call.kernel.machine_file(&path) else { return Answer::Continue };
    match file(&text) {
        Ok(fd) => {
            let cloexec = flags.0 as i32 & libc::O_CLOEXEC != 0;
            Answer::Descriptor(Descriptor { fd, place: Place::Lowest, cloexec, sole: false })
        }
        // The host's file is better than none.
        Err(_) => Answer::Continue,
    }
}

/// `text` in a file of its own that is open for reading only.
pub(super) fn file(text: &str) -> Result<std::os::fd::OwnedFd, Errno> {
    let mut file = memfd::anonymous_file(NAME)?;
    file.write_all(text.as_bytes()).map_err(|_| Errno::EIO)?;
    files::open_descriptor(file.as_fd(), libc::O_RDONLY)
}
