//! What changes whose ids: credentials(7) and capabilities(7), as the host's kernel does it for a process
//! in whose user namespace every id exists.
//!
//! Pure: knows no tasks and no memory. Each function is one system call; the names in brackets are those
//! of the kernel's functions that it follows (kernel/sys.c, kernel/groups.c, security/commoncap.c of
//! Linux 6.18).

use nix::errno::Errno;

use super::capabilities::{Capability, CapabilitySets, FILES, Securebits, UPHELD};

/// "Leave as it is", and no id.
const NONE: u32 = u32::MAX;
/// NGROUPS_MAX (limits.h).
pub const GROUPS_MAX: usize = 65_536;

/// The four ids of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ids {
    /// Who it is.
    pub real: u32,
    /// As whom it acts.
    pub effective: u32,
    /// As whom it may act again.
    pub saved: u32,
    /// As whom it makes and opens files.
    pub fs: u32,
}

impl Ids {
    /// The same id in every place.
    pub fn all(id: u32) -> Ids {
        Ids { real: id, effective: id, saved: id, fs: id }
    }

    fn has(&self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    fn changed(self, change: Change, privileged: bool) -> Result<Ids, Errno> {
        match change {
            Change::One(id) => self.set(id, privileged),
            Change::Two(real, effective) => self.set_two(real, effective, privileged),
            Change::Three(real, effective, saved) => {
                self.set_three([real, effective, saved], privileged)
            }
        }
    }

    /// (`__sys_setuid`)
    fn set(mut self, id: u32, privileged: bool) -> Result<Ids, Errno> {
        if id == NONE {
            return Err(Errno::EINVAL);
        }
        if privileged {
            return Ok(Ids::all(id));
        }
        if id != self.real && id != self.saved {
            return Err(Errno::EPERM);
        }
        (self.effective, self.fs) = (id, id);
        Ok(self)
    }

    /// (`__sys_setreuid`)
    fn set_two(self, real: u32, effective: u32, privileged: bool) -> Result<Ids, Errno> {
        let mut new = self;
        if real != NONE {
            new.real = real;
            if ![self.real, self.effective].contains(&real) && !privileged {
                return Err(Errno::EPERM);
            }
        }
        if effective != NONE {
            new.effective = effective;
            if !self.has(effective) && !privileged {
                return Err(Errno::EPERM);
            }
        }
        if real != NONE || (effective != NONE && effective != self.real) {
            new.saved = new.effective;
        }
        new.fs = new.effective;
        Ok(new)
    }

    /// (`__sys_setresuid`)
    fn set_three(self, wanted: [u32; 3], privileged: bool) -> Result<Ids, Errno> {
        let [real, effective, saved] = wanted;
        let stays = |id: u32, now: u32| id == NONE || id == now;
        if stays(real, self.real)
            && stays(saved, self.saved)
            && (effective == NONE || (effective == self.effective && effective == self.fs))
        {
            return Ok(self);
        }
        if wanted.iter().any(|id| *id != NONE && !self.has(*id)) && !privileged {
            return Err(Errno::EPERM);
        }
        let or = |id: u32, now: u32| if id == NONE { now } else { id };
        let effective = or(effective, self.effective);
        Ok(Ids {
            real: or(real, self.real),
            effective,
            saved: or(saved, self.saved),
            fs: effective,
        })
    }

    /// What an exec leaves of them.
    fn executed(self) -> Ids {
        Ids { saved: self.effective, fs: self.effective, ..self }
    }
}

/// Who a thread is, and what it may do for that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User ids.
    pub uid: Ids,
    /// Group ids.
    pub gid: Ids,
    /// Supplementary groups, in ascending order.
    pub groups: Vec<u32>,
    /// Sets of capabilities.
    pub capabilities: CapabilitySets,
    /// What the ids of root mean.
    pub securebits: Securebits,
}

/// How ids are to change; [`NONE`] leaves one as it is where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// setuid(2), setgid(2).
    One(u32),
    /// setreuid(2), setregid(2).
    Two(u32, u32),
    /// setresuid(2), setresgid(2).
    Three(u32, u32, u32),
}

