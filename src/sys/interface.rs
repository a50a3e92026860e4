//! Questions about network interfaces (netdevice(7)), as bytes.

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_ulong};
use nix::errno::Errno;

/// Bytes of struct ifreq.
pub const ABOUT: usize = size_of::<libc::ifreq>();
/// Asks for all addresses (include/uapi/linux/sockios.h).
pub const SIOCGIFCONF: u32 = 0x8912;

/// Those that say and get all in a struct ifreq: SIOCGIFNAME, -FLAGS, -ADDR, -DSTADDR, -BRDADDR, -NETMASK, -METRIC, -MTU,
/// -HWADDR, -INDEX, -TXQLEN, -MAP.
const QUESTIONS: [u32; 12] = [
    0x8910, 0x8913, 0x8915, 0x8917, 0x8919, 0x891b, 0x891d, 0x8921, 0x8927, 0x8933, 0x8942, 0x8970,
];

/// Whether [`ask`] knows a request.
pub fn is_question(request: u32) -> bool {
    QUESTIONS.contains(&request)
}

/// Asks about an interface of the network that a socket belongs to; `about`, a struct ifreq, says which and becomes the
/// answer. EINVAL: it is no such question.
pub fn ask(fd: BorrowedFd<'_>, request: u32, about: &mut [u8; ABOUT]) -> Result<(), Errno> {
    if !is_question(request) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: these requests read and write a struct ifreq, which `about` has room for, and follow no pointer in it.
    let done =
        unsafe { libc::ioctl(fd.as_raw_fd(), c_ulong::from(request) as _, about.as_mut_ptr()) };
    Errno::result(done).map(drop)
}

/// The addresses of the network that a socket belongs to, a struct ifreq each; as many as there is room for.
pub fn list(fd: BorrowedFd<'_>, room: usize) -> Result<Vec<u8>, Errno> {
    // struct ifconf
    #[repr(C)]
    struct Wanted {
        length: c_int,
        place: *mut u8,
    }
    let mut found = vec![0; room];
    let length = c_int::try_from(room).map_err(|_| Errno::EINVAL)?;
    // (No place at all would ask for the length.)
    if room == 0 {
        return Ok(found);
    }
    let mut wanted = Wanted { length, place: found.as_mut_ptr() };
    // SAFETY: the kernel writes at most `length` bytes to the place, which has them.
    let done =
        unsafe { libc::ioctl(fd.as_raw_fd(), c_ulong::from(SIOCGIFCONF) as _, &raw mut wanted) };
    Errno::result(done)?;
    found.truncate(usize::try_from(wanted.length).unwrap_or(0));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_loopback_is_found_in_every_way() {
        let any = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let all = list(any.as_fd(), 64 << 10).unwrap();
        assert!(all.chunks(ABOUT).any(|it| it.starts_with(b"lo\0")), "{all:?}");
        assert_eq!(list(any.as_fd(), ABOUT - 1), Ok(Vec::new()));
        let mut about = [0; ABOUT];
        about[..2].copy_from_slice(b"lo");
        // SIOCGIFINDEX, and back: SIOCGIFNAME.
        ask(any.as_fd(), 0x8933, &mut about).unwrap();
        assert_eq!(about[16..20], 1i32.to_ne_bytes());
        about[..2].fill(0);
        ask(any.as_fd(), 0x8910, &mut about).unwrap();
        assert!(about.starts_with(b"lo\0"));
        about[..2].copy_from_slice(b"--");
        assert_eq!(ask(any.as_fd(), 0x8913, &mut about), Err(Errno::ENODEV));
        assert_eq!(ask(any.as_fd(), 0x8946, &mut about), Err(Errno::EINVAL));
    }
}
