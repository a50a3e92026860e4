//! Messages with at most one descriptor over a unix socket, without allocation (unix(7)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, cmsghdr, iovec, msghdr};
use nix::errno::Errno;

/// Room for one SCM_RIGHTS message with one descriptor, aligned as the kernel wants it.
#[repr(C)]
union Control {
    header: cmsghdr,
    room: [u8; 32],
}

/// Sends `bytes` as one message, with a descriptor where one is given. Child side.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut iov = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control { room: [0; 32] };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    if let Some(fd) = fd {
        message.msg_control = (&raw mut control).cast();
        // SAFETY: arithmetic only.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<c_int>() as u32) } as usize;
        // SAFETY: `control` has room for one header and one descriptor, and is aligned for it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as usize;
            libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(fd.as_raw_fd());
        }
    }
    loop {
        // SAFETY: the message and all it points to are valid for the call.
        let done = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        match Errno::result(done) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop),
        }
    }
}

/// Receives one message: its length and its descriptor. 0 bytes: the other side is gone. Child side.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut iov = iovec { iov_base: into.as_mut_ptr().cast::<c_void>(), iov_len: into.len() };
    let mut control = Control { room: [0; 32] };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    let count = loop {
        // SAFETY: the message and all it points to are valid for the call.
        let done =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        match Errno::result(done) {
            // The other side has closed with a message of ours unread (unix_release_sock). That is
            // told once, ahead of what it had sent before.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            done => break done? as usize,
        }
    };
    // SAFETY: the kernel has filled the control buffer in; a header lies wholly inside it.
    let fd = unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        let ours = !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS;
        ours.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<c_int>().read_unaligned()))
    };
    Ok((count, fd))
}

/// The two ends of a sequenced-packet socket, close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors to the array.
    Errno::result(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    // SAFETY: the kernel has just given both to us alone.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}
