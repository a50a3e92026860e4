//! Pseudo-terminals: those made inside, and the one of the run's program.
//!
//! [`capture_descriptor`] says what a descriptor of one is, and remembers a copy of it; when all
//! descriptors have been seen, [`finish`] takes down what each pseudo-terminal is like. What waits in
//! one is taken out for that and put back ([`crate::save::queues`]).
//!
//! One whose master no guest holds is shown by a `sandbox exec`, which is in no image: it has hung up for who is
//! restored. Refused by name: terminals of the host; notices of a master in packet mode that wait to be read.
//! Not carried: input that waits
//! where the slave was never opened, the column of the cursor, lock bits of settings (TIOCSLCKTRMIOS).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::stat::{fstat, major, minor};
use serde_bytes::ByteBuf;

use crate::save::capture::collector::{Collector, Subject};
use crate::save::error::SaveError;
use crate::save::ptys::{Ends, OwnTerminal, Pty};
use crate::save::queues::{Line, is};
use crate::save::state::FileKind;
use crate::sys::pty_state::{self, Question, Switch};
use crate::sys::terminal;

/// drivers/tty/pty.c: the slaves' major number (UNIX98_PTY_SLAVE_MAJOR); /dev/tty is 5:0.
const SLAVES: u64 = 136;
const TERMINAL: (u64, u64) = (5, 0);

/// Ends that were found, by the number in /dev/pts.
#[derive(Debug, Default)]
pub struct Gathered(BTreeMap<u32, Found>);

#[derive(Debug)]
struct Found {
    /// Index in [`Collector::terminals`].
    slot: u32,
    /// Who was seen with it, for errors.
    who: String,
    master: Option<OwnedFd>,
    slave: Option<OwnedFd>,
}

/// What a descriptor on /dev/ptmx, /dev/pts/N or /dev/tty is. `own`: the number of the terminal of the
/// run's program, if it has one.
pub fn capture_descriptor(
    subject: &mut Subject<'_>,
    fd: i32,
    own: Option<u32>,
    collector: &mut Collector,
) -> Result<FileKind, SaveError> {
    let copy = pty_state::copy_of(subject.pid, fd).map_err(|errno| {
        let what = format!("{}: the terminal of descriptor {fd}", subject.name());
        SaveError::failed(what, errno.desc())
    })?;
    capture_copy(subject, copy, Some(fd), own, collector)
}

/// Likewise, by a copy of the descriptor; `fd`: its number in `subject`, if it has it at all (it may be
/// in a message that it has not received).
pub fn capture_copy(
    subject: &mut Subject<'_>,
    copy: OwnedFd,
    fd: Option<i32>,
    own: Option<u32>,
    collector: &mut Collector,
) -> Result<FileKind, SaveError> {
    let who = subject.name().to_owned();
    let held = fd.map_or_else(|| "in a message".to_owned(), |fd| format!("descriptor {fd}"));
    let failed =
        |errno: Errno| SaveError::failed(format!("{who}: a terminal ({held})"), errno.desc());
    let status = fstat(&copy).map_err(failed)?;
    let device = (major(status.st_rdev), minor(status.st_rdev));
    let pts = std::fs::metadata(format!("{}/dev/pts", collector.known.view_of(subject.pid)));
    let inside = pts.is_ok_and(|pts| pts.dev() == status.st_dev) || device == TERMINAL;
    if !inside {
        return Err(SaveError::refused(format!(
            "{who} holds a terminal of the host ({held}), which cannot be saved; close it first"
        )));
    }
    let is_master = pty_state::ask(copy.as_fd(), Question::Index);
    let index = match (is_master, pty_state::ask(copy.as_fd(), Question::Device)) {
        (Ok(index), _) => index,
        (_, Ok(device)) => minor(u64::from(device)) as u32,
        // A terminal that is hung up answers nothing (hung_up_tty_ioctl() in drivers/tty/tty_io.c).
        (_, Err(_)) if device.0 == SLAVES => device.1 as u32,
        (_, Err(errno)) => return Err(failed(errno)),
    };
    let (session, foreground) = fd.map_or((0, 0), |fd| session(subject, fd));
    // (/dev/tty is kept as what it stands for.)
    if own == Some(index) && is_master.is_err() {
        return Ok(FileKind::OwnTerminal);
    }
    let Collector { terminals, ptys, .. } = collector;
    let found = ptys.0.entry(index).or_insert_with(|| {
        terminals.push(Pty { index, ..Pty::default() });
        let slot = terminals.len() as u32 - 1;
        Found { slot, who, master: None, slave: None }
    });
    let pty = &mut terminals[found.slot as usize];
    pty.session = pty.session.max(session);
    pty.foreground = pty.foreground.max(foreground);
    if is_master.is_ok() {
        found.master = Some(copy);
        return Ok(FileKind::PtyMaster(found.slot));
    }
    found.slave = Some(copy);
    Ok(FileKind::PtySlave(found.slot))
}

