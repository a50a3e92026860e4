//! Content of the layers of overlays.
//!
//! The sentry reads them where they are kept on the host, while all guests stand still. Where these go on before
//! the image is written, content is copied beside the layers first: shared with them on file systems that can,
//! and else as long as that takes.
//!
//! Not carried, beside what [`super::trees`] leaves out: which file of the host one was copied from (its number
//! shows inside), and attributes of security modules.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::geteuid;
use serde_bytes::ByteBuf;

use crate::overlay::{OverlayError, Saver};
use crate::save::capture::collector::{Collector, Content};
use crate::save::capture::trees::{Ids, Of, walk};
use crate::save::error::SaveError;
use crate::save::state::{Layer, Overlay};
use crate::sys::random;

/// Rights that a file gives to whoever executes it (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";
/// What overlayfs marks an entry of a layer with (Documentation/filesystems/overlayfs.rst): it hides a directory of
/// the host, or stands for a removal; or keeps a bit of chattr(1) that the kernel does not copy
/// (OVL_XATTR_PROTATTR).
pub const MARKS: [&[u8]; 3] =
    [b"user.overlay.opaque", b"user.overlay.whiteout", b"user.overlay.protattr"];
/// What overlayfs makes of a name like its own that a guest sets (OVL_XATTR_ESCAPE_PREFIX).
const ESCAPED: &[u8] = b"user.overlay.overlay.";

impl From<OverlayError> for SaveError {
    fn from(error: OverlayError) -> Self {
        SaveError::Failed(error.to_string())
    }
}

/// Whether an attribute in a layer is a part of what has changed. Other marks of overlayfs's are about the
/// inodes that were there, and it makes them anew.
pub fn is_carried(name: &[u8]) -> bool {
    let own = name.starts_with(b"user.overlay.");
    let known = MARKS.contains(&name) || name.starts_with(ESCAPED);
    let of_users = name.starts_with(b"user.") && (!own || known);
    of_users || name.starts_with(b"system.posix_acl_") || name == CAPABILITY
}

/// Captures all layers of a run whose guests, `pid` among them, stand still. Its content comes first in the
/// collector: who calls does so before anything else is captured.
pub fn capture(pid: i32, saver: &Saver, collector: &mut Collector) -> Result<Overlay, SaveError> {
    let ids = Ids::of(pid)?;
    let whole = saver.whole()?;
    let mut layers = Vec::with_capacity(whole.parts.len());
    for part in whole.parts {
        let tree = walk(part.upper, &part.path, &ids, collector, Of::Layer)?;
        refuse_capabilities(&tree.target, &tree.entries)?;
        let scaffold = part.scaffold.iter().map(|it| bytes(it)).collect();
        layers.push(Layer { skeleton: part.skeleton, scaffold, tree });
    }
    let mut number = vec![0; 16];
    random::fill(&mut number)
        .map_err(|errno| SaveError::failed("no random number for the image", errno.desc()))?;
    Ok(Overlay {
        number: ByteBuf::from(number),
        directories: whole.directories.iter().map(|it| bytes(it)).collect(),
        starts: whole.starts,
        layers,
    })
}

/// Copies what is in layers, since the guests go on before it is written: the first ones of `contents`, all that
/// [`capture`] has added. Done when nothing else can be refused any more.
pub fn copy(saver: &Saver, contents: &mut [Content]) -> Result<(), SaveError> {
    let mut spool = saver.spool()?;
    for content in contents {
        let mut of_file = |file: &File, object, size| {
            let at = spool.add(file, size).map_err(|errno| {
                SaveError::failed("what is in its overlay cannot be copied", errno.desc())
            })?;
            let spool = spool.file();
            Ok::<_, SaveError>(Content::Kept { object, spool, at, offset: 0, size, pages: false })
        };
        *content = match content {
            Content::File { object, file, size } => of_file(file, *object, *size)?,
            Content::Below { object, directory, path, size } => {
                let file = Content::open_below(directory, path).map_err(|errno| {
                    let what = format!("{} in its overlay cannot be read", path.to_string_lossy());
                    SaveError::failed(what, errno.desc())
                })?;
                of_file(&file, *object, *size)?
            }
            _ => continue,
        };
    }
    Ok(())
}

fn bytes(path: &Path) -> ByteBuf {
    ByteBuf::from(path.as_os_str().as_bytes())
}

/// Only root could give a file capabilities again.
fn refuse_capabilities(
    target: &[u8],
    entries: &[crate::save::state::TreeEntry],
) -> Result<(), SaveError> {
    let has = |entry: &&crate::save::state::TreeEntry| {
        entry.attributes.iter().any(|(name, _)| **name == *CAPABILITY)
    };
    match entries.iter().find(has).filter(|_| !geteuid().is_root()) {
        None => Ok(()),
        Some(entry) => Err(SaveError::refused(format!(
            "{}/{} in the overlay has capabilities (capabilities(7)), which an ordinary user cannot give it \
             again; take them away with setcap -r",
            String::from_utf8_lossy(target),
            String::from_utf8_lossy(&entry.path)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::is_carried;

    #[test]
    fn what_has_changed_is_carried_and_what_is_about_inodes_is_not() {
        for name in [
            &b"user.note"[..],
            b"user.overlay.opaque",
            b"user.overlay.whiteout",
            b"user.overlay.overlay.opaque",
            b"user.overlayed",
            b"system.posix_acl_access",
            b"security.capability",
        ] {
            assert!(is_carried(name), "{}", name.escape_ascii());
        }
        for name in [
            &b"user.overlay.origin"[..],
            b"user.overlay.impure",
            b"user.overlay.redirect",
            b"user.overlay.metacopy",
            b"user.overlay.uuid",
            b"trusted.overlay.opaque",
            b"security.selinux",
        ] {
            assert!(!is_carried(name), "{}", name.escape_ascii());
        }
    }
}
