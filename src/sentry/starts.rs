//! Programs that are being started, and pauses: one waits for the other.
//!
//! Between its clone and its exec a program's process is a copy of init, which is no guest yet and may
//! not be traced. A pause that came in between would miss it or fail. So a pause first waits until no
//! program is being started, and none is started before the pause is over.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::kernel::Kernel;
use super::kernel_error::KernelError;

/// Those that are being started.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// A leaf of the lock order.
    inner: Mutex<Inner>,
    /// Signalled when the last one has been started.
    settled: Condvar,
    /// Told when programs may be started again.
    opened: Notify,
}

/// Protected by `Starts::inner`.
#[derive(Debug, Default)]
struct Inner {
    count: usize,
    closed: bool,
}

/// The right to start a program; given up when it runs, or does not.
#[derive(Debug)]
pub struct Starting {
    kernel: Arc<Kernel>,
}

impl Kernel {
    /// Gets ready to start a program. KernelError::Paused: a pause is in effect, or begins before it
    /// could be started.
    pub async fn begin_start(self: &Arc<Self>) -> Result<Starting, KernelError> {
        let mut paused = self.paused();
        loop {
            let opened = self.starts.opened.notified();
            if self.starts.enter() {
                return Ok(Starting { kernel: Arc::clone(self) });
            }
            tokio::select! {
                biased;
                // (The sender lives in `self`.)
                _ = paused.wait_for(|paused| *paused) => return Err(KernelError::Paused),
                () = opened => {}
            }
        }
    }
}

impl Starts {
    fn enter(&self) -> bool {
        let mut inner = self.lock();
        inner.count += usize::from(!inner.closed);
        !inner.closed
    }

    /// Lets no more begin and waits for those that have begun, but not longer than `limit`; `false`:
    /// some still are, and others may begin.
    pub(super) fn close(&self, limit: Duration) -> bool {
        let mut inner = self.lock();
        inner.closed = true;
        let waited = self.settled.wait_timeout_while(inner, limit, |inner| inner.count > 0);
        let settled = waited.unwrap_or_else(PoisonError::into_inner).0.count == 0;
        if !settled {
            self.open();
        }
        settled
    }

    /// Programs may be started again.
    pub(super) fn open(&self) {
        self.lock().closed = false;
        self.opened.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let starts = &self.kernel.starts;
        let mut inner = starts.lock();
        inner.count -= 1;
        if inner.count == 0 {
            starts.settled.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_waits_for_those_that_have_begun_and_keeps_others_out() {
        let starts = Starts::default();
        assert!(starts.enter());
        assert!(!starts.close(Duration::from_millis(1)));
        assert!(starts.enter());
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| starts.close(Duration::from_secs(60)));
            for _ in 0..2 {
                let mut inner = starts.lock();
                inner.count -= 1;
                if inner.count == 0 {
                    starts.settled.notify_all();
                }
            }
            assert!(closing.join().unwrap());
        });
        assert!(!starts.enter());
        starts.open();
        assert!(starts.enter());
    }
}
