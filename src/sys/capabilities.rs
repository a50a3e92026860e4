//! Capabilities of the calling thread (capabilities(7)). Child side throughout.

use libc::c_int;
use nix::errno::Errno;

/// struct __user_cap_header_struct (capget(2)).
#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

/// struct __user_cap_data_struct; version 3 has two, the lower 32 capabilities first.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Data {
    pub(super) effective: u32,
    pub(super) permitted: u32,
    pub(super) inheritable: u32,
}

fn header() -> Header {
    const VERSION_3: u32 = 0x2008_0522;
    Header { version: VERSION_3, pid: 0 }
}

/// Which it has.
pub(super) fn get() -> Result<[Data; 2], Errno> {
    let (header, mut data) = (header(), [Data::default(); 2]);
    // SAFETY: version 3 takes a header and two data elements, which the kernel fills in.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    Errno::result(done).map(|_| data)
}

/// It has these from here on.
pub(super) fn set(data: &[Data; 2]) -> Result<(), Errno> {
    let header = header();
    // SAFETY: version 3 takes a header and two data elements, which the kernel only reads.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(done).map(drop)
}
