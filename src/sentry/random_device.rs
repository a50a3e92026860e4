//! /dev/random and /dev/urandom inside, with `--deterministic`: a stream of the seed's, without an end.
//!
//! No device can be made, so a reader gets a pipe that the sentry keeps full. What differs: fstat(2) says that
//! it is a pipe, lseek(2) fails, a read of more than a pipe holds is short, and a reader that does not wait
//! can find nothing for a moment.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::{pipe2, write};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard, Semaphore};

use super::kernel::Kernel;
use super::randomness::{halves, whole};
use crate::sys::ready::watch_writable;

/// So many at a time.
const MOST_READERS: usize = 256;

/// At once: what a page of a pipe holds, so that none is left half full.
const PIECE: usize = 4096;

/// The same in words of a stream.
const WORDS: u128 = PIECE as u128 / 4;

/// As many pieces as a pipe has room for, and one to see that it is full.
const AT_ONCE: usize = 17;

/// By device and inode of the pipe.
type Feeders = HashMap<(u64, u64), Weak<Mutex<Feeder>>>;

/// Who reads.
#[derive(Debug)]
pub(super) struct Readers {
    permits: Arc<Semaphore>,
    /// The feeders, by the pipe: device and inode. Before each of them in the lock order.
    feeders: Mutex<Feeders>,
    /// Held while a pipe is filled, and by who looks into all of them. Nothing else is held when it is waited for.
    still: Arc<Turn<()>>,
}

impl Default for Readers {
    fn default() -> Self {
        Readers {
            permits: Arc::new(Semaphore::new(MOST_READERS)),
            feeders: Mutex::default(),
            still: Arc::default(),
        }
    }
}

/// As long as it is there, no device gets new bytes.
#[derive(Debug)]
pub struct StandingDevices {
    _still: OwnedMutexGuard<()>,
}

/// What a device goes on with, as an image carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// The pipe: an index among those of the image.
    pub pipe: u32,
    /// What the stream is made of: 32 bytes.
    pub seed: ByteBuf,
    /// How many words of four bytes came before the piece that is being given.
    pub position: (u64, u64),
    /// How many bytes of that the pipe has got.
    pub given: u32,
}

impl Kernel {
    /// A descriptor that gives the bytes of `stream`. ENFILE: there are too many. Needs a tokio context.
    pub(super) fn open_random(
        &self,
        stream: ChaCha20Rng,
        nonblocking: bool,
    ) -> Result<OwnedFd, Errno> {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        if !nonblocking {
            fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty()))?;
        }
        let mut feeder = Feeder::new(stream);
        // What fits is there at once: a reader may not wait.
        let _ = feeder.feed(&ours);
        self.feed(feeder, ours)?;
        Ok(theirs)
    }

    /// Keeps a pipe full from here on. ENFILE: there are too many. Needs a tokio context.
    fn feed(&self, feeder: Feeder, ours: OwnedFd) -> Result<(), Errno> {
        let readers = &self.repeatable.readers;
        let permit = Arc::clone(&readers.permits).try_acquire_owned();
        let permit = permit.map_err(|_| Errno::ENFILE)?;
        let status = fstat(&ours)?;
        let feeder = Arc::new(Mutex::new(feeder));
        let mut feeders = readers.feeders();
        feeders.retain(|_, feeder| feeder.strong_count() > 0);
        feeders.insert((status.st_dev, status.st_ino), Arc::downgrade(&feeder));
        drop(feeders);
        let pipe = watch_writable(ours).map_err(|_| Errno::EIO)?;
        let still = Arc::clone(&readers.still);
        tokio::spawn(async move {
            let _permit = permit;
            // An error is the reader's end.
            let _ = follow(&feeder, &pipe, &still).await;
        });
        Ok(())
    }

    /// Holds all devices as they are. Blocks; never in a tokio context.
    pub fn still_devices(&self) -> StandingDevices {
        StandingDevices { _still: Arc::clone(&self.repeatable.readers.still).blocking_lock_owned() }
    }

    /// What the devices go on with, by the pipe: device and inode.
    pub fn saved_devices(&self, _: &StandingDevices) -> HashMap<(u64, u64), SavedDevice> {
        let feeders = self.repeatable.readers.feeders();
        let living = feeders.iter().filter_map(|(inode, feeder)| Some((*inode, feeder.upgrade()?)));
        living.map(|(inode, feeder)| (inode, lock(&feeder).saved())).collect()
    }

    /// A device goes on: `pipe` is the writing end, which does not wait. Needs a tokio context.
    pub fn resume_device(&self, saved: &SavedDevice, pipe: OwnedFd) -> Result<(), Errno> {
        self.feed(Feeder::restore(saved).ok_or(Errno::EINVAL)?, pipe)
    }
}

