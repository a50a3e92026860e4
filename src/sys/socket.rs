//! Sockets as save and restore need them: options, addresses and messages as bytes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void, pid_t, socklen_t};
use nix::errno::Errno;

/// The most descriptors of one message (SCM_MAX_FD in include/net/scm.h).
const MOST_RIGHTS: usize = 253;
/// Bytes for control messages: those descriptors, credentials, and what else a socket was told to add.
const CONTROL: usize = 4096;
/// struct cmsghdr of a 64-bit kernel.
const HEADER: usize = 16;
/// include/uapi/linux/sockios.h: _IO(SIOCPROTOPRIVATE, 0) of unix sockets.
const SIOCUNIXFILE: libc::c_ulong = 0x89e0;

/// A copy of descriptor `fd` of process `pid` (pidfd_getfd(2)).
pub fn copy_descriptor(pid: pid_t, fd: RawFd) -> Result<OwnedFd, Errno> {
    let pidfd = super::process::pidfd_open(pid, false)?;
    // SAFETY: plain numbers.
    let copy =
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as c_int) })
}

/// getsockopt(2): at most `room` bytes.
pub fn option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    room: usize,
) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; room];
    let mut length = room as socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which `bytes` has.
    Errno::result(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, bytes.as_mut_ptr().cast(), &mut length)
    })?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

/// setsockopt(2). No option that carries a pointer: see [`set_filter`].
pub fn set_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> Result<(), Errno> {
    let carries_pointer = level == libc::SOL_SOCKET
        && matches!(name, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF);
    if carries_pointer {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the kernel reads `value.len()` bytes of `value`, and no pointers among them.
    Errno::result(unsafe {
        let length = value.len() as socklen_t;
        libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), length)
    })
    .map(drop)
}

/// Bytes of an instruction of a filter (struct sock_filter).
const INSTRUCTION: usize = 8;

/// The filter of a socket as instructions; empty: it has none (sk_get_filter in net/core/filter.c: the
/// length counts instructions). EACCES: it is not a classic one.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let name = libc::SO_GET_FILTER;
    let mut count: socklen_t = 0;
    // SAFETY: with a length of 0 the kernel only says how many there are.
    Errno::result(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, std::ptr::null_mut(), &mut count)
    })?;
    let mut bytes = vec![0u8; count as usize * INSTRUCTION];
    if count > 0 {
        // SAFETY: `bytes` has room for `count` instructions.
        Errno::result(unsafe {
            let into = bytes.as_mut_ptr().cast();
            libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, into, &mut count)
        })?;
    }
    Ok(bytes)
}

/// Attaches a classic filter.
pub fn set_filter(fd: BorrowedFd<'_>, instructions: &[u8]) -> Result<(), Errno> {
    let words = instructions.chunks_exact(INSTRUCTION);
    let mut program: Vec<libc::sock_filter> = words
        .map(|it| libc::sock_filter {
            code: u16::from_ne_bytes([it[0], it[1]]),
            jt: it[2],
            jf: it[3],
            k: u32::from_ne_bytes([it[4], it[5], it[6], it[7]]),
        })
        .collect();
    let length = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let whole = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `whole` points to `length` instructions, which the kernel only reads and checks.
    Errno::result(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const whole).cast(),
            size_of::<libc::sock_fprog>() as socklen_t,
        )
    })
    .map(drop)
}

type NameCall = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut socklen_t) -> c_int;

fn name_by(call: NameCall, fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; size_of::<libc::sockaddr_storage>()];
    let mut length = bytes.len() as socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which `bytes` has.
    Errno::result(unsafe { call(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &mut length) })?;
    bytes.truncate(length as usize);
    Ok(bytes)
}

/// getsockname(2): the address, its family in front.
pub fn name(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    name_by(libc::getsockname, fd)
}

/// getpeername(2).
pub fn peer_name(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    name_by(libc::getpeername, fd)
}

/// bind(2).
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let length = address.len() as socklen_t;
    // SAFETY: the kernel reads `length` bytes.
    Errno::result(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), length) }).map(drop)
}

/// connect(2).
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<(), Errno> {
    let length = address.len() as socklen_t;
    // SAFETY: the kernel reads `length` bytes.
    Errno::result(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), length) })
        .map(drop)
}

