//! Who has asked the resolver.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::resolver::Resolver;
use super::rule::Transport;
use crate::sentry::asking::Asker;
use crate::sentry::kernel::Kernel;
use crate::sentry::sockets::{diag, holds};

/// Where a question about a name has come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seeker {
    pub(super) address: SocketAddr,
    /// Where it was sent to.
    pub(super) resolver: SocketAddr,
    pub(super) transport: Transport,
}

/// Processes that have asked last: who asks once asks again.
pub(super) type Known = Vec<i32>;

/// So many are remembered.
const MOST: usize = 16;
/// How long is looked for who has asked, while that waits for its answer: guests decide how many processes and descriptors
/// there are.
const PATIENCE: Duration = Duration::from_millis(100);

impl Resolver {
    /// Whose socket a question has come from: one of the processes that hold it. Looks for one at a time.
    pub(super) async fn find_asker(
        self: &Arc<Self>,
        kernel: &Arc<Kernel>,
        seeker: Seeker,
    ) -> Asker {
        let own = Arc::clone(self);
        let mut known = Arc::clone(&own.askers).lock_owned().await;
        let kernel = Arc::clone(kernel);
        let found = tokio::task::spawn_blocking(move || {
            let found = own.find(&kernel, seeker, &known)?;
            known.retain(|it| *it != found.pid);
            known.insert(0, found.pid);
            known.truncate(MOST);
            Some(found)
        });
        found.await.ok().flatten().unwrap_or_else(Asker::unknown)
    }

    fn find(&self, kernel: &Kernel, seeker: Seeker, known: &Known) -> Option<Asker> {
        let deadline = Instant::now() + PATIENCE;
        let netlink = self.network().diag_socket().ok()?;
        let (own, other) = (seeker.address, seeker.resolver);
        let inode =
            diag::find(netlink.as_fd(), seeker.transport == Transport::Tcp, own, other).ok()?;
        // (What holds it is a guest: nobody else has sockets of that network.)
        let holds = |pid: &i32| holds(*pid, inode, deadline);
        let found = known.iter().copied().find(holds).or_else(|| {
            let mut others: Vec<i32> = kernel.members().ok()?.iter().map(|it| it.pid).collect();
            // (Those that were made last ask most, mostly.)
            others.sort_unstable_by(|one, other| other.cmp(one));
            others.retain(|pid| !known.contains(pid));
            others.into_iter().find(holds)
        })?;
        let asker = Asker::thread(found);
        (asker.pid == found && holds(&found)).then_some(asker)
    }
}
