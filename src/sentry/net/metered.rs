//! TCP connections out of a run whose traffic is limited: the sentry carries them.
//!
//! What a guest sends on a socket of the host's network nobody can slow down or count in time. So here its own socket
//! stays in the guests' network, and is connected to one of the sentry's there, which is bound to the address of the
//! outside; that the loopback is lent. Between that one and a connection outside bytes are carried as for published
//! ports ([`pump`](super::publish::pump)).
//!
//! The guest's socket has to be on its way for as long as the connection outside is, and come to the same end. So its
//! address is *dark* at first: somebody listens there whose queue is full, so that the kernel drops what asks for a
//! connection (tcp_conn_request in net/ipv4/tcp_input.c), and asks again. Once the connection outside stands, the
//! sentry connects a socket of that address to the guest's: both have asked then, which is a connection as well
//! (a simultaneous open: tcp_rcv_synsent_state_process). If it fails, the guest's kernel is told by the message that a
//! router would send (tcp_v4_err in net/ipv4/tcp_ipv4.c, tcp_v6_err).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::address::{self, family};
use super::guest_socket::GuestSocket;
use super::inside::{Inside, Lent};
use super::meter::{Allowance, Meter};
use super::publish::{Course, Limits, Shared, pump};
use super::{OWN_V4, OWN_V6, unreachable};
use crate::sys::{errno_of, socket};

/// Connections at a time, where descriptors allow that.
const MOST: u64 = 1024;
/// Descriptors of a connection at most: two sockets, and a pipe for each way while something is on it; before that one
/// socket, and two of the address that is dark for it. And one to spare.
const DESCRIPTORS: u64 = 7;
/// The guest's kernel gives a connection up when the host's does, and begins a moment later.
const LATER: Duration = Duration::from_secs(10);

/// Carries connections out.
#[derive(Debug)]
pub struct Metered {
    meter: Arc<Meter>,
    inside: Arc<Inside>,
    orders: mpsc::UnboundedSender<Order>,
    places: Arc<Semaphore>,
    led: Arc<Led>,
    /// Those to which connections are on their way. Taken before what is in `inside`.
    dark: Mutex<HashMap<SocketAddr, Weak<Dark>>>,
}

/// A connection outside that has been begun, and the guest's socket that waits for it.
#[derive(Debug)]
pub(super) struct Order {
    outer: OwnedFd,
    target: SocketAddr,
    dark: Arc<Dark>,
    waiting: Waiting,
    held: (Listed, OwnedSemaphorePermit),
}

/// The guests' sockets whose connections are led out, by their cookies, and where to. A leaf of the lock order.
#[derive(Debug, Default)]
struct Led(Mutex<HashMap<u64, (Waiting, SocketAddr)>>);

impl Led {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, (Waiting, SocketAddr)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of these, until it is dropped.
#[derive(Debug)]
struct Listed {
    led: Arc<Led>,
    cookie: u64,
    waiting: Waiting,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut all = self.led.all();
        // (A socket whose connection has failed may have begun another one.)
        if all.get(&self.cookie).is_some_and(|(waiting, _)| *waiting == self.waiting) {
            all.remove(&self.cookie);
        }
    }
}

/// What tells a guest's socket from others, as segments do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) address: SocketAddr,
    /// The number of its first segment.
    pub(super) number: u32,
}

/// An address where whoever asks for a connection gets no answer.
#[derive(Debug)]
struct Dark {
    _listening: OwnedFd,
    /// What fills the queue.
    _first: OwnedFd,
    /// (The last to go: sockets that are bound to it come first.)
    lent: Option<Arc<Lent>>,
}

impl Metered {
    /// For a run with such limits; and what its thread is given.
    pub fn new(allowance: Allowance, inside: Arc<Inside>) -> (Metered, Limits) {
        let (orders, received) = mpsc::unbounded_channel();
        let meter = Arc::new(Meter::new(allowance));
        let limits = Limits { meter: Arc::clone(&meter), orders: received };
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        // (The sentry needs some itself, and published ports take their share.)
        let places = (limit / 4 / DESCRIPTORS).clamp(8, MOST);
        let places = Arc::new(Semaphore::new(places as usize));
        let (led, dark) = (Arc::default(), Mutex::default());
        (Metered { meter, inside, orders, places, led, dark }, limits)
    }

    /// What has been carried so far.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Where the connection of a guest's socket is led to, which may still be on its way; `None`: it is none of these.
    pub(super) fn destination(&self, cookie: u64) -> Option<SocketAddr> {
        self.led.all().get(&cookie).map(|(_, target)| *target)
    }

