//! What goes to which host, counted.
//!
//! A connection is a socket that a guest uses without the sentry's help, and no descriptor of the sentry's may keep it open.
//! So what it has carried is asked of the kernel while it is there, and told by the kernel when it ends: to whoever
//! listens, which everybody may. Such a message can be lost (netlink(7), ENOBUFS); then the connection counts as one
//! that was not measured, with what was last seen of it. Datagrams pass through the sentry, and are counted there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::log::{NetLog, Record};
use crate::sentry::sockets::diag::{self, Carried};
use crate::sys::ready;

/// What went to one port of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTraffic {
    /// By the name that it was looked up by, else by its address; `(others)` for all that are too many to be kept apart.
    pub host: String,
    /// None: of names that were looked up, and of others.
    pub port: Option<u16>,
    /// `tcp`, `udp`, or `dns` of names that were looked up.
    pub transport: String,
    /// Connections that were begun, addresses to which datagrams are carried, or lookups.
    pub allowed: u64,
    /// Those that were refused; each datagram counts.
    pub refused: u64,
    /// Connections that there are now.
    pub open: u64,
    /// Bytes that were sent there.
    pub bytes_out: u64,
    /// Bytes that came from there.
    pub bytes_in: u64,
    /// Connections of which it is not known what they have carried in the end: the bytes are no more than what was last
    /// seen of these.
    pub unmeasured: u64,
}

/// Whom something is counted for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) transport: &'static str,
}

/// Bytes of datagrams, counted as they are carried.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

#[derive(Debug, Default)]
struct Totals {
    allowed: u64,
    refused: u64,
    /// Of connections that have ended.
    carried: Carried,
    unmeasured: u64,
    datagrams: Arc<Datagrams>,
}

/// A connection that has not ended, as far as is known.
#[derive(Debug)]
struct Flow {
    key: Key,
    address: SocketAddr,
    /// When somebody last looked.
    seen: Carried,
}

/// Hosts that are kept apart: guests choose them.
const MOST_HOSTS: usize = 1024;
/// Of these, hosts that were met first by a refusal.
const MOST_REFUSED: usize = MOST_HOSTS / 4;
/// Connections at a time of which is known where they go.
const MOST_FLOWS: usize = 16 << 10;
/// How long the end of a run waits for what the kernel has to tell of connections that have just ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// The counters of a run.
#[derive(Debug)]
pub(super) struct Ledger {
    inner: Mutex<Inner>,
    /// Whether the ends of connections are told: asked for with the first one.
    listens: OnceLock<bool>,
    log: Option<Arc<NetLog>>,
    /// A connection has ended.
    changed: Notify,
}

/// A leaf of the lock order.
#[derive(Debug, Default)]
struct Inner {
    hosts: BTreeMap<Key, Totals>,
    /// By cookie, which grows.
    flows: BTreeMap<u64, Flow>,
    /// How many of `hosts` were met first by a refusal.
    refused: usize,
}

impl Inner {
    fn totals(&mut self, key: &Key, is_refused: bool) -> &mut Totals {
        let is_new = !self.hosts.contains_key(key);
        let is_full = self.hosts.len() >= MOST_HOSTS || is_refused && self.refused >= MOST_REFUSED;
        if is_new && is_refused && !is_full {
            self.refused += 1;
        }
        let key = match is_new && is_full {
            true => Key { host: "(others)".to_owned(), port: None, transport: key.transport },
            false => key.clone(),
        };
        self.hosts.entry(key).or_default()
    }
}

impl Ledger {
    pub(super) fn new(log: Option<Arc<NetLog>>) -> Arc<Ledger> {
        let (listens, changed) = (OnceLock::new(), Notify::new());
        Arc::new(Ledger { inner: Mutex::default(), listens, log, changed })
    }

    pub(super) fn allowed(&self, key: &Key) {
        self.lock().totals(key, false).allowed += 1;
    }

    pub(super) fn refused(&self, key: &Key) {
        self.lock().totals(key, true).refused += 1;
    }