/// Session and foreground group as the guest numbers them. Only whose controlling terminal it is can
/// ask, and whoever holds the master.
fn session(subject: &mut Subject<'_>, fd: i32) -> (i32, i32) {
    let mut table = subject.hand.table();
    let asked = [libc::TIOCGSID, libc::TIOCGPGRP].map(|request| {
        let room = table.room(4);
        (table.attempt(libc::SYS_ioctl, [fd as u64, request, room.address]), room)
    });
    let Ok(done) = subject.hand.run(&table) else { return (0, 0) };
    let [session, foreground] = asked.map(|(place, room)| match done.result(place) {
        Ok(_) => done.half(room, 0) as i32,
        Err(_) => 0,
    });
    (session, foreground)
}

/// Takes down what all pseudo-terminals are like, once all descriptors have been seen.
pub fn finish(collector: &mut Collector) -> Result<(), SaveError> {
    let Gathered(found) = std::mem::take(&mut collector.ptys);
    // What can be refused is, before anything is taken out.
    for (index, found) in &found {
        refuse(*index, found)?;
    }
    for (index, found) in &found {
        let pty = &mut collector.terminals[found.slot as usize];
        take_down(found, pty)
            .map_err(|errno| SaveError::failed(format!("the terminal {index}"), errno.desc()))?;
    }
    Ok(())
}

fn refuse(index: u32, found: &Found) -> Result<(), SaveError> {
    let Some(master) = &found.master else { return Ok(()) };
    let notices = is(master, PollFlags::POLLPRI)
        .map_err(|errno| SaveError::failed(format!("the terminal {index}"), errno.desc()))?;
    if notices {
        return Err(SaveError::passing(format!(
            "{} has not yet read what it is to be told of the terminal {index} (packet mode), which \
             cannot be saved; try again",
            found.who
        )));
    }
    Ok(())
}

fn take_down(found: &Found, pty: &mut Pty) -> Result<(), Errno> {
    let Some(master) = found.master.as_ref().map(AsFd::as_fd) else {
        pty.ends = Ends::HungUp;
        return Ok(());
    };
    pty.settings = ByteBuf::from(pty_state::settings(master)?);
    pty.size = ByteBuf::from(pty_state::size(master)?);
    pty.locked = pty_state::ask(master, Question::Locked)? != 0;
    pty.packet = pty_state::ask(master, Question::Packet)? != 0;
    pty.ends = match &found.slave {
        Some(_) => Ends::Both,
        None if is(master, PollFlags::POLLHUP)? => Ends::Closed,
        // Whoever opens the slave now and closes it leaves a trace of that.
        None => Ends::Unopened,
    };
    if let Some(slave) = &found.slave {
        pty.exclusive = pty_state::ask(slave.as_fd(), Question::Exclusive)? != 0;
    }
    if pty.ends == Ends::Unopened {
        return Ok(());
    }
    // Open for none but root, who may open it all the same, until it is not exclusive any more.
    let exclusive = |on| match &found.slave {
        Some(slave) if pty.exclusive => pty_state::switch(slave.as_fd(), Switch::Exclusive(on)),
        _ => Ok(()),
    };
    exclusive(false)?;
    let slave = open_slave(master, pty.locked);
    exclusive(true)?;
    let line = Line::new(master, slave?)?;
    let taken = line.take(pty, true);
    line.put_back(pty, true)?;
    taken
}

/// The slave, which does not wait.
fn open_slave(master: std::os::fd::BorrowedFd<'_>, locked: bool) -> Result<OwnedFd, Errno> {
    if locked {
        pty_state::switch(master, Switch::Lock(false))?;
    }
    let slave = terminal::open_slave(master);
    if locked {
        pty_state::switch(master, Switch::Lock(true))?;
    }
    let slave = slave?;
    let flags = OFlag::from_bits_retain(fcntl(&slave, FcntlArg::F_GETFL)?);
    fcntl(&slave, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(slave)
}

/// The terminal of the run's program, by the supervisor's `master`. Nobody may write to it meanwhile:
/// the relay carries no keys. Output stays: the relay shows it. `foreground` is the process group that
/// is there, as the guest numbers it.
pub fn capture_own(
    master: std::os::fd::BorrowedFd<'_>,
    streams: [bool; 3],
    foreground: i32,
) -> Result<OwnTerminal, SaveError> {
    let take = || {
        let mut pty = Pty { foreground, ..Pty::default() };
        pty.index = pty_state::ask(master, Question::Index)?;
        pty.settings = ByteBuf::from(pty_state::settings(master)?);
        pty.size = ByteBuf::from(pty_state::size(master)?);
        let line = Line::new(master, open_slave(master, false)?)?;
        let taken = line.take(&mut pty, false);
        line.put_back(&pty, true)?;
        taken.map(|()| pty)
    };
    let pty =
        take().map_err(|errno| SaveError::failed("the terminal of the program", errno.desc()))?;
    Ok(OwnTerminal { pty, streams })
}
