//! What a guest that takes itself for root is shown of files: stat(2) and its kin, and access(2).
//!
//! The sentry looks at the file in the guest's place, by a descriptor, and writes what it has found with what is
//! believed of it (`sentry::beliefs`). Where it cannot find what the guest means, the kernel answers, and shows the owner that
//! it knows.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use super::args::{AccessMode, AtFlags, DirFd, Path};
use super::watch;
use crate::notify::{Answer, hand_over};
use crate::sentry::Features;
use crate::sentry::beliefs::{
    FileBeliefs, Real, Shown, Sight, Spot, base_of, copy_of, find, find_open, find_spot, place_of,
};
use crate::sentry::call::Call;
use crate::sentry::credentials::Capability;
use crate::sentry::paths::{Guest, rights_to_take};
use crate::sys::disguise::{self, Disguise};
use crate::sys::{files, look};
use crate::timekeeping::SECOND;

/// What a call writes, and where.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// A `struct stat`.
    Stat(u64),
    /// A `struct statx` with these fields.
    Statx(u64, u32),
}

/// What a call is about.
enum Subject {
    /// What this path of procfs leads to.
    Place(CString),
    /// What has this name in a directory; and the name alone.
    Name(OwnedFd, CString, Vec<u8>),
    /// What a descriptor is open for, or stands for.
    Open(OwnedFd),
    /// What a path leads to.
    At(OwnedFd),
}

/// Finds what stat(2) and its kin are about. `None`: the kernel has to say.
fn subject(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    dirfd: i32,
    path: Option<Path>,
    flags: i32,
) -> Option<Subject> {
    let tid = call.received().tid;
    let text = match path {
        None => Vec::new(),
        // A null path is taken for an empty one (Linux 6.11).
        Some(Path(0)) => return None,
        Some(path) => call.memory().read_string(path.0).ok()?,
    };
    if text.is_empty() {
        if path.is_some() && flags & libc::AT_EMPTY_PATH == 0 {
            return None;
        }
        // (What is elsewhere than on a disk is told of a file that is closed, be it a copy: flush in vfs(7).)
        if beliefs.is_fast(tid)
            && let Ok(copy) = copy_of(tid, dirfd)
        {
            return Some(Subject::Open(copy));
        }
        return CString::new(place_of(tid, dirfd)).ok().map(Subject::Place);
    }
    if !text.contains(&b'/') && text != b".." {
        let name = CString::new(&*text).ok()?;
        return base_of(tid, dirfd).map(|base| Subject::Name(base, name, text));
    }
    find(tid, dirfd, &text, flags & libc::AT_SYMLINK_NOFOLLOW == 0).map(Subject::At)
}

/// Shows a file as it is believed to be. `None`: the kernel has to say.
pub(super) fn show(
    call: &Call<'_>,
    dirfd: i32,
    path: Option<Path>,
    flags: i32,
    form: Form,
) -> Option<Answer> {
    let shown = look(call, dirfd, path, flags, form);
    // What else looks at calls like this one does so with the sentry's own rights.
    if shown.is_none() || call.kernel.features().contains(Features::FILE_LOG) {
        disguise::take_off();
    }
    shown
}

