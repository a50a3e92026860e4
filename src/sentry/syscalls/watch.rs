//! Calls on paths, watched for `--record-files` and `sandbox learn` (`sentry::file_log`). All continue.

use super::args::{
    AccessMode, AtFlags, Dev, DirFd, Flags, Gid, In, Int, Mode, Offset, OpenFlags, OutBuf, Path,
    TimespecPair, TimevalPair, Uid, Utimbuf,
};
use crate::notify::{Answer, hand_over};
use crate::sentry::Features;
use crate::sentry::call::Call;
use crate::sentry::file_log::{Caller, FileLog, Touch, Use, touch_of_open};
use crate::sentry::paths::Start;

const CURRENT: DirFd = DirFd(libc::AT_FDCWD);

/// The log, where one is kept.
fn log<'c>(call: &Call<'c>) -> Option<&'c FileLog> {
    let log = call.kernel.file_log()?;
    // A file system of the host may take its time.
    hand_over();
    Some(log)
}

/// A path, unless it cannot be read by the kernel either. An empty one is about a descriptor.
fn path_of(call: &Call<'_>, path: Path) -> Option<Vec<u8>> {
    call.memory().read_string(path.0).ok().filter(|path| !path.is_empty())
}

fn with_caller(call: &Call<'_>, what: impl FnOnce(&Caller<'_>)) {
    let is_valid = || call.trapped().is_valid();
    what(&Caller { tid: call.received().tid, is_valid: &is_valid });
}

fn note(call: &Call<'_>, dirfd: DirFd, path: Path, how: Use) -> Answer {
    if let Some(log) = log(call)
        && let Some(path) = path_of(call, path)
    {
        with_caller(call, |caller| log.note(caller, Start::of(dirfd.0), &path, how));
    }
    Answer::Continue
}

/// Notes what open(2) and its kin are about; decides nothing.
pub fn note_open(call: &Call<'_>, dirfd: DirFd, path: Path, flags: OpenFlags) {
    let (touch, follow, creates) = touch_of_open(flags.0 as i32);
    note(call, dirfd, path, Use { touch, follow, creates });
}

/// Notes what execve(2) and execveat(2) are about; decides nothing.
pub fn note_exec(call: &Call<'_>, dirfd: DirFd, path: Path) {
    if let Some(log) = log(call)
        && let Some(path) = path_of(call, path)
    {
        with_caller(call, |caller| log.note_exec(caller, Start::of(dirfd.0), &path));
    }
}

/// Notes what stat(2) and its kin are about; decides nothing.
pub fn note_stat(call: &Call<'_>, dirfd: i32, path: Path, flags: i32) {
    if call.kernel.features().contains(Features::FILE_LOG) {
        look(call, DirFd(dirfd), path, AtFlags(flags as u32));
    }
}

fn look(call: &Call<'_>, dirfd: DirFd, path: Path, flags: AtFlags) -> Answer {
    note(call, dirfd, path, Use { touch: Touch::INSPECTED, follow: follows(flags), creates: false })
}

/// access(2) and its kin.
fn ask(call: &Call<'_>, dirfd: DirFd, path: Path, mode: AccessMode, flags: AtFlags) -> Answer {
    let writes = mode.0 & libc::W_OK != 0;
    let touch = Touch::INSPECTED | if writes { Touch::ASKED } else { Touch::empty() };
    note(call, dirfd, path, Use { touch, follow: follows(flags), creates: false })
}

fn change(call: &Call<'_>, dirfd: DirFd, path: Path, flags: AtFlags) -> Answer {
    note(call, dirfd, path, Use { touch: Touch::CHANGED, follow: follows(flags), creates: false })
}

fn make(call: &Call<'_>, dirfd: DirFd, path: Path) -> Answer {
    note(call, dirfd, path, Use { touch: Touch::INSPECTED, follow: false, creates: true })
}

fn remove(call: &Call<'_>, dirfd: DirFd, path: Path) -> Answer {
    note(call, dirfd, path, Use { touch: Touch::REMOVED, follow: false, creates: false })
}

/// What has a new name takes the place of what had it.
fn replace(call: &Call<'_>, dirfd: DirFd, path: Path) -> Answer {
    note(call, dirfd, path, Use { touch: Touch::WRITTEN, follow: false, creates: true })
}

fn follows(flags: AtFlags) -> bool {
    flags.0 as i32 & libc::AT_SYMLINK_NOFOLLOW == 0
}

const FOLLOW: AtFlags = AtFlags(0);
const NO_FOLLOW: AtFlags = AtFlags(libc::AT_SYMLINK_NOFOLLOW as u32);

