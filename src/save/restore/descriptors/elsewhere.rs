//! Where other modules' kinds of descriptions come in: sockets, terminals, message queues.

use std::os::fd::OwnedFd;

use super::{Maker, common};
use crate::save::error::RestoreError;
use crate::save::restore::ipc::open_queue;
use crate::save::restore::sockets;
use crate::save::state::FileKind;

/// Makes what other modules make together.
pub(super) fn make_first(maker: &mut Maker<'_>) -> Result<(), RestoreError> {
    sockets::make_sockets(maker)?;
    for (file, made) in maker.sandbox.files.iter().zip(&maker.files) {
        if let (FileKind::Socket(_), Some(made)) = (&file.kind, made) {
            common(made, file)?;
        }
    }
    Ok(())
}

/// Makes a description of such a kind. Where its module makes several at once, it puts them into
/// [`Maker::files`] before the others are made, and nobody asks here.
pub(super) fn make(
    maker: &mut Maker<'_>,
    index: usize,
    kind: &FileKind,
) -> Result<OwnedFd, RestoreError> {
    if let FileKind::MessageQueue(name) = kind {
        return open_queue(maker, name, maker.sandbox.files[index].flags);
    }
    let what = match kind {
        FileKind::Socket(_) => "a socket",
        FileKind::PtyMaster(_) | FileKind::PtySlave(_) => "a pseudo-terminal",
        FileKind::ControllingTerminal => "a controlling terminal",
        _ => "an unknown object",
    };
    Err(RestoreError::refused(format!(
        "the image holds {what} (open file {index}), which cannot be restored"
    )))
}
