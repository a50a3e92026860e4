//! open(2) of files that no rule names (`--ask files`): whoever runs the sandbox is asked, and the sentry opens what the
//! question was about (`sentry::paths`). Everything else is the kernel's, and so is a file that nobody gives.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path as HostPath, PathBuf};

use nix::errno::Errno;

use super::args::{DirFd, Path};
use super::paths::{text, with_guest};
use crate::notify::{Answer, Descriptor, hand_over};
use crate::sentry::asking::{About, Asker, Subject};
use crate::sentry::call::{Call, TaskCall};
use crate::sentry::paths::{Start, Wish, could_open, open_granted};
use crate::sys::seccomp::Place;

/// Opens what somebody lets the guest have. `None`: nobody is to be asked about it, or the answer was no.
pub(super) async fn open(
    call: &TaskCall,
    dirfd: DirFd,
    path: Path,
    wish: Wish,
    cloexec: bool,
) -> Option<Answer> {
    let asking = call.kernel.asking().filter(|it| it.is_about(About::FILES))?;
    let (file, writes) = wanted(&call.as_call(), dirfd, path, wish)?;
    let tid = call.received().tid;
    let subject = Subject::file(file.as_os_str().as_bytes(), writes)?;
    let words = subject.to_string();
    let asked = call.kernel.ask(asking, Asker::thread(tid), subject, None);
    let granted = match call.block(asked).await {
        Ok(Ok(granted)) => granted,
        Ok(Err(denial)) => {
            let remedy = if writes { "--rw PATH allows it" } else { "--allow PATH allows it" };
            call.kernel.refuse_one_of_many(tid, &words, denial.reason(), remedy);
            return None;
        }
        Err(interrupted) => return Some(interrupted.into()),
    };
    hand_over();
    let opened = as_guest(&call.as_call(), || open_granted(&file, wish, tid));
    granted.settle();
    Some(match opened {
        Ok(fd) => Answer::Descriptor(Descriptor { fd, place: Place::Lowest, cloexec, sole: true }),
        Err(errno) => Answer::Fail(errno),
    })
}

/// Which file of the host is meant, and whether it is to be changed, if that is to be asked about.
fn wanted(call: &Call<'_>, dirfd: DirFd, path: Path, wish: Wish) -> Option<(PathBuf, bool)> {
    let (paths, places) = call.kernel.askable()?;
    if !wish.is_plain() {
        return None;
    }
    hand_over();
    let path = text(call, path).ok()?;
    let known = with_guest(call, |guest| {
        paths.with(guest, |resolver| Ok(resolver.known_as(Start::of(dirfd.0), &path)))
    });
    let known = known.ok()?;
    let place = |writes| {
        let place = |it: &Vec<u8>| places.of(HostPath::new(OsStr::from_bytes(it)), writes);
        known.iter().find_map(place)
    };
    let (file, writes) = match place(wish.changes()) {
        Some(file) => (file, wish.changes()),
        // To make a file changes something, where there is none.
        None if wish.creates() => (place(true).filter(|file| !file.exists())?, true),
        None => return None,
    };
    let could = as_guest(call, || Ok(could_open(&file, wish)));
    could.is_ok_and(|could| could).then_some((file, writes))
}

/// Does something with the rights of the guest, in the host's view.
fn as_guest<T>(call: &Call<'_>, what: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let (paths, _) = call.kernel.askable().ok_or(Errno::EPERM)?;
    with_guest(call, |guest| paths.with(guest, |_| what()))
}