fn look(call: &Call<'_>, dirfd: i32, path: Option<Path>, flags: i32, form: Form) -> Option<Answer> {
    const SYNC: i32 = libc::AT_STATX_SYNC_TYPE;
    const KNOWN: i32 = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT;
    let known = if matches!(form, Form::Statx(..)) { KNOWN | SYNC } else { KNOWN };
    let beliefs = call.kernel.beliefs().filter(|_| flags & !known == 0)?;
    let (tid, is_valid) = (call.received().tid, || call.trapped().is_valid());
    beliefs.note_view(tid, is_valid);
    may_take_long(call, beliefs);
    // Such calls come by the thousand.
    let guest = Guest { tid, is_valid: &is_valid };
    beliefs.keep_disguise(call.received().number, || rights_to_take(guest)).ok()?;
    let at = |sight: Sight<'_>| look_at(call, beliefs, sight, flags, form);
    let seen = match subject(call, beliefs, dirfd, path, flags)? {
        Subject::Place(path) => at(Sight::Place(&path))?,
        Subject::Open(file) => at(Sight::Open(file.as_fd()))?,
        Subject::At(file) => at(Sight::Handle(file.as_fd()))?,
        Subject::Name(base, name, text) => match at(Sight::Name(base.as_fd(), &name))? {
            Seen::Link => {
                let file = find(tid, dirfd, &text, true)?;
                at(Sight::Handle(file.as_fd()))?
            }
            seen => seen,
        },
    };
    match seen {
        Seen::Link => None,
        Seen::Told(written) => Some(written.map(|()| 0).into()),
    }
}

/// What a look at a file has come to.
enum Seen {
    /// What has the name is a link that the call goes on from.
    Link,
    /// What is believed of it was written, or could not be.
    Told(Result<(), Errno>),
}

/// Looks at a file and writes what is believed of it. `None`: it cannot be looked at.
fn look_at(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    sight: Sight<'_>,
    flags: i32,
    form: Form,
) -> Option<Seen> {
    let follows = flags & libc::AT_SYMLINK_NOFOLLOW == 0 && matches!(sight, Sight::Name(..));
    let goes_on = |real: &Real| follows && real.mode & libc::S_IFMT == libc::S_IFLNK;
    Some(Seen::Told(match form {
        Form::Stat(address) => {
            let mut found = sight.stat().ok()?;
            let real = Real::of(&found);
            if goes_on(&real) {
                return Some(Seen::Link);
            }
            believe(call, &mut found, &beliefs.shown_of(sight, &real));
            call.memory().write(address, look::bytes_of_stat(&found))
        }
        Form::Statx(address, mask) => {
            let mut found = sight.statx(flags & libc::AT_STATX_SYNC_TYPE, mask | WHOLE).ok()?;
            let mode = u32::from(found.stx_mode);
            let real = Real { uid: found.stx_uid, gid: found.stx_gid, mode };
            if goes_on(&real) {
                return Some(Seen::Link);
            }
            believe_x(call, &mut found, &beliefs.shown_of(sight, &real));
            call.memory().write(address, look::bytes_of_statx(&found))
        }
    }))
}

/// Without these nothing can be said of a belief.
const WHOLE: u32 = libc::STATX_TYPE | libc::STATX_MODE | libc::STATX_UID | libc::STATX_GID;

fn believe(call: &Call<'_>, found: &mut FileStat, shown: &Shown) {
    (found.st_uid, found.st_gid, found.st_mode) = (shown.uid, shown.gid, shown.mode);
    if let Some(device) = shown.device {
        (found.st_rdev, found.st_size, found.st_blocks) = (device, 0, 0);
    }
    let changed = (found.st_mtime, found.st_mtime_nsec);
    for (seconds, rest, is_access) in [
        (&mut found.st_atime, &mut found.st_atime_nsec, true),
        (&mut found.st_mtime, &mut found.st_mtime_nsec, false),
        (&mut found.st_ctime, &mut found.st_ctime_nsec, false),
    ] {
        if let Some(time) = guests_time(call, (*seconds, *rest), changed, is_access) {
            (*seconds, *rest) = time;
        }
    }
}

fn believe_x(call: &Call<'_>, found: &mut libc::statx, shown: &Shown) {
    (found.stx_uid, found.stx_gid, found.stx_mode) = (shown.uid, shown.gid, shown.mode as u16);
    if let Some(device) = shown.device {
        (found.stx_rdev_major, found.stx_rdev_minor) = (libc::major(device), libc::minor(device));
        (found.stx_size, found.stx_blocks) = (0, 0);
    }
    let changed = (found.stx_mtime.tv_sec, i64::from(found.stx_mtime.tv_nsec));
    for (stamp, is_access) in [
        (&mut found.stx_atime, true),
        (&mut found.stx_btime, false),
        (&mut found.stx_ctime, false),
        (&mut found.stx_mtime, false),
    ] {
        let host = (stamp.tv_sec, i64::from(stamp.tv_nsec));
        if let Some((seconds, rest)) = guests_time(call, host, changed, is_access) {
            (stamp.tv_sec, stamp.tv_nsec) = (seconds, rest as u32);
        }
    }
}

