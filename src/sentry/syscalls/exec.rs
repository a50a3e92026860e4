//! Exec events: execve(2) and execveat(2) are watched, never decided here.

use super::args::{AtFlags, DirFd, Path, StrArray};
use crate::notify::Answer;
use crate::sentry::Event;
use crate::sentry::call::Call;

/// Reports execve(2).
pub fn execve(call: &Call<'_>, pathname: Path, _argv: StrArray, _envp: StrArray) -> Answer {
    report(call, pathname)
}

/// Reports execveat(2).
pub fn execveat(
    call: &Call<'_>,
    _dirfd: DirFd,
    pathname: Path,
    _argv: StrArray,
    _envp: StrArray,
    _flags: AtFlags,
) -> Answer {
    report(call, pathname)
}

fn report(call: &Call<'_>, pathname: Path) -> Answer {
    if let Ok(path) = call.memory().read_string(pathname.0) {
        let path = String::from_utf8_lossy(&path).into_owned();
        call.kernel.emit(&Event::Exec { tid: call.received().tid, path });
    }
    Answer::Continue
}
