//! Where guests want to send something, watched for `sandbox learn`. All continue: the network of the run, or its
//! absence, decides. sendmsg(2) is not watched: init hands the listener over by it, when the filter is in force and
//! nobody answers yet.

use std::net::SocketAddr;

use crate::notify::GuestMemory;
use crate::sentry::kernel::Kernel;
use crate::sentry::net::parse_address;

/// The address that a `struct msghdr` begins with (sendmsg(2)).
pub(super) fn of_message(memory: &GuestMemory<'_>, message: u64) -> Option<SocketAddr> {
    let mut head = [0; 12];
    if message == 0 {
        return None;
    }
    memory.read(message, &mut head).ok()?;
    let [name, length] = [&head[..8], &head[8..]];
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, it| sum << 8 | u64::from(*it));
    read(memory, number(name), number(length) as i64)
}

/// Notes the address of a call.
pub(super) fn note(kernel: &Kernel, memory: &GuestMemory<'_>, address: u64, length: i64) {
    if let Some(address) = read(memory, address, length) {
        kernel.note_address(address);
    }
}

/// An address of the internet in the guest's memory, if it is one.
fn read(memory: &GuestMemory<'_>, address: u64, length: i64) -> Option<SocketAddr> {
    let mut bytes = [0; size_of::<libc::sockaddr_in6>()];
    let length = usize::try_from(length).unwrap_or(0).min(bytes.len());
    if address == 0 {
        return None;
    }
    memory.read(address, &mut bytes[..length]).ok()?;
    parse_address(&bytes[..length])
}
