//! The guests' network, as far as the supervisor is concerned: what they may reach and where they are reached, and what
//! an empty network has refused, which the kernel counts at no cost to anybody.
//!
//! A connect or send to an address without a route fails in the network namespace itself, which
//! the sentry does not see; but the namespace counts such packets (OutNoRoutes: tcp_v4_connect,
//! udp_sendmsg, ip6_dst_lookup_tail).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Error;
use crate::config::{Network, RunSpec};
use crate::sentry::net::publish::{Doors, Limits, Publisher};
use crate::sentry::net::{self, Inside, Metered, NetLog, Resolver};
use crate::sentry::{Kernel, Refusals};

/// The doors to the guests, before anybody goes in or out.
pub(super) struct Entrance {
    inside: Arc<Inside>,
    doors: Doors,
    limits: Option<Limits>,
}

/// Makes the network of a run that may reach some hosts or be reached.
pub(super) fn make_network(
    spec: &RunSpec,
    kernel: &Arc<Kernel>,
    outpost: OwnedFd,
    doors: Doors,
    log: Option<File>,
) -> Result<Entrance, Error> {
    let inside = Arc::new(Inside::new(outpost));
    let allowance = spec.limits.network;
    let (mut metered, mut limits) = (None, None);
    if allowance.is_limited() {
        let (made, led) = Metered::new(allowance, Arc::clone(&inside));
        kernel.limit_network(Arc::clone(made.meter()));
        let (meter, kernel) = (Arc::clone(made.meter()), Arc::downgrade(kernel));
        (metered, limits) = (Some(made), Some(led));
        tokio::spawn(async move {
            meter.used_up().await;
            if let (Some(kernel), Some(total)) = (kernel.upgrade(), allowance.total) {
                kernel.limit_reached(
                    "net-total",
                    format!(
                        "{total} bytes were carried; connections are reset, and no more are made"
                    ),
                    format!("the traffic limit of {total} bytes was reached (--net-total)"),
                );
            }
        });
    }
    if spec.network == Network::Allow {
        let log = log.map(NetLog::start).transpose();
        let log = log.map_err(|error| Error::Own("start the thread of --net-log", error))?;
        let (reach, lowest) = (spec.reach.clone(), spec.lowest_port());
        let name = spec.hostname.clone().or_else(|| nix::unistd::gethostname().ok());
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let network = net::Network::new(reach, Arc::clone(&inside), lowest, name, metered, log);
        kernel.connect(Arc::new(network.map_err(unreached)?));
    }
    if !doors.is_empty() {
        // Once it answers, the guests' network is there.
        inside.socket(libc::AF_INET, libc::SOCK_DGRAM, 0).map_err(unreached)?;
        kernel.publish(doors.published());
    }
    Ok(Entrance { inside, doors, limits })
}

/// Begins to answer the lookups of programs.
pub(super) fn answer_lookups(kernel: &Arc<Kernel>) -> Result<(), Error> {
    let Some(network) = kernel.network() else { return Ok(()) };
    Resolver::start(kernel, network).map_err(unreached)
}

impl Entrance {
    /// Lets in who comes to a published port, if there is one. (Who has come before waits at the door.)
    pub(super) fn open(self, kernel: &Kernel) -> Result<Option<Publisher>, Error> {
        if self.doors.is_empty() && self.limits.is_none() {
            return Ok(None);
        }
        let publisher = Publisher::start(self.doors, self.inside, self.limits);
        let publisher = publisher.map_err(|error| Error::Own("publish ports", error))?;
        kernel.lead_inside(publisher.breaker());
        Ok(Some(publisher))
    }
}

fn unreached(errno: nix::errno::Errno) -> Error {
    Error::Own("reach the sandbox's network", errno.into())
}

/// The counters of one network namespace, held open beyond its last process.
#[derive(Debug)]
pub(super) struct RefusedPackets {
    v4: Option<File>,
    v6: Option<File>,
}

impl RefusedPackets {
    /// Opens the counters of the network namespace that `pid` lives in.
    pub(super) fn watch(pid: i32) -> Option<RefusedPackets> {
        let v4 = File::open(format!("/proc/{pid}/net/snmp")).ok();
        let v6 = File::open(format!("/proc/{pid}/net/snmp6")).ok();
        (v4.is_some() || v6.is_some()).then_some(RefusedPackets { v4, v6 })
    }

    /// Adds what was refused so far to the explanations, and gives how much that is.
    pub(super) fn note(&self, refusals: &Refusals) -> u64 {
        let v4 = self.v4.as_ref().map_or(0, |file| out_no_routes(&read(file)));
        let v6 = self.v6.as_ref().map_or(0, |file| out_no_routes_v6(&read(file)));
        if v4 + v6 > 0 {
            refusals.note(
                "the network",
                "the sandbox has no network but its own loopback",
                "--net host gives it the host's",
                v4 + v6,
                || None,
            );
        }
        v4 + v6
    }
}

/// As much as holds all counters of the kernels there are (3 KiB) several times.
fn read(file: &File) -> String {
    let mut text = [0; 16 << 10];
    let count = file.read_at(&mut text, 0).unwrap_or(0);
    String::from_utf8_lossy(&text[..count]).into_owned()
}

/// /proc/net/snmp: a line of names, then a line of numbers, for each protocol.
fn out_no_routes(text: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else { return 0 };
    names
        .split_whitespace()
        .zip(numbers.split_whitespace())
        .find(|(name, _)| *name == "OutNoRoutes")
        .and_then(|(_, number)| number.parse().ok())
        .unwrap_or(0)
}

/// /proc/net/snmp6: a name and a number a line.
fn out_no_routes_v6(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("Ip6OutNoRoutes"))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let v4 = "Ip: Forwarding DefaultTTL OutNoRoutes ReasmTimeout\nIp: 2 64 3 0\nIcmp: InMsgs\n";
        assert_eq!(out_no_routes(v4), 3);
        assert_eq!(out_no_routes_v6("Ip6InReceives \t1\nIp6OutNoRoutes                  \t7\n"), 7);
        assert_eq!((out_no_routes(""), out_no_routes_v6("")), (0, 0));
    }
}