impl Credentials {
    /// Root with all that the sandbox upholds, as every program of a run with `--root` begins.
    pub fn root() -> Credentials {
        Credentials {
            uid: Ids::default(),
            gid: Ids::default(),
            groups: vec![0],
            capabilities: CapabilitySets {
                permitted: UPHELD,
                effective: UPHELD,
                inheritable: 0,
                bounding: UPHELD,
                ambient: 0,
            },
            securebits: Securebits::default(),
        }
    }

    /// Whether a capability is effective.
    pub fn has(&self, capability: Capability) -> bool {
        self.capabilities.effective & capability.bit() != 0
    }

    /// setuid(2), setreuid(2), setresuid(2).
    pub fn set_users(&mut self, change: Change) -> Result<(), Errno> {
        let new = self.uid.changed(change, self.has(Capability::SetUid))?;
        let old = std::mem::replace(&mut self.uid, new);
        if !self.securebits.no_setuid_fixup() {
            self.follow_users(old);
        }
        Ok(())
    }

    /// setgid(2), setregid(2), setresgid(2).
    pub fn set_gids(&mut self, change: Change) -> Result<(), Errno> {
        self.gid = self.gid.changed(change, self.has(Capability::SetGid))?;
        Ok(())
    }

    /// What becomes of capabilities when user ids have changed (`cap_emulate_setxuid`).
    fn follow_users(&mut self, old: Ids) {
        let (was_root, is_root) = (old.has(0), self.uid.has(0));
        let sets = &mut self.capabilities;
        if was_root && !is_root {
            if !self.securebits.keep_caps() {
                (sets.permitted, sets.effective) = (0, 0);
            }
            sets.ambient = 0;
        }
        match (old.effective == 0, self.uid.effective == 0) {
            (true, false) => sets.effective = 0,
            (false, true) => sets.effective = sets.permitted,
            _ => {}
        }
    }

    /// setfsuid(2): the id that was there.
    pub fn set_fs_user(&mut self, id: u32) -> u32 {
        let old = self.uid.fs;
        let may = self.uid.has(id) || id == old || self.has(Capability::SetUid);
        if id != NONE && may {
            self.uid.fs = id;
            // (cap_task_fix_setuid, LSM_SETID_FS)
            if !self.securebits.no_setuid_fixup() {
                let sets = &mut self.capabilities;
                match (old == 0, id == 0) {
                    (true, false) => sets.effective &= !FILES,
                    (false, true) => sets.effective |= sets.permitted & FILES,
                    _ => {}
                }
            }
        }
        old
    }

    /// setfsgid(2): the id that was there.
    pub fn set_fs_group(&mut self, id: u32) -> u32 {
        let old = self.gid.fs;
        let may = self.gid.has(id) || id == old || self.has(Capability::SetGid);
        if id != NONE && may {
            self.gid.fs = id;
        }
        old
    }

    /// Whether setgroups(2) may be called with that many (`may_setgroups` comes first).
    pub fn may_set_groups(&self, count: i32) -> Result<usize, Errno> {
        if !self.has(Capability::SetGid) {
            return Err(Errno::EPERM);
        }
        // The kernel takes the number for an unsigned one.
        match count as u32 as usize {
            count if count > GROUPS_MAX => Err(Errno::EINVAL),
            count => Ok(count),
        }
    }

    /// setgroups(2).
    pub fn set_supplementary(&mut self, mut groups: Vec<u32>) -> Result<(), Errno> {
        self.may_set_groups(i32::try_from(groups.len()).map_err(|_| Errno::EINVAL)?)?;
        if groups.contains(&NONE) {
            return Err(Errno::EINVAL);
        }
        groups.sort_unstable();
        self.groups = groups;
        Ok(())
    }