/// listen(2).
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> Result<(), Errno> {
    let backlog = backlog.min(c_int::MAX as u32) as c_int;
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// shutdown(2).
pub fn shut_down(fd: BorrowedFd<'_>, how: c_int) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    Errno::result(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// accept4(2).
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let (no_address, no_length) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: no address is asked for.
    let made = Errno::result(unsafe {
        libc::accept4(fd.as_raw_fd(), no_address, no_length, libc::SOCK_CLOEXEC)
    })?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// socket(2) in the caller's own network namespace.
pub fn socket(family: c_int, kind: c_int, protocol: c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers.
    let made = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// The number of a network interface of the caller's network namespace (if_nametoindex(3)).
pub fn interface(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a string that ends with a NUL.
    let number = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (number != 0).then_some(number)
}

/// The addresses of the interfaces of the caller's network namespace (getifaddrs(3)).
pub fn own_addresses() -> Result<Vec<std::net::IpAddr>, Errno> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the library writes one pointer.
    Errno::result(unsafe { libc::getifaddrs(&raw mut first) })?;
    let (mut found, mut at) = (Vec::new(), first);
    while !at.is_null() {
        // SAFETY: the library's list, which lives until it is freed below.
        let (address, next) = unsafe { ((*at).ifa_addr, (*at).ifa_next) };
        if !address.is_null() {
            // SAFETY: an address begins with its family, and is as long as that says.
            match i32::from(unsafe { (*address).sa_family }) {
                libc::AF_INET => {
                    // SAFETY: as above.
                    let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
                    found.push(
                        std::net::Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr)).into(),
                    );
                }
                libc::AF_INET6 => {
                    // SAFETY: as above.
                    let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
                    found.push(std::net::Ipv6Addr::from(v6.sin6_addr.s6_addr).into());
                }
                _ => {}
            }
        }
        at = next;
    }
    // SAFETY: the list is the library's, and nothing of it is kept.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// A socket on which the kernel tells when addresses, interfaces, routes or the rules that choose among those change in
/// the caller's network namespace (rtnetlink(7)).
pub fn routing_changes() -> Result<OwnedFd, Errno> {
    // RTNLGRP_IPV6_RULE of include/uapi/linux/rtnetlink.h, which has no name as a bit.
    const RTMGRP_IPV6_RULE: c_int = 1 << 18;
    const GROUPS: c_int = libc::RTMGRP_LINK
        | libc::RTMGRP_IPV4_IFADDR
        | libc::RTMGRP_IPV4_ROUTE
        | libc::RTMGRP_IPV4_RULE
        | libc::RTMGRP_IPV6_IFADDR
        | libc::RTMGRP_IPV6_ROUTE
        | RTMGRP_IPV6_RULE;
    let fd = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    // struct sockaddr_nl
    let mut groups = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
    groups.resize(8, 0);
    groups.extend(GROUPS.to_ne_bytes());
    bind(fd.as_fd(), &groups)?;
    Ok(fd)
}

/// How many bytes can be read (SIOCINQ).
pub fn to_read(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    count(fd, libc::FIONREAD)
}

/// How many bytes were sent and are still the sender's to keep (SIOCOUTQ).
pub fn to_send(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    count(fd, libc::TIOCOUTQ)
}

fn count(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Result<u32, Errno> {
    let mut count: c_int = 0;
    // SAFETY: both requests write one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &mut count) })?;
    Ok(count.unsigned_abs())
}

/// The file that a unix socket is bound to, as an O_PATH descriptor (unix_open_file in
/// net/unix/af_unix.c: for who has CAP_NET_ADMIN over the socket's network namespace).
pub fn bound_file(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: the request takes no argument.
    let file = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE as _, 0) })?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// What the kernel calls the protocol of another process's socket (sockfs_xattr_get in net/socket.c).
pub fn protocol_name(pid: pid_t, fd: RawFd) -> Result<String, Errno> {
    let link = std::ffi::CString::new(format!("/proc/{pid}/fd/{fd}")).map_err(|_| Errno::EINVAL)?;
    let (name, mut value) = (c"system.sockprotoname", [0u8; 64]);
    // SAFETY: both strings are NUL-terminated, and the kernel writes at most what `value` has room for.
    let length = Errno::result(unsafe {
        libc::getxattr(link.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    })?;
    let name = value.get(..length as usize).unwrap_or_default();
    Ok(String::from_utf8_lossy(name).trim_end_matches('\0').to_ascii_lowercase())
}

/// What is the matter with a socket now (poll(2)), all events asked for.
pub fn events(fd: BorrowedFd<'_>) -> Result<libc::c_short, Errno> {
    let asked = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: asked, revents: 0 };
    // SAFETY: one valid entry; it does not wait.
    Errno::result(unsafe { libc::poll(&mut entry, 1, 0) })?;
    Ok(entry.revents)
}

/// A message.
#[derive(Debug, Default)]
pub struct Received {
    /// Its bytes, as far as there was room.
    pub bytes: Vec<u8>,
    /// How long it is.
    pub length: usize,
    /// The sender's address; empty: none.
    pub from: Vec<u8>,
    /// Descriptors.
    pub rights: Vec<OwnedFd>,
    /// pid, uid, gid.
    pub credentials: Option<(i32, u32, u32)>,
}

