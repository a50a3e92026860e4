//! What waits in a pseudo-terminal: taken out, and put back as if it had never been away.
//!
//! The kernel lets nobody look at it without reading it. Input is read line by line where it comes in
//! lines, and the line that is being typed with lines switched off (ICANON); it is put back through
//! the master under settings that take every byte as it is. Output is put back through the slave with
//! no processing. No process of the guest's runs meanwhile, so none sees the settings change.
//!
//! What goes into a master arrives at the slave some time later (flush_to_ldisc() on a work queue), and the
//! settings of that moment count. To wait for it, output is stopped by a key before, and a key behind the
//! input starts it again: once the slave can be written to, all input before that key has arrived.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use serde_bytes::ByteBuf;

use crate::save::ptys::{Pty, Stopper};
use crate::sys::pty_state::{self, SETTINGS, Switch};

/// As much as a line discipline holds (N_TTY_BUF_SIZE in drivers/tty/n_tty.c).
const HOLDS: usize = 4096;
/// More than any queue holds: somebody writes although all are stopped.
const MOST: usize = 1 << 20;
/// What takes microseconds has failed after this long.
const LONG: u16 = 5000;

// Offsets in struct termios2, and in its keys (include/uapi/asm-generic/termbits.h).
const INPUT_FLAGS: usize = 0;
const OUTPUT_FLAGS: usize = 4;
const LOCAL_FLAGS: usize = 12;
const KEYS: usize = 17;
const KEYS_END: usize = 36;

/// Both ends of a pseudo-terminal, as the sentry has them.
#[derive(Debug)]
pub struct Line<'l> {
    master: BorrowedFd<'l>,
    /// Does not wait.
    slave: OwnedFd,
    settings: [u8; SETTINGS],
}

