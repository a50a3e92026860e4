//! Taking sockets from stopped guests.
//!
//! The sentry holds a copy of each and asks the kernel itself: a socket belongs to its own network
//! namespace, whoever uses it. What must be known of several sockets at once (who is connected to whom,
//! what is on its way between two) is settled once all have been seen ([`settle`]). Nothing is consumed:
//! queues are peeked at. What is changed for that, is put back at once: SO_PEEK_OFF, SO_PASSCRED, the
//! repair mode of TCP.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use libc::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET};
use nix::errno::Errno;
use serde_bytes::ByteBuf;

use crate::save::capture::collector::{Collector, Passed, Subject};
use crate::save::error::SaveError;
use crate::save::sockets::{Detail, Message, Socket, UnixState, options};
use crate::save::state::FileKind;
use crate::sentry::net::Network;
use crate::sys::{files, socket};

mod diag;
mod ids;
mod netlink;
mod outside;
mod queue;
mod tcp;
mod udp;
mod unix;

#[cfg(test)]
mod tests;

/// What a run's network is like.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// Connections that would be lost are refused; else they are saved as broken off.
    pub strict: bool,
    /// By which guests may hold connections of the host's network besides (`--net allow`).
    pub network: Option<Arc<Network>>,
    /// The sentry has sockets in the guests' own network (that, and `--publish`).
    pub takes_part: bool,
}

/// What is remembered of sockets while they are gone through.
#[derive(Debug, Default)]
pub struct Gathered {
    /// What is known of the network before anything is looked at.
    pub around: Around,
    /// How the guest's namespaces number things.
    ids: Option<ids::Ids>,
    /// Unix sockets of the guest's network namespace.
    listing: diag::Listing,
    /// Those of the host's, if any is met: what a guest has accepted belongs to that of who has connected
    /// (unix_stream_connect in net/unix/af_unix.c).
    listing_of_host: Option<diag::Listing>,
    /// Those whose connections nobody has accepted.
    unaccepted: HashSet<u64>,
    /// SO_NETNS_COOKIE of it, and of the host's own.
    namespace: Option<Vec<u8>>,
    of_host: Option<Vec<u8>>,
    /// They are one, so that connections may go outside.
    shares_host: bool,
    /// Lists sockets of it (NETLINK_SOCK_DIAG).
    lister: Option<OwnedFd>,
    /// The root of the guests' file view.
    root: Option<std::fs::File>,
    /// Root directories of guests that are others (chroot(2)), by path.
    roots: Vec<Vec<u8>>,
    /// A copy of each socket, by its id.
    held: HashMap<u64, Held>,
}

/// A socket that is being saved.
#[derive(Debug)]
struct Held {
    /// A copy.
    copy: OwnedFd,
    /// Who holds it.
    who: Whose,
}

/// Whose socket it is, for complaints: "process 12 (python3) (descriptor 5)".
#[derive(Debug, Clone)]
struct Whose(String);

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Whose {
    fn refuse(&self, what: impl fmt::Display) -> SaveError {
        SaveError::refused(format!("{self} holds {what}"))
    }

    /// The same of what is likely to be gone soon.
    fn refuse_for_now(&self, what: impl fmt::Display) -> SaveError {
        SaveError::passing(format!("{self} holds {what}"))
    }

    fn failed(&self, what: &'static str) -> impl Fn(Errno) -> SaveError {
        move |errno| SaveError::failed(format!("{self}: cannot {what}"), errno.desc())
    }
}

/// SO_NETNS_COOKIE, since Linux 5.14.
const SO_NETNS_COOKIE: i32 = 71;

/// A socket, by a copy of a descriptor of the subject's, or of one that lies in the queue of a socket of
/// its ([`Collector::passed`]). To be called once for each description. `who` is for complaints.
pub fn capture(
    subject: &mut Subject<'_>,
    who: String,
    copy: OwnedFd,
    collector: &mut Collector,
) -> Result<Socket, SaveError> {
    let view = collector.known.view_of(subject.pid);
    // (Without a view of its own nobody has been let have another root.)
    if collector.known.view.is_some() {
        collector.sockets.know_root(subject.pid);
    }
    collector.sockets.get_acquainted(subject, &view)?;
    take(Whose(who), copy, collector)
}

/// Brings together what is known of all sockets, when [`Collector::files`] and [`Collector::passed`] are
/// complete. Refuses what cannot be saved.
pub fn settle(collector: &mut Collector) -> Result<(), SaveError> {
    resolve_rights(collector)?;
    part_from_outside(collector)?;
    let Collector { files, sockets, .. } = collector;
    let all = files.iter_mut().filter_map(|file| match &mut file.kind {
        FileKind::Socket(socket) => Some(&mut **socket),
        _ => None,
    });
    tcp::settle(all.collect(), sockets)
}

