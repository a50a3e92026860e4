//! Unix sockets: made, named and connected.
//!
//! A pair without names is made as one; whatever was accepted has its listening socket's name without
//! being bound to it, so it is accepted again from a socket of that name: the one that listens, or one
//! that is made for it and closed. SO_PEERCRED tells of the maker's process then, with the user that it
//! has: the kernel remembers who has called.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use libc::{SOCK_CLOEXEC, SOCK_DGRAM};
use serde_bytes::ByteBuf;

use super::names::{self, Naming};
use super::{Entry, by_id, made, make as make_one, of_maker, put, queue};
use crate::save::error::RestoreError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::{Detail, Socket, Unix, UnixState};
use crate::sys::socket;

/// As many as any listening socket may have waiting.
const MANY: u64 = 4096;

/// A name, and of a path which of the files that it once stood for.
type Name = (ByteBuf, Option<(u64, u64)>);

/// What happens at a name.
#[derive(Default)]
struct Group {
    /// The socket that is bound to it: its place in the list.
    holder: Option<usize>,
    /// Connections that were accepted from it: who made them (nobody any more), and what was accepted.
    accepted: Vec<(Option<usize>, usize)>,
}

struct Plan<'p, 'm> {
    all: &'p [Entry<'m>],
    /// Places in the list, by index in the image's files.
    places: HashMap<usize, usize>,
    ids: HashMap<u64, usize>,
    groups: HashMap<Name, Group>,
    /// Sockets that are made in pairs; the second may be one that was closed.
    pairs: Vec<(usize, Option<usize>)>,
    /// Other ends of sockets whose other ends were closed, until their queues are full: by index.
    ends: HashMap<usize, OwnedFd>,
}

fn unix(socket: &Socket) -> Option<&Unix> {
    match &socket.detail {
        Detail::Unix(unix) => Some(unix),
        _ => None,
    }
}

/// Whether two sockets of datagrams that are connected to each other are made as a pair. Those that both
/// have names may have met by them, and have messages of others.
pub(super) fn is_pair(one: &Socket, other: &Socket) -> bool {
    let (Some(first), Some(second)) = (unix(one), unix(other)) else { return false };
    first.state == UnixState::Connected(other.id)
        && second.state == UnixState::Connected(one.id)
        && (first.name.is_none() || second.name.is_none())
}

fn name_of(unix: &Unix) -> Option<Name> {
    let name = unix.name.clone()?;
    Some((name, unix.file.as_ref().map(|file| file.inode)))
}

/// Makes all of them; their queues are filled at the end of the restore.
pub(super) fn make(maker: &mut Maker<'_>, all: &[Entry<'_>]) -> Result<(), RestoreError> {
    let all: Vec<Entry<'_>> = all.iter().copied().filter(|it| unix(it.1).is_some()).collect();
    let mut plan = Plan::of(&all);
    plan.make_pairs(maker)?;
    plan.name(maker)?;
    plan.make_rest(maker)?;
    let ends = std::mem::take(&mut plan.ends);
    maker.finishes.push(Box::new(move |maker| queue::fill(maker, ends)));
    Ok(())
}

