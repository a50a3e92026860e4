//! Another socket in the place of a guest's: under all its numbers, and wherever it is watched.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::Mode;

use super::guest_socket::{self, GuestSocket};
use crate::notify::Trapped;
use crate::sys::fdinfo::{FdInfo, Watched};
use crate::sys::seccomp::{self, Place};
use crate::sys::{descriptors, files, listing, process, spawn};

/// Puts `new` where the calling thread has `old`. (A process that does not share its descriptors with the caller keeps
/// `old`: nothing can be installed in it, since it has not asked for anything.)
pub(super) fn put(
    trapped: &Trapped,
    watchers: &Watchers,
    old: &GuestSocket,
    new: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let tid = trapped.received().tid;
    let found = Found::of(tid, old.inode)?;
    for number in &found.places {
        let flags = FdInfo::of(tid, *number).map_or(0, |info| info.flags as i32);
        let (listener, id) = (trapped.listener().as_fd(), trapped.received().id);
        let place = Place::At(number.cast_unsigned());
        seccomp::add_fd(listener, id, new, place, flags & libc::O_CLOEXEC != 0, false)?;
    }
    let mut watches = Vec::new();
    for epoll in &found.epolls {
        let mut about = FdInfo::of(tid, *epoll).and_then(|it| it.watched()).unwrap_or_default();
        // (Sockets are all of one device.)
        about.retain(|it| it.inode.1 == old.inode);
        if !about.is_empty() {
            watches.push((guest_socket::copy(trapped, *epoll)?, about));
        }
    }
    if !watches.is_empty() {
        watchers.watch(new, &watches)?;
    }
    Ok(())
}

/// What a look at the descriptors of a thread has shown.
#[derive(Debug, Default)]
struct Found {
    places: Vec<RawFd>,
    epolls: Vec<RawFd>,
}

impl Found {
    /// Where thread `tid` has the socket of this inode, and its epoll instances (proc_pid_fd(5)).
    fn of(tid: i32, inode: u64) -> Result<Found, Errno> {
        let socket = format!("socket:[{inode}]");
        let mut found = Found::default();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(format!("/proc/{tid}/fd").as_str(), flags, Mode::empty())?;
        // (Their limit of open files bounds them.)
        for entry in listing::entries(directory.as_fd(), usize::MAX)? {
            let name = OsStr::from_bytes(&entry.name);
            let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(link) = readlinkat(&directory, name) else { continue };
            match link.to_str() {
                Some(link) if link == socket => found.places.push(number),
                Some("anon_inode:[eventpoll]") => found.epolls.push(number),
                _ => {}
            }
        }
        Ok(found)
    }
}

type Order = (RawFd, Vec<(RawFd, Watched)>, mpsc::Sender<Result<(), Errno>>);

/// Adds sockets to the epoll instances of guests.
///
/// An epoll instance knows what it watches by file and *number* (struct epoll_filefd in fs/eventpoll.c), and the guest
/// names the number later, to change or end that. So a thread with descriptors of its own gives the socket the guest's
/// number and adds it there.
#[derive(Debug)]
pub(super) struct Watchers {
    orders: mpsc::Sender<Order>,
}

impl Watchers {
    /// Starts the thread.
    pub(super) fn start() -> std::io::Result<Watchers> {
        let (orders, received) = mpsc::channel::<Order>();
        let own = process::pidfd_open(std::process::id().cast_signed(), false)?;
        std::thread::Builder::new().name("epoll".into()).stack_size(128 << 10).spawn(
            move || {
                // From here on `own` names a copy in this thread's table, where it is closed with it.
                let mut own = files::leak(own);
                if spawn::unshare(libc::CLONE_FILES)
                    .and_then(|()| files::close_all_but(own))
                    .is_err()
                {
                    return;
                }
                while let Ok((socket, watches, answer)) = received.recv() {
                    let _ = answer.send(add(&mut own, socket, &watches));
                }
            },
        )?;
        Ok(Watchers { orders })
    }

    fn watch(
        &self,
        socket: BorrowedFd<'_>,
        watches: &[(OwnedFd, Vec<Watched>)],
    ) -> Result<(), Errno> {
        let each = watches
            .iter()
            .flat_map(|(epoll, about)| about.iter().map(|watch| (epoll.as_raw_fd(), *watch)));
        let (answer, answered) = mpsc::channel();
        let order = (socket.as_raw_fd(), each.collect(), answer);
        self.orders.send(order).map_err(|_| Errno::ESRCH)?;
        answered.recv().map_err(|_| Errno::ESRCH)?
    }
}

/// Carries an order out. `own` stands for this process in this thread's table; the numbers of the order are those of
/// the other threads, which hold them open until it is answered.
fn add(own: &mut RawFd, socket: RawFd, watches: &[(RawFd, Watched)]) -> Result<(), Errno> {
    for (epoll, watch) in watches {
        let number = watch.number.cast_signed();
        if *own == number {
            *own = files::leak(files::duplicate_above(*own, number + 1)?);
            files::close_now(number)?;
        }
        let copy = |fd| descriptors::copy_by_number(*own, fd);
        let placed = copy(socket)?;
        if placed.as_raw_fd() == number {
            files::leak(placed);
        } else {
            files::place(placed.as_raw_fd(), number)?;
            drop(placed);
        }
        let added = copy(*epoll)
            .and_then(|epoll| descriptors::watch(epoll.as_fd(), number, watch.events, watch.data));
        files::close_now(number)?;
        match added {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

    use super::*;

    #[test]
    fn a_socket_is_watched_under_the_number_that_the_guest_gave_it() {
        let watchers = Watchers::start().unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        for number in [700, 3, 4, 5] {
            let watch = Watched { number, events: libc::EPOLLIN as u32, data: 7, inode: (0, 0) };
            let copy = epoll.0.try_clone().unwrap();
            watchers.watch(socket.as_fd(), &[(copy, vec![watch])]).unwrap();
        }
        std::io::Write::write_all(&mut &peer, b"x").unwrap();
        let mut events = [EpollEvent::empty(); 8];
        assert_eq!(epoll.wait(&mut events, EpollTimeout::from(1000u16)), Ok(4));
        assert!(events[..4].iter().all(|it| it.data() == 7 && it.events() == EpollFlags::EPOLLIN));
        let watched = FdInfo::of("self", epoll.0.as_raw_fd()).and_then(|it| it.watched()).unwrap();
        let mut numbers: Vec<u32> = watched.iter().map(|watch| watch.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [3, 4, 5, 700]);
    }
}
