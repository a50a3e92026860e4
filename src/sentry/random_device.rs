//! /dev/random and /dev/urandom inside, with `--deterministic`: a stream of the seed's, without an end.
//!
//! No device can be made, so a reader gets a pipe that the sentry keeps full. What differs: fstat(2) says that
//! it is a pipe, lseek(2) fails, a read of more than a pipe holds is short, and a reader that does not wait
//! can find nothing for a moment.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::Rng;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

use super::kernel::Kernel;
use crate::sys::ready::watch_writable;

/// So many at a time.
const MOST_READERS: usize = 256;

/// At once: what a page of a pipe holds, so that none is left half full.
const PIECE: usize = 4096;

/// As many pieces as a pipe has room for, and one to see that it is full.
const AT_ONCE: usize = 17;

/// Who reads.
#[derive(Debug)]
pub(super) struct Readers(Arc<Semaphore>);

impl Default for Readers {
    fn default() -> Self {
        Readers(Arc::new(Semaphore::new(MOST_READERS)))
    }
}

impl Kernel {
    /// A descriptor that gives the bytes of `stream`. ENFILE: there are too many. Needs a tokio context.
    pub(super) fn open_random(
        &self,
        stream: ChaCha20Rng,
        nonblocking: bool,
    ) -> Result<OwnedFd, Errno> {
        let permit = Arc::clone(&self.repeatable.readers.0).try_acquire_owned();
        let permit = permit.map_err(|_| Errno::ENFILE)?;
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        if !nonblocking {
            fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()))?;
        }
        let mut feeder = Feeder { stream, piece: [0; PIECE], given: PIECE };
        // What fits is there at once: a reader may not wait.
        let _ = feeder.feed(&ours);
        let pipe = watch_writable(ours).map_err(|_| Errno::EIO)?;
        tokio::spawn(async move {
            let _permit = permit;
            // An error is the reader's end.
            let _ = feeder.follow(&pipe).await;
        });
        Ok(theirs)
    }
}

/// Feeds one reader.
struct Feeder {
    stream: ChaCha20Rng,
    piece: [u8; PIECE],
    /// How much of the piece the pipe has taken.
    given: usize,
}

impl Feeder {
    /// Fills the pipe, if its reader is not faster. EAGAIN: it is full.
    fn feed(&mut self, pipe: &OwnedFd) -> Result<(), Errno> {
        for _ in 0..AT_ONCE {
            if self.given == PIECE {
                self.stream.fill_bytes(&mut self.piece);
                self.given = 0;
            }
            self.given += write(pipe.as_fd(), &self.piece[self.given..])?;
        }
        Ok(())
    }

    /// Keeps it full until nobody reads any more.
    async fn follow(&mut self, pipe: &AsyncFd<OwnedFd>) -> Result<(), Errno> {
        loop {
            let mut ready = pipe.ready(Interest::WRITABLE).await.map_err(|_| Errno::EIO)?;
            match self.feed(pipe.get_ref()) {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // Others have work on this thread, too.
                Ok(()) => tokio::task::yield_now().await,
                done => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chacha20::rand_core::SeedableRng;
    use nix::unistd::read;

    use super::*;

    #[tokio::test]
    async fn readers_get_the_whole_stream_in_order_and_can_go() {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let [stream, mut expected] = [7, 7].map(|seed| ChaCha20Rng::from_seed([seed; 32]));
        let mut feeder = Feeder { stream, piece: [0; PIECE], given: PIECE };
        assert_eq!(feeder.feed(&ours), Err(Errno::EAGAIN));
        let pipe = watch_writable(ours).unwrap();
        let mut rest = Vec::new();
        let reading = async {
            for round in 0..200 {
                let mut bytes = vec![0; 1000 + round];
                let mut count = 0;
                while count < bytes.len() {
                    match read(&theirs, &mut bytes[count..]) {
                        Err(Errno::EAGAIN) => tokio::task::yield_now().await,
                        some => count += some.unwrap(),
                    }
                }
                while rest.len() < bytes.len() {
                    let mut piece = [0; PIECE];
                    expected.fill_bytes(&mut piece);
                    rest.extend(piece);
                }
                assert!(rest.drain(..bytes.len()).eq(bytes), "round {round}");
            }
            drop(theirs);
        };
        let (ended, ()) = tokio::join!(feeder.follow(&pipe), reading);
        assert_eq!(ended, Err(Errno::EPIPE));
    }
}
