//! What was tried before: where the kernel has made an overlay, none is rehearsed again.
//!
//! A rehearsal takes some milliseconds: a namespace has to be made, and the kernel writes the upper file system back
//! when an overlay goes (ovl_sync_fs in fs/overlayfs/super.c). What comes of it is up to the kernel that runs, to
//! what forbids the caller something, and to the file systems. So these are written down with each success, in an
//! attribute of the directory in which overlays are kept: it is the user's alone, and no guest sees it.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use super::super::layers::Layer;
use super::super::store::Store;
use crate::sys::{beneath, files};

const NAME: &CStr = c"user.sandbox.overlays";
/// Devices that are remembered at most: all attributes of a directory may have to share a block (xattr(7)).
const MOST: usize = 64;
/// In place of the devices: there was a run for which what was written down was not true.
const DOUBT: &str = "doubt";

/// What was tried in these surroundings. Any that cannot be read, or was written in others, is nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tried {
    surroundings: String,
    /// On these, overlays were made of directories.
    devices: BTreeSet<u64>,
    is_doubted: bool,
}

impl Tried {
    /// None: the surroundings cannot be told.
    pub(super) fn read(store: &Store) -> Option<Tried> {
        let nothing = Tried::nothing(surroundings()?);
        let text = beneath::attribute(&files::descriptor_path(store.directory.as_fd()), NAME);
        Some(match text.ok().and_then(|text| String::from_utf8(text).ok()) {
            Some(text) => nothing.filled(&text),
            None => nothing,
        })
    }

    fn nothing(surroundings: String) -> Tried {
        Tried { surroundings, devices: BTreeSet::new(), is_doubted: false }
    }

    /// With what a text says, if it is about the same surroundings.
    fn filled(mut self, text: &str) -> Tried {
        if let Some((surroundings, rest)) = text.split_once('\n')
            && surroundings == self.surroundings
        {
            self.is_doubted = rest == DOUBT;
            self.devices = rest.split(' ').filter_map(|number| number.parse().ok()).collect();
        }
        self
    }

    fn text(&self) -> String {
        let numbers = self.devices.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let rest = if self.is_doubted { DOUBT } else { &numbers };
        format!("{}\n{rest}", self.surroundings)
    }

    /// Whether the like of all these layers was made.
    pub(super) fn has(&self, layers: &[Layer]) -> bool {
        !self.is_doubted && layers.iter().all(|layer| self.devices.contains(&layer.identity.0))
    }

    /// All these layers were made.
    pub(super) fn add(&mut self, store: BorrowedFd<'_>, layers: &[Layer]) {
        let devices: BTreeSet<u64> = layers.iter().map(|layer| layer.identity.0).collect();
        if self.devices.len() + devices.len() > MOST {
            self.devices.clear();
        }
        self.devices.extend(devices.into_iter().take(MOST));
        self.write(store);
    }

    /// It was not true for everything. From here on every overlay is tried.
    pub(super) fn doubt(&mut self, store: BorrowedFd<'_>) {
        self.is_doubted = true;
        self.write(store);
    }

    /// (Where it cannot be written down, the next run tries again.)
    fn write(&self, store: BorrowedFd<'_>) {
        let path = files::descriptor_path(store);
        let _ = beneath::set_attribute(&path, NAME, self.text().as_bytes());
    }
}

/// What decides besides the file systems: this start of the kernel, the user namespace, filters and the label that a
/// security module knows the caller by.
fn surroundings() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/user").ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    // The mode, and how many there are (proc_pid_status(5)).
    let filters = status.lines().filter(|line| line.starts_with("Seccomp")).collect::<String>();
    // (Without such a module there is none: EINVAL.)
    let label = std::fs::read("/proc/self/attr/current").unwrap_or_default();
    let label = String::from_utf8_lossy(&label).replace('\0', "");
    let all = [&boot, &*namespace.to_string_lossy(), &filters, &label];
    Some(all.map(|part| part.split_whitespace().collect::<String>()).join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(devices: &[u64]) -> Tried {
        let devices = devices.iter().copied().collect();
        Tried { devices, ..Tried::nothing("here".to_owned()) }
    }

    #[test]
    fn what_was_tried_elsewhere_counts_for_nothing() {
        let here = tried(&[7, 1 << 60]);
        assert_eq!(tried(&[]).filled(&here.text()), here);
        for (surroundings, text) in [("there", here.text()), ("here", "here".to_owned())] {
            let nothing = Tried::nothing(surroundings.to_owned()).filled(&text);
            assert_eq!(nothing, Tried::nothing(surroundings.to_owned()));
        }
    }

    #[test]
    fn a_doubt_lasts() {
        let doubted = Tried { is_doubted: true, ..tried(&[7]) };
        assert!(!doubted.has(&[]) && tried(&[7]).has(&[]));
        let read = tried(&[]).filled(&doubted.text());
        assert!(read.is_doubted && read.devices.is_empty());
    }

    #[test]
    fn surroundings_are_a_line_and_the_same_again() {
        let found = surroundings().unwrap();
        assert!(!found.contains('\n') && found.contains("Seccomp"), "{found}");
        assert_eq!(surroundings(), Some(found));
    }
}
