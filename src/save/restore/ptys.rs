//! Pseudo-terminals, made again with their numbers.
//!
//! A new pseudo-terminal gets the lowest number that is free (devpts_new_index()), so the maker makes
//! them in order, and some for the gaps that it gives up at the end. Slaves are opened by name while
//! descriptors are made ([`Ptys::open_slave`]); what waits in a terminal, its lock and its hang-up come
//! when all of them are open. Controlling terminals are acquired by the leaders of their sessions
//! ([`acquire_terminal`]), before that.
//!
//! The terminal of the run's program is the new run's: it only gets the settings and the input
//! ([`restore_own`]). A run that had a terminal needs one: its program, its line editing and job
//! control are written for it. Where the new caller has none, it is refused ([`require_terminal`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError};
use crate::save::ptys::{Ends, OwnTerminal, Pty};
use crate::save::queues::Line;
use crate::save::restore::maker::Maker;
use crate::save::state::{FileKind, Sandbox};
use crate::sys::pty_state::{self, Question, SETTINGS, SIZE, Switch};
use crate::sys::{descriptors, terminal};

/// No more than a kernel has by default (NR_UNIX98_PTY_DEFAULT).
const HIGHEST: u32 = 4096;

/// Those that have been made. It is dropped before what is left to do is done ([`Maker::finishes`]): that
/// hangs those up whose master nobody had.
#[derive(Debug)]
pub struct Ptys {
    /// By index in [`Sandbox::terminals`].
    made: Vec<(u32, Arc<OwnedFd>)>,
}

fn failed(index: u32) -> impl Fn(HandError) -> RestoreError {
    move |error| RestoreError::failed(format!("cannot make the terminal {index} again"), error)
}

fn own(index: u32) -> impl Fn(Errno) -> RestoreError {
    move |errno| {
        RestoreError::failed(format!("cannot make the terminal {index} again"), errno.desc())
    }
}

/// Makes all.
pub fn restore(maker: &mut Maker<'_>) -> Result<Ptys, RestoreError> {
    let terminals = &maker.sandbox.terminals;
    let mut order: Vec<usize> = (0..terminals.len()).collect();
    // Those that have hung up last: their numbers are nobody's any more, and may be taken.
    order.sort_by_key(|slot| (terminals[*slot].ends == Ends::HungUp, terminals[*slot].index));
    let mut made: Vec<Option<(u32, Arc<OwnedFd>)>> = vec![None; terminals.len()];
    let mut gaps = Vec::new();
    for slot in order {
        let (index, master) = make(maker, &terminals[slot], &mut gaps)?;
        set_up(&master, &terminals[slot])?;
        made[slot] = Some((index, Arc::new(master)));
    }
    drop(gaps);
    let ptys = Ptys { made: made.into_iter().flatten().collect() };
    for (pty, (_, master)) in terminals.iter().zip(&ptys.made) {
        if pty.ends == Ends::HungUp {
            continue;
        }
        let (pty, master) = (pty.clone(), master.clone());
        // A slave that is open from here on, whoever else opens it: a master whose only slave is
        // closed too early is hung up for its reader.
        let slave = match pty.ends {
            Ends::Unopened => None,
            _ => Some(open_quietly(master.as_fd()).map_err(own(pty.index))?),
        };
        maker
            .finishes
            .push(Box::new(move |_| finish(&pty, master.as_fd(), slave).map_err(own(pty.index))));
    }
    Ok(ptys)
}

/// The master with the number that it had, and that number; those before it that were free go to `gaps`.
fn make(
    maker: &mut Maker<'_>,
    pty: &Pty,
    gaps: &mut Vec<OwnedFd>,
) -> Result<(u32, OwnedFd), RestoreError> {
    let index = pty.index;
    let taken = || {
        let what = format!("cannot make the terminal {index} again: its number is taken");
        RestoreError::refused(what)
    };
    if index > HIGHEST {
        return Err(taken());
    }
    loop {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let master = maker.open(b"/dev/ptmx", flags, 0).map_err(failed(index))?;
        match pty_state::ask(master.as_fd(), Question::Index).map_err(own(index))? {
            found if found == index || found > index && pty.ends == Ends::HungUp => {
                return Ok((found, master));
            }
            found if found > index => return Err(taken()),
            _ => gaps.push(master),
        }
    }
}

