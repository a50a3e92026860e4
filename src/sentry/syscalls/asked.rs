//! open(2) of files that no rule names (`--ask files`): whoever runs the sandbox is asked, and the sentry opens what the
//! question was about (`sentry::paths`). Everything else is the kernel's, and so is a file that nobody gives.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path as HostPath, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::args::{DirFd, Path};
use super::paths::{arrived, text, with_guest};
use crate::notify::{Answer, Descriptor, hand_over};
use crate::sentry::asking::{About, Asker, Asking, Subject};
use crate::sentry::call::{Call, TaskCall};
use crate::sentry::paths::{Opened, Start, Wish, could_open};
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
    let opened = match writes {
        true => open_to_change(call, asking, &file, wish).await,
        false => copied(call, asking, file).await,
    };
    // A call that is made again has its answer.
    if !matches!(opened, Err(Answer::Restart(_) | Answer::Fail(Errno::EINTR))) {
        granted.settle();
    }
    Some(match opened {
        Ok(fd) => Answer::Descriptor(Descriptor { fd, place: Place::Lowest, cloexec, sole: true }),
        Err(answer) => answer,
    })
}

/// Makes a file, or opens it to be changed.
async fn open_to_change(
    call: &TaskCall,
    asking: &Asking,
    file: &HostPath,
    wish: Wish,
) -> Result<OwnedFd, Answer> {
    hand_over();
    let (paths, _) = call.kernel.askable().ok_or(Answer::Fail(Errno::EPERM))?;
    let begun = with_guest(&call.as_call(), |guest| paths.open_granted(guest, file, wish));
    let opened = match begun.map_err(Answer::Fail)? {
        Opened::Now(fd) | Opened::New(fd) => fd,
        later => arrived(call, later).await?,
    };
    let stat = fstat(&opened).map_err(Answer::Fail)?;
    asking.lets_change((stat.st_dev, stat.st_ino));
    Ok(opened)
}

/// A copy of what a file holds.
async fn copied(call: &TaskCall, asking: &Asking, file: PathBuf) -> Result<OwnedFd, Answer> {
    let done = call.block(async {
        let place = Arc::clone(&asking.copies.places).acquire_owned();
        let place = place.await.map_err(|_| Errno::EAGAIN)?;
        let (paths, _) = call.kernel.askable().ok_or(Errno::EPERM)?;
        let copying = with_guest(&call.as_call(), |guest| {
            paths.copy_granted(guest, file, &asking.copies, place)
        });
        copying?.done().await
    });
    done.await?.map_err(Answer::Fail)
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
    let makes = |file: &PathBuf| wish.creates() && !file.exists();
    let (file, writes) = match place(wish.changes()) {
        Some(file) => {
            let writes = wish.changes() || makes(&file);
            (file, writes)
        }
        // To make a file changes something, where there is none.
        None => (place(true).filter(makes)?, true),
    };
    let could = with_guest(call, |guest| paths.with(guest, |_| Ok(could_open(&file, wish))));
    could.is_ok_and(|could| could).then_some((file, writes))
}
