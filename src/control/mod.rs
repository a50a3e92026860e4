//! How a running sandbox is found and spoken to from outside.
//!
//! Owns the state directory (where a sandbox is known by its id), the messages, the server in the
//! supervisor and the client in every verb (docs/control.md). What a verb means is the kernel's
//! business, and its words are the command line's.

pub mod client;
pub mod detach;
pub mod protocol;
pub mod server;
pub mod state;

use std::os::unix::net::UnixListener;

pub use client::{ClientError, Sandbox};
pub use detach::Verdict;
pub use server::{ExecCall, Server};
pub use state::{Claim, Ended, Info, Listed, StateError};

/// What a run is known by from outside.
#[derive(Debug)]
pub struct Control {
    claim: Claim,
    listener: Option<UnixListener>,
    /// Of a detached run: who waits to hear that the program runs.
    verdict: Option<Verdict>,
}

impl Control {
    /// Serves the socket of `claim` during the run.
    pub fn new(mut claim: Claim, verdict: Option<Verdict>) -> Control {
        let listener = claim.take_listener();
        Control { claim, listener, verdict }
    }

    /// Where requests arrive, once.
    pub fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// Where the state of all sandboxes of this user lies: no guest may see it.
    pub fn base(&self) -> &std::path::Path {
        self.claim.base()
    }

    /// The id.
    pub fn id(&self) -> &str {
        self.claim.id()
    }

    /// Whether the run is in the background: no shell has it as a job.
    pub fn is_detached(&self) -> bool {
        self.claim.is_detached()
    }

    /// The program runs: whoever started a detached sandbox may go on.
    ///
    /// # Errors
    /// Nobody is there any more: the user does not want it.
    pub fn started(&mut self) -> std::io::Result<()> {
        match self.verdict.take() {
            Some(verdict) => verdict.started(self.claim.id()),
            None => Ok(()),
        }
    }

    /// The program has ended with this exit status: what is to be remembered of it is, and the id is free.
    pub fn ended(&mut self, status: i32) {
        self.claim.ended(status);
    }

    /// Gives the id up, and the verdict back if it has not been given.
    pub fn into_verdict(self) -> Option<Verdict> {
        let Control { claim, verdict, .. } = self;
        drop(claim);
        verdict
    }
}
