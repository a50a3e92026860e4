//! Root directories that guests have for themselves (chroot(2)).
//!
//! A task has its root in common with the tasks that it has its working directory in common with.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_bytes::ByteBuf;

use super::known::Known;
use crate::save::error::SaveError;

/// The root directory of a task, by its path in the guests' whole view (proc_pid_root(5)); none: it is that of all.
pub(super) fn of(tid: i32, known: &Known, who: &str) -> Result<Option<ByteBuf>, SaveError> {
    let failed = |error| SaveError::failed(format!("{who}: its root directory"), error);
    let link = format!("/proc/{tid}/root");
    let place = std::fs::read_link(&link).map_err(failed)?;
    if place == Path::new("/") {
        return Ok(None);
    }
    let found = std::fs::metadata(&link).map_err(failed)?;
    let view = known.view_of(tid);
    let there =
        place.strip_prefix("/").map(|below| Path::new(&view).join(below).symlink_metadata());
    match there {
        Ok(Ok(there)) if (there.dev(), there.ino()) == (found.dev(), found.ino()) => {
            Ok(Some(ByteBuf::from(place.into_os_string().into_vec())))
        }
        _ => Err(SaveError::refused(format!(
            "{who} has a root directory (chroot(2)) that is not in its place any more, {}, so that nobody could enter \
             it again; end it first",
            place.display()
        ))),
    }
}
