//! Capabilities (capabilities(7)): numbers, sets, and the bits that say what root's ids mean.

use nix::errno::Errno;

/// A capability that something here asks for, by its number (include/uapi/linux/capability.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Give files to anybody.
    Chown = 0,
    /// Pass over permissions of files.
    DacOverride = 1,
    /// Do what only owners may do with files.
    FOwner = 3,
    /// Keep setgid bits.
    FSetId = 4,
    /// Signal anybody.
    Kill = 5,
    /// Take any group.
    SetGid = 6,
    /// Become any user.
    SetUid = 7,
    /// Change sets of capabilities.
    SetPCap = 8,
    /// Bind to ports below 1024.
    NetBindService = 10,
    /// Change the root directory.
    SysChroot = 18,
    /// Make device nodes.
    MkNod = 27,
    /// Give files capabilities.
    SetFCap = 31,
}

/// CAP_LAST_CAP of Linux 5.9 and later.
const LAST: u64 = 40;

impl Capability {
    /// Its place in a set.
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// That of the capability with this number, if there is one.
    pub fn bit_of(number: u64) -> Option<u64> {
        (number <= LAST).then(|| 1 << number)
    }
}

/// All that the kernel knows.
pub const ALL: u64 = (1 << (LAST + 1)) - 1;

/// What root is told that it has: all that a sandbox upholds, by the kernel or by the sentry.
pub(super) const UPHELD: u64 = Capability::Chown.bit()
    | Capability::DacOverride.bit()
    | Capability::FOwner.bit()
    | Capability::FSetId.bit()
    | Capability::Kill.bit()
    | Capability::SetGid.bit()
    | Capability::SetUid.bit()
    | Capability::SetPCap.bit()
    | Capability::NetBindService.bit()
    | Capability::SysChroot.bit()
    | Capability::MkNod.bit()
    | Capability::SetFCap.bit();

/// Those that go by the user id for files (CAP_FS_MASK): CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID,
/// LINUX_IMMUTABLE, MKNOD and MAC_OVERRIDE.
pub(super) const FILES: u64 = 0b1_1111 | 1 << 9 | 1 << 27 | 1 << 32;

/// The sets of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CapabilitySets {
    /// What it may have.
    pub permitted: u64,
    /// What it has.
    pub effective: u64,
    /// What it may pass on.
    pub inheritable: u64,
    /// What an exec can give.
    pub bounding: u64,
    /// What an exec leaves to those who are not root.
    pub ambient: u64,
}

/// SECBIT_* (include/uapi/linux/securebits.h): each bit is followed by the one that locks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Securebits(pub u32);

impl Securebits {
    const NO_ROOT: u32 = 1;
    const NO_SETUID_FIXUP: u32 = 1 << 2;
    const KEEP_CAPS: u32 = 1 << 4;
    const KEEP_CAPS_LOCKED: u32 = 1 << 5;
    const NO_AMBIENT_RAISE: u32 = 1 << 6;
    const BITS: u32 = 0b0101_0101;
    const LOCKS: u32 = Self::BITS << 1;

    /// These bits, if they are such.
    pub(super) fn known(bits: u32) -> Option<Securebits> {
        (bits & !(Self::BITS | Self::LOCKS) == 0).then_some(Securebits(bits))
    }

    pub(super) fn no_root(self) -> bool {
        self.0 & Self::NO_ROOT != 0
    }

    pub(super) fn no_setuid_fixup(self) -> bool {
        self.0 & Self::NO_SETUID_FIXUP != 0
    }

    pub(super) fn keep_caps(self) -> bool {
        self.0 & Self::KEEP_CAPS != 0
    }

    pub(super) fn no_ambient_raise(self) -> bool {
        self.0 & Self::NO_AMBIENT_RAISE != 0
    }

    /// PR_SET_SECUREBITS, but for the capability that it needs.
    pub(super) fn changed(self, wanted: u64) -> Result<Securebits, Errno> {
        let known = u64::from(Self::BITS | Self::LOCKS);
        let new = (wanted & known) as u32;
        let locked = (self.0 & Self::LOCKS) >> 1;
        if wanted & !known != 0 || locked & (self.0 ^ new) != 0 || self.0 & Self::LOCKS & !new != 0
        {
            return Err(Errno::EPERM);
        }
        Ok(Securebits(new))
    }

    /// PR_SET_KEEPCAPS.
    pub(super) fn keeping(self, wanted: u64) -> Result<Securebits, Errno> {
        match wanted {
            0 | 1 if self.0 & Self::KEEP_CAPS_LOCKED != 0 => Err(Errno::EPERM),
            0 => Ok(Securebits(self.0 & !Self::KEEP_CAPS)),
            1 => Ok(Securebits(self.0 | Self::KEEP_CAPS)),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn executed(self) -> Securebits {
        Securebits(self.0 & !Self::KEEP_CAPS)
    }
}
