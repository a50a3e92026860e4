//! Where other modules' kinds of descriptions come in: sockets, terminals, message queues.

use std::os::fd::OwnedFd;

use super::Maker;
use crate::save::error::RestoreError;
use crate::save::state::FileKind;

/// Makes a description of such a kind. Where its module makes several at once, it puts them into
/// [`Maker::files`] before the others are made, and nobody asks here.
pub(super) fn make(
    maker: &mut Maker<'_>,
    index: usize,
    kind: &FileKind,
) -> Result<OwnedFd, RestoreError> {
    let _ = maker;
    let what = match kind {
        FileKind::Socket(_) => "a socket",
        FileKind::PtyMaster(_) | FileKind::PtySlave(_) => "a pseudo-terminal",
        FileKind::ControllingTerminal => "a controlling terminal",
        FileKind::MessageQueue(_) => "a message queue",
        _ => "an unknown object",
    };
    Err(RestoreError::refused(format!(
        "the image holds {what} (open file {index}), which cannot be restored"
    )))
}
