//! Ids, groups and capabilities as the guests of a run with `--root` believe them (`sentry::credentials`).
//!
//! The kernel has no say in any of these calls: what is asked for and what is told lies in the sentry.

use nix::errno::Errno;

use super::args::{
    CapData, CapHeader, Gid, GidCell, In, InOut, Int, Out, Path, PrctlOption, ULong, Uid, UidCell,
};
use super::{believed, paths};
use crate::notify::{Answer, hand_over};
use crate::sentry::Features;
use crate::sentry::call::Call;
use crate::sentry::credentials::{ALL, Capability, CapabilitySets, Change, Credentials, Ids};

/// The options of prctl(2) that are about capabilities.
pub const PRCTL: &[u64] = &[
    libc::PR_CAPBSET_READ as u64,
    libc::PR_CAPBSET_DROP as u64,
    libc::PR_GET_SECUREBITS as u64,
    libc::PR_SET_SECUREBITS as u64,
    libc::PR_GET_KEEPCAPS as u64,
    libc::PR_SET_KEEPCAPS as u64,
    libc::PR_CAP_AMBIENT as u64,
];

/// Serves getuid(2).
pub fn getuid(call: &Call<'_>) -> Answer {
    told(call, |it| it.uid.real)
}

/// Serves geteuid(2).
pub fn geteuid(call: &Call<'_>) -> Answer {
    told(call, |it| it.uid.effective)
}

/// Serves getgid(2).
pub fn getgid(call: &Call<'_>) -> Answer {
    told(call, |it| it.gid.real)
}

/// Serves getegid(2).
pub fn getegid(call: &Call<'_>) -> Answer {
    told(call, |it| it.gid.effective)
}

fn told(call: &Call<'_>, id: impl FnOnce(&Credentials) -> u32) -> Answer {
    Answer::Return(i64::from(id(&call.kernel.credentials().of(call.received().tid))))
}

/// Serves getresuid(2).
pub fn getresuid(
    call: &Call<'_>,
    ruid: Out<UidCell>,
    euid: Out<UidCell>,
    suid: Out<UidCell>,
) -> Answer {
    let ids = call.kernel.credentials().of(call.received().tid).uid;
    tell_three(call, ids, [ruid.address, euid.address, suid.address])
}

/// Serves getresgid(2).
pub fn getresgid(
    call: &Call<'_>,
    rgid: Out<GidCell>,
    egid: Out<GidCell>,
    sgid: Out<GidCell>,
) -> Answer {
    let ids = call.kernel.credentials().of(call.received().tid).gid;
    tell_three(call, ids, [rgid.address, egid.address, sgid.address])
}

fn tell_three(call: &Call<'_>, ids: Ids, addresses: [u64; 3]) -> Answer {
    let memory = call.memory();
    let mut pairs = addresses.into_iter().zip([ids.real, ids.effective, ids.saved]);
    pairs.try_for_each(|(address, id)| memory.write(address, &id.to_ne_bytes())).map(|()| 0).into()
}

/// Serves setuid(2).
pub fn setuid(call: &Call<'_>, uid: Uid) -> Answer {
    change(call, |it| it.set_users(Change::One(uid.0)))
}

/// Serves setreuid(2).
pub fn setreuid(call: &Call<'_>, ruid: Uid, euid: Uid) -> Answer {
    change(call, |it| it.set_users(Change::Two(ruid.0, euid.0)))
}

/// Serves setresuid(2).
pub fn setresuid(call: &Call<'_>, ruid: Uid, euid: Uid, suid: Uid) -> Answer {
    change(call, |it| it.set_users(Change::Three(ruid.0, euid.0, suid.0)))
}

/// Serves setgid(2).
pub fn setgid(call: &Call<'_>, gid: Gid) -> Answer {
    change(call, |it| it.set_gids(Change::One(gid.0)))
}

