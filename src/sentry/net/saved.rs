//! What the network of a saved run goes on with: names that were looked up, and where datagrams go.
//!
//! Nothing of it is trusted when it comes back: a name counts only if the rules, which were granted anew, are about it, and
//! stands only for what the host's resolvers say again; an address is judged as if a guest had just sent something there.
//! Connections of TCP are not carried: `save` says what becomes of them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::datagrams::MOST_RELAYS;
use super::policy::is_loopback;
use super::resolver::Resolver;
use super::rule::Transport;
use super::tcp::{begin_carried, under_way};
use super::{
    Asked, GuestSocket, Metered, Network, OWN_V4, OWN_V6, Verdict, address, cookie, options,
};
use crate::sentry::kernel::Kernel;
use crate::sys::socket;

/// Names that are looked up at a time at a restore, and in all.
const AT_A_TIME: usize = 32;
const MOST_NAMES: usize = 4096;
/// For so long a restore waits for the host's resolvers.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is saved of a network of allowed hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNetwork {
    /// What names were found to stand for.
    pub known: Vec<SavedName>,
    /// Where datagrams were carried to, in the order in which that began.
    pub relays: Vec<SocketAddr>,
}

/// A name that was looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedName {
    /// In lower case.
    pub name: String,
    /// What it stands for.
    pub address: IpAddr,
    /// For how many seconds that still held; 0: for the least that an answer does.
    pub seconds: u64,
}

impl Network {
    /// What there is to be saved.
    pub fn saved(&self) -> SavedNetwork {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        SavedNetwork { known: known.saved(Instant::now()), relays: self.relays.addresses() }
    }

    /// Where a connection goes that was begun with this socket, as connect(2) wants it. `None`: that is not known any more.
    pub fn destination(&self, socket: BorrowedFd<'_>) -> Option<Vec<u8>> {
        self.recorded(socket).map(address::bytes)
    }

    /// The same of a socket of the guests' own network whose connection is carried, since what the run carries is limited.
    /// `None`: it has no such connection.
    pub fn carried_to(&self, socket: BorrowedFd<'_>) -> Option<Vec<u8>> {
        self.metered.as_ref()?.destination(cookie(socket)?).map(address::bytes)
    }

    /// The connections that are carried for that reason: the address of the guest's socket, and where to.
    pub fn carried(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.metered.as_ref().map(Metered::led).unwrap_or_default()
    }

    /// Looks the names up again that the rules are about: they stand for what the host's resolvers say now, and what
    /// they do not say within a moment does not count. Before the sockets of an image are made.
    pub async fn confirm(self: &Arc<Self>, kernel: &Arc<Kernel>, saved: &SavedNetwork) {
        let mut claims: HashMap<&str, Vec<SavedName>> = HashMap::new();
        for claim in saved.known.iter().filter(|it| self.policy.resolves(&it.name)) {
            claims.entry(&claim.name).or_default().push(claim.clone());
        }
        if claims.is_empty() {
            return;
        }
        let resolver = Resolver::new(kernel, self);
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let mut asked = JoinSet::new();
        for (name, claims) in claims.into_iter().take(MOST_NAMES) {
            let (network, name) = (Arc::clone(self), name.to_owned());
            let (resolver, places) = (Arc::clone(&resolver), Arc::clone(&places));
            asked.spawn(async move {
                let _place = places.acquire().await;
                let found = resolver.look_up_again(&name).await;
                for claim in claims.iter().filter(|it| found.contains(&it.address)) {
                    // (It holds for as long as it did, should that be longer than what is said now.)
                    network.learn(&name, claim.address, Some(Duration::from_secs(claim.seconds)));
                }
            });
        }
        let all = async { while asked.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(PATIENCE, all).await;
    }

    /// Gives the guests' loopback these addresses, which sockets of an image have or had datagrams from. Before these are
    /// made.
    pub fn lend_again(&self, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses.filter(|it| !is_loopback(*it) && ![OWN_V4, OWN_V6].contains(it)) {
            // (One that cannot be an address is found out when a socket is to have it.)
            let _ = self.inside.change_address(address, true);
        }
    }

    /// Begins to answer lookups, and to carry datagrams where they were carried, as far as the rules and the host's network
    /// let that be. When the sockets of the image have been made, and before any guest runs. Needs a tokio context.
    ///
    /// # Errors
    /// There is no place for the resolver.
    pub fn go_on(
        self: &Arc<Self>,
        kernel: &Arc<Kernel>,
        saved: &SavedNetwork,
    ) -> Result<(), Errno> {
        Resolver::start(kernel, self)?;
        let relays = saved.relays.iter().take(MOST_RELAYS);
        let asked = Asked { kernel, tid: NOBODY };
        for address in relays.map(|address| address::canonical(*address)) {
            match self.judge(address, Transport::Udp) {
                (Verdict::Outside, rule) => self.begin_to_carry(&asked, address, rule, None),
                (Verdict::Inside, _) => {}
                (Verdict::Refused(why), rule) => {
                    self.refuse(&asked, address, Transport::Udp, why, rule);
                }
            }
        }
        Ok(())
    }

    /// Begins a connection to `target` once more, which a socket of an image was under way to, and gives the socket that
    /// is to be the guest's: a new one of the host's network, which has the options of `own`, one of the guests' own; or
    /// that itself, where what the run carries is limited. It is not waited for. Needs a tokio context.
    ///
    /// # Errors
    /// No rule allows it any more, or nothing may be carried any more (EACCES), or as connect(2).
    pub fn begin_again(
        &self,
        kernel: &Kernel,
        own: OwnedFd,
        family: i32,
        target: &[u8],
    ) -> Result<OwnedFd, Errno> {
        let target = address::parse(target).ok_or(Errno::EAFNOSUPPORT)?;
        let (verdict, rule) = self.judge(target, Transport::Tcp);
        if verdict != Verdict::Outside {
            return Err(Errno::EACCES);
        }
        let bytes = address::bytes(of_family(family, target));
        let said = (rule, None);
        let begun = match &self.metered {
            None => {
                let fresh = socket::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
                self.begin(NOBODY, target, said, fresh.as_fd());
                options::copy_outside(own.as_fd(), fresh.as_fd(), family);
                under_way(socket::connect(fresh.as_fd(), &bytes))?;
                fresh
            }
            Some(metered) if metered.meter().is_used_up() => return Err(Errno::EACCES),
            Some(metered) => {
                let guest = GuestSocket::new(own.as_fd())?;
                let to = (target, &bytes[..]);
                under_way(begin_carried((self, metered), NOBODY, &guest, to, said)?)?;
                own
            }
        };
        self.admitted(kernel, NOBODY, target, Transport::Tcp);
        Ok(begun)
    }
}

/// An address as sockets of this family are given it.
fn of_family(family: i32, address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) if family == libc::AF_INET6 => {
            SocketAddr::new(v4.to_ipv6_mapped().into(), address.port())
        }
        _ => address,
    }
}

/// No thread of a guest has asked for it just now.
const NOBODY: i32 = 0;