impl<'p, 'm> Plan<'p, 'm> {
    fn of(all: &'p [Entry<'m>]) -> Plan<'p, 'm> {
        let places = all.iter().enumerate().map(|(place, (index, _))| (*index, place)).collect();
        let mut plan = Plan {
            all,
            places,
            ids: by_id(all),
            groups: HashMap::new(),
            pairs: Vec::new(),
            ends: HashMap::new(),
        };
        plan.sort();
        plan
    }

    fn socket(&self, place: usize) -> &'m Socket {
        self.all[place].1
    }

    fn unix(&self, place: usize) -> Option<&'m Unix> {
        unix(self.all[place].1)
    }

    fn peer(&self, place: usize) -> Option<usize> {
        let UnixState::Connected(peer) = self.unix(place)?.state else { return None };
        self.places.get(self.ids.get(&peer)?).copied()
    }

    fn name_at(&self, place: usize) -> Option<Name> {
        name_of(self.unix(place)?)
    }

    /// Says of each socket how it comes about.
    fn sort(&mut self) {
        let mut count: HashMap<Name, usize> = HashMap::new();
        for place in 0..self.all.len() {
            if let Some(name) = self.name_at(place) {
                *count.entry(name).or_default() += 1;
            }
        }
        let shared =
            |name: &Option<Name>| name.as_ref().is_some_and(|name| count.get(name) > Some(&1));
        let mut accepted = HashSet::new();
        for place in 0..self.all.len() {
            let Some(state) = self.unix(place).map(|unix| unix.state.clone()) else { continue };
            let (name, datagrams) = (self.name_at(place), self.socket(place).kind == SOCK_DGRAM);
            let peer = self.peer(place);
            match (state, peer) {
                (UnixState::Abandoned, _) => match name {
                    Some(name) if !datagrams => {
                        accepted.insert(place);
                        self.groups.entry(name).or_default().accepted.push((None, place));
                    }
                    _ => self.pairs.push((place, None)),
                },
                (_, Some(peer)) if self.peer(peer) == Some(place) && place < peer => {
                    let others = self.name_at(peer);
                    if datagrams || name.is_none() && others.is_none() {
                        if is_pair(self.socket(place), self.socket(peer)) {
                            self.pairs.push((place, Some(peer)));
                        }
                        continue;
                    }
                    let first = shared(&name) || !shared(&others) && name.is_some();
                    let (from, to) = if first { (peer, place) } else { (place, peer) };
                    accepted.insert(to);
                    if let Some(name) = self.name_at(to) {
                        self.groups.entry(name).or_default().accepted.push((Some(from), to));
                    }
                }
                _ => {}
            }
        }
        for place in (0..self.all.len()).filter(|place| !accepted.contains(place)) {
            if let Some(name) = self.name_at(place) {
                self.groups.entry(name).or_default().holder = Some(place);
            }
        }
    }

    fn make_pairs(&mut self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        for (first, second) in std::mem::take(&mut self.pairs) {
            let socket = self.socket(first);
            let (one, other) = pair(maker, socket)?;
            put(maker, self.all[first].0, one);
            match second {
                Some(second) => put(maker, self.all[second].0, other),
                None => {
                    self.ends.insert(self.all[first].0, other);
                }
            }
        }
        Ok(())
    }

    /// Gives names. A path that stands for several files belongs to the one that is still there, so that
    /// comes last; and who made a connection has its name before it makes it.
    fn name(&mut self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        let mut groups: Vec<(Name, Group)> = std::mem::take(&mut self.groups).into_iter().collect();
        let there = |group: &Group, plan: &Self| {
            let some = group.holder.or(group.accepted.first().map(|(_, to)| *to));
            let file = some.and_then(|place| plan.unix(place)).and_then(|it| it.file.as_ref());
            file.is_some_and(|file| file.path.is_some())
        };
        groups.sort_by_cached_key(|(name, group)| {
            let holder = group.holder.and_then(|place| self.unix(place));
            let listens = holder.is_some_and(|it| matches!(it.state, UnixState::Listening { .. }));
            (listens || !group.accepted.is_empty(), there(group, self), name.clone())
        });
        for (_, group) in groups {
            self.name_group(maker, &group)?;
        }
        Ok(())
    }

    fn name_group(&mut self, maker: &mut Maker<'_>, group: &Group) -> Result<(), RestoreError> {
        let Some(place) = group.holder.or(group.accepted.first().map(|(_, to)| *to)) else {
            return Ok(());
        };
        let (socket, Some(unix)) = (self.socket(place), self.unix(place)) else { return Ok(()) };
        // Without a holder it is a socket that is only there to be connected to.
        let index = group.holder.map(|place| self.all[place].0);
        if let Some(index) = index {
            ensure(maker, index, socket)?;
        }
        let holder = match index {
            Some(index) => made(maker, index)?.try_clone_to_owned(),
            None => Ok(make_one(maker, socket)?),
        };
        let holder = holder.map_err(|error| RestoreError::failed("cannot copy a socket", error))?;
        let number = maker.give(&holder).map_err(of_maker("cannot give a socket"))?;
        let naming = Naming::begin(maker, number, unix, socket)?;
        let address = names::address(unix.name.as_ref().map_or(&[], |name| name));
        if !group.accepted.is_empty() {
            listen(maker, number, MANY)?;
        }
        for (from, to) in &group.accepted {
            let from = self.connect(maker, *from, *to, &address)?;
            let arguments = [number as u64, 0, 0, SOCK_CLOEXEC as u64];
            let accepted = maker.hand.call(libc::SYS_accept4, arguments);
            let accepted = accepted.map_err(of_maker("cannot accept a connection"))?;
            let accepted = maker.take_and_close(accepted as i32);
            put(maker, self.all[*to].0, accepted.map_err(of_maker("cannot take a socket"))?);
            if let Some(end) = from {
                self.ends.insert(self.all[*to].0, end);
            }
        }
        if let UnixState::Listening { backlog, pending } = &unix.state {
            listen(maker, number, MANY)?;
            for id in pending {
                let from = self.ids.get(id).and_then(|index| self.places.get(index)).copied();
                drop(self.connect(maker, from, place, &address)?);
            }
            listen(maker, number, u64::from(*backlog))?;
        }
        naming.settle(maker)?;
        names::close(maker, number)
    }

    /// Has `from` make a connection to an address. Nobody: gives the end of one that was made for it.
    fn connect(
        &self,
        maker: &mut Maker<'_>,
        from: Option<usize>,
        to: usize,
        address: &[u8],
    ) -> Result<Option<OwnedFd>, RestoreError> {
        let mut end = None;
        let number = match from {
            Some(from) => {
                let (index, socket) = self.all[from];
                ensure(maker, index, socket)?;
                let fd = made(maker, index)?.try_clone_to_owned();
                let fd = fd.map_err(|error| RestoreError::failed("cannot copy a socket", error))?;
                maker.give(fd)
            }
            None => {
                let fd = make_one(maker, self.socket(to))?;
                maker.give(end.insert(fd))
            }
        };
        let number = number.map_err(of_maker("cannot give a socket"))?;
        let length = address.len() as u64;
        let arguments = |at| [number as u64, at, length];
        let connected = maker.hand.call_with(libc::SYS_connect, address, arguments);
        connected.map_err(|error| {
            RestoreError::failed(
                format!("cannot connect to {}", super::name(self.socket(to))),
                error,
            )
        })?;
        names::close(maker, number)?;
        Ok(end)
    }

    /// Those without a name that nobody has made yet.
    fn make_rest(&mut self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        for (index, socket) in self.all {
            ensure(maker, *index, socket)?;
        }
        Ok(())
    }
}