    /// capset(2) (`cap_capset`). Capabilities that the kernel does not know are left out before.
    pub fn set_capabilities(
        &mut self,
        effective: u64,
        permitted: u64,
        inheritable: u64,
    ) -> Result<(), Errno> {
        let old = self.capabilities;
        let within = |set: u64, of: u64| set & !of == 0;
        let inherits =
            self.has(Capability::SetPCap) || within(inheritable, old.inheritable | old.permitted);
        if !inherits
            || !within(inheritable, old.inheritable | old.bounding)
            || !within(permitted, old.permitted)
            || !within(effective, permitted)
        {
            return Err(Errno::EPERM);
        }
        let ambient = old.ambient & permitted & inheritable;
        self.capabilities = CapabilitySets { effective, permitted, inheritable, ambient, ..old };
        Ok(())
    }

    /// prctl(2) with an option about capabilities (`cap_task_prctl`).
    pub fn control(&mut self, option: i32, args: [u64; 4]) -> Result<i64, Errno> {
        match option {
            libc::PR_CAPBSET_READ => {
                let bit = Capability::bit_of(args[0]).ok_or(Errno::EINVAL)?;
                Ok(i64::from(self.capabilities.bounding & bit != 0))
            }
            libc::PR_CAPBSET_DROP => {
                self.require(Capability::SetPCap)?;
                self.capabilities.bounding &= !Capability::bit_of(args[0]).ok_or(Errno::EINVAL)?;
                Ok(0)
            }
            libc::PR_GET_SECUREBITS => Ok(i64::from(self.securebits.0)),
            libc::PR_SET_SECUREBITS => {
                let new = self.securebits.changed(args[0])?;
                self.require(Capability::SetPCap)?;
                self.securebits = new;
                Ok(0)
            }
            libc::PR_GET_KEEPCAPS => Ok(i64::from(self.securebits.keep_caps())),
            libc::PR_SET_KEEPCAPS => {
                self.securebits = self.securebits.keeping(args[0])?;
                Ok(0)
            }
            libc::PR_CAP_AMBIENT => self.control_ambient(args),
            _ => Err(Errno::EINVAL),
        }
    }

    fn control_ambient(&mut self, args: [u64; 4]) -> Result<i64, Errno> {
        let [operation, capability, rest @ ..] = args;
        let sets = &mut self.capabilities;
        let is = |known: i32| operation == known as u64;
        if rest != [0, 0] {
            return Err(Errno::EINVAL);
        }
        if is(libc::PR_CAP_AMBIENT_CLEAR_ALL) {
            if capability != 0 {
                return Err(Errno::EINVAL);
            }
            sets.ambient = 0;
            return Ok(0);
        }
        let bit = Capability::bit_of(capability).ok_or(Errno::EINVAL)?;
        if is(libc::PR_CAP_AMBIENT_IS_SET) {
            Ok(i64::from(sets.ambient & bit != 0))
        } else if is(libc::PR_CAP_AMBIENT_LOWER) {
            sets.ambient &= !bit;
            Ok(0)
        } else if is(libc::PR_CAP_AMBIENT_RAISE) {
            if sets.permitted & sets.inheritable & bit == 0 || self.securebits.no_ambient_raise() {
                return Err(Errno::EPERM);
            }
            sets.ambient |= bit;
            Ok(0)
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn require(&self, capability: Capability) -> Result<(), Errno> {
        if self.has(capability) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// What an exec leaves of them, of a file that is not setuid and has no capabilities of its own
    /// (`cap_bprm_creds_from_file`).
    pub fn executed(&self) -> Credentials {
        let old = self.capabilities;
        let (real, effective) = (self.uid.real == 0, self.uid.effective == 0);
        let is_root = !self.securebits.no_root();
        // Ids that differ count as those of a setuid file.
        let same = self.uid.effective == self.uid.real && self.gid.effective == self.gid.real;
        let ambient = if same { old.ambient } else { 0 };
        let by_root =
            if is_root && (real || effective) { old.bounding | old.inheritable } else { 0 };
        let permitted = by_root | ambient;
        Credentials {
            uid: self.uid.executed(),
            gid: self.gid.executed(),
            groups: self.groups.clone(),
            capabilities: CapabilitySets {
                permitted,
                effective: if is_root && effective { permitted } else { ambient },
                ambient,
                ..old
            },
            securebits: self.securebits.executed(),
        }
    }
}
