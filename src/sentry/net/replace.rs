//! Another socket in the place of a guest's: under all its numbers, and wherever it is watched.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc;

use nix::errno::Errno;

use super::guest_socket::{self, GuestSocket};
use crate::notify::Trapped;
use crate::sys::seccomp::{self, Place};
use crate::sys::{descriptors, files, generated, process, spawn};

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
        let cloexec = closes_on_exec(tid, *number);
        let (listener, id) = (trapped.listener().as_fd(), trapped.received().id);
        let place = Place::At(number.cast_unsigned());
        seccomp::add_fd(listener, id, new, place, cloexec, false)?;
    }
    let mut watches = Vec::new();
    for epoll in &found.epolls {
        let text = generated::text(format!("/proc/{tid}/fdinfo/{epoll}")).unwrap_or_default();
        let about: Vec<Watch> = text.lines().filter_map(Watch::parse).collect();
        let about: Vec<Watch> = about.into_iter().filter(|it| it.inode == old.inode).collect();
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
        let path = format!("/proc/{tid}/fd");
        let socket = format!("socket:[{inode}]");
        let mut found = Found::default();
        for entry in std::fs::read_dir(path).map_err(|error| crate::sys::errno_of(&error))? {
            let Ok(entry) = entry else { continue };
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let (Some(number), Ok(link)) = (number, std::fs::read_link(entry.path())) else {
                continue;
            };
            match link.to_str() {
                Some(link) if link == socket => found.places.push(number),
                Some("anon_inode:[eventpoll]") => found.epolls.push(number),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Whether a descriptor of `tid` has FD_CLOEXEC (proc_pid_fdinfo(5): among the flags).
fn closes_on_exec(tid: i32, number: RawFd) -> bool {
    let text = generated::text(format!("/proc/{tid}/fdinfo/{number}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
}

/// What an epoll instance watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watch {
    number: RawFd,
    events: u32,
    data: u64,
    inode: u64,
}

impl Watch {
    /// A line of /proc/PID/fdinfo (ep_show_fdinfo in fs/eventpoll.c):
    /// `tfd:        5 events:       1d data: 7f00  pos:0 ino:1c2 sdev:9`.
    fn parse(line: &str) -> Option<Watch> {
        let field = |name: &str| {
            let at = line.find(name)? + name.len();
            line[at..].split_whitespace().next()
        };
        let hex = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        line.starts_with("tfd:").then_some(())?;
        Some(Watch {
            number: field("tfd:")?.parse().ok()?,
            events: hex("events:")? as u32,
            data: hex("data:")?,
            inode: hex("ino:")?,
        })
    }
}

type Order = (RawFd, Vec<(RawFd, Watch)>, mpsc::Sender<Result<(), Errno>>);

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
        watches: &[(OwnedFd, Vec<Watch>)],
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
fn add(own: &mut RawFd, socket: RawFd, watches: &[(RawFd, Watch)]) -> Result<(), Errno> {
    for (epoll, watch) in watches {
        if *own == watch.number {
            *own = files::leak(files::duplicate_above(*own, watch.number + 1)?);
            files::close_now(watch.number)?;
        }
        let copy = |fd| descriptors::copy_by_number(*own, fd);
        let placed = files::leak(copy(socket)?);
        if placed != watch.number {
            files::place(placed, watch.number)?;
            files::close_now(placed)?;
        }
        let added = copy(*epoll).and_then(|epoll| {
            descriptors::watch(epoll.as_fd(), watch.number, watch.events, watch.data)
        });
        files::close_now(watch.number)?;
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
    fn what_is_watched_is_read() {
        let line = "tfd:       11 events: 8000201d data: 7f12a0b  pos:0 ino:1c2 sdev:9";
        let watch = Watch { number: 11, events: 0x8000_201d, data: 0x7f1_2a0b, inode: 0x1c2 };
        assert_eq!(Watch::parse(line), Some(watch));
        assert_eq!(Watch::parse("pos:\t0"), None);
    }

    #[test]
    fn a_socket_is_watched_under_the_number_that_the_guest_gave_it() {
        let watchers = Watchers::start().unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        for number in [700, 3, 4, 5] {
            let watch = Watch { number, events: libc::EPOLLIN as u32, data: 7, inode: 0 };
            let copy = epoll.0.try_clone().unwrap();
            watchers.watch(socket.as_fd(), &[(copy, vec![watch])]).unwrap();
        }
        std::io::Write::write_all(&mut &peer, b"x").unwrap();
        let mut events = [EpollEvent::empty(); 8];
        assert_eq!(epoll.wait(&mut events, EpollTimeout::from(1000u16)), Ok(4));
        assert!(events[..4].iter().all(|it| it.data() == 7 && it.events() == EpollFlags::EPOLLIN));
        let own = std::process::id();
        let text =
            std::fs::read_to_string(format!("/proc/{own}/fdinfo/{}", epoll.0.as_raw_fd())).unwrap();
        let mut numbers: Vec<RawFd> =
            text.lines().filter_map(Watch::parse).map(|watch| watch.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [3, 4, 5, 700]);
    }
}