/// A stamp of the host's in the guest's time, where it has another (as `syscalls::stamps` shows it).
fn guests_time(
    call: &Call<'_>,
    host: (i64, i64),
    changed: (i64, i64),
    is_access: bool,
) -> Option<(i64, i64)> {
    if !call.kernel.features().contains(Features::VIRTUAL_TIME) {
        return None;
    }
    let keeper = call.kernel.time().keeper();
    let whole = |(seconds, rest): (i64, i64)| seconds.checked_mul(SECOND)?.checked_add(rest);
    let shown = match (is_access, whole(changed)) {
        (true, Some(changed)) => keeper.access_time(whole(host)?, changed),
        _ => keeper.file_time(whole(host)?),
    }?;
    Some((shown.div_euclid(SECOND), shown.rem_euclid(SECOND)))
}

/// Serves access(2), where it asks for writing.
pub fn access(call: &Call<'_>, path: Path, mode: AccessMode) -> Answer {
    watch::access(call, path, mode);
    ask(call, DirFd(libc::AT_FDCWD), path, mode, AtFlags(0))
}

/// Serves faccessat(2).
pub fn faccessat(call: &Call<'_>, dirfd: DirFd, path: Path, mode: AccessMode) -> Answer {
    watch::faccessat(call, dirfd, path, mode);
    ask(call, dirfd, path, mode, AtFlags(0))
}

/// Serves faccessat2(2).
pub fn faccessat2(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    mode: AccessMode,
    flags: AtFlags,
) -> Answer {
    watch::faccessat2(call, dirfd, path, mode, flags);
    ask(call, dirfd, path, mode, flags)
}

/// Root may write to any file; to one of somebody else's in an overlay it can, since it is copied first.
fn ask(call: &Call<'_>, dirfd: DirFd, path: Path, mode: AccessMode, flags: AtFlags) -> Answer {
    let writes = mode.0 & libc::W_OK != 0 && mode.0 & !(libc::R_OK | libc::W_OK | libc::X_OK) == 0;
    let known = flags.0 as i32 & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EACCESS) == 0;
    let Some(beliefs) = call.kernel.beliefs().filter(|_| writes && known) else {
        return Answer::Continue;
    };
    let file = target(call, dirfd, path, flags.0 as i32);
    let may = file.is_some_and(|file| may_write(call, beliefs, &file, mode.0));
    if may { Answer::Return(0) } else { Answer::Continue }
}

fn may_write(call: &Call<'_>, beliefs: &FileBeliefs, file: &OwnedFd, mode: i32) -> bool {
    const ANY_X: u32 = libc::S_IXUSR | libc::S_IXGRP | libc::S_IXOTH;
    let Ok(stat) = nix::sys::stat::fstat(file) else { return false };
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
        && !beliefs.is_own(&Real::of(&stat))
        && (mode & libc::X_OK == 0 || stat.st_mode & ANY_X != 0)
        && call.kernel.overlays().holds(call.received().tid, file.as_fd())
}

