//! Calls on paths, where rules are about names that may come to be (`sentry::paths`): the sentry performs them, since
//! a path that was looked at could be another one by the time the kernel reads it. What else looks at such calls
//! comes first (`machine`, `watch`, and what root inside believes: `own_copies`, `creations`, `modes`).

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::args::{
    AtFlags, Dev, DirFd, Flags, In, LandlockRulesetAttr, Len, Mode, Offset, OpenFlags, Path,
};
use super::{asked, creations, machine, modes, own_copies, watch};
use crate::notify::{Answer, Descriptor, hand_over};
use crate::sentry::Features;
use crate::sentry::call::{Call, TaskCall};
use crate::sentry::paths::{Guest, New, Opened, Paths, Start, Wish};
use crate::sentry::stat::Stat;
use crate::sys::seccomp::Place;

const CURRENT: DirFd = DirFd(libc::AT_FDCWD);

/// Serves open(2).
pub async fn open(call: TaskCall, pathname: Path, flags: OpenFlags, mode: Mode) -> Answer {
    let answer = machine::open(&call.as_call(), pathname, flags, mode);
    perform_open(call, answer, CURRENT, pathname, flags, mode).await
}

/// Serves openat(2).
pub async fn openat(
    call: TaskCall,
    dirfd: DirFd,
    pathname: Path,
    flags: OpenFlags,
    mode: Mode,
) -> Answer {
    let answer = machine::openat(&call.as_call(), dirfd, pathname, flags, mode);
    perform_open(call, answer, dirfd, pathname, flags, mode).await
}

/// Serves creat(2).
pub async fn creat(call: TaskCall, pathname: Path, mode: Mode) -> Answer {
    let answer = own_copies::creat(&call.as_call(), pathname, mode);
    let flags = OpenFlags((libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u32);
    perform_open(call, answer, CURRENT, pathname, flags, mode).await
}

/// Opens, where nobody has answered before.
async fn perform_open(
    call: TaskCall,
    answer: Answer,
    dirfd: DirFd,
    pathname: Path,
    flags: OpenFlags,
    mode: Mode,
) -> Answer {
    if !matches!(answer, Answer::Continue) {
        return answer;
    }
    let flags = flags.0 as i32;
    let wish = match Wish::of(flags, mode.0) {
        // A handle gives nothing away: what is done with it comes by here again. It is a matter of a register.
        Ok(None) => return Answer::Continue,
        Ok(Some(wish)) => wish,
        Err(errno) => return Answer::Fail(errno),
    };
    let cloexec = flags & libc::O_CLOEXEC != 0;
    if let Some(answer) = asked::open(&call, dirfd, pathname, wish, cloexec).await {
        return answer;
    }
    let opened = match begin_open(&call.as_call(), dirfd, pathname, wish) {
        Ok(opened) => opened,
        Err(answer) => return answer,
    };
    match arrived(&call, opened).await {
        // A copy that is closed late would hold a lock, an end of a pipe, or a program that is to be executed.
        Ok(fd) => Answer::Descriptor(Descriptor { fd, place: Place::Lowest, cloexec, sole: true }),
        Err(answer) => answer,
    }
}

/// Waits for what is not open yet.
pub(super) async fn arrived(call: &TaskCall, opened: Opened) -> Result<OwnedFd, Answer> {
    match opened {
        Opened::Now(fd) | Opened::New(fd) => Ok(fd),
        // (`Paths` has seen to that.)
        Opened::Lacking(_) => Err(Answer::Fail(Errno::EIO)),
        Opened::Later(mut opening) => match call.block(opening.done()).await {
            Ok(done) => done.map_err(Answer::Fail),
            Err(interrupted) => Err(interrupted.into()),
        },
    }
}

fn begin_open(call: &Call<'_>, dirfd: DirFd, path: Path, wish: Wish) -> Result<Opened, Answer> {
    let (paths, path) = begin(call, path)?;
    let then = |made: &OwnedFd| creations::give_to_maker(call, made);
    with_guest(call, |guest| paths.open(guest, Start::of(dirfd.0), &path, wish, then))
        .map_err(Answer::Fail)
}

/// What performs the call, and the path that it is about.
fn begin<'c>(call: &Call<'c>, path: Path) -> Result<(&'c Paths, Vec<u8>), Answer> {
    let paths = call.kernel.paths().ok_or(Answer::Continue)?;
    // A file system of the host may take its time.
    hand_over();
    Ok((paths, text(call, path)?))
}

