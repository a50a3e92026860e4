//! One thread does something to files with the rights of somebody else.
//!
//! To the kernel credentials belong to a thread; it is the C library that gives all threads of a process the same
//! (nptl(7)). So the calls are made without it, and the other threads keep what they have.

use std::cell::RefCell;

use libc::c_long;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::capabilities::{self, Data};

/// With whose rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The calling thread acts for somebody else until this is dropped.
#[derive(Debug)]
pub struct Disguise {
    /// What was effective.
    capabilities: [Data; 2],
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    /// It is this thread's.
    _thread: std::marker::PhantomData<*const ()>,
}

/// Whether the calling thread has any capability in effect (capabilities(7)).
pub fn has_capabilities() -> Result<bool, Errno> {
    Ok(capabilities::get()?.iter().any(|half| half.effective != 0))
}

/// Sets what counts for files (setfsuid(2), setfsgid(2)) and gives what it was.
fn set_id(call: c_long, id: u32) -> u32 {
    // SAFETY: plain numbers. (The call knows no errors: it gives the former one.)
    unsafe { libc::syscall(call, id) as u32 }
}

/// The calling thread's supplementary groups (getgroups(2)).
fn groups() -> Result<Vec<u32>, Errno> {
    // By far the most have fewer. (Who asks how many there can be at most, as nix does, opens a file of procfs for that.)
    let mut some = [0_u32; 64];
    // SAFETY: the kernel writes as many numbers as there are, if there is room for them.
    let count = unsafe { libc::syscall(libc::SYS_getgroups, some.len(), some.as_mut_ptr()) };
    match Errno::result(count) {
        Ok(count) => Ok(some[..count as usize].to_vec()),
        Err(Errno::EINVAL) => {
            let all = nix::unistd::getgroups()?;
            Ok(all.into_iter().map(nix::unistd::Gid::as_raw).collect())
        }
        Err(errno) => Err(errno),
    }
}

fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of a valid slice.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(done).map(drop)
}

impl Disguise {
    /// From here on files are opened as by `owner`, who has no capability.
    ///
    /// # Errors
    /// It cannot be: then nothing is changed.
    pub fn put_on(owner: &Owner) -> Result<Disguise, Errno> {
        let thread = std::marker::PhantomData;
        let mut worn = Disguise {
            capabilities: capabilities::get()?,
            uid: None,
            gid: None,
            groups: None,
            _thread: thread,
        };
        let mut own = groups()?;
        own.sort_unstable();
        let mut wanted = owner.groups.clone();
        wanted.sort_unstable();
        if own != wanted {
            set_groups(&wanted)?;
            worn.groups = Some(own);
        }
        let gid = set_id(libc::SYS_setfsgid, owner.gid);
        worn.gid = (gid != owner.gid).then_some(gid);
        // Last of the ids: without its capabilities a thread cannot change the others (handle_fsuid aside,
        // which is about files alone).
        let uid = set_id(libc::SYS_setfsuid, owner.uid);
        worn.uid = (uid != owner.uid).then_some(uid);
        // (Asked for once more, an id that was refused is still the former one.)
        let is_refused =
            |changed: Option<u32>, call, id| changed.is_some() && set_id(call, id) != id;
        if is_refused(worn.uid, libc::SYS_setfsuid, owner.uid)
            || is_refused(worn.gid, libc::SYS_setfsgid, owner.gid)
        {
            return Err(Errno::EPERM);
        }
        let none = worn.capabilities.map(|half| Data { effective: 0, ..half });
        capabilities::set(&none)?;
        Ok(worn)
    }
}

thread_local! {
    /// What this thread keeps on when a piece of work is done, and for which it may.
    static KEPT: RefCell<Option<(u32, Disguise)>> = const { RefCell::new(None) };
}

