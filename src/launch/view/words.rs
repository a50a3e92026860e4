//! Steps in words, for errors.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;

use super::{OverlayStep, Step};

impl std::fmt::Display for OverlayStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [target, upper] =
            [&self.target, &self.upper].map(|path| OsString::from_vec(path.as_bytes().to_vec()));
        write!(
            f,
            "make an overlay of {}, with its changes in {}",
            target.display(),
            upper.display()
        )
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |s: &CString| OsString::from_vec(s.as_bytes().to_vec()).display().to_string();
        match self {
            Step::Private => write!(f, "make the mounts private"),
            Step::Clone { source, .. } => write!(f, "copy the mount at {}", show(source)),
            Step::Twin { source, .. } => write!(f, "show the copies in {}", show(source)),
            Step::Overlay { layer, .. } => layer.fmt(f),
            Step::Front { place } => write!(f, "mount memory at {}", show(place)),
            Step::Enter { .. } => write!(f, "make the overlay of / the root"),
            Step::Guard => write!(f, "enter /proc"),
            Step::Leave { .. } => write!(f, "take the host's root away"),
            Step::Attach { target, .. } => write!(f, "mount on {}", show(target)),
            Step::Bind { target, .. } | Step::Nowhere { target, .. } => {
                write!(f, "mount on {}", show(target))
            }
            Step::Remove { path } => write!(f, "remove {}", show(path)),
            Step::Attributes { target, .. } => write!(f, "make {} read-only", show(target)),
            Step::Writable { target } => write!(f, "make {} writable", show(target)),
            Step::Mount { kind, target, .. } => {
                write!(f, "mount {} on {}", show(kind), show(target))
            }
            Step::Directory { path, .. } => write!(f, "make the directory {}", show(path)),
            Step::Content { path, .. } => write!(f, "write the file {}", show(path)),
            Step::Unmount { target } => write!(f, "unmount {}", show(target)),
            Step::File { path } => write!(f, "make the file {}", show(path)),
            Step::Symlink { path, .. } => write!(f, "make the link {}", show(path)),
            Step::Setting { path, .. } => write!(f, "write {}", show(path)),
        }
    }
}
