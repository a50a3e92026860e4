//! What a guest that takes itself for root believes of one file, and how that is written down.
//!
//! As an extended attribute on the file itself, so that it goes where the file goes: with a rename or a link, into the
//! layer of an overlay, into an image. Whoever may write to the file can write it: it is about what guests are shown
//! and nothing else, and what is malformed is no belief.

use std::ffi::CStr;
use std::fmt::Write;

/// The attribute.
pub const NAME: &CStr = c"user.sandbox.root";
/// Names of attributes that guests cannot set, for which one of users stands, begin so.
pub const INSTEAD: &[u8] = b"user.sandbox.root.";

/// Permission bits with setuid, setgid and sticky.
pub const MODE: u32 = 0o7777;

/// A device that a plain file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// A block device; else a character device.
    pub is_block: bool,
    /// Its number, as `dev_t` of the C library.
    pub number: u64,
}

/// What is believed of a file where it is not what the kernel says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Belief {
    /// The owner; root where none is named.
    pub uid: Option<u32>,
    /// The group; root's where none is named.
    pub gid: Option<u32>,
    /// Permissions; the file's own where none are named.
    pub mode: Option<u32>,
    /// What it stands for.
    pub device: Option<Device>,
    /// It stands for something of the host's that the user may not read: nothing of that is in it.
    pub hollow: bool,
}

impl Belief {
    /// Nothing but what the kernel says, and root as the owner.
    pub fn is_nothing(&self) -> bool {
        *self == Belief::default()
    }

    /// As it is written down: words with a letter in front each.
    pub fn text(&self) -> Vec<u8> {
        let mut text = String::new();
        let mut word = |it: std::fmt::Arguments<'_>| {
            let space = if text.is_empty() { "" } else { " " };
            // (A string takes all that it is given.)
            let _ = write!(text, "{space}{it}");
        };
        if let Some(uid) = self.uid {
            word(format_args!("u{uid}"));
        }
        if let Some(gid) = self.gid {
            word(format_args!("g{gid}"));
        }
        if let Some(mode) = self.mode {
            word(format_args!("m{mode:o}"));
        }
        if let Some(Device { is_block, number }) = self.device {
            word(format_args!("{}{number}", if is_block { 'b' } else { 'c' }));
        }
        if self.hollow {
            word(format_args!("h"));
        }
        text.into_bytes()
    }

    /// Reads one; `None` for whatever [`Belief::text`] would not have written.
    pub fn parse(text: &[u8]) -> Option<Belief> {
        /// Longer than the longest.
        const LIMIT: usize = 96;
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= LIMIT)?;
        let mut found = Belief::default();
        for word in text.split(' ') {
            let (kind, rest) = word.split_at_checked(1)?;
            match kind {
                "u" => found.uid = Some(rest.parse().ok().filter(is_id)?),
                "g" => found.gid = Some(rest.parse().ok().filter(is_id)?),
                "m" => {
                    let mode = u32::from_str_radix(rest, 8).ok()?;
                    found.mode = Some(mode).filter(|it| it & !MODE == 0);
                }
                "c" | "b" => {
                    let (is_block, number) = (kind == "b", rest.parse().ok()?);
                    found.device = Some(Device { is_block, number });
                }
                "h" => found.hollow = true,
                _ => return None,
            }
        }
        // Written in one way only.
        (found.text() == text.as_bytes()).then_some(found)
    }

    /// The type and permissions that a file of this mode has.
    pub fn mode_of(&self, real: u32) -> u32 {
        let kind = match (real & libc::S_IFMT, self.device) {
            (libc::S_IFREG, Some(Device { is_block: true, .. })) => libc::S_IFBLK,
            (libc::S_IFREG, Some(Device { is_block: false, .. })) => libc::S_IFCHR,
            (kind, _) => kind,
        };
        kind | self.mode.unwrap_or(real & MODE)
    }

    /// The number of the device that a file of this mode is.
    pub fn device_of(&self, real: u32) -> Option<u64> {
        self.device.filter(|_| real & libc::S_IFMT == libc::S_IFREG).map(|device| device.number)
    }
}

/// All ones are no id (chown(2)).
fn is_id(id: &u32) -> bool {
    *id != u32::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn beliefs() -> impl Strategy<Value = Belief> {
        let id = || prop::option::of(0..u32::MAX);
        let device = (any::<bool>(), any::<u64>())
            .prop_map(|(is_block, number)| Device { is_block, number });
        (id(), id(), prop::option::of(0..=MODE), prop::option::of(device), any::<bool>())
            .prop_map(|(uid, gid, mode, device, hollow)| Belief { uid, gid, mode, device, hollow })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(belief in beliefs()) {
            prop_assume!(!belief.is_nothing());
            prop_assert_eq!(Belief::parse(&belief.text()), Some(belief));
        }

        #[test]
        fn no_bytes_hurt_and_none_are_read_in_two_ways(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Some(belief) = Belief::parse(&bytes) {
                prop_assert_eq!(belief.text(), bytes);
            }
        }

        #[test]
        fn words_in_any_order_are_read_in_one_way(text in "[ugmcbh0-9 +-]{0,24}") {
            if let Some(belief) = Belief::parse(text.as_bytes()) {
                prop_assert_eq!(belief.text(), text.into_bytes());
                prop_assert!(belief.mode.is_none_or(|mode| mode & !MODE == 0));
                prop_assert!(belief.uid != Some(u32::MAX) && belief.gid != Some(u32::MAX));
            }
        }
    }

    #[test]
    fn only_a_plain_file_stands_for_a_device() {
        let device = Some(Device { is_block: false, number: 259 });
        let belief = Belief { device, mode: Some(0o4666), ..Belief::default() };
        assert_eq!(belief.mode_of(libc::S_IFREG | 0o644), libc::S_IFCHR | 0o4666);
        assert_eq!(belief.mode_of(libc::S_IFDIR | 0o755), libc::S_IFDIR | 0o4666);
        assert_eq!(belief.device_of(libc::S_IFREG), Some(259));
        assert_eq!(belief.device_of(libc::S_IFIFO), None);
        assert_eq!(belief.text(), b"m4666 c259");
    }
}
