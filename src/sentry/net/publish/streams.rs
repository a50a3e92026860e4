//! Connections of TCP that come to a published port.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::super::inside::Lent;
use super::peer::{self, Seen};
use super::{Course, Shared, pump};
use crate::sys::{errno_of, socket};

/// Lets connections in. `busy`: held for as long as one lasts.
pub(super) async fn serve(fd: OwnedFd, guest: u16, shared: Rc<Shared>, busy: mpsc::Sender<()>) {
    let Ok(door) = TcpListener::from_std(fd.into()) else { return };
    loop {
        match door.accept().await {
            Ok((outer, peer)) => {
                // One waits here and others in the kernel's queue; a port to which nobody comes takes no place. (They
                // are never closed.)
                let places = Arc::clone(&shared.places);
                let Ok(place) = places.acquire_owned().await else { return };
                let (shared, busy) = (Rc::clone(&shared), busy.clone());
                tokio::task::spawn_local(lead((outer, peer), guest, shared, (place, busy)));
            }
            // Who has gone before it was let in.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Out of descriptors or memory: what others hold comes back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Leads one connection inside, until it ends. Where nobody listens there, it is reset.
async fn lead(
    (outer, peer): (TcpStream, SocketAddr),
    guest: u16,
    shared: Rc<Shared>,
    held: (OwnedSemaphorePermit, mpsc::Sender<()>),
) {
    let mut course = shared.course.clone();
    let reached = tokio::select! {
        reached = reach(guest, peer, &shared) => reached.ok(),
        _ = course.wait_for(|course| *course != Course::Open) => None,
    };
    match reached {
        Some((inner, _lent)) if prepare(&outer, &inner).is_ok() => {
            pump::carry(outer, inner, &shared).await;
        }
        _ => pump::reset(outer),
    }
    drop(held);
}

fn prepare(outer: &TcpStream, inner: &TcpStream) -> Result<(), Errno> {
    pump::prepare(outer)?;
    pump::prepare(inner)?;
    // What a program inside asks for of its own socket finds out whether the sentry is there, which it always is.
    let on = 1i32.to_ne_bytes();
    socket::set_option(outer.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, &on)
}

/// A connection to a port inside, and what gives it the address of `peer`.
async fn reach(
    guest: u16,
    peer: SocketAddr,
    shared: &Shared,
) -> Result<(TcpStream, Option<Lent>), Errno> {
    let mut failed = Errno::ECONNREFUSED;
    for place in peer::places(peer, guest) {
        let Seen { fd, lent } = match peer::socket(&shared.inside, libc::SOCK_STREAM, peer, place) {
            Ok(seen) => seen,
            // A network without IPv6, for one.
            Err(errno) => {
                failed = errno;
                continue;
            }
        };
        match TcpSocket::from_std_stream(fd.into()).connect(place).await {
            // Where nobody listens, a socket that happens to have that very port would be connected with itself.
            Ok(stream) if stream.local_addr().is_ok_and(|own| own != place) => {
                return Ok((stream, lent));
            }
            Ok(_) => failed = Errno::ECONNREFUSED,
            Err(error) => failed = errno_of(&error),
        }
        if !matches!(failed, Errno::ECONNREFUSED | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH) {
            break;
        }
    }
    Err(failed)
}