/// Serves setregid(2).
pub fn setregid(call: &Call<'_>, rgid: Gid, egid: Gid) -> Answer {
    change(call, |it| it.set_gids(Change::Two(rgid.0, egid.0)))
}

/// Serves setresgid(2).
pub fn setresgid(call: &Call<'_>, rgid: Gid, egid: Gid, sgid: Gid) -> Answer {
    change(call, |it| it.set_gids(Change::Three(rgid.0, egid.0, sgid.0)))
}

/// Serves setfsuid(2), which has no errors.
pub fn setfsuid(call: &Call<'_>, fsuid: Uid) -> Answer {
    set_fs(call, |it| it.set_fs_user(fsuid.0))
}

/// Serves setfsgid(2), likewise.
pub fn setfsgid(call: &Call<'_>, fsgid: Gid) -> Answer {
    set_fs(call, |it| it.set_fs_group(fsgid.0))
}

fn set_fs(call: &Call<'_>, set: impl FnOnce(&mut Credentials) -> u32) -> Answer {
    hand_over();
    let set = |it: &mut Credentials| Ok(set(it));
    call.kernel.credentials().change(call.received().tid, set).map(i64::from).into()
}

fn change(call: &Call<'_>, change: impl FnOnce(&mut Credentials) -> Result<(), Errno>) -> Answer {
    hand_over();
    call.kernel.credentials().change(call.received().tid, change).map(|()| 0).into()
}

/// Serves getgroups(2).
pub fn getgroups(call: &Call<'_>, size: Int, list: Out<GidCell>) -> Answer {
    let credentials = call.kernel.credentials().of(call.received().tid);
    let count = credentials.groups.len();
    let wanted = match usize::try_from(size.0) {
        Err(_) => return Answer::Fail(Errno::EINVAL),
        Ok(wanted) if wanted != 0 && wanted < count => return Answer::Fail(Errno::EINVAL),
        Ok(wanted) => wanted,
    };
    if wanted != 0 && count != 0 {
        let bytes: Vec<u8> = credentials.groups.iter().flat_map(|id| id.to_ne_bytes()).collect();
        if let Err(errno) = call.memory().write(list.address, &bytes) {
            return Answer::Fail(errno);
        }
    }
    Answer::Return(count as i64)
}

/// Serves setgroups(2).
pub fn setgroups(call: &Call<'_>, size: Int, list: In<GidCell>) -> Answer {
    hand_over();
    let beliefs = call.kernel.credentials();
    let tid = call.received().tid;
    let read = || -> Result<Vec<u32>, Errno> {
        let count = beliefs.of(tid).may_set_groups(size.0)?;
        let mut bytes = vec![0; count * 4];
        if count > 0 {
            call.memory().read(list.address, &mut bytes)?;
        }
        let (ids, _) = bytes.as_chunks();
        Ok(ids.iter().map(|id| u32::from_ne_bytes(*id)).collect())
    };
    match read() {
        Ok(groups) => change(call, |it| it.set_supplementary(groups)),
        Err(errno) => Answer::Fail(errno),
    }
}

/// Serves chroot(2): who may is decided here, all else by the kernel, to which every guest of such a run may.
pub fn chroot(call: &Call<'_>, _path: Path) -> Answer {
    if call.kernel.features().contains(Features::FILE_LOG) {
        call.kernel.refuse(
            call.received().tid,
            "a root directory of a guest's own",
            "files are recorded by the paths of one root directory",
            "run it without --record-files",
        );
        return Answer::Fail(Errno::EPERM);
    }
    if !believed::has(call, Capability::SysChroot) {
        return Answer::Fail(Errno::EPERM);
    }
    // Who has another root sees fewer mounts.
    hand_over();
    let tid = call.received().tid;
    if let Some(beliefs) = call.kernel.beliefs() {
        beliefs.note_view(tid, || call.trapped().is_valid());
        let _ = beliefs.is_fast(tid);
    }
    call.kernel.overlays().learn(tid);
    match paths::note_view(call) {
        Ok(()) => Answer::Continue,
        Err(errno) => Answer::Fail(errno),
    }
}