/// Handlers that note one thing.
macro_rules! watchers {
    ($($name:ident ( $($arg:ident : $ty:ty),* ) => $what:ident ( $($given:expr),* );)*) => {$(
        #[doc = concat!("Watches ", stringify!($name), "(2).")]
        pub fn $name(call: &Call<'_>, $($arg: $ty),*) -> Answer {
            $(let _ = &$arg;)*
            $what(call, $($given),*)
        }
    )*};
}

watchers! {
    access(path: Path, mode: AccessMode) => ask(CURRENT, path, mode, FOLLOW);
    faccessat(dirfd: DirFd, path: Path, mode: AccessMode) => ask(dirfd, path, mode, FOLLOW);
    faccessat2(dirfd: DirFd, path: Path, mode: AccessMode, flags: AtFlags)
        => ask(dirfd, path, mode, flags);
    readlink(path: Path, buf: OutBuf, size: Int) => look(CURRENT, path, NO_FOLLOW);
    readlinkat(dirfd: DirFd, path: Path, buf: OutBuf, size: Int) => look(dirfd, path, NO_FOLLOW);
    chdir(path: Path) => look(CURRENT, path, FOLLOW);
    truncate(path: Path, length: Offset)
        => note(CURRENT, path, Use { touch: Touch::WRITTEN, follow: true, creates: false });
    chmod(path: Path, mode: Mode) => change(CURRENT, path, FOLLOW);
    fchmodat(dirfd: DirFd, path: Path, mode: Mode) => change(dirfd, path, FOLLOW);
    fchmodat2(dirfd: DirFd, path: Path, mode: Mode, flags: AtFlags) => change(dirfd, path, flags);
    chown(path: Path, owner: Uid, group: Gid) => change(CURRENT, path, FOLLOW);
    lchown(path: Path, owner: Uid, group: Gid) => change(CURRENT, path, NO_FOLLOW);
    fchownat(dirfd: DirFd, path: Path, owner: Uid, group: Gid, flags: AtFlags)
        => change(dirfd, path, flags);
    utime(path: Path, times: In<Utimbuf>) => change(CURRENT, path, FOLLOW);
    utimes(path: Path, times: In<TimevalPair>) => change(CURRENT, path, FOLLOW);
    futimesat(dirfd: DirFd, path: Path, times: In<TimevalPair>) => change(dirfd, path, FOLLOW);
    utimensat(dirfd: DirFd, path: Path, times: In<TimespecPair>, flags: AtFlags)
        => change(dirfd, path, flags);
    mkdir(path: Path, mode: Mode) => make(CURRENT, path);
    mkdirat(dirfd: DirFd, path: Path, mode: Mode) => make(dirfd, path);
    mknod(path: Path, mode: Mode, dev: Dev) => make(CURRENT, path);
    mknodat(dirfd: DirFd, path: Path, mode: Mode, dev: Dev) => make(dirfd, path);
    symlink(target: Path, path: Path) => make(CURRENT, path);
    symlinkat(target: Path, dirfd: DirFd, path: Path) => make(dirfd, path);
    unlink(path: Path) => remove(CURRENT, path);
    unlinkat(dirfd: DirFd, path: Path, flags: AtFlags) => remove(dirfd, path);
    rmdir(path: Path) => remove(CURRENT, path);
    rename(old: Path, new: Path) => moved(CURRENT, old, CURRENT, new);
    renameat(from: DirFd, old: Path, to: DirFd, new: Path) => moved(from, old, to, new);
    renameat2(from: DirFd, old: Path, to: DirFd, new: Path, flags: Flags)
        => moved(from, old, to, new);
    link(old: Path, new: Path) => linked(CURRENT, old, CURRENT, new);
    linkat(from: DirFd, old: Path, to: DirFd, new: Path, flags: AtFlags)
        => linked(from, old, to, new);
    creat(path: Path, mode: Mode)
        => note(CURRENT, path, Use { touch: Touch::WRITTEN, follow: true, creates: true });
}

fn moved(call: &Call<'_>, from: DirFd, old: Path, to: DirFd, new: Path) -> Answer {
    if let Some(log) = log(call)
        && let (Some(old), Some(new)) = (path_of(call, old), path_of(call, new))
    {
        let (from, to) = ((Start::of(from.0), &old[..]), (Start::of(to.0), &new[..]));
        with_caller(call, |caller| log.note_moved(caller, from, to));
    }
    Answer::Continue
}

fn linked(call: &Call<'_>, from: DirFd, old: Path, to: DirFd, new: Path) -> Answer {
    // (One without a name is given one by an empty path, or by its place in /proc.)
    look(call, from, old, NO_FOLLOW);
    replace(call, to, new)
}
