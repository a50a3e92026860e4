//! Unix sockets: made, named and connected.
//!
//! A pair without names is made as one; whatever was accepted has its listening socket's name without
//! being bound to it, so it is accepted again from a socket of that name: the one that listens, or one
//! that is made for it and closed. SO_PEERCRED tells who has called socketpair(2), listen(2) or connect(2)
//! (init_peercred, update_peercred and copy_peercred in net/unix/af_unix.c): so the process that had, or one of its
//! number, does ([`Maker::in_the_name_of`]).

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use libc::{SOCK_CLOEXEC, SOCK_DGRAM};
use serde_bytes::ByteBuf;

use super::names::{self, Naming};
use super::{Entry, by_id, bygone, made, make as make_one, of_maker, put, queue};
use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError};
use crate::save::restore::courier::Courier;
use crate::save::restore::maker::Maker;
use crate::save::sockets::{Detail, Socket, Unix, UnixState};
use crate::save::state::Table;
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

    /// The process that a socket has for its peer; 0: not known.
    fn peer_of(&self, place: usize) -> i32 {
        self.unix(place).and_then(|it| it.peer).map_or(0, |it| it.0)
    }

    /// A process that has a socket, by its place.
    fn holder_of(&self, maker: &Maker<'_>, place: usize) -> i32 {
        let index = self.all[place].0 as u32;
        let has = |table: &Table| table.descriptors.iter().any(|it| it.file == index);
        let sandbox = maker.sandbox;
        let holder = sandbox.processes.iter().find(|process| {
            let table = process.table.and_then(|table| sandbox.tables.get(table as usize));
            table.is_some_and(has)
        });
        holder.map_or(0, |process| process.pid)
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
                _ if bygone::is_one(self.socket(place)) => {}
                (UnixState::Abandoned | UnixState::Broken, _) => match name {
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
            let (one, other) = pair(maker, socket, self.peer_of(first))?;
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
        if unix.file.as_ref().is_some_and(|file| file.path.is_none()) {
            let name = unix.name.as_ref().map_or(&[][..], |name| name);
            let named = bygone::give_name(maker, &holder, name)?;
            let nowhere = named.map_err(|error| cannot_bind(socket, error))?;
            let Some(bygone::Nowhere { file, directory, last }) = nowhere else { return Ok(()) };
            let bytes = names::address(&last);
            let address = Address { bytes: &bytes, from: Some(&directory), handle: Some(&file) };
            return self.come_together(maker, group, place, &holder, &address);
        }
        let number = maker.give(&holder).map_err(of_maker("cannot give a socket"))?;
        let naming = Naming::begin(maker, number, unix, socket)?;
        names::close(maker, number)?;
        let (name, from) = naming.place(maker)?;
        let bytes = names::address(name);
        let handle = match group.accepted.iter().any(|(from, to)| self.is_strangers(*from, *to)) {
            true => naming.handle(maker)?,
            false => None,
        };
        let address = Address { bytes: &bytes, from: from.as_ref(), handle: handle.as_ref() };
        self.come_together(maker, group, place, &holder, &address)?;
        naming.settle(maker)
    }

    /// Makes the connections to the socket at `place`, which has its name: those that it has accepted, and those that
    /// wait.
    fn come_together(
        &mut self,
        maker: &mut Maker<'_>,
        group: &Group,
        place: usize,
        holder: &OwnedFd,
        address: &Address<'_>,
    ) -> Result<(), RestoreError> {
        let number = maker.give(holder).map_err(of_maker("cannot give a socket"))?;
        for (from, to) in &group.accepted {
            // What a connection remembers of the socket that listens is who had it listen last.
            let by = from.map_or(0, |from| self.peer_of(from));
            listen(maker, holder, MANY, by)?;
            let from = self.connect(maker, *from, *to, address, self.peer_of(*to))?;
            let arguments = [number as u64, 0, 0, SOCK_CLOEXEC as u64];
            let accepted = maker.hand.call(libc::SYS_accept4, arguments);
            let accepted = accepted.map_err(of_maker("cannot accept a connection"))?;
            let accepted = maker.take_and_close(accepted as i32);
            put(maker, self.all[*to].0, accepted.map_err(of_maker("cannot take a socket"))?);
            if let Some(end) = from {
                self.ends.insert(self.all[*to].0, end);
            }
        }
        if let Some(UnixState::Listening { backlog, pending }) =
            self.unix(place).map(|it| &it.state)
        {
            let by = self.peer_of(place);
            listen(maker, holder, MANY, by)?;
            for id in pending {
                let from = self.ids.get(id).and_then(|index| self.places.get(index)).copied();
                if let Some(from) = from.map(|from| self.peer_of(from)).filter(|it| *it != by) {
                    listen(maker, holder, MANY, from)?;
                }
                // Of who has made it, nothing is told before it is accepted.
                let maker_of_it = from.map_or(0, |from| self.holder_of(maker, from));
                drop(self.connect(maker, from, place, address, maker_of_it)?);
            }
            listen(maker, holder, u64::from(*backlog), by)?;
        }
        names::close(maker, number)
    }

    /// Whether a connection to be accepted was made by nobody who is there, and who has no number inside: the sentry, which
    /// has none either, makes it again.
    fn is_strangers(&self, from: Option<usize>, to: usize) -> bool {
        from.is_none() && self.unix(to).is_some_and(|it| matches!(it.peer, Some((0, ..))))
    }

    /// Has `from` make a connection to an address, in the name of the process `by`. Nobody: gives the end of one
    /// that was made for it.
    fn connect(
        &self,
        maker: &mut Maker<'_>,
        from: Option<usize>,
        to: usize,
        address: &Address<'_>,
        by: i32,
    ) -> Result<Option<OwnedFd>, RestoreError> {
        if self.is_strangers(from, to) {
            let end = make_one(maker, self.socket(to))?;
            let by_handle = address.handle.map(bygone::by_handle);
            let to_address = by_handle.as_deref().unwrap_or(address.bytes);
            let connected = socket::connect(end.as_fd(), to_address);
            connected.map_err(super::failed(self.socket(to), "connect to"))?;
            return Ok(Some(end));
        }
        let mut end = None;
        let fd = match from {
            Some(from) => {
                let (index, socket) = self.all[from];
                ensure(maker, index, socket)?;
                let fd = made(maker, index)?.try_clone_to_owned();
                fd.map_err(|error| RestoreError::failed("cannot copy a socket", error))?
            }
            None => {
                let fd = end.insert(make_one(maker, self.socket(to))?);
                let fd = fd.try_clone();
                fd.map_err(|error| RestoreError::failed("cannot copy a socket", error))?
            }
        };
        let connected = maker.in_the_name_of(by, |hand, courier| {
            if let Some(directory) = address.from {
                with(hand, courier, directory, |hand, number| {
                    hand.call(libc::SYS_fchdir, [number]).map(drop)
                })?;
            }
            let length = address.bytes.len() as u64;
            with(hand, courier, &fd, |hand, number| {
                let arguments = |at| [number, at, length];
                hand.call_with(libc::SYS_connect, address.bytes, arguments).map(drop)
            })
        });
        connected.map_err(|error| {
            RestoreError::failed(
                format!("cannot connect to {}", super::name(self.socket(to))),
                error,
            )
        })?;
        Ok(end)
    }

    /// Those without a name that nobody has made yet.
    fn make_rest(&mut self, maker: &mut Maker<'_>) -> Result<(), RestoreError> {
        for (index, socket) in self.all {
            if bygone::is_one(socket) && socket.kind != SOCK_DGRAM {
                let (fd, end) = bygone::connected(maker, socket)?;
                put(maker, *index, fd);
                self.ends.insert(*index, end);
            }
            ensure(maker, *index, socket)?;
        }
        Ok(())
    }
}