/// Puts a disguise on that stays until [`take_off`]: to change back and forth for each of many small pieces of work
/// costs more than they do. It serves work of this kind alone; whoever begins another one calls [`take_off_unless`]
/// first. Nothing is done where one of this kind is on.
///
/// # Errors
/// `owner` cannot be told, or the rights cannot be taken on: then none is on.
pub fn keep_on<'o>(
    kind: u32,
    owner: impl FnOnce() -> Result<Option<&'o Owner>, Errno>,
) -> Result<(), Errno> {
    if KEPT.with_borrow(|kept| kept.as_ref().is_some_and(|(of, _)| *of == kind)) {
        return Ok(());
    }
    take_off();
    if let Some(owner) = owner()? {
        let worn = Disguise::put_on(owner)?;
        KEPT.set(Some((kind, worn)));
    }
    Ok(())
}

/// This thread has its own rights again, unless what is to be done is of the kind that it has kept a disguise on for.
pub fn take_off_unless(kind: u32) {
    if KEPT.with_borrow(|kept| kept.as_ref().is_some_and(|(of, _)| *of != kind)) {
        take_off();
    }
}

/// This thread has its own rights again. Comes before a thread is made, which gets those of its maker (clone(2)).
pub fn take_off() {
    drop(KEPT.take());
}

impl Drop for Disguise {
    fn drop(&mut self) {
        // What was permitted all the time can be made effective again; then the ids may change.
        let _ = capabilities::set(&self.capabilities);
        if let Some(uid) = self.uid {
            set_id(libc::SYS_setfsuid, uid);
            // The kernel gives and takes capabilities with the user (cap_task_fix_setuid in security/commoncap.c).
            let _ = capabilities::set(&self.capabilities);
        }
        if let Some(gid) = self.gid {
            set_id(libc::SYS_setfsgid, gid);
        }
        if let Some(groups) = &self.groups {
            let _ = set_groups(groups);
        }
    }
}

/// Gives the calling thread a umask of its own (CLONE_FS in unshare(2)); its working directory, too.
pub fn own_umask() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_FS)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn what_is_kept_on_serves_one_kind_of_work_and_goes_before_another() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let capable = || has_capabilities().unwrap();
        let own = Owner { uid: 0, gid: 0, groups: vec![0] };
        keep_on(1, || Ok(Some(&own))).unwrap();
        assert!(!capable());
        // It is not asked for again.
        keep_on(1, || Err(Errno::EIO)).unwrap();
        take_off_unless(1);
        assert!(!capable());
        take_off_unless(2);
        assert!(capable());
        keep_on(1, || Ok(Some(&own))).unwrap();
        assert_eq!(keep_on(2, || Err(Errno::EIO)), Err(Errno::EIO));
        assert!(capable());
        keep_on(3, || Ok(None)).unwrap();
        assert!(capable());
        keep_on(1, || Ok(Some(&own))).unwrap();
        take_off();
        assert!(capable());
    }

    #[test]
    fn only_this_thread_is_somebody_else_and_only_for_a_time() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let place = std::env::temp_dir().join(format!("sandbox-disguise-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::write(place.join("closed"), "").unwrap();
        let closed = std::fs::Permissions::from_mode(0o000);
        std::fs::set_permissions(place.join("closed"), closed).unwrap();
        let open = || std::fs::read(place.join("closed")).is_ok();
        let other = Owner { uid: 1234, gid: 1235, groups: vec![1236] };
        let own = Owner { uid: 0, gid: 0, groups: vec![0] };
        for owner in [&other, &own] {
            let worn = Disguise::put_on(owner).unwrap();
            assert!(!open());
            assert!(std::thread::scope(|scope| scope.spawn(|| 7).join()).is_ok());
            let name = place.join(owner.uid.to_string());
            std::fs::write(&name, "").unwrap();
            let made = std::fs::metadata(&name).unwrap();
            assert_eq!((made.uid(), made.gid()), (owner.uid, owner.gid));
            drop(worn);
            assert!(open());
        }
        std::fs::remove_dir_all(place).unwrap();
    }
}