/// A string of the guest's.
pub(super) fn text(call: &Call<'_>, path: Path) -> Result<Vec<u8>, Answer> {
    call.memory().read_string(path.0).map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES if is_init(call) => Answer::Continue,
        errno => Answer::Fail(errno),
    })
}

/// Whether it is a copy of init, or of a keeper, that is about to execute a program: its memory is the supervisor's, in
/// which no guest has a say, and which is closed to an ordinary user.
fn is_init(call: &Call<'_>) -> bool {
    let (tid, keepers) = (call.received().tid, &call.kernel.keepers);
    let stat = Stat::read(tid);
    keepers.has(tid) || stat.is_some_and(|stat| stat.is_copy && keepers.has(stat.parent))
}

/// Has something done for the thread that has made the call.
pub(super) fn with_guest<T>(
    call: &Call<'_>,
    what: impl FnOnce(Guest<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    what(Guest { tid: call.received().tid, is_valid: &|| call.trapped().is_valid() })
}

/// Performs what answers with nothing but its success.
fn perform(
    call: &Call<'_>,
    watched: Answer,
    path: Path,
    what: impl FnOnce(&Paths, Guest<'_>, &[u8]) -> Result<(), Errno>,
) -> Answer {
    perform_with(call, watched, path, |paths, path| {
        with_guest(call, |guest| what(paths, guest, path)).map_err(Answer::Fail)
    })
}

/// The same of a call on two paths.
fn perform_two(
    call: &Call<'_>,
    watched: Answer,
    (old, new): (Path, Path),
    what: impl FnOnce(&Paths, Guest<'_>, &[u8], &[u8]) -> Result<(), Errno>,
) -> Answer {
    perform_with(call, watched, old, |paths, old| {
        let new = text(call, new)?;
        with_guest(call, |guest| what(paths, guest, old, &new)).map_err(Answer::Fail)
    })
}

fn perform_with(
    call: &Call<'_>,
    watched: Answer,
    path: Path,
    what: impl FnOnce(&Paths, &[u8]) -> Result<(), Answer>,
) -> Answer {
    if !matches!(watched, Answer::Continue) {
        return watched;
    }
    let done = begin(call, path).and_then(|(paths, path)| what(paths, &path));
    done.map_or_else(|answer| answer, |()| Answer::Return(0))
}

/// Serves truncate(2).
pub async fn truncate(call: TaskCall, path: Path, length: Offset) -> Answer {
    let opened = match begin_truncate(&call.as_call(), path, length) {
        Ok(opened) => opened,
        Err(answer) => return answer,
    };
    let file = match arrived(&call, opened).await {
        Ok(file) => file,
        Err(answer) => return answer,
    };
    hand_over();
    nix::unistd::ftruncate(&file, length.0).map(|()| 0).into()
}

fn begin_truncate(call: &Call<'_>, path: Path, length: Offset) -> Result<Opened, Answer> {
    let watched = own_copies::truncate(call, path, length);
    if !matches!(watched, Answer::Continue) {
        return Err(watched);
    }
    let (paths, path) = begin(call, path)?;
    with_guest(call, |guest| paths.truncate(guest, (Start::Directory, &path), length.0))
        .map_err(Answer::Fail)
}

/// Serves mkdir(2).
pub fn mkdir(call: &Call<'_>, path: Path, mode: Mode) -> Answer {
    make(call, creations::mkdir(call, path, mode), CURRENT, path, New::Directory(mode.0))
}

/// Serves mkdirat(2).
pub fn mkdirat(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode) -> Answer {
    make(call, creations::mkdirat(call, dirfd, path, mode), dirfd, path, New::Directory(mode.0))
}

/// Serves mknod(2).
pub fn mknod(call: &Call<'_>, path: Path, mode: Mode, dev: Dev) -> Answer {
    let new = New::Node(mode.0, dev.0.into());
    make(call, modes::mknod(call, path, mode, dev), CURRENT, path, new)
}

/// Serves mknodat(2).
pub fn mknodat(call: &Call<'_>, dirfd: DirFd, path: Path, mode: Mode, dev: Dev) -> Answer {
    let new = New::Node(mode.0, dev.0.into());
    make(call, modes::mknodat(call, dirfd, path, mode, dev), dirfd, path, new)
}

fn make(call: &Call<'_>, watched: Answer, dirfd: DirFd, path: Path, new: New<'_>) -> Answer {
    perform(call, watched, path, |paths, guest, path| {
        let then = |made: &OwnedFd| creations::give_to_maker(call, made);
        paths.make(guest, (Start::of(dirfd.0), path), new, then)
    })
}

/// Makes a plain file, where rules are about names, and does something with it `then`. `None`: there are no such rules.
pub(super) fn make_plain(
    call: &Call<'_>,
    (dirfd, path): (DirFd, Path),
    mode: u32,
    then: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
) -> Option<Answer> {
    call.kernel.paths()?;
    let new = New::Node(libc::S_IFREG | mode, 0);
    Some(perform(call, Answer::Continue, path, |paths, guest, path| {
        paths.make(guest, (Start::of(dirfd.0), path), new, then)
    }))
}

/// Whether rules are against changing something that has been found.
pub(super) fn refuses_change(call: &Call<'_>, found: &OwnedFd) -> bool {
    let refuses = |paths: &Paths| with_guest(call, |guest| paths.permit_change(guest, found));
    call.kernel.paths().is_some_and(|paths| refuses(paths).is_err())
}

/// Has the root of all guests known before one gets another.
pub(super) fn note_view(call: &Call<'_>) -> Result<(), Errno> {
    let Some(paths) = call.kernel.paths() else { return Ok(()) };
    with_guest(call, |guest| paths.view(guest).map(drop))
}

/// Serves symlink(2).
pub fn symlink(call: &Call<'_>, target: Path, path: Path) -> Answer {
    linked_to(call, creations::symlink(call, target, path), target, CURRENT, path)
}

/// Serves symlinkat(2).
pub fn symlinkat(call: &Call<'_>, target: Path, dirfd: DirFd, path: Path) -> Answer {
    linked_to(call, creations::symlinkat(call, target, dirfd, path), target, dirfd, path)
}

fn linked_to(call: &Call<'_>, watched: Answer, target: Path, dirfd: DirFd, path: Path) -> Answer {
    perform_two(call, watched, (target, path), |paths, guest, target, path| {
        let then = |made: &OwnedFd| creations::give_to_maker(call, made);
        paths.make(guest, (Start::of(dirfd.0), path), New::Link(target), then)
    })
}

/// Serves unlink(2).
pub fn unlink(call: &Call<'_>, path: Path) -> Answer {
    remove(call, watch::unlink(call, path), CURRENT, path, false)
}

/// Serves rmdir(2).
pub fn rmdir(call: &Call<'_>, path: Path) -> Answer {
    remove(call, watch::rmdir(call, path), CURRENT, path, true)
}

/// Serves unlinkat(2).
pub fn unlinkat(call: &Call<'_>, dirfd: DirFd, path: Path, flags: AtFlags) -> Answer {
    let watched = watch::unlinkat(call, dirfd, path, flags);
    let flags = flags.0 as i32;
    if call.kernel.paths().is_some() && flags & !libc::AT_REMOVEDIR != 0 {
        return Answer::Fail(Errno::EINVAL);
    }
    remove(call, watched, dirfd, path, flags & libc::AT_REMOVEDIR != 0)
}

fn remove(call: &Call<'_>, watched: Answer, dirfd: DirFd, path: Path, directory: bool) -> Answer {
    perform(call, watched, path, |paths, guest, path| {
        paths.remove(guest, (Start::of(dirfd.0), path), directory)
    })
}

/// Serves rename(2).
pub fn rename(call: &Call<'_>, old: Path, new: Path) -> Answer {
    renamed(call, own_copies::rename(call, old, new), (CURRENT, old), (CURRENT, new), 0)
}

/// Serves renameat(2).
pub fn renameat(call: &Call<'_>, from: DirFd, old: Path, to: DirFd, new: Path) -> Answer {
    renamed(call, own_copies::renameat(call, from, old, to, new), (from, old), (to, new), 0)
}

/// Serves renameat2(2).
pub fn renameat2(
    call: &Call<'_>,
    from: DirFd,
    old: Path,
    to: DirFd,
    new: Path,
    flags: Flags,
) -> Answer {
    let watched = own_copies::renameat2(call, from, old, to, new, flags);
    renamed(call, watched, (from, old), (to, new), flags.0)
}

fn renamed(
    call: &Call<'_>,
    watched: Answer,
    (from, old): (DirFd, Path),
    (to, new): (DirFd, Path),
    flags: u32,
) -> Answer {
    perform_two(call, watched, (old, new), |paths, guest, old, new| {
        paths.rename(guest, (Start::of(from.0), old), (Start::of(to.0), new), flags)
    })
}

/// Serves link(2).
pub fn link(call: &Call<'_>, old: Path, new: Path) -> Answer {
    linked(call, own_copies::link(call, old, new), (CURRENT, old), (CURRENT, new), 0)
}

/// Serves linkat(2).
pub fn linkat(
    call: &Call<'_>,
    from: DirFd,
    old: Path,
    to: DirFd,
    new: Path,
    flags: AtFlags,
) -> Answer {
    let watched = own_copies::linkat(call, from, old, to, new, flags);
    linked(call, watched, (from, old), (to, new), flags.0 as i32)
}

fn linked(
    call: &Call<'_>,
    watched: Answer,
    (from, old): (DirFd, Path),
    (to, new): (DirFd, Path),
    flags: i32,
) -> Answer {
    perform_two(call, watched, (old, new), |paths, guest, old, new| {
        paths.link(guest, (Start::of(from.0), old), (Start::of(to.0), new), flags)
    })
}

/// Whether rules are against executing what a path leads to now; decides nothing else. `None`: nobody can tell, and
/// the kernel has an error for it.
pub(super) fn refuses_program(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    flags: AtFlags,
) -> Option<Errno> {
    let (paths, path) = begin(call, path).ok()?;
    // Where a copy of init is nobody may see (proc_pid_cwd(5)): what it has come to is judged then.
    if !path.starts_with(b"/") && is_init(call) {
        return None;
    }
    let spot = (Start::of(dirfd.0), &path[..]);
    let permitted = with_guest(call, |guest| paths.permit_program(guest, spot, flags.0 as i32));
    permitted.err().filter(|errno| matches!(errno, Errno::ENOENT | Errno::EACCES))
}

/// Has what a path leads to now ready to be executed, where files get their content later. What cannot be told of it is
/// the kernel's to say.
///
/// # Errors
/// The content cannot be fetched.
pub(super) fn complete_program(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    flags: AtFlags,
) -> Result<(), Errno> {
    let Ok((paths, path)) = begin(call, path) else { return Ok(()) };
    let spot = (Start::of(dirfd.0), &path[..]);
    with_guest(call, |guest| paths.complete_program(guest, spot, flags.0 as i32))
}

/// Serves landlock_create_ruleset(2): what a guest forbids itself so would not hold for what the sentry does in its
/// place, so it is told that there is no Landlock, as where it is switched off (landlock(7)).
pub fn landlock_create_ruleset(
    call: &Call<'_>,
    _attr: In<LandlockRulesetAttr>,
    _size: Len,
    _flags: Flags,
) -> Answer {
    let (reason, remedy) = match call.kernel.features().contains(Features::PATTERNS) {
        true => (
            "files are opened by the sandbox, as rules with patterns ask for, and not by the program",
            "name paths without patterns, or let the program do without Landlock",
        ),
        false => (
            "files are opened by the sandbox, as an overlay without overlayfs asks for, and not by the program",
            "run it on a host with overlayfs, or let the program do without Landlock",
        ),
    };
    call.kernel.refuse(call.received().tid, call.row.name, reason, remedy);
    Answer::Fail(Errno::EOPNOTSUPP)
}
