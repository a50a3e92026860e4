//! Who answers questions over the control socket (`--ask`): is told of them, and counts as somebody who is there.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::net::UnixStream;

use super::super::protocol::{Refused, Reply};
use super::service::Service;
use super::{answer, gone};
use crate::sentry::asking::Asking;

impl Service {
    /// The questions of the run.
    ///
    /// # Errors
    /// It asks nothing.
    pub(super) fn asking(&self) -> Result<&Arc<Asking>, String> {
        self.kernel
            .asking()
            .ok_or_else(|| "it asks nothing; run it with --ask net,files".to_owned())
    }

    /// Tells of questions as they come and go. Whoever leaves, or does not read, gives them back to the others.
    pub(super) async fn questions(&self, stream: &mut UnixStream) {
        let asking = match self.asking() {
            Ok(asking) => asking,
            Err(reason) => {
                answer(stream, &Reply::Refused(Refused { reason })).await;
                return;
            }
        };
        let _attendance = asking.attend();
        let mut changes = asking.changes();
        let mut told = BTreeSet::new();
        let mut ended = false;
        loop {
            // (What changes from here on is looked at once more.)
            changes.borrow_and_update();
            let open = asking.open();
            let numbers: BTreeSet<u64> = open.iter().map(|it| it.number).collect();
            for number in told.difference(&numbers).copied().collect::<Vec<_>>() {
                told.remove(&number);
                let outcome = asking.outcome(number);
                if !answer(stream, &Reply::Settled { number, outcome }).await {
                    return;
                }
            }
            for question in open {
                let is_new = told.insert(question.number);
                if is_new && !answer(stream, &Reply::Question(question)).await {
                    return;
                }
            }
            if ended {
                break;
            }
            ended = tokio::select! {
                biased;
                _ = self.kernel.wait_exited() => true,
                changed = changes.changed() => changed.is_err(),
                () = gone(stream) => return,
            };
        }
        answer(stream, &Reply::Done).await;
    }
}