fn ensure(maker: &mut Maker<'_>, index: usize, socket: &Socket) -> Result<(), RestoreError> {
    if made(maker, index).is_err() {
        let fd = make_one(maker, socket)?;
        put(maker, index, fd);
    }
    Ok(())
}

fn listen(maker: &mut Maker<'_>, fd: i32, backlog: u64) -> Result<(), RestoreError> {
    let done = maker.hand.call(libc::SYS_listen, [fd as u64, backlog.min(i32::MAX as u64)]);
    done.map(drop).map_err(of_maker("cannot have a unix socket listen"))
}

fn pair(maker: &mut Maker<'_>, socket: &Socket) -> Result<(OwnedFd, OwnedFd), RestoreError> {
    let mut table = maker.hand.table();
    let both = table.room(8);
    let kind = (socket.kind & 0xf | SOCK_CLOEXEC) as u64;
    let arguments = [socket.family as u64, kind, socket.protocol as u64, both.address];
    table.call(libc::SYS_socketpair, arguments);
    let done = maker.hand.run(&table).map_err(of_maker("cannot make a pair of sockets"))?;
    let mut take = |index| maker.take_and_close(done.half(both, index) as i32);
    let (one, other) = (take(0), take(1));
    let taken = of_maker("cannot take a pair of sockets");
    Ok((one.map_err(&taken)?, other.map_err(&taken)?))
}

/// Connects sockets of datagrams to whom they send, once queues are full: a connected one takes
/// messages of the other alone.
pub(super) fn connect_datagrams(
    maker: &mut Maker<'_>,
    all: &[Entry<'_>],
) -> Result<(), RestoreError> {
    let sockets: HashMap<u64, &Socket> = all.iter().map(|(_, it)| (it.id, *it)).collect();
    for (index, socket) in all {
        let Some(Unix { state: UnixState::Connected(peer), .. }) = unix(socket) else { continue };
        let Some(peer) = sockets.get(peer) else { continue };
        let Some(other) = unix(peer) else { continue };
        if socket.kind != SOCK_DGRAM || is_pair(socket, peer) {
            continue;
        }
        let name = other.name.as_ref().ok_or_else(|| {
            RestoreError::refused(
                "the image has a unix socket connected to one without a name that is connected elsewhere",
            )
        })?;
        let fd = made(maker, *index)?.try_clone_to_owned();
        let fd = fd.map_err(|error| RestoreError::failed("cannot copy a socket", error))?;
        let number = maker.give(fd).map_err(of_maker("cannot give a socket"))?;
        let address = names::address(name);
        let length = address.len() as u64;
        let done =
            maker.hand.call_with(libc::SYS_connect, &address, |at| [number as u64, at, length]);
        done.map_err(|error| {
            RestoreError::failed(format!("cannot connect to {}", super::name(socket)), error)
        })?;
        names::close(maker, number)?;
    }
    Ok(())
}

/// Raises what a socket may have on its way; what it had is set later.
pub(super) fn raise(fd: impl AsFd) {
    /// More than a host allows; the kernel takes what it does (sock_setsockopt in net/core/sock.c).
    const MUCH: i32 = 64 << 20;
    let fd = fd.as_fd();
    // If not, then what is there may be enough.
    let _ = socket::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &MUCH.to_ne_bytes());
}