    /// What counts datagrams.
    pub(super) fn datagrams(&self, key: &Key) -> Arc<Datagrams> {
        Arc::clone(&self.lock().totals(key, false).datagrams)
    }

    /// A connection to `address` is about to be made with a socket of this cookie. Needs a tokio context.
    pub(super) fn opened(self: &Arc<Self>, cookie: u64, key: Key, address: SocketAddr) {
        self.listens.get_or_init(|| {
            let told = diag::ends()
                .and_then(|fd| ready::watch_socket(fd).map_err(|it| crate::sys::errno_of(&it)));
            told.map(|told| tokio::spawn(Arc::clone(self).listen(told))).is_ok()
        });
        let oldest = {
            let mut inner = self.lock();
            let is_full = inner.flows.len() >= MOST_FLOWS;
            let oldest = if is_full { inner.flows.pop_first() } else { None };
            if let Some((_, oldest)) = &oldest {
                let totals = inner.totals(&oldest.key, false);
                totals.unmeasured += 1;
                totals.carried.add(oldest.seen);
            }
            inner.flows.insert(cookie, Flow { key, address, seen: Carried::default() });
            oldest
        };
        if let Some((_, oldest)) = oldest {
            self.tell(&oldest, oldest.seen, false);
        }
    }

    /// Where a connection goes.
    pub(super) fn address(&self, cookie: u64) -> Option<SocketAddr> {
        self.lock().flows.get(&cookie).map(|flow| flow.address)
    }

    /// The cookies of all connections.
    pub(super) fn cookies(&self) -> HashSet<u64> {
        self.lock().flows.keys().copied().collect()
    }