/// recvmsg(2) of at most `room` bytes.
pub fn receive(fd: BorrowedFd<'_>, room: usize, flags: c_int) -> Result<Received, Errno> {
    let mut bytes = vec![0u8; room];
    let mut from = vec![0u8; size_of::<libc::sockaddr_storage>()];
    // Words, so that headers are aligned.
    let mut control = vec![0u64; CONTROL / 8];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = from.as_mut_ptr().cast();
    message.msg_namelen = from.len() as socklen_t;
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let length = loop {
        // SAFETY: the message and all it points to are valid for the call.
        match Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, flags) }) {
            Err(Errno::EINTR) => {}
            done => break done? as usize,
        }
    };
    bytes.truncate(length);
    from.truncate(message.msg_namelen as usize);
    let mut received = Received { bytes, length, from, ..Received::default() };
    let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    received.take_control(&control[..message.msg_controllen.min(CONTROL)]);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::EMSGSIZE);
    }
    Ok(received)
}

/// How many bytes wait in buffers of the kernel that lie in the first `room` bytes as a whole, which are
/// looked at and stay. EFAULT: the first does not. For a stream of unix sockets.
pub fn peek_whole_buffers(fd: BorrowedFd<'_>, room: usize) -> Result<usize, Errno> {
    let mut bytes = vec![0u8; room];
    // Nothing is ever mapped at address 1 (mmap_min_addr in proc_sys_vm(5)), so copying ends in front of it.
    let nowhere = std::ptr::without_provenance_mut::<c_void>(1);
    let mut vectors = [
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: room },
        libc::iovec { iov_base: nowhere, iov_len: 1 << 20 },
    ];
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the first vector has room for what it says, and the kernel checks the second.
    let done = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, flags) };
    Errno::result(done).map(|count| count as usize)
}

impl Received {
    /// What came beside the bytes. The control messages are the kernel's own, just written by it.
    fn take_control(&mut self, mut control: &[u8]) {
        while let Some(header) = control.get(..HEADER) {
            let length = half(header, 0) as usize;
            let (level, kind) = (half(header, 2) as c_int, half(header, 3) as c_int);
            let Some(data) = control.get(HEADER..length) else { return };
            match (level, kind) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    let numbers = data.chunks_exact(4).map(|it| half(it, 0) as c_int);
                    // SAFETY: the kernel has just given these descriptors to us alone.
                    self.rights.extend(numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if data.len() >= 12 => {
                    self.credentials = Some((half(data, 0) as i32, half(data, 1), half(data, 2)));
                }
                _ => {}
            }
            control = control.get(length.next_multiple_of(8)..).unwrap_or_default();
        }
    }
}

fn half(bytes: &[u8], index: usize) -> u32 {
    let at = index * 4;
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What is to be sent.
#[derive(Debug, Default)]
pub struct Sent<'s> {
    /// The bytes.
    pub bytes: &'s [u8],
    /// To whom; empty: to whom the socket is connected.
    pub to: &'s [u8],
    /// Descriptors.
    pub rights: Vec<BorrowedFd<'s>>,
}

/// sendmsg(2), without waiting.
pub fn send(fd: BorrowedFd<'_>, what: &Sent<'_>) -> Result<usize, Errno> {
    if what.rights.len() > MOST_RIGHTS {
        return Err(Errno::EINVAL);
    }
    let mut vector =
        libc::iovec { iov_base: what.bytes.as_ptr().cast_mut().cast(), iov_len: what.bytes.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    if !what.to.is_empty() {
        message.msg_name = what.to.as_ptr().cast_mut().cast::<c_void>();
        message.msg_namelen = what.to.len() as socklen_t;
    }
    message.msg_iov = &mut vector;
    message.msg_iovlen = 1;
    let mut control: Vec<u64> = Vec::new();
    if !what.rights.is_empty() {
        let length = HEADER + 4 * what.rights.len();
        let mut bytes = rights_header(length);
        bytes.extend(what.rights.iter().flat_map(|it| it.as_raw_fd().to_ne_bytes()));
        bytes.resize(length.next_multiple_of(8), 0);
        let word = |it: &[u8]| u64::from(half(it, 0)) | u64::from(half(it, 1)) << 32;
        control.extend(bytes.chunks_exact(8).map(word));
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = length;
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    loop {
        // SAFETY: the message and all it points to are valid for the call, and only read.
        match Errno::result(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, flags) }) {
            Err(Errno::EINTR) => {}
            done => return done.map(|count| count as usize),
        }
    }
}

fn rights_header(length: usize) -> Vec<u8> {
    let mut bytes = (length as u64).to_ne_bytes().to_vec();
    bytes.extend(libc::SOL_SOCKET.to_ne_bytes());
    bytes.extend(libc::SCM_RIGHTS.to_ne_bytes());
    bytes
}