    /// The addresses of the guests' sockets whose connections are led out, and where to.
    pub(super) fn led(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.led.all().values().map(|(waiting, target)| (waiting.address, *target)).collect()
    }

    /// Room for one more connection. EAGAIN (as where all ports are in use: connect(2)): there is none.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Errno> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| Errno::EAGAIN)
    }

    /// Lets a guest's socket wait for `outer`, which is on its way to `target`. `begin` connects it, without waiting.
    /// EADDRINUSE: a program inside has that port of all addresses.
    pub(super) fn begin(
        &self,
        own: BorrowedFd<'_>,
        outer: OwnedFd,
        target: SocketAddr,
        place: OwnedSemaphorePermit,
        begin: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let target = address::canonical(target);
        let dark = self.darken(target)?;
        name(own, target)?;
        match begin() {
            Err(Errno::EINPROGRESS) => {}
            // (Somebody inside may share the address, by SO_REUSEPORT; then this is between them.)
            other => return other,
        }
        let address = socket::name(own).ok().and_then(|name| address::parse(&name));
        let address = address::canonical(address.ok_or(Errno::EBADMSG)?);
        let waiting = Waiting { address, number: first_number(own)? };
        let cookie = super::cookie(own).ok_or(Errno::EBADMSG)?;
        self.led.all().insert(cookie, (waiting, target));
        let listed = Listed { led: Arc::clone(&self.led), cookie, waiting };
        let order = Order { outer, target, dark, waiting, held: (listed, place) };
        self.orders.send(order).map_err(|_| Errno::ENETDOWN)?;
        Err(Errno::EINPROGRESS)
    }

    fn darken(&self, target: SocketAddr) -> Result<Arc<Dark>, Errno> {
        let mut all = self.dark.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dark) = all.get(&target).and_then(Weak::upgrade) {
            return Ok(dark);
        }
        let dark = Arc::new(Dark::new(&self.inside, target)?);
        all.retain(|_, it| it.strong_count() > 0);
        all.insert(target, Arc::downgrade(&dark));
        Ok(dark)
    }
}

impl Dark {
    fn new(inside: &Arc<Inside>, target: SocketAddr) -> Result<Dark, Errno> {
        match Dark::try_new(inside, target) {
            // (One of the same address that has just gone may still be on its way out.)
            Err(Errno::EADDRINUSE) => Dark::try_new(inside, target),
            made => made,
        }
    }

    fn try_new(inside: &Arc<Inside>, target: SocketAddr) -> Result<Dark, Errno> {
        let lent = inside.lend(target.ip())?.map(Arc::new);
        let listening = bound(inside, target)?;
        socket::listen(listening.as_fd(), 0)?;
        let first = stream(inside, target)?;
        match socket::connect(first.as_fd(), &address::bytes(target)) {
            Err(Errno::EINPROGRESS) => {}
            other => other?,
        }
        // On a loopback it stands by now.
        socket::peer_name(first.as_fd()).map_err(|_| Errno::EADDRINUSE)?;
        Ok(Dark { _listening: listening, _first: first, lent })
    }
}

fn stream(inside: &Inside, target: SocketAddr) -> Result<OwnedFd, Errno> {
    inside.socket(family(target), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)
}

/// A socket inside that is bound to an address of the outside, beside others that are (SO_REUSEPORT in socket(7)).
fn bound(inside: &Inside, target: SocketAddr) -> Result<OwnedFd, Errno> {
    let fd = stream(inside, target)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    socket::bind(fd.as_fd(), &address::bytes(target))?;
    Ok(fd)
}

/// Gives a guest's socket that has no name yet an address of its own network; else it would have that of its peer.
fn name(own: BorrowedFd<'_>, target: SocketAddr) -> Result<(), Errno> {
    let now = socket::name(own).ok().and_then(|name| address::parse(&name));
    if target.ip().is_loopback() || now.is_none_or(|now| now.port() != 0) {
        return Ok(());
    }
    let domain = socket::option(own, libc::SOL_SOCKET, libc::SO_DOMAIN, 4)?;
    let is_v4 = domain == libc::AF_INET.to_ne_bytes();
    let address = match (target.ip(), OWN_V4) {
        (IpAddr::V4(_), IpAddr::V4(v4)) if !is_v4 => v4.to_ipv6_mapped().into(),
        (IpAddr::V4(_), own) => own,
        (IpAddr::V6(_), _) => OWN_V6,
    };
    socket::bind(own, &address::bytes(SocketAddr::new(address, 0)))
}