impl Readers {
    fn feeders(&self) -> MutexGuard<'_, Feeders> {
        self.feeders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(feeder: &Mutex<Feeder>) -> MutexGuard<'_, Feeder> {
    feeder.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Feeds one reader.
#[derive(Debug)]
struct Feeder {
    stream: ChaCha20Rng,
    piece: [u8; PIECE],
    /// How much of the piece the pipe has taken.
    given: usize,
}

impl Feeder {
    fn new(stream: ChaCha20Rng) -> Feeder {
        Feeder { stream, piece: [0; PIECE], given: PIECE }
    }

    fn saved(&self) -> SavedDevice {
        let drawn = self.stream.get_word_pos();
        // (Nothing has been drawn yet where all of the first piece is given.)
        let (before, given) = match self.given {
            PIECE => (drawn, 0),
            given => (drawn.saturating_sub(WORDS), given),
        };
        let seed = ByteBuf::from(self.stream.get_seed());
        SavedDevice { pipe: 0, seed, position: halves(before), given: given as u32 }
    }

    fn restore(saved: &SavedDevice) -> Option<Feeder> {
        let seed = <[u8; 32]>::try_from(saved.seed.as_slice()).ok()?;
        let given = usize::try_from(saved.given).ok().filter(|given| *given < PIECE)?;
        let mut feeder = Feeder::new(ChaCha20Rng::from_seed(seed));
        feeder.stream.set_word_pos(whole(saved.position));
        feeder.stream.fill_bytes(&mut feeder.piece);
        feeder.given = given;
        Some(feeder)
    }

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
}

/// Keeps it full until nobody reads any more.
async fn follow(
    feeder: &Mutex<Feeder>,
    pipe: &AsyncFd<OwnedFd>,
    still: &Turn<()>,
) -> Result<(), Errno> {
    loop {
        let mut ready = pipe.ready(Interest::WRITABLE).await.map_err(|_| Errno::EIO)?;
        let turn = still.lock().await;
        let fed = lock(feeder).feed(pipe.get_ref());
        drop(turn);
        match fed {
            Err(Errno::EAGAIN) => ready.clear_ready(),
            // Others have work on this thread, too.
            Ok(()) => tokio::task::yield_now().await,
            done => return done,
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
        let mut feeder = Feeder::new(stream);
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
        let (feeder, still) = (Mutex::new(feeder), Turn::new(()));
        let (ended, ()) = tokio::join!(follow(&feeder, &pipe, &still), reading);
        assert_eq!(ended, Err(Errno::EPIPE));
    }

    #[test]
    fn a_device_goes_on_with_the_next_byte() {
        let mut feeder = Feeder::new(ChaCha20Rng::from_seed([7; 32]));
        let next = |feeder: &mut Feeder, count: usize| -> Vec<u8> {
            let (theirs, ours) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
            let mut bytes = vec![0; count];
            let _ = fcntl(&ours, FcntlArg::F_SETPIPE_SZ(4096));
            let mut done = 0;
            while done < count {
                let _ = feeder.feed(&ours);
                done += read(&theirs, &mut bytes[done..]).unwrap();
            }
            bytes
        };
        for taken in [0, 1, 4095, 4096, 10_000] {
            next(&mut feeder, taken);
            let saved = feeder.saved();
            let mut again = Feeder::restore(&saved).unwrap();
            assert_eq!(again.saved(), saved);
            assert_eq!(next(&mut again, 9000), next(&mut feeder, 9000), "{taken}");
        }
        let saved = feeder.saved();
        for bad in [
            SavedDevice { given: PIECE as u32, ..saved.clone() },
            SavedDevice { seed: ByteBuf::new(), ..saved },
        ] {
            assert!(Feeder::restore(&bad).is_none());
        }
    }
}
