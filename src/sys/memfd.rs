//! Anonymous files and memory shared with a forked child.

use std::ffi::CStr;
use std::fs::File;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file that has no name in any directory (memfd_create(2)).
pub fn anonymous_file(name: &CStr) -> Result<File, Errno> {
    memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from)
}