impl<'l> Line<'l> {
    /// `slave` was opened with O_NONBLOCK.
    pub fn new(master: BorrowedFd<'l>, slave: OwnedFd) -> Result<Line<'l>, Errno> {
        let settings = pty_state::settings(slave.as_fd())?;
        Ok(Line { master, slave, settings })
    }

    /// Takes input, output and what has stopped it out of the pty, into `pty`. It is put back with
    /// [`Line::put_back`].
    pub fn take(&self, pty: &mut Pty, output: bool) -> Result<(), Errno> {
        // Input first: what is still on its way arrives when it is asked for in vain (n_tty_poll()), and
        // then it may stop output, or be echoed.
        let taken = self.take_input(pty);
        // Also if it failed.
        pty_state::set_settings(self.slave.as_fd(), &self.settings)?;
        if output {
            pty.output = ByteBuf::from(drain(self.master)?);
        }
        pty.stopped = self.what_stopped_it()?;
        taken
    }

    fn take_input(&self, pty: &mut Pty) -> Result<(), Errno> {
        if self.in_lines() {
            let mut sum = 0;
            while is(&self.slave, PollFlags::POLLIN)? {
                let mut line = vec![0; HOLDS];
                let length = read(&self.slave, &mut line)?;
                line.truncate(length);
                pty.lines.push(ByteBuf::from(line));
                sum += length + 1;
                if sum > MOST {
                    return Err(Errno::EOVERFLOW);
                }
            }
        }
        let mut settings = self.settings;
        change_flags(&mut settings, LOCAL_FLAGS, libc::ICANON, 0);
        settings[KEYS + libc::VMIN] = 1;
        settings[KEYS + libc::VTIME] = 0;
        pty_state::set_settings(self.slave.as_fd(), &settings)?;
        pty.input = ByteBuf::from(drain(self.slave.as_fd())?);
        Ok(())
    }

    /// Whether input comes in lines (n_tty_read()).
    fn in_lines(&self) -> bool {
        let flags = flags(&self.settings, LOCAL_FLAGS);
        flags & libc::ICANON != 0 && flags & libc::EXTPROC == 0
    }

    /// Output that nothing waits to be read of is stopped if it cannot be written (pty_write_room()).
    fn what_stopped_it(&self) -> Result<Option<Stopper>, Errno> {
        if is(&self.slave, PollFlags::POLLOUT)? {
            return Ok(None);
        }
        pty_state::switch(self.slave.as_fd(), Switch::Output(true))?;
        if !is(&self.slave, PollFlags::POLLOUT)? {
            return Ok(Some(Stopper::Key));
        }
        pty_state::switch(self.slave.as_fd(), Switch::Output(false))?;
        Ok(Some(Stopper::Call))
    }

    /// Puts back what was taken out. The pty is as [`Line::take`] left it, or new with the same
    /// settings; `stopped`: it is stopped already as `pty` says.
    pub fn put_back(&self, pty: &Pty, stopped: bool) -> Result<(), Errno> {
        let waits = !(pty.lines.is_empty() && pty.input.is_empty() && pty.output.is_empty());
        if !waits && (stopped || pty.stopped.is_none()) {
            return Ok(());
        }
        // Turning packets on forgets what was noted for them meanwhile (pty_set_pktmode()).
        if pty.packet {
            pty_state::switch(self.master, Switch::Packet(false))?;
        }
        let done = self.put_all(pty, stopped);
        pty_state::set_settings(self.slave.as_fd(), &self.settings)?;
        if pty.packet {
            pty_state::switch(self.master, Switch::Packet(true))?;
        }
        done
    }

    fn put_all(&self, pty: &Pty, stopped: bool) -> Result<(), Errno> {
        let keys = Keys::for_input(pty).ok_or(Errno::EOVERFLOW)?;
        pty_state::set_settings(self.slave.as_fd(), &self.bare(keys))?;
        match pty.stopped.filter(|_| stopped) {
            Some(Stopper::Key) => self.start(keys)?,
            Some(Stopper::Call) => pty_state::switch(self.slave.as_fd(), Switch::Output(true))?,
            None => {}
        }
        let mut input = Vec::new();
        for line in &pty.lines {
            input.extend_from_slice(line);
            // A line that does not end by itself was ended by the key for the end of a file.
            if line.last() != Some(&b'\n') {
                input.push(keys.end);
            }
        }
        input.extend_from_slice(&pty.input);
        if !input.is_empty() {
            self.stop(keys)?;
            input.push(keys.start);
            write_all(self.master, &input)?;
            self.await_output()?;
        }
        write_all(self.slave.as_fd(), &pty.output)?;
        match pty.stopped {
            Some(Stopper::Key) => self.stop(keys),
            Some(Stopper::Call) => pty_state::switch(self.slave.as_fd(), Switch::Output(false)),
            None => Ok(()),
        }
    }

    /// Settings under which nothing but these keys means anything.
    fn bare(&self, keys: Keys) -> [u8; SETTINGS] {
        let mut settings = self.settings;
        change_flags(&mut settings, INPUT_FLAGS, !libc::IUTF8, libc::IXON);
        change_flags(&mut settings, OUTPUT_FLAGS, !0, 0);
        change_flags(&mut settings, LOCAL_FLAGS, !(libc::ICANON | libc::EXTPROC), 0);
        settings[KEYS..KEYS_END].fill(0);
        settings[KEYS + libc::VMIN] = 1;
        settings[KEYS + libc::VEOF] = keys.end;
        settings[KEYS + libc::VSTART] = keys.start;
        settings[KEYS + libc::VSTOP] = keys.stop;
        settings
    }

    /// Stops output by key.
    fn stop(&self, keys: Keys) -> Result<(), Errno> {
        /// It takes one round if input is empty: asking for it makes it arrive (n_tty_poll()).
        const ROUNDS: usize = 1_000_000;
        write_all(self.master, &[keys.stop])?;
        for _ in 0..ROUNDS {
            is(&self.slave, PollFlags::POLLIN)?;
            if !is(&self.slave, PollFlags::POLLOUT)? {
                return Ok(());
            }
            std::thread::yield_now();
        }
        Err(Errno::ETIMEDOUT)
    }

    fn start(&self, keys: Keys) -> Result<(), Errno> {
        write_all(self.master, &[keys.start])?;
        self.await_output()
    }

    /// Waits until the slave can be written to.
    fn await_output(&self) -> Result<(), Errno> {
        match wait(self.slave.as_fd(), PollFlags::POLLOUT, LONG.into())? {
            true => Ok(()),
            false => Err(Errno::ETIMEDOUT),
        }
    }
}

/// Bytes that stand for something, and do not occur in the input.
#[derive(Debug, Clone, Copy)]
struct Keys {
    end: u8,
    start: u8,
    stop: u8,
}

impl Keys {
    /// None: it leaves no bytes or no room for them.
    fn for_input(pty: &Pty) -> Option<Keys> {
        let all = || pty.lines.iter().chain([&pty.input]);
        let length: usize = all().map(|piece| piece.len() + 1).sum();
        if length + 2 > HOLDS {
            return None;
        }
        let is_free = |byte: &u8| *byte != b'\n' && all().all(|piece| !piece.contains(byte));
        // (Such that a terminal without IUTF8 and with it takes alike.)
        let mut free = (1..=u8::MAX).filter(is_free);
        Some(Keys { end: free.next()?, start: free.next()?, stop: free.next()? })
    }
}

fn flags(settings: &[u8; SETTINGS], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&settings[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn change_flags(settings: &mut [u8; SETTINGS], at: usize, clear: u32, set: u32) {
    let changed = flags(settings, at) & !clear | set;
    settings[at..at + 4].copy_from_slice(&changed.to_ne_bytes());
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags, timeout: PollTimeout) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(fd, what)];
    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(fds[0].revents().is_some_and(|found| found.intersects(what))),
        }
    }
}

/// Whether a descriptor is that now.
pub fn is(fd: impl AsFd, what: PollFlags) -> Result<bool, Errno> {
    wait(fd.as_fd(), what, PollTimeout::ZERO)
}

/// Reads all that is there. In packets each read begins with a byte that says so.
fn drain(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let packets = pty_state::ask(fd, pty_state::Question::Packet).unwrap_or(0) != 0;
    let mut all = Vec::new();
    let mut piece = vec![0; 64 << 10];
    while is(fd, PollFlags::POLLIN)? {
        match read(fd, &mut piece) {
            // EIO: the slave is not open.
            Ok(0) | Err(Errno::EIO | Errno::EAGAIN) => break,
            Ok(length) => all.extend_from_slice(&piece[usize::from(packets)..length]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        if all.len() > MOST {
            return Err(Errno::EOVERFLOW);
        }
    }
    Ok(all)
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if wait(to, PollFlags::POLLOUT, LONG.into())? => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