/// The number of the segment by which a socket has asked for a connection. (TCP_REPAIR tells it: do_tcp_getsockopt in
/// net/ipv4/tcp.c; to leave that state forgets SO_REUSEADDR.)
fn first_number(own: BorrowedFd<'_>) -> Result<u32, Errno> {
    const TCP_REPAIR: i32 = 19;
    const TCP_REPAIR_QUEUE: i32 = 20;
    const TCP_QUEUE_SEQ: i32 = 21;
    const SENDING: i32 = 2;
    /// TCP_REPAIR_OFF_NO_WP: nothing is sent for it.
    const OFF: i32 = -1;
    let set = |level, name, value: i32| socket::set_option(own, level, name, &value.to_ne_bytes());
    let reuse = socket::option(own, libc::SOL_SOCKET, libc::SO_REUSEADDR, 4)?;
    set(libc::IPPROTO_TCP, TCP_REPAIR, 1)?;
    let next = set(libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, SENDING)
        .and_then(|()| socket::option(own, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, 4));
    set(libc::IPPROTO_TCP, TCP_REPAIR, OFF)?;
    socket::set_option(own, libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse)?;
    let next = next?.try_into().map_err(|_| Errno::EBADMSG)?;
    Ok(u32::from_ne_bytes(next).wrapping_sub(1))
}

/// Carries what is ordered, in the thread that carries published ports. `busy`: held for as long as one lasts.
pub(super) async fn serve(
    mut orders: mpsc::UnboundedReceiver<Order>,
    shared: Rc<Shared>,
    busy: mpsc::Sender<()>,
) {
    while let Some(order) = orders.recv().await {
        let (shared, busy) = (Rc::clone(&shared), busy.clone());
        tokio::task::spawn_local(async move {
            lead(order, &shared).await;
            drop(busy);
        });
    }
}

/// Leads one connection out, until it ends.
async fn lead(order: Order, shared: &Shared) {
    let Order { outer, target, dark, waiting, held: _held } = order;
    let mut course = shared.course.clone();
    let reached = tokio::select! {
        reached = reach(outer) => reached,
        _ = course.wait_for(|course| *course != Course::Open) => return,
    };
    match reached {
        Ok(outer) => {
            let Ok(inner) = meet(&shared.inside, target, waiting.address).await else { return };
            // What has come together needs the address, and nobody has to wait for it any more.
            let _lent = dark.lent.clone();
            drop(dark);
            if pump::prepare(&outer).and_then(|()| pump::prepare(&inner)).is_ok() {
                pump::carry(outer, inner, shared).await;
            }
        }
        Err(Errno::ETIMEDOUT) => {
            let ended = course.wait_for(|course| *course != Course::Open);
            let _ = tokio::time::timeout(LATER, ended).await;
        }
        // (Should it not be heard, the address is not dark any more, and the guest is refused when it asks again.)
        Err(errno) => drop(unreachable::tell(&shared.inside, target, waiting, errno)),
    }
}

/// Waits for a connection outside to stand.
async fn reach(outer: OwnedFd) -> Result<TcpStream, Errno> {
    let outer = TcpStream::from_std(outer.into()).map_err(|error| errno_of(&error))?;
    outer.ready(Interest::WRITABLE).await.map_err(|error| errno_of(&error))?;
    match outer.take_error() {
        Ok(None) => Ok(outer),
        Ok(Some(error)) | Err(error) => Err(errno_of(&error)),
    }
}

/// Connects a socket that is bound to `target` to the guest's that waits for it. (It may be gone.)
async fn meet(inside: &Inside, target: SocketAddr, guest: SocketAddr) -> Result<TcpStream, Errno> {
    let fd = bound(inside, target)?;
    let met = TcpSocket::from_std_stream(fd.into()).connect(guest).await;
    met.map_err(|error| errno_of(&error))
}

/// Prepares a socket outside, which does not wait, for a guest's.
pub(super) fn prepare(own: &GuestSocket, outer: BorrowedFd<'_>) -> Result<(), Errno> {
    super::tcp::take_over(own, outer);
    // What the guest is ready to wait for at a close it waits for on its own socket; the thread that closes this one, and
    // carries all others, must not (SO_LINGER in socket(7): struct linger, off).
    socket::set_option(outer, libc::SOL_SOCKET, libc::SO_LINGER, &[0; 8])
}