fn cannot_bind(socket: &Socket, error: HandError) -> RestoreError {
    RestoreError::failed(format!("cannot bind {}", super::name(socket)), error)
}

fn ensure(maker: &mut Maker<'_>, index: usize, socket: &Socket) -> Result<(), RestoreError> {
    if made(maker, index).is_err() {
        let fd = make_one(maker, socket)?;
        put(maker, index, fd);
    }
    Ok(())
}

/// Where a socket can be connected to.
struct Address<'a> {
    /// struct sockaddr_un.
    bytes: &'a [u8],
    /// The directory that it leads from, if it does.
    from: Option<&'a OwnedFd>,
    /// The file of the socket, for the sentry; of an abstract name there is none.
    handle: Option<&'a OwnedFd>,
}

/// Gives a process a descriptor for the time of some calls.
fn with<T>(
    hand: &mut Hand,
    courier: &Courier,
    fd: &OwnedFd,
    work: impl FnOnce(&mut Hand, u64) -> Result<T, HandError>,
) -> Result<T, HandError> {
    let number = courier.send(hand, &[fd.as_fd()])?;
    let number = number.first().copied().ok_or(HandError::Killed)? as u64;
    let done = work(hand, number);
    hand.call(libc::SYS_close, [number])?;
    done
}

/// Has a socket listen, in the name of the process `by`.
fn listen(maker: &mut Maker<'_>, fd: &OwnedFd, backlog: u64, by: i32) -> Result<(), RestoreError> {
    let done = maker.in_the_name_of(by, |hand, courier| {
        with(hand, courier, fd, |hand, number| {
            hand.call(libc::SYS_listen, [number, backlog.min(i32::MAX as u64)])
        })
    });
    done.map(drop).map_err(of_maker("cannot have a unix socket listen"))
}

pub(super) fn pair(
    maker: &mut Maker<'_>,
    socket: &Socket,
    by: i32,
) -> Result<(OwnedFd, OwnedFd), RestoreError> {
    let pair = maker.in_the_name_of(by, |hand, courier| {
        let mut table = hand.table();
        let both = table.room(8);
        let kind = (socket.kind & 0xf | SOCK_CLOEXEC) as u64;
        let arguments = [socket.family as u64, kind, socket.protocol as u64, both.address];
        table.call(libc::SYS_socketpair, arguments);
        let done = hand.run(&table)?;
        let numbers = [0, 1].map(|index| done.half(both, index) as i32);
        let taken = courier.take_all(hand, &numbers)?;
        for number in numbers {
            hand.call(libc::SYS_close, [number as u64])?;
        }
        Ok(taken)
    });
    let pair = pair.map_err(of_maker("cannot make a pair of sockets"))?;
    let [one, other] = <[OwnedFd; 2]>::try_from(pair)
        .map_err(|_| RestoreError::refused("a pair of sockets is not two"))?;
    Ok((one, other))
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
        if other.name.is_none() {
            return Err(RestoreError::refused(
                "the image has a unix socket connected to one without a name that is connected elsewhere",
            ));
        }
        let fd = made(maker, *index)?.try_clone_to_owned();
        let fd = fd.map_err(|error| RestoreError::failed("cannot copy a socket", error))?;
        let number = maker.give(fd).map_err(of_maker("cannot give a socket"))?;
        let done = names::reach(maker, other).and_then(|(address, directory)| {
            let length = address.len() as u64;
            names::there(maker, directory.as_ref(), |maker| {
                maker.hand.call_with(libc::SYS_connect, &address, |at| [number as u64, at, length])
            })
        });
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