fn resolve_rights(collector: &mut Collector) -> Result<(), SaveError> {
    let Collector { files, passed, .. } = collector;
    let late: Vec<bool> = files.iter().map(|file| comes_late(&file.kind)).collect();
    for file in files {
        let FileKind::Socket(socket) = &mut file.kind else { continue };
        let queue = match &mut socket.detail {
            Detail::Unix(unix) => &mut unix.queue,
            _ => continue,
        };
        for index in queue.iter_mut().flat_map(|message| &mut message.rights) {
            let known = passed.get(*index as usize).and_then(|it| it.file);
            *index = known.ok_or_else(|| {
                SaveError::refused("a descriptor in the queue of a socket was not captured")
            })?;
            if late.get(*index as usize) == Some(&true) {
                return Err(SaveError::passing(
                    "a descriptor of a process, of its files in /proc, of a namespace or of epoll waits in \
                     the queue of a socket, which cannot be saved; receive it first",
                ));
            }
        }
    }
    Ok(())
}

/// Whether a description is made again only after queues have been filled.
fn comes_late(kind: &FileKind) -> bool {
    match kind {
        FileKind::Pid(..) | FileKind::Epoll(_) | FileKind::Namespace(_) => true,
        FileKind::Path { path, .. } => path.starts_with(b"/proc/"),
        _ => false,
    }
}

