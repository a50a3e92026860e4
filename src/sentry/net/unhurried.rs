//! Closing guests' sockets, which may take as long as a guest likes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{OnceLock, mpsc};

use crate::sys::socket;

/// A copy of a guest's socket. Should it be the last one, its close waits for as long as the guest has told the socket to
/// (SO_LINGER in socket(7)); so where it may wait, a thread closes it that nobody else needs.
#[derive(Debug)]
pub struct Unhurried(Option<OwnedFd>);

impl From<OwnedFd> for Unhurried {
    fn from(fd: OwnedFd) -> Unhurried {
        Unhurried(Some(fd))
    }
}

impl AsFd for Unhurried {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("it is there until it is dropped").as_fd()
    }
}

impl Drop for Unhurried {
    fn drop(&mut self) {
        if let Some(fd) = self.0.take().filter(|fd| lingers(fd.as_fd()))
            && let Some(closer) = closer()
        {
            // (Without the thread, it is closed here.)
            let _ = closer.send(fd);
        }
    }
}

/// Whether a close may wait.
fn lingers(fd: BorrowedFd<'_>) -> bool {
    // struct linger: whether, and for how many seconds.
    let told = socket::option(fd, libc::SOL_SOCKET, libc::SO_LINGER, 8).unwrap_or_default();
    let is_set = |at: usize| told.get(at..at + 4).is_some_and(|word| word != [0; 4]);
    is_set(0) && is_set(4)
}

/// The thread that closes, made when it is needed first.
fn closer() -> Option<&'static mpsc::Sender<OwnedFd>> {
    static CLOSER: OnceLock<Option<mpsc::Sender<OwnedFd>>> = OnceLock::new();
    let start = || {
        let (closer, given) = mpsc::channel::<OwnedFd>();
        let thread = std::thread::Builder::new().name("closer".into()).stack_size(128 << 10);
        thread.spawn(move || given.into_iter().for_each(drop)).ok()?;
        Some(closer)
    };
    CLOSER.get_or_init(start).as_ref()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_close_that_waits_keeps_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _peer = listener.accept().unwrap().0;
        // More than a peer takes that reads nothing.
        own.set_nonblocking(true).unwrap();
        while own.write(&[0; 64 << 10]).is_ok() {}
        own.set_nonblocking(false).unwrap();
        let own = Unhurried::from(OwnedFd::from(own));
        assert!(!lingers(own.as_fd()));
        let linger = [1i32.to_ne_bytes(), 10i32.to_ne_bytes()].concat();
        socket::set_option(own.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger).unwrap();
        assert!(lingers(own.as_fd()));
        let begun = Instant::now();
        drop(own);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
