//! Datagrams to the outside: carried by relays.
//!
//! A relay is a socket of the sentry's in the guests' network that is bound to an address of the outside, which the
//! loopback there has been given. For each guest's socket that sends to it there is a *flow*: a socket in the host's
//! network, connected to that address.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::address;
use super::inside::Inside;
use crate::sys::{errno_of, socket};

/// Relays that are open at a time: the one that was opened first makes way.
const MOST_RELAYS: usize = 128;
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
    by_address: HashMap<SocketAddr, JoinHandle<()>>,
    order: VecDeque<SocketAddr>,
}

impl Relays {
    /// Whether there is a relay for `address`.
    pub(super) fn has(&self, address: SocketAddr) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.by_address.contains_key(&canonical(address))
    }

    /// Opens a relay for `address`, which may be reached; `false`: there is one. What the host's network refuses, it
    /// refuses with the host's error, and the guests' own network refuses it then, too.
    pub(super) fn open(&self, inside: &Inside, address: SocketAddr) -> Result<bool, Errno> {
        let address = canonical(address);
        if self.has(address) || address.port() == 0 {
            return Ok(false);
        }
        drop(flow_to(address)?);
        inside.add_address(address.ip())?;
        let listening =
            inside.socket(family(address), libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
        match socket::bind(listening.as_fd(), &address::bytes(address)) {
            Err(Errno::EADDRINUSE) => return Ok(false),
            done => done?,
        }
        let listening = adopt(listening)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.order.len() >= MOST_RELAYS
            && let Some(oldest) = open.order.pop_front()
            && let Some(task) = open.by_address.remove(&oldest)
        {
            task.abort();
        }
        open.order.push_back(address);
        open.by_address.insert(address, tokio::spawn(carry(Arc::new(listening), address)));
        Ok(true)
    }
}

/// An address of IPv4 in the clothes of IPv6 is reached as what it is.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn family(address: SocketAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn adopt(fd: OwnedFd) -> Result<UdpSocket, Errno> {
    UdpSocket::from_std(fd.into()).map_err(|error| errno_of(&error))
}

/// A socket in the host's network.
fn flow_to(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let fd = socket::socket(family(address), libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
    socket::connect(fd.as_fd(), &address::bytes(address))?;
    Ok(fd)
}

/// A relay's life.
async fn carry(inside: Arc<UdpSocket>, address: SocketAddr) {
    let mut flows: HashMap<SocketAddr, (Arc<UdpSocket>, Ends)> = HashMap::new();
    let mut datagram = vec![0; ROOM];
    loop {
        // (An error is about one datagram: nobody took what was sent before.)
        let Ok((length, guest)) = inside.recv_from(&mut datagram).await else { continue };
        flows.retain(|_, (_, task)| !task.0.is_finished());
        if !flows.contains_key(&guest) {
            if flows.len() >= MOST_FLOWS {
                flows.clear();
            }
            let Ok(flow) = flow_to(address).and_then(adopt) else { continue };
            let flow = Arc::new(flow);
            let back = tokio::spawn(bring_back(Arc::clone(&flow), Arc::clone(&inside), guest));
            flows.insert(guest, (flow, Ends(back)));
        }
        if let Some((flow, _)) = flows.get(&guest) {
            // (What the host cannot send is lost, as on any way.)
            let _ = flow.send(&datagram[..length]).await;
        }
    }
}

/// A task that ends with what it is kept in.
struct Ends(JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Passes on what comes back.
async fn bring_back(flow: Arc<UdpSocket>, inside: Arc<UdpSocket>, guest: SocketAddr) {
    let mut datagram = vec![0; ROOM];
    while let Ok(received) = tokio::time::timeout(IDLE, flow.recv(&mut datagram)).await {
        if let Ok(length) = received {
            let _ = inside.send_to(&datagram[..length], guest).await;
        }
    }
}
