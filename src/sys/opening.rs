//! Opening what may not be open soon: FIFOs wait for their other end (fifo(7)).
//!
//! Such a call can be ended by a signal alone, so it is made by a thread of its own, to which a signal that does
//! nothing is sent.

use std::os::fd::OwnedFd;
use std::os::unix::thread::JoinHandleExt;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::oneshot;

use super::nudge;

/// A call that is under way. Dropping it ends the call.
#[derive(Debug)]
pub struct Opening {
    result: oneshot::Receiver<Result<OwnedFd, Errno>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Between two signals, where the first came before the call had begun.
const AGAIN: Duration = Duration::from_millis(1);

impl Opening {
    /// Has a thread make a call that opens something.
    pub fn begin(
        open: impl FnOnce() -> Result<OwnedFd, Errno> + Send + 'static,
    ) -> Result<Opening, Errno> {
        nudge::handle()?;
        let (sender, result) = oneshot::channel();
        let thread = std::thread::Builder::new().name("open".into()).stack_size(128 << 10);
        let thread = thread.spawn(move || {
            let _ = sender.send(open());
        });
        let thread = thread.map_err(|_| Errno::EAGAIN)?;
        Ok(Opening { result, thread: Some(thread) })
    }

    /// What was opened.
    pub async fn done(&mut self) -> Result<OwnedFd, Errno> {
        (&mut self.result).await.unwrap_or(Err(Errno::EIO))
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() {
            // SAFETY: the thread has not been joined, so its number is valid.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), nudge::signal()) };
            std::thread::sleep(AGAIN);
        }
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    use super::*;

    #[tokio::test]
    async fn a_fifo_is_waited_for_and_left() {
        let path = std::env::temp_dir().join(format!("sandbox-opening-{}", std::process::id()));
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let read = {
            let path = path.clone();
            move || open(&path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        };
        drop(Opening::begin(read.clone()).unwrap());
        let mut opening = Opening::begin(read).unwrap();
        let other = path.clone();
        let writer = std::thread::spawn(move || open(&other, OFlag::O_WRONLY, Mode::empty()));
        opening.done().await.unwrap();
        writer.join().unwrap().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