/// Whoever a unix socket is connected to is there, or the connection ends.
fn part_from_outside(collector: &mut Collector) -> Result<(), SaveError> {
    let Collector { files, sockets: Gathered { held, around, .. }, .. } = collector;
    for file in files {
        let FileKind::Socket(socket) = &mut file.kind else { continue };
        let Some(of_it) = held.get(&socket.id) else { continue };
        let Detail::Unix(unix) = &mut socket.detail else { continue };
        match &mut unix.state {
            UnixState::Connected(peer) if !held.contains_key(peer) => {
                unix::part(of_it, socket, around)?;
            }
            UnixState::Listening { pending, .. } => {
                let before = pending.len();
                pending.retain(|peer| held.contains_key(peer));
                if pending.len() < before {
                    unix::refuse_if_strict(&of_it.who, None, around)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

impl Gathered {
    /// Asks for what is the same for all sockets, once. `view`: where the guests' file view is.
    fn get_acquainted(&mut self, subject: &mut Subject<'_>, view: &str) -> Result<(), SaveError> {
        if self.ids.is_some() {
            return Ok(());
        }
        let who = format!("process {}", subject.guest_pid);
        let kind = (libc::SOCK_RAW | libc::SOCK_CLOEXEC) as u64;
        // NETLINK_SOCK_DIAG is 4.
        let fd = subject
            .hand
            .call(libc::SYS_socket, [AF_NETLINK as u64, kind, 4])
            .map_err(SaveError::of(&who))?;
        let copy = socket::copy_descriptor(subject.pid, fd as i32);
        subject.hand.call(libc::SYS_close, [fd]).map_err(SaveError::of(&who))?;
        let failed = |errno: Errno| {
            SaveError::failed("cannot list the unix sockets of the sandbox", errno.desc())
        };
        let copy = copy.map_err(failed)?;
        self.listing = diag::list(copy.as_fd()).map_err(failed)?;
        let pending = self.listing.values().flat_map(|entry| &entry.pending);
        self.unaccepted = pending.map(|id| u64::from(*id)).collect();
        self.namespace = namespace(copy.as_fd());
        let own = socket::socket(AF_UNIX, SOCK_DGRAM, 0).ok();
        let own = own.and_then(|own| namespace(own.as_fd()));
        self.shares_host = own.is_some() && own == self.namespace;
        self.root = std::fs::File::open(view).ok();
        self.of_host = own;
        self.lister = Some(copy);
        self.ids = Some(ids::Ids::of(subject.pid));
        Ok(())
    }

    /// What the kernel says of a unix socket, if it is one of the guest's or of the host's network.
    fn entry(&self, id: u64) -> Option<&diag::Entry> {
        let of_host = || self.listing_of_host.as_ref()?.get(&id);
        self.listing.get(&id).or_else(of_host)
    }

    fn know_host(&mut self) -> Result<(), Errno> {
        if self.listing_of_host.is_none() {
            let own = socket::socket(AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)?;
            self.listing_of_host = Some(diag::list(own.as_fd())?);
        }
        Ok(())
    }

    /// Where else than from the root of all names may lead from.
    fn know_root(&mut self, pid: i32) {
        let root = std::fs::read_link(format!("/proc/{pid}/root")).unwrap_or_default();
        let root = root.into_os_string().into_vec();
        if !matches!(&root[..], b"" | b"/") && !self.roots.contains(&root) {
            self.roots.push(root);
        }
    }

    fn ids(&self) -> &ids::Ids {
        const NONE: &ids::Ids = &ids::Ids::NONE;
        self.ids.as_ref().unwrap_or(NONE)
    }
}

fn namespace(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    socket::option(fd, SOL_SOCKET, SO_NETNS_COOKIE, 8).ok()
}

fn take(who: Whose, copy: OwnedFd, collector: &mut Collector) -> Result<Socket, SaveError> {
    let fd = copy.as_fd();
    let of = |name| options::get(fd, SOL_SOCKET, name).map_err(who.failed("ask the socket"));
    let (family, kind, protocol) =
        (of(libc::SO_DOMAIN)?, of(libc::SO_TYPE)?, of(libc::SO_PROTOCOL)?);
    let (_, id) = files::identity(fd).map_err(who.failed("ask the socket"))?;
    let belongs_to = namespace(fd);
    let is_inside = belongs_to == collector.sockets.namespace;
    let is_tcp = matches!(family, AF_INET | AF_INET6)
        && (kind, protocol) == (SOCK_STREAM, libc::IPPROTO_TCP);
    let is_outside = !is_inside
        && is_tcp
        && collector.sockets.around.network.is_some()
        && belongs_to == collector.sockets.of_host;
    let is_accepted = !is_inside
        && (family == AF_UNIX && kind != SOCK_DGRAM)
        && belongs_to == collector.sockets.of_host
        && socket::peer_name(fd).is_ok();
    if is_accepted {
        collector.sockets.know_host().map_err(who.failed("list the host's unix sockets"))?;
    }
    if !is_inside && !is_outside && !is_accepted {
        return Err(who.refuse(
            "a socket of another network namespace, which cannot be saved; close it first",
        ));
    }
    let mut saved = Socket {
        id,
        family,
        kind,
        protocol,
        options: options::read(fd, family, kind),
        filter: ByteBuf::from(filter(&who, fd)?),
        shutdown: 0,
        detail: Detail::Netlink(netlink::none()),
    };
    let gathered = &collector.sockets;
    let passed = &mut collector.passed;
    saved.detail = match (family, kind, protocol) {
        (AF_UNIX, ..) => {
            let (unix, shutdown) = unix::capture(&who, fd, id, kind, gathered, passed)?;
            saved.shutdown = shutdown;
            Detail::Unix(unix)
        }
        (AF_INET | AF_INET6, SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => {
            let (tcp, shutdown) = match is_outside {
                true => outside::capture(&who, fd, &gathered.around)?,
                false => {
                    let (tcp, shutdown) = tcp::capture(&who, fd, protocol)?;
                    (outside::where_to(tcp, fd, &gathered.around), shutdown)
                }
            };
            saved.shutdown = shutdown;
            Detail::Tcp(tcp)
        }
        (AF_INET | AF_INET6, SOCK_DGRAM, libc::IPPROTO_UDP) => {
            saved.shutdown = udp::closed(fd);
            Detail::Udp(udp::capture(&who, fd)?)
        }
        (AF_NETLINK, ..) => Detail::Netlink(netlink::capture(&who, fd)?),
        _ => {
            return Err(
                who.refuse(format!("{}, which cannot be saved; close it first", name(&saved)))
            );
        }
    };
    collector.sockets.held.insert(id, Held { copy, who });
    Ok(saved)
}

fn name(socket: &Socket) -> String {
    match (socket.family, socket.kind, socket.protocol) {
        (AF_INET | AF_INET6, libc::SOCK_RAW, _) => "a raw socket".into(),
        (AF_INET | AF_INET6, SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => {
            "a ping socket".into()
        }
        (libc::AF_PACKET, ..) => "a packet socket".into(),
        (family, kind, protocol) => {
            format!("a socket of family {family}, type {kind}, protocol {protocol}")
        }
    }
}

fn filter(who: &Whose, fd: BorrowedFd<'_>) -> Result<Vec<u8>, SaveError> {
    match socket::filter(fd) {
        Ok(filter) => Ok(filter),
        Err(Errno::EACCES) => {
            Err(who.refuse("a socket with an eBPF filter, which cannot be saved; detach it first"))
        }
        // Not all sockets have filters.
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(Vec::new()),
        Err(errno) => Err(who.failed("read the socket's filter")(errno)),
    }
}

/// Marks descriptors that were found in a queue; the message has their places in the list.
fn remember(passed: &mut Vec<Passed>, message: &mut Message, rights: Vec<OwnedFd>) {
    for fd in rights {
        message.rights.push(passed.len() as u32);
        passed.push(Passed { fd, file: None });
    }
}
