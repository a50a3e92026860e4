//! Ports of the host that lead to programs inside (`--publish`).
//!
//! The sentry listens on the host ([`Doors`]). For each connection that comes it makes one in the guests' own network, to
//! the loopback there, from the address of who has come (`peer`), and the kernel moves the bytes from one to the other
//! (`pump`): but for what splice(2) stops at, they do not come into a program's memory on the way. All of that is done by one
//! thread, "publish", with a runtime of its own, so that no traffic holds the sentry up. No call of a guest is trapped for it.
//! The same thread carries the connections out of a run whose traffic is limited ([`metered`]).

mod doors;
mod packets;
mod peer;
pub(super) mod pump;
mod streams;
mod wish;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

pub use doors::{DoorError, Doors};
pub use wish::{MOST, Wish, parse};

use super::inside::Inside;
use super::meter::{Meter, Turn, Way};
use super::metered::{self, Order};
use super::rule::Transport;
use pump::Pipes;

/// A port of the host that leads inside, as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Published {
    /// The port inside.
    pub guest: u16,
    /// What carries the bytes.
    pub transport: Transport,
    /// Where the host listens.
    pub host: SocketAddr,
}

/// What is under way when the guests have ended is still brought to whoever takes some of it within so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Nor does any of it, however much is taken, hold a run up for longer than this.
const LONGEST: Duration = Duration::from_secs(10);
/// Connections at a time, where descriptors allow that.
const MOST_CONNECTIONS: u64 = 4096;
/// Descriptors of a connection at most: two sockets, and a pipe for each way.
const DESCRIPTORS: u64 = 6;
/// Flows of datagrams of a port at a time, where descriptors allow that.
const MOST_FLOWS: u64 = 256;

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    /// They are let in.
    Open,
    /// The guests have ended: those that there are come to their end.
    Ending,
    /// They are reset, since the guests go on elsewhere without them.
    BrokenOff,
}

/// The published ports of a run, while they lead inside. Dropping it ends them at once.
#[derive(Debug)]
pub struct Publisher {
    breaker: Breaker,
    /// The thread has ended.
    over: oneshot::Receiver<()>,
}

/// Breaks connections off, from any thread.
#[derive(Debug, Clone)]
pub struct Breaker {
    course: Arc<watch::Sender<Course>>,
    /// Whether the thread has done all. A leaf of the lock order.
    is_over: Arc<(Mutex<bool>, Condvar)>,
}

impl Breaker {
    /// Closes the doors, and resets all connections for both of their sides. Blocks until that is done.
    pub fn break_off(&self) {
        self.course.send_replace(Course::BrokenOff);
        let (is_over, told) = &*self.is_over;
        let is_over = is_over.lock().unwrap_or_else(PoisonError::into_inner);
        // (A thread that is stuck holds nobody up for ever.)
        let _ = told.wait_timeout_while(is_over, PATIENCE, |is_over| !*is_over);
    }
}

/// What all connections have in common. It stays in the thread.
pub(super) struct Shared {
    pub(super) inside: Arc<Inside>,
    /// What bounds how much they carry.
    meter: Option<Arc<Meter>>,
    pipes: Pipes,
    places: Arc<Semaphore>,
    /// Flows of datagrams that each port may have.
    flows: usize,
    pub(super) course: watch::Receiver<Course>,
    /// Bytes that were carried, to see whether any are.
    moved: Cell<u64>,
}

impl Shared {
    /// Waits until something may be carried, where that is bounded.
    async fn turn(&self, way: Way) -> Option<Turn<'_>> {
        match &self.meter {
            Some(meter) => Some(meter.turn(way).await),
            None => None,
        }
    }

    /// Waits until a datagram may be carried, as far as the rate goes, where that is bounded.
    async fn turn_of_datagram(&self, way: Way) -> Option<Turn<'_>> {
        match &self.meter {
            Some(meter) => Some(meter.turn_of_datagram(way).await),
            None => None,
        }
    }
}

