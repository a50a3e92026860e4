//! Messages with a few descriptors over a unix socket, without allocation (unix(7)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, cmsghdr, iovec, msghdr};
use nix::errno::Errno;

/// The most descriptors of one message.
pub const MOST: usize = 6;

/// The flags of each message that is sent: no signal where the other side is gone. The rest says nothing to sockets of
/// this kind, and tells these messages from those of programs.
pub const FLAGS: c_int = libc::MSG_NOSIGNAL | libc::MSG_EOR | libc::MSG_CONFIRM;

/// Room for one SCM_RIGHTS message with `MOST` descriptors, aligned as the kernel wants it.
#[repr(C)]
union Control {
    header: cmsghdr,
    room: [u8; 64],
}

const _: () = assert!(size_of::<cmsghdr>() + MOST * size_of::<c_int>() <= 64);

/// The descriptors of a message, in order.
pub type Descriptors = [Option<OwnedFd>; MOST];

/// Sends `bytes` as one message with these descriptors, at most `MOST`. Child side.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    transmit(socket, bytes, descriptors).map(drop)
}

fn transmit(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    if descriptors.len() > MOST {
        return Err(Errno::E2BIG);
    }
    let mut iov = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control { room: [0; 64] };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let length = size_of_val(descriptors) as u32;
        message.msg_control = (&raw mut control).cast();
        // SAFETY: arithmetic only.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as usize;
        // SAFETY: `control` has room for one header and `MOST` descriptors, and is aligned for it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
            let data = libc::CMSG_DATA(header).cast::<c_int>();
            for (index, fd) in descriptors.iter().enumerate() {
                data.add(index).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    loop {
        // SAFETY: the message and all it points to are valid for the call.
        let done = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, FLAGS) };
        match Errno::result(done) {
            Err(Errno::EINTR) => {}
            done => return done.map(|count| count as usize),
        }
    }
}

/// Receives one message: its length and its descriptors. 0 bytes: the other side is gone. EMSGSIZE: it
/// had more descriptors than there is room for. Child side.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<(usize, Descriptors), Errno> {
    let mut iov = iovec { iov_base: into.as_mut_ptr().cast::<c_void>(), iov_len: into.len() };
    let mut control = Control { room: [0; 64] };
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
    let descriptors = received(&message);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::EMSGSIZE);
    }
    Ok((count, descriptors))
}

/// Takes over what the kernel has installed; more than `MOST` are closed.
fn received(message: &msghdr) -> Descriptors {
    let mut descriptors = Descriptors::default();
    // SAFETY: the kernel has filled the control buffer in; a header lies wholly inside it, and its
    // length says how many descriptors follow it. Each of them has just been given to us alone.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        if header.is_null()
            || (*header).cmsg_level != libc::SOL_SOCKET
            || (*header).cmsg_type != libc::SCM_RIGHTS
        {
            return descriptors;
        }
        let room = (*header).cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
        let data = libc::CMSG_DATA(header).cast::<c_int>();
        for index in 0..room / size_of::<c_int>() {
            let fd = OwnedFd::from_raw_fd(data.add(index).read_unaligned());
            if let Some(place) = descriptors.get_mut(index) {
                *place = Some(fd);
            }
        }
    }
    descriptors
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
    if fds.len() > DESCRIPTORS_MAX { Err(Errno::E2BIG) } else { transmit(socket, bytes, fds) }
}

/// Receives what is there of a stream: its length and the descriptors that came with it,
/// close-on-exec. 0 bytes: the other side has ended it.
pub fn receive_stream(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let (count, descriptors) = receive(socket, into)?;
    Ok((count, descriptors.into_iter().flatten().collect()))
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
