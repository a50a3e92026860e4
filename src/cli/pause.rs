//! `sandbox pause` and `sandbox resume`: all of a sandbox stops, all of it goes on.

use super::fail;
use crate::control::client::Sandbox;
use crate::control::protocol::Request;

/// Returns once every task has stopped.
pub(super) fn pause(id: &str) -> i32 {
    ask(id, &Request::Pause)
}

/// Returns once the tasks may go on.
pub(super) fn resume(id: &str) -> i32 {
    ask(id, &Request::Resume)
}

fn ask(id: &str, request: &Request) -> i32 {
    // A task that waits for a disk stops when the disk has answered, so there is no limit here.
    let done = Sandbox::find(id).and_then(|sandbox| sandbox.call(request, &[])?.reply());
    done.err().map_or(0, fail)
}