/// What may be as it is to be from the start.
fn set_up(master: &OwnedFd, pty: &Pty) -> Result<(), RestoreError> {
    pty_state::switch(master.as_fd(), Switch::Lock(false)).map_err(own(pty.index))?;
    if pty.ends == Ends::HungUp {
        return Ok(());
    }
    apply(master.as_fd(), pty).map_err(own(pty.index))
}

/// Settings and size, through the master: both are the slave's (tty_mode_ioctl()).
fn apply(master: BorrowedFd<'_>, pty: &Pty) -> Result<(), Errno> {
    let settings: [u8; SETTINGS] = pty.settings[..].try_into().map_err(|_| Errno::EINVAL)?;
    let size: [u8; SIZE] = pty.size[..].try_into().map_err(|_| Errno::EINVAL)?;
    pty_state::set_settings(master, &settings)?;
    pty_state::set_size(master, &size)
}

/// The slave, which does not wait.
fn open_quietly(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let slave = terminal::open_slave(master)?;
    let flags = OFlag::from_bits_retain(fcntl(&slave, FcntlArg::F_GETFL)?);
    fcntl(&slave, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(slave)
}

fn finish(pty: &Pty, master: BorrowedFd<'_>, slave: Option<OwnedFd>) -> Result<(), Errno> {
    if pty.packet {
        pty_state::switch(master, Switch::Packet(true))?;
    }
    if let Some(slave) = slave {
        if pty.exclusive {
            pty_state::switch(slave.as_fd(), Switch::Exclusive(true))?;
        }
        Line::new(master, slave)?.put_back(pty, false)?;
    }
    if pty.locked {
        pty_state::switch(master, Switch::Lock(true))?;
    }
    Ok(())
}

impl Ptys {
    /// The master of a pseudo-terminal: there is one open file description of it.
    pub fn master(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        self.made.get(slot as usize).map(|(_, master)| master.as_fd())
    }

    /// Opens a slave in the maker, for the sentry. `flags`: those of the description (F_GETFL).
    pub fn open_slave(
        &self,
        maker: &mut Maker<'_>,
        slot: u32,
        flags: u32,
    ) -> Result<OwnedFd, RestoreError> {
        let Some((index, _)) = self.made.get(slot as usize) else {
            return Err(damaged());
        };
        let kept = libc::O_ACCMODE | libc::O_NONBLOCK;
        let flags = flags as i32 & kept | libc::O_NOCTTY | libc::O_CLOEXEC;
        let path = format!("/dev/pts/{index}");
        maker.open(path.as_bytes(), flags, 0).map_err(failed(*index))
    }
}

/// Makes all, and the open file descriptions of them, before the others are made
/// ([`super::descriptors::make_files`]).
pub fn restore_files(maker: &mut Maker<'_>) -> Result<(), RestoreError> {
    let sandbox = maker.sandbox;
    let ptys = restore(maker)?;
    maker.files.resize_with(sandbox.files.len(), || None);
    for (index, file) in sandbox.files.iter().enumerate() {
        let made = match file.kind {
            FileKind::PtyMaster(slot) => {
                let Some(master) = ptys.master(slot) else { return Err(damaged()) };
                let master = master.try_clone_to_owned();
                let what = |error| RestoreError::failed("the master of a terminal", error);
                let master = master.map_err(what)?;
                let flags = file.flags as i32 & (libc::O_NONBLOCK | libc::O_APPEND);
                descriptors::set_status(master.as_fd(), flags).map_err(own(slot))?;
                master
            }
            FileKind::PtySlave(slot) => ptys.open_slave(maker, slot, file.flags)?,
            _ => continue,
        };
        maker.files[index] = Some(made);
    }
    Ok(())
}

fn damaged() -> RestoreError {
    RestoreError::refused("the image is damaged: a terminal is not in it")
}

/// Gives the session that the process of `hand` leads its controlling terminal back, if it had one of
/// those that were made inside. All groups are there; nothing is locked or exclusive yet.
pub fn give_controlling(
    hand: &mut Hand,
    sandbox: &Sandbox,
    leader: i32,
) -> Result<(), RestoreError> {
    let its = |pty: &&Pty| pty.session == leader && pty.ends == Ends::Both;
    let Some(pty) = sandbox.terminals.iter().find(its) else { return Ok(()) };
    let path = format!("/dev/pts/{}", pty.index);
    let acquired = with_terminal(hand, &path, |hand, slave| {
        acquire_terminal(hand, slave)?;
        if pty.foreground > 0 {
            set_foreground(hand, slave, pty.foreground)?;
        }
        Ok(())
    });
    acquired.map_err(|error| {
        let what = format!("process {leader} cannot get its controlling terminal {path} back");
        RestoreError::failed(what, error)
    })
}

/// Does `work` with a descriptor of the terminal at `path`, in the process of `hand`.
fn with_terminal(
    hand: &mut Hand,
    path: &str,
    work: impl FnOnce(&mut Hand, i32) -> Result<(), HandError>,
) -> Result<(), HandError> {
    let flags = (libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
    let open = |at| [libc::AT_FDCWD as u64, at, flags, 0];
    let slave = hand.call_path(libc::SYS_openat, path.as_bytes(), open)?;
    work(hand, slave as i32)?;
    hand.call(libc::SYS_close, [slave]).map(drop)
}

/// Puts a group into the foreground of the run's own terminal, by a process of the session that it controls.
pub fn set_own_foreground(hand: &mut Hand, group: i32) -> Result<(), RestoreError> {
    with_terminal(hand, "/dev/pts/0", |hand, slave| set_foreground(hand, slave, group))
        .map_err(RestoreError::of("the terminal of the program"))
}

/// Makes a terminal the controlling one of the session that the process of `hand` leads; `slave` is a
/// descriptor of it there.
pub fn acquire_terminal(hand: &mut Hand, slave: i32) -> Result<(), HandError> {
    hand.call(libc::SYS_ioctl, [slave as u64, libc::TIOCSCTTY, 0]).map(drop)
}

/// Puts a process group into the foreground of the controlling terminal of `hand`'s session. (All
/// signals are blocked in a hand's process, so that the terminal does not stop it.)
pub fn set_foreground(hand: &mut Hand, slave: i32, group: i32) -> Result<(), HandError> {
    let set = |at| [slave as u64, libc::TIOCSPGRP, at];
    hand.call_with(libc::SYS_ioctl, &group.to_ne_bytes(), set).map(drop)
}

/// A run that had a terminal is restored on one.
pub fn require_terminal(sandbox: &Sandbox, there_is_one: bool) -> Result<(), RestoreError> {
    if sandbox.terminal.is_none() || there_is_one {
        return Ok(());
    }
    Err(RestoreError::refused(
        "the saved program runs on a terminal, and the standard streams here are none; restore it from \
         a terminal, or on a new one with `script -qc 'sandbox restore IMAGE' /dev/null`",
    ))
}

/// Gives the terminal of the new run what the saved one had, but its size, which is that of the
/// terminal that it is shown on. `master` is the supervisor's.
pub fn restore_own(master: BorrowedFd<'_>, own: &OwnTerminal) -> Result<(), RestoreError> {
    let put = || {
        let settings = own.pty.settings[..].try_into().map_err(|_| Errno::EINVAL)?;
        pty_state::set_settings(master, &settings)?;
        Line::new(master, open_quietly(master)?)?.put_back(&own.pty, false)
    };
    put().map_err(|errno| RestoreError::failed("the terminal of the program", errno.desc()))
}

#[cfg(test)]
mod tests;