    async fn listen(self: Arc<Self>, told: AsyncFd<OwnedFd>) {
        /// Messages in a row: the whole host's are among them, and others want to run, too.
        const MOST: usize = 64;
        /// More than a message has (inet_sk_diag_fill in net/ipv4/inet_diag.c).
        const ROOM: usize = 4 << 10;
        let mut room = vec![0; ROOM];
        while let Ok(mut guard) = told.readable().await {
            for _ in 0..MOST {
                match recv(told.get_ref().as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => {
                        let message = &room[..length.min(ROOM)];
                        diag::ended(message, |cookie, carried| self.ended(cookie, carried));
                    }
                    // Some were lost; whose they were is not known.
                    Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => {
                        guard.clear_ready();
                        break;
                    }
                    Err(_) => return,
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn ended(&self, cookie: u64, carried: Carried) {
        let flow = {
            let mut inner = self.lock();
            let Some(flow) = inner.flows.remove(&cookie) else { return };
            inner.totals(&flow.key, false).carried.add(carried);
            flow
        };
        self.tell(&flow, carried, true);
        self.changed.notify_one();
    }

    fn tell(&self, flow: &Flow, carried: Carried, is_final: bool) {
        if let Some(log) = &self.log {
            log.write(&Record {
                event: "closed",
                name: (flow.key.host != flow.address.ip().to_string()).then_some(&flow.key.host),
                address: Some(flow.address.ip()),
                port: flow.key.port,
                protocol: Some(flow.key.transport),
                bytes_out: Some(carried.sent),
                bytes_in: Some(carried.received),
                complete: Some(is_final),
                ..Record::default()
            });
        }
    }

    /// Asks the kernel what the connections have carried so far. Gives those that it lists.
    fn look(&self) -> HashSet<u64> {
        let known = self.cookies();
        let mut live = HashMap::new();
        if !known.is_empty()
            && let Ok(netlink) = diag::open()
        {
            for class in diag::CONNECTIONS {
                let _ = diag::dump(netlink.as_fd(), class, |it| {
                    if let Some(carried) = it.carried.filter(|_| known.contains(&it.cookie)) {
                        live.insert(it.cookie, carried);
                    }
                });
            }
        }
        let mut inner = self.lock();
        for (cookie, carried) in &live {
            if let Some(flow) = inner.flows.get_mut(cookie) {
                flow.seen = *carried;
            }
        }
        live.into_keys().collect()
    }

    /// What went where so far.
    pub(super) fn traffic(&self) -> Vec<HostTraffic> {
        let live = self.look();
        let inner = self.lock();
        let mut open: BTreeMap<&Key, (u64, u64, Carried)> = BTreeMap::new();
        for (cookie, flow) in &inner.flows {
            let (listed, unlisted, carried) = open.entry(&flow.key).or_default();
            *(if live.contains(cookie) { listed } else { unlisted }) += 1;
            carried.add(flow.seen);
        }
        let each = inner.hosts.iter().map(|(key, totals)| {
            let (listed, unlisted, mut carried) = open.remove(key).unwrap_or_default();
            carried.add(totals.carried);
            HostTraffic {
                host: key.host.clone(),
                port: key.port,
                transport: key.transport.to_owned(),
                allowed: totals.allowed,
                refused: totals.refused,
                open: listed,
                bytes_out: carried.sent + totals.datagrams.sent.load(Ordering::Relaxed),
                bytes_in: carried.received + totals.datagrams.received.load(Ordering::Relaxed),
                unmeasured: totals.unmeasured + unlisted,
            }
        });
        each.collect()
    }

    /// The guests have ended. What the kernel is about to tell of their connections is waited for, and what is known of
    /// those that it still brings to their end is told.
    pub(super) async fn finish(&self) {
        if self.log.is_none() {
            return;
        }
        let live = self.look();
        let all_told = async {
            while self.lock().flows.keys().any(|cookie| !live.contains(cookie)) {
                self.changed.notified().await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, all_told).await;
        let flows = std::mem::take(&mut self.lock().flows);
        flows.values().for_each(|flow| self.tell(flow, flow.seen, false));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(host: &str) -> Key {
        Key { host: host.to_owned(), port: Some(80), transport: "tcp" }
    }

    #[test]
    fn hosts_that_guests_make_up_fill_no_memory() {
        let ledger = Ledger::new(None);
        (0..MOST_HOSTS * 2).for_each(|n| ledger.refused(&key(&n.to_string())));
        let traffic = ledger.traffic();
        assert_eq!(traffic.len(), MOST_REFUSED + 1);
        let others = traffic.iter().find(|it| it.host == "(others)").unwrap();
        assert_eq!((others.refused, others.port), ((MOST_HOSTS * 2 - MOST_REFUSED) as u64, None));
        // Those that are allowed have their places all the same.
        (0..MOST_HOSTS * 2).for_each(|n| ledger.allowed(&key(&format!("a{n}"))));
        let traffic = ledger.traffic();
        // (The others are one of these.)
        assert_eq!(traffic.iter().filter(|it| it.allowed > 0).count(), MOST_HOSTS - MOST_REFUSED);
        assert_eq!(traffic.len(), MOST_HOSTS);
    }

    #[tokio::test]
    async fn what_a_connection_has_carried_is_known_while_it_lasts_and_when_it_has_ended() {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};
        let ledger = Ledger::new(None);
        let listening = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listening.local_addr().unwrap();
        let mut one = TcpStream::connect(address).unwrap();
        let cookie = super::super::cookie(one.as_fd()).unwrap();
        ledger.allowed(&key("a"));
        ledger.opened(cookie, key("a"), address);
        one.write_all(&[0; 500]).unwrap();
        let (mut other, _) = listening.accept().unwrap();
        other.read_exact(&mut [0; 500]).unwrap();
        let now = &ledger.traffic()[0];
        assert_eq!((now.allowed, now.open, now.bytes_out, now.unmeasured), (1, 1, 500, 0));
        drop(one);
        drop(other);
        let ended = async {
            while !ledger.cookies().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), ended).await.unwrap();
        let then = &ledger.traffic()[0];
        assert_eq!((then.allowed, then.open, then.bytes_out, then.unmeasured), (1, 0, 500, 0));
        // One whose end nobody has told of.
        ledger.opened(1, key("a"), address);
        assert_eq!(ledger.traffic()[0].unmeasured, 1);
    }
}
