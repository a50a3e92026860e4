//! Hosts and names that no rule names: whoever runs the sandbox is asked (`--ask net`).

use std::future::pending;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::guest_socket::GuestSocket;
use super::resolver::Resolver;
use super::rule::{Rule, Target, Transport};
use super::seeker::Seeker;
use super::{Network, Verdict, address, policy};
use crate::sentry::asking::{About, Asker, Asking, Choice, Denial, Granted, Subject};
use crate::sentry::block::Interrupted;
use crate::sentry::call::TaskCall;
use crate::sys::{process, ready};

impl Network {
    /// Whether a socket of the host's network is that of a connection that was begun to this address.
    pub(super) fn goes_to(&self, own: &GuestSocket, target: SocketAddr) -> bool {
        let target = Some(address::canonical(target));
        self.is_outside(own) && self.recorded(own.fd.as_fd()) == target
    }

    /// Asks about an address that is refused for this reason, unless a rule or its kind refuse it. `connects`: nothing is
    /// sent yet. An error within says why it stays refused.
    pub(super) async fn ask(
        &self,
        call: &TaskCall,
        (address, transport): (SocketAddr, Transport),
        why: &'static str,
        connects: bool,
    ) -> Result<Result<Granted, &'static str>, Interrupted> {
        let asking = call.kernel.asking().filter(|it| it.is_about(About::NET));
        let Some(asking) = asking.filter(|_| why == policy::UNLISTED) else { return Ok(Err(why)) };
        let address = address::canonical(address);
        if transport == Transport::Udp && connects && self.is_probed(address) {
            return Ok(Err(why));
        }
        let asker = Asker::thread(call.received().tid);
        let names = self.names(address.ip());
        if let Some(said) = asking.said_of(&names, &asker) {
            return Ok(said.map_err(Denial::reason));
        }
        let name = names.into_iter().next();
        let shown = name.is_some().then(|| address.ip().to_string());
        let host = name.unwrap_or_else(|| address.ip().to_string());
        let subject = Subject::Host { host, port: address.port(), transport };
        let granted = call.kernel.ask(asking, asker, subject, shown);
        Ok(call.block(granted).await?.map_err(Denial::reason))
    }

    /// Whether a datagram socket is connected to this address for no more than to learn which way leads there: C
    /// libraries do so with each address of a name before a program gets it (RFC 6724 in getaddrinfo(3)), also where the
    /// program is about to use TCP.
    fn is_probed(&self, address: SocketAddr) -> bool {
        address.port() == 0 || self.judge(address, Transport::Tcp).0 == Verdict::Outside
    }
}

/// How long a lookup waits for an answer: as long as programs wait that are told to be patient (`launch::resolver`), and
/// a moment more. One that still wants to know asks again by then.
const PATIENCE: Duration = Duration::from_secs(35);

impl Resolver {
    /// Asks about a name that no rule is about. An error says why it is not looked up.
    pub(super) async fn ask(
        self: &Arc<Self>,
        name: &str,
        seeker: Seeker,
    ) -> Result<Choice, &'static str> {
        // (Who asks for a service is told of the host.)
        let name = policy::host_of(name);
        let kernel = self.kernel.upgrade().ok_or(policy::UNLISTED)?;
        let asking = kernel.asking().filter(|it| it.is_about(About::NET));
        // (Nobody could say anything about the names of addresses.)
        let asking = asking.filter(|_| !name.ends_with(".arpa")).ok_or(policy::UNLISTED)?;
        // The DNS takes any bytes: what reads as another rule, about a port or every name, could not be answered.
        let rule = Rule { target: Target::Name(name.to_owned()), ports: None, transport: None };
        if Rule::parse(name).as_ref() != Ok(&rule) {
            return Err(policy::UNLISTED);
        }
        let subject = Subject::Name { name: name.to_owned() };
        match asking.known(&subject) {
            Some(true) => return Ok(Choice::Always),
            Some(false) => return Err(Denial::Said(Choice::Never).reason()),
            None => {}
        }
        let asker = self.find_asker(&kernel, seeker).await;
        if asking.is_admitted(name, &asker) {
            return Ok(Choice::Once);
        }
        let asked = kernel.ask(asking, asker.clone(), subject, None);
        let granted = tokio::select! {
            biased;
            granted = tokio::time::timeout(PATIENCE, asked) => granted,
            () = has_ended(&asker) => return Err(policy::UNLISTED),
        };
        let granted = granted.map_err(|_| policy::UNLISTED)?.map_err(Denial::reason)?;
        let choice = granted.settle();
        if choice == Choice::Once {
            asking.admit_once(name, &asker);
        }
        Ok(choice)
    }
}

/// Waits for the end of a process that has asked.
async fn has_ended(asker: &Asker) {
    let process = if asker.pid == 0 { None } else { process::pidfd_open(asker.pid, false).ok() };
    // (The number may be another one's by now.)
    let process = process.filter(|_| Asker::thread(asker.pid) == *asker);
    match process.and_then(|process| ready::watch_readable(process.as_fd()).ok()) {
        Some(end) => drop(end.readable().await),
        // It is not known, or gone already: the question lasts as long as it would be waited for.
        None => pending().await,
    }
}

impl Asking {
    /// What was said of the names that an address is known by, as far as that settles the address.
    fn said_of(
        self: &Arc<Self>,
        names: &[String],
        asker: &Asker,
    ) -> Option<Result<Granted, Denial>> {
        let said: Vec<Option<bool>> =
            names.iter().map(|name| self.known(&Subject::Name { name: name.clone() })).collect();
        if said.contains(&Some(false)) {
            return Some(Err(Denial::Said(Choice::Never)));
        }
        if said.contains(&Some(true)) {
            return Some(Ok(self.granted(Choice::Always)));
        }
        let is_admitted = names.iter().any(|name| self.is_admitted(name, asker));
        is_admitted.then(|| Ok(self.granted(Choice::Once)))
    }
}