/// Serves prctl(2) with one of [`PRCTL`].
pub fn prctl(
    call: &Call<'_>,
    option: PrctlOption,
    arg2: ULong,
    arg3: ULong,
    arg4: ULong,
    arg5: ULong,
) -> Answer {
    hand_over();
    let args = [arg2.0, arg3.0, arg4.0, arg5.0];
    let control = |it: &mut Credentials| it.control(option.0, args);
    call.kernel.credentials().change(call.received().tid, control).into()
}

/// Version 3, which is the last one (capget(2)).
const VERSION_3: u32 = 0x2008_0522;

/// Reads `struct __user_cap_header_struct`: how many words each set has, and whose sets are meant. An unknown
/// version gets the last one for an answer, and EINVAL.
fn header(call: &Call<'_>, address: u64) -> Result<(usize, i32), Errno> {
    let mut raw = [0; 8];
    call.memory().read(address, &mut raw)?;
    let [a, b, c, d, e, f, g, h] = raw;
    let words = match u32::from_ne_bytes([a, b, c, d]) {
        0x1998_0330 => 1,
        0x2007_1026 | VERSION_3 => 2,
        _ => {
            call.memory().write(address, &VERSION_3.to_ne_bytes())?;
            return Err(Errno::EINVAL);
        }
    };
    Ok((words, i32::from_ne_bytes([e, f, g, h])))
}

/// Serves capget(2).
pub fn capget(call: &Call<'_>, hdrp: InOut<CapHeader>, datap: Out<CapData>) -> Answer {
    let header = header(call, hdrp.address);
    // (Without a place for them only the version was asked for.)
    let (words, pid) = match header {
        Err(Errno::EINVAL) | Ok(_) if datap.address == 0 => return Answer::Return(0),
        Err(errno) => return Answer::Fail(errno),
        Ok((_, pid)) if pid < 0 => return Answer::Fail(Errno::EINVAL),
        Ok(header) => header,
    };
    let own = call.received().tid;
    let tid = match pid {
        0 => own,
        pid => {
            hand_over();
            match call.kernel.find_thread(own, pid) {
                Some(tid) => tid,
                None => return Answer::Fail(Errno::ESRCH),
            }
        }
    };
    let CapabilitySets { effective, permitted, inheritable, .. } =
        call.kernel.credentials().of(tid).capabilities;
    let half = |set: u64, word: usize| ((set >> (32 * word)) as u32).to_ne_bytes();
    let sets = [effective, permitted, inheritable];
    let bytes: Vec<u8> =
        (0..words).flat_map(|word| sets.map(|set| half(set, word))).flatten().collect();
    call.memory().write(datap.address, &bytes).map(|()| 0).into()
}

/// Serves capset(2).
pub fn capset(call: &Call<'_>, hdrp: InOut<CapHeader>, datap: In<CapData>) -> Answer {
    hand_over();
    let tid = call.received().tid;
    let read = || -> Result<[u64; 3], Errno> {
        let (words, pid) = header(call, hdrp.address)?;
        if pid != 0 && call.kernel.find_thread(tid, pid) != Some(tid) {
            return Err(Errno::EPERM);
        }
        let mut raw = [0; 24];
        call.memory().read(datap.address, &mut raw[..words * 12])?;
        let (raw, _) = raw.as_chunks();
        let word = |at: usize| u64::from(u32::from_ne_bytes(raw[at]));
        Ok([0, 1, 2].map(|set| (word(set) | word(set + 3) << 32) & ALL))
    };
    match read() {
        Ok([effective, permitted, inheritable]) => {
            change(call, |it| it.set_capabilities(effective, permitted, inheritable))
        }
        Err(errno) => Answer::Fail(errno),
    }
}