impl Publisher {
    /// Begins to lead connections from the doors inside, and those out that `metered` orders, if the run has limits.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(
        doors: Doors,
        inside: Arc<Inside>,
        limits: Option<Limits>,
    ) -> io::Result<Publisher> {
        let (course, seen) = watch::channel(Course::Open);
        let breaker = Breaker { course: Arc::new(course), is_over: Arc::default() };
        let is_over = Arc::clone(&breaker.is_over);
        let (done, over) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("publish".into()).stack_size(512 << 10);
        thread.spawn(move || {
            let local = LocalSet::new();
            runtime.block_on(local.run_until(serve(doors, inside, limits, seen)));
            drop(local);
            let _ = done.send(());
            *is_over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            is_over.1.notify_all();
        })?;
        Ok(Publisher { breaker, over })
    }

    /// What breaks its connections off.
    pub fn breaker(&self) -> Breaker {
        self.breaker.clone()
    }

    /// The guests have ended: nobody is let in any more, and returns when what they had sent is on its way, or
    /// after a dozen seconds.
    pub async fn finish(mut self) {
        // (What is broken off stays so.)
        self.breaker.course.send_if_modified(|course| {
            let is_open = *course == Course::Open;
            if is_open {
                *course = Course::Ending;
            }
            is_open
        });
        let _ = tokio::time::timeout(LONGEST + PATIENCE, &mut self.over).await;
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.breaker.course.send_replace(Course::BrokenOff);
    }
}

/// What bounds the traffic of a run, and connections out that are to be carried for that reason.
#[derive(Debug)]
pub struct Limits {
    pub(super) meter: Arc<Meter>,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
}

/// The thread's work.
async fn serve(
    doors: Doors,
    inside: Arc<Inside>,
    limits: Option<Limits>,
    course: watch::Receiver<Course>,
) {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let doors = doors.into_parts();
    let udp = doors.iter().filter(|(_, door)| door.transport == Transport::Udp).count();
    // (The sentry needs some itself, for what it does for guests.)
    let left = limit.map_or(0, |(soft, _)| soft).saturating_sub(doors.len() as u64);
    let places = (left / 2 / DESCRIPTORS).clamp(8, MOST_CONNECTIONS);
    let flows = (left / 4 / (udp as u64).max(1)).clamp(1, MOST_FLOWS);
    let (meter, orders) = limits.map(|limits| (limits.meter, limits.orders)).unzip();
    let shared = Rc::new(Shared {
        inside,
        meter,
        pipes: Pipes::default(),
        places: Arc::new(Semaphore::new(places as usize)),
        flows: flows as usize,
        course: course.clone(),
        moved: Cell::new(0),
    });
    // Whoever has one of these is not done; nothing is ever sent.
    let (busy, mut idle) = mpsc::channel::<()>(1);
    let mut open = JoinSet::new();
    for (fd, Published { guest, transport, .. }) in doors {
        match transport {
            Transport::Tcp => {
                open.spawn_local(streams::serve(fd, guest, Rc::clone(&shared), busy.clone()));
            }
            Transport::Udp => {
                open.spawn_local(packets::serve(fd, guest, Rc::clone(&shared)));
            }
        }
    }
    if let Some(orders) = orders {
        open.spawn_local(metered::serve(orders, Rc::clone(&shared), busy.clone()));
    }
    drop(busy);
    let mut told = course;
    if told.wait_for(|course| *course != Course::Open).await.is_err() {
        return;
    }
    open.shutdown().await;
    let until = Instant::now() + LONGEST;
    loop {
        let before = shared.moved.get();
        let pause = PATIENCE.min(until.saturating_duration_since(Instant::now()));
        match tokio::time::timeout(pause, idle.recv()).await {
            Err(_) if shared.moved.get() != before && Instant::now() < until => {}
            _ => return,
        }
    }
}
