//! /dev/kmsg inside: the log as records, one a read.
//!
//! No device can be made, so a reader gets one end of a socket whose messages are the records, and the
//! sentry feeds the other end. What differs from the device: a position cannot be set (lseek fails; the
//! first record is the first since the last clear, where dmesg(1) wants to begin); a buffer that is too
//! small gets the start of a record; records that were dropped before they were read are left out
//! without an EPIPE; and a reader that does not wait finds nothing more, for a moment, when it has taken
//! what the socket holds (some 500 records).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::kernel::Kernel;
use super::log::KernelLog;
use crate::sys::ready::watch_socket;

/// So many at a time.
pub(super) const MOST_READERS: usize = 64;

/// The most bytes in a record: programs read 8 KiB at a time, as the kernel's longest record needs
/// (PRINTK_MESSAGE_MAX is 2048, and up to four bytes of it show one).
const LONGEST: usize = 8000;

/// More than a socket gets (wmem_max); it then has the most.
const BUFFER: usize = 1 << 20;

impl Kernel {
    /// A descriptor that reads like /dev/kmsg. ENFILE: there are too many. Needs a tokio context.
    pub(super) fn open_log(self: &Arc<Self>, nonblocking: bool) -> Result<OwnedFd, Errno> {
        let permit = Arc::clone(&self.log().readers).try_acquire_owned();
        let permit = permit.map_err(|_| Errno::ENFILE)?;
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        if !nonblocking {
            fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()))?;
        }
        setsockopt(&ours, sockopt::SndBuf, &BUFFER)?;
        let mut feeder = Feeder { next: self.log().cleared() };
        // What there is is there at once: a reader may not wait.
        let _ = feeder.feed(self.log(), &ours);
        let socket = watch_socket(ours).map_err(|_| Errno::EIO)?;
        let kernel = Arc::clone(self);
        tokio::spawn(async move {
            let _permit = permit;
            // An error is the reader's end.
            let _ = feeder.follow(kernel.log(), &socket).await;
        });
        Ok(theirs)
    }
}

/// Feeds one reader.
struct Feeder {
    /// The number of the next line.
    next: u64,
}

impl Feeder {
    /// Sends what there is. EAGAIN: the reader has to read first.
    fn feed(&mut self, log: &KernelLog, socket: &OwnedFd) -> Result<(), Errno> {
        while let Some((number, line)) = log.line(self.next) {
            if let Some(record) = record(number, &line) {
                send(socket.as_raw_fd(), &record, MsgFlags::MSG_NOSIGNAL)?;
            }
            self.next = number + 1;
        }
        Ok(())
    }

    /// Sends what there is and what comes, until the reader is gone. Nothing is read from it: whoever
    /// writes, to what is open for reading, is done with.
    async fn follow(&mut self, log: &KernelLog, socket: &AsyncFd<OwnedFd>) -> Result<(), Errno> {
        loop {
            let full = match self.feed(log, socket.get_ref()) {
                Ok(()) => false,
                Err(Errno::EAGAIN) => true,
                Err(errno) => return Err(errno),
            };
            let more = async {
                if full {
                    let ready = socket.ready(Interest::WRITABLE).await;
                    ready.map_err(|_| Errno::EIO)?.clear_ready();
                } else {
                    log.grown(self.next).await;
                }
                Ok(())
            };
            tokio::select! {
                biased;
                gone = gone(socket) => return Err(gone),
                done = more => done?,
            }
        }
    }
}

/// Waits for the reader to close its end, or to write to it.
async fn gone(socket: &AsyncFd<OwnedFd>) -> Errno {
    loop {
        let Ok(mut ready) = socket.ready(Interest::READABLE).await else { return Errno::EIO };
        match recv(socket.get_ref().as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(errno) => return errno,
            Ok(_) => return Errno::EPIPE,
        }
    }
}

/// A line of the log, `<6>[    0.012345] text`, as Documentation/ABI/testing/dev-kmsg has it:
/// `6,NUMBER,12345,-;text`. What is not printable ASCII, and the backslash, is escaped (msg_add_ext_text
/// in kernel/printk/printk.c); programs undo that.
fn record(number: u64, line: &str) -> Option<Vec<u8>> {
    let (level, rest) = line.strip_prefix('<')?.split_once(">[")?;
    let (time, text) = rest.split_once("] ")?;
    let (seconds, micros) = time.trim_start().split_once('.')?;
    let micros = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
    let mut record = format!("{level},{number},{micros},-;").into_bytes();
    for byte in text.trim_end_matches('\n').bytes() {
        match byte {
            b' '..=b'~' if byte != b'\\' => record.push(byte),
            byte => record.extend(format!("\\x{byte:02x}").bytes()),
        }
        if record.len() >= LONGEST {
            break;
        }
    }
    record.push(b'\n');
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::super::log::Level;
    use super::*;

    #[test]
    fn lines_become_records() {
        let text = |line| String::from_utf8(record(7, line).unwrap()).unwrap();
        assert_eq!(text("<6>[    0.012345] a: b\n"), "6,7,12345,-;a: b\n");
        assert_eq!(
            text("<4>[12345.000001] a] \\x1b \u{e9}\n"),
            "4,7,12345000001,-;a] \\x5cx1b \\xc3\\xa9\n"
        );
        assert_eq!(record(7, "something else"), None);
        let long = format!("<6>[    0.000001] {}\n", "\u{e9}".repeat(5000));
        let record = record(7, &long).unwrap();
        assert!(record.len() < 8191 && record.ends_with(b"\n"));
    }

    #[tokio::test]
    async fn a_reader_gets_what_there_is_and_what_comes_and_can_go() {
        let log = KernelLog::new();
        log.write(Level::Info, "cleared");
        log.clear();
        (0..2000).for_each(|number| log.write(Level::Info, &format!("line {number}")));
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let mut feeder = Feeder { next: log.cleared() };
        assert_eq!(feeder.feed(&log, &ours), Err(Errno::EAGAIN));
        let socket = watch_socket(ours).unwrap();
        let theirs = watch_socket(theirs).unwrap();
        let reading = async {
            for number in 0..2001u64 {
                if number == 2000 {
                    log.write(Level::Warning, "line 2000");
                }
                let mut room = [0; 100];
                let count = loop {
                    let mut ready = theirs.ready(Interest::READABLE).await.unwrap();
                    match recv(theirs.get_ref().as_raw_fd(), &mut room, MsgFlags::empty()) {
                        Err(Errno::EAGAIN) => ready.clear_ready(),
                        count => break count.unwrap(),
                    }
                };
                let text = String::from_utf8_lossy(&room[..count]);
                assert!(text.ends_with(&format!(";line {number}\n")), "{text}");
                assert_eq!(text.split(',').nth(1).unwrap(), (number + 1).to_string());
            }
            drop(theirs);
        };
        let (ended, ()) = tokio::join!(feeder.follow(&log, &socket), reading);
        assert!(ended.is_err());
    }
}
