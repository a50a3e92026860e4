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
            Err(Errno::EINTR) => {}
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

/// How many descriptors one message of a stream may carry.
pub const DESCRIPTORS_MAX: usize = 3;

/// Sends from the beginning of `bytes` on a stream and gives how many were taken; descriptors go with
/// the first of them.
pub fn send_stream(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    if fds.len() > DESCRIPTORS_MAX {
        return Err(Errno::E2BIG);
    }
    let mut iov = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control { room: [0; 32] };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let size = (fds.len() * size_of::<c_int>()) as u32;
        message.msg_control = (&raw mut control).cast();
        // SAFETY: arithmetic only.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as usize;
        // SAFETY: `control` has room for one header and DESCRIPTORS_MAX descriptors, and is aligned
        // for it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
            let data = libc::CMSG_DATA(header).cast::<c_int>();
            for (index, fd) in fds.iter().enumerate() {
                data.add(index).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: the message and all it points to are valid for the call.
        let done = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        match Errno::result(done) {
            Err(Errno::EINTR) => {}
            done => return done.map(|count| count as usize),
        }
    }
}

/// Receives what is there of a stream: its length and the descriptors that came with it,
/// close-on-exec. 0 bytes: the other side has ended it. What does not fit of the descriptors the
/// kernel never installs (unix(7), MSG_CTRUNC).
pub fn receive_stream(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), Errno> {
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
            Err(Errno::EINTR) => {}
            done => break done? as usize,
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the control buffer in; its headers and their data lie wholly
    // inside it, and each descriptor in them has just been given to us alone.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let size = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<c_int>();
                for index in 0..size / size_of::<c_int>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    Ok((count, fds))
}

/// A pidfd of the process that connected a unix socket (SO_PEERPIDFD, Linux 6.5). ENOPROTOOPT: this
/// kernel has no such thing; other errors: that process is gone.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const SO_PEERPIDFD: c_int = 77;
    let mut fd: c_int = -1;
    let mut size = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes one int at most.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &mut size,
        )
    };
    Errno::result(done)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