/// The file that a call is to change, which is the user's own then: one of somebody else's in an overlay is copied.
/// `None`: the kernel has to say.
pub(super) fn own(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    file: OwnedFd,
) -> Option<Result<OwnedFd, Errno>> {
    let stat = nix::sys::stat::fstat(&file).ok()?;
    let real = Real::of(&stat);
    if beliefs.is_own(&real) {
        return Some(Ok(file));
    }
    let tid = call.received().tid;
    if !call.kernel.overlays().holds(tid, file.as_fd()) {
        // (The group counts where the kernel copies alone.)
        return beliefs.is_users(&real).then_some(Ok(file));
    }
    // (A copy has a name of its own for a moment, about which rules with patterns say nothing.)
    if super::paths::refuses_change(call, &file) {
        return None;
    }
    beliefs.note_view(tid, || call.trapped().is_valid());
    // It takes as long as the file is large.
    hand_over();
    let spot = as_guest(call, beliefs, || Ok(beliefs.spot_of(file.as_fd()))).ok()??;
    Some(as_guest(call, beliefs, || beliefs.make_own(&spot)))
}

/// Lets others be served meanwhile, where to look at a file may take long.
pub(super) fn may_take_long(call: &Call<'_>, beliefs: &FileBeliefs) {
    if !beliefs.is_fast(call.received().tid) {
        hand_over();
    }
}

fn worn(call: &Call<'_>, beliefs: &FileBeliefs) -> Result<Option<Disguise>, Errno> {
    let guest = Guest { tid: call.received().tid, is_valid: &|| call.trapped().is_valid() };
    beliefs.disguise(|| rights_to_take(guest))
}

/// Has `what` done to files with the guest's rights. It must not hand over: a thread that is made in it would keep them.
pub(super) fn as_guest<T>(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    what: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let _worn = worn(call, beliefs)?;
    what()
}

/// The same for what changes a file, which can take long: the kernel copies what is in an overlay.
pub(super) fn change<T>(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    what: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    hand_over();
    as_guest(call, beliefs, what)
}

/// Whether the caller believes to have a capability.
pub(super) fn has(call: &Call<'_>, capability: Capability) -> bool {
    call.kernel.credentials().of(call.received().tid).has(capability)
}

/// Whether it believes to own a file, or to have the capability that stands for that.
pub(super) fn is_owner_or(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    file: &OwnedFd,
    capability: Capability,
) -> bool {
    let credentials = call.kernel.credentials().of(call.received().tid);
    let is_owner = || {
        let path = files::descriptor_path(file.as_fd());
        let real = nix::sys::stat::fstat(file).map(|stat| Real::of(&stat));
        real.is_ok_and(|real| beliefs.shown(&path, &real).uid == credentials.uid.fs)
    };
    credentials.has(capability) || is_owner()
}

/// What a path leads to, or with an empty one what a descriptor stands for, where the call allows that.
pub(super) fn target(call: &Call<'_>, dirfd: DirFd, path: Path, flags: i32) -> Option<OwnedFd> {
    let tid = call.received().tid;
    let beliefs = call.kernel.beliefs()?;
    let text = call.memory().read_string(path.0).ok()?;
    beliefs.note_view(tid, || call.trapped().is_valid());
    may_take_long(call, beliefs);
    let find = || match text.is_empty() {
        true if flags & libc::AT_EMPTY_PATH != 0 => find_open(tid, dirfd.0),
        true => None,
        false => find(tid, dirfd.0, &text, flags & libc::AT_SYMLINK_NOFOLLOW == 0),
    };
    valid(call, as_guest(call, beliefs, || Ok(find())).ok()?)
}

/// The directory that a path names something in, and the name.
pub(super) fn spot(
    call: &Call<'_>,
    beliefs: &FileBeliefs,
    dirfd: DirFd,
    path: &[u8],
) -> Option<Spot> {
    let tid = call.received().tid;
    beliefs.note_view(tid, || call.trapped().is_valid());
    may_take_long(call, beliefs);
    valid(call, as_guest(call, beliefs, || Ok(find_spot(tid, dirfd.0, path))).ok()?)
}

/// What was found by a thread's number, if that was the caller's all the time.
pub(super) fn valid<T>(call: &Call<'_>, found: Option<T>) -> Option<T> {
    found.filter(|_| call.trapped().is_valid())
}
