//! Datagrams to the outside: carried by relays.
//!
//! A relay is a socket of the sentry's in the guests' network that is bound to an address of the outside, which the
//! loopback there has been given. For each guest's socket that sends to it there is a *flow*: a socket in the host's
//! network, connected to that address.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::address::{self, family};
use super::inside::Inside;
use super::ledger::Datagrams;
use super::meter::{Meter, Way};
use crate::sys::{errno_of, socket};

/// Relays that are open at a time: the one that was opened first makes way.
pub(super) const MOST_RELAYS: usize = 128;
/// Flows of a relay at a time.
const MOST_FLOWS: usize = 64;
/// A flow that has carried nothing for so long ends; what is sent later begins another (RFC 4787, REQ-5).
const IDLE: Duration = Duration::from_secs(300);
/// The longest datagram.
const ROOM: usize = 64 << 10;

/// The relays of a run.
#[derive(Debug, Default)]
pub(super) struct Relays {
    /// A leaf of the lock order.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    by_address: HashMap<SocketAddr, Ends>,
    order: VecDeque<SocketAddr>,
}

impl Relays {
    /// Whether there is a relay for `address`.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.by_address.get(&address).is_some_and(|relay| !relay.0.is_finished())
    }

    /// Where there are relays, the one that was opened first in front.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let lives =
            |it: &SocketAddr| open.by_address.get(it).is_some_and(|relay| !relay.0.is_finished());
        open.order.iter().copied().filter(lives).collect()
    }

    /// Opens a relay for `address`, which may be reached; `false`: there is one. What the host's network refuses, it
    /// refuses with the host's error, and the guests' own network knows no way there. EADDRINUSE: a program inside has
    /// that port of all addresses, and would get what it sends itself. One that `ends` does so when nothing has gone either
    /// way for a while.
    pub(super) fn open(
        &self,
        inside: &Arc<Inside>,
        address: SocketAddr,
        counts: &Carried,
        ends: bool,
    ) -> Result<bool, Errno> {
        if self.has(address) || address.port() == 0 {
            return Ok(false);
        }
        drop(flow_to(address)?);
        let listening =
            inside.socket(family(address), libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
        let lent = inside.lend(address.ip())?;
        socket::bind(listening.as_fd(), &address::bytes(address))?;
        let carried = carry(Arc::new(adopt(listening)?), address, counts.clone(), ends);
        // (With its end the address goes back.)
        let relay = Ends(tokio::spawn(async move {
            let _lent = lent;
            carried.await;
        }));
        // (What makes way is not ended under the lock.)
        let _gone = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            // (It may have ended before.)
            open.order.retain(|it| *it != address);
            open.order.push_back(address);
            let replaced = open.by_address.insert(address, relay);
            let oldest = (open.order.len() > MOST_RELAYS).then(|| open.order.pop_front()).flatten();
            (replaced, oldest.map(|oldest| open.by_address.remove(&oldest)))
        };
        Ok(true)
    }
}

/// What is kept of what relays carry.
#[derive(Debug, Clone)]
pub(super) struct Carried {
    pub(super) counts: Arc<Datagrams>,
    pub(super) meter: Option<Arc<Meter>>,
}

impl Carried {
    /// Waits until a datagram may go on; `false`: it may not.
    async fn admit(&self, way: Way, length: usize) -> bool {
        match &self.meter {
            Some(meter) => meter.turn_of_datagram(way).await.pay_whole(length),
            None => true,
        }
    }
}

fn adopt(fd: OwnedFd) -> Result<UdpSocket, Errno> {
    UdpSocket::from_std(fd.into()).map_err(|error| errno_of(&error))
}

/// A socket in the host's network. (To connect it sends nothing.)
pub(super) fn flow_to(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let fd = socket::socket(family(address), libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
    socket::connect(fd.as_fd(), &address::bytes(address))?;
    Ok(fd)
}

/// A relay's life.
async fn carry(inside: Arc<UdpSocket>, address: SocketAddr, carried: Carried, ends: bool) {
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut datagram = vec![0; ROOM];
    loop {
        let received = inside.recv_from(&mut datagram);
        let received = match ends {
            true => match tokio::time::timeout(IDLE, received).await {
                Ok(received) => received,
                Err(_) => {
                    flows.retain(|_, flow| !flow.back.0.is_finished());
                    if flows.is_empty() {
                        return;
                    }
                    continue;
                }
            },
            false => received.await,
        };
        // (An error is about one datagram: nobody took what was sent before.)
        let Ok((length, guest)) = received else { continue };
        flows.retain(|_, flow| !flow.back.0.is_finished());
        if !flows.contains_key(&guest) {
            if flows.len() >= MOST_FLOWS {
                // The one that has been quiet for longest.
                let quiet =
                    flows.iter().min_by_key(|(_, flow)| flow.last()).map(|(guest, _)| *guest);
                quiet.and_then(|quiet| flows.remove(&quiet));
            }
            let Ok(out) = flow_to(address).and_then(adopt) else { continue };
            let (out, last) = (Arc::new(out), Arc::new(Mutex::new(Instant::now())));
            let (last_back, carried) = (Arc::clone(&last), carried.clone());
            let back = bring_back(Arc::clone(&out), Arc::clone(&inside), guest, last_back, carried);
            flows.insert(guest, Flow { out, last, back: Ends(tokio::spawn(back)) });
        }
        if let Some(flow) = flows.get(&guest) {
            note(&flow.last);
            // (What the host cannot send is lost, as on any way.)
            if carried.admit(Way::Out, length).await
                && flow.out.send(&datagram[..length]).await.is_ok()
            {
                carried.counts.sent.fetch_add(length as u64, Ordering::Relaxed);
            }
        }
    }
}

/// What one socket of a guest's sends to the address of a relay, and gets from there.
struct Flow {
    out: Arc<UdpSocket>,
    /// When it has carried something. A leaf of the lock order.
    last: Arc<Mutex<Instant>>,
    back: Ends,
}

impl Flow {
    fn last(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(last: &Mutex<Instant>) {
    *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

/// A task that ends with what it is kept in.
#[derive(Debug)]
struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Passes on what comes back, until nothing has gone either way for a while.
async fn bring_back(
    out: Arc<UdpSocket>,
    inside: Arc<UdpSocket>,
    guest: SocketAddr,
    last: Arc<Mutex<Instant>>,
    carried: Carried,
) {
    let mut datagram = vec![0; ROOM];
    loop {
        match tokio::time::timeout(IDLE, out.recv(&mut datagram)).await {
            Ok(Ok(length)) => {
                note(&last);
                if carried.admit(Way::In, length).await {
                    carried.counts.received.fetch_add(length as u64, Ordering::Relaxed);
                    let _ = inside.send_to(&datagram[..length], guest).await;
                }
            }
            // (An error is about one datagram.)
            Ok(Err(_)) => {}
            Err(_) if last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < IDLE => {}
            Err(_) => return,
        }
    }
}
