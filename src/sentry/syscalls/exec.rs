//! execve(2) and execveat(2) are watched: for exec events, to notice processes where the CPU clock
//! counts, and to give the program the sandbox's clock (`sentry::vdso`). Where rules are about names
//! that may come to be, one that they are against is refused; and since the path may be another one
//! when the kernel reads it, what it has come to execute is looked at before it runs. Where files get their
//! content when they are opened, the program gets its own, and so do its interpreters.
//!
//! A shell tries one directory of PATH after another, and whether an exec succeeds is known to the
//! kernel alone. So an absolute path that leads to no file in the guest's view is left out; the
//! look is for the report only, and the call continues whatever it shows.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use super::args::{AtFlags, DirFd, Path, StrArray};
use super::{paths, watch};
use crate::notify::{Answer, hand_over};
use crate::sentry::call::Call;
use crate::sentry::{Event, Features, vdso};

/// Reports execve(2).
pub fn execve(call: &Call<'_>, pathname: Path, _argv: StrArray, _envp: StrArray) -> Answer {
    report(call, DirFd(libc::AT_FDCWD), pathname, AtFlags(0))
}

/// Reports execveat(2).
pub fn execveat(
    call: &Call<'_>,
    dirfd: DirFd,
    pathname: Path,
    _argv: StrArray,
    _envp: StrArray,
    flags: AtFlags,
) -> Answer {
    report(call, dirfd, pathname, flags)
}

fn report(call: &Call<'_>, dirfd: DirFd, pathname: Path, flags: AtFlags) -> Answer {
    watch::note_exec(call, dirfd, pathname);
    if call.kernel.features().contains(Features::EXEC_EVENTS) {
        emit(call, pathname);
    }
    if call.kernel.features().contains(Features::CPU_CLOCK) {
        call.kernel.note_activity();
    }
    if let Some(errno) = paths::refuses_program(call, dirfd, pathname, flags) {
        return Answer::Fail(errno);
    }
    if call.kernel.features().contains(Features::TWINS)
        && let Err(errno) = paths::complete_program(call, dirfd, pathname, flags)
    {
        return Answer::Fail(errno);
    }
    if call.kernel.features().intersects(Features::VIRTUAL_TIME | Features::PATTERNS) {
        return vdso::follow_exec(call);
    }
    Answer::Continue
}

fn emit(call: &Call<'_>, pathname: Path) {
    let tid = call.received().tid;
    // The memory of the program's own process before its first exec is closed to an ordinary user;
    // the kernel reports that exec when the program starts.
    if let Ok(path) = call.memory().read_string(pathname.0)
        && (!path.starts_with(b"/") || leads_somewhere(tid, &path))
    {
        let path = String::from_utf8_lossy(&path).into_owned();
        call.kernel.emit(&Event::Exec { tid, path });
    }
}

/// Whether an absolute path leads to something, seen from the guest's root.
fn leads_somewhere(tid: i32, path: &[u8]) -> bool {
    // A file system of the host may take its time.
    hand_over();
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let Ok(root) = open(format!("/proc/{tid}/root").as_str(), flags, Mode::empty()) else {
        return false;
    };
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    openat2(&root, OsStr::from_bytes(path), how).is_ok()
}
