//! Mounts as an image carries them.

use super::super::{ConfigError, Mount, MountKind, Why};
use super::{SavedKind, SavedMount, SavedRule, bytes, place};

impl SavedMount {
    /// None: it follows from an overlay, and how the host's directories are mounted.
    pub(super) fn of(mount: &Mount) -> Option<SavedMount> {
        let part = matches!(mount.kind, MountKind::ReadOnly { .. } | MountKind::Overlay { .. });
        if part && matches!(mount.why, Why::Default(_)) {
            return None;
        }
        Some(SavedMount {
            target: bytes(&mount.target),
            kind: match &mount.kind {
                MountKind::ReadOnly { source } => SavedKind::ReadOnly(bytes(source)),
                MountKind::Overlay { source, .. } => SavedKind::Overlay(bytes(source)),
                MountKind::Writable { source } => SavedKind::Writable(bytes(source)),
                MountKind::Tmpfs { mode } => SavedKind::Tmpfs(*mode),
                MountKind::HiddenDirectory => SavedKind::HiddenDirectory,
                MountKind::HiddenFile => SavedKind::HiddenFile,
                MountKind::DeniedDirectory => SavedKind::DeniedDirectory,
                MountKind::DeniedFile => SavedKind::DeniedFile,
                MountKind::Proc => SavedKind::Proc,
                MountKind::Sys => SavedKind::Sys,
                MountKind::Dev => SavedKind::Dev,
            },
            by: match mount.why {
                Why::Default(_) => SavedRule::Default,
                Why::WorkingDirectory => SavedRule::WorkingDirectory,
                // What a pattern hides may have gone when it is restored.
                Why::Derived(_) if mount.kind.hides() => SavedRule::Default,
                // A layer of its own, which is a part of the one around it.
                Why::Derived(_) if matches!(mount.kind, MountKind::Overlay { .. }) => {
                    SavedRule::Exception
                }
                Why::Derived(_) | Why::Flag(_) => SavedRule::Flag,
            },
        })
    }
}

impl SavedKind {
    pub(super) fn restore(&self) -> Result<MountKind, ConfigError> {
        Ok(match self {
            SavedKind::ReadOnly(source) => MountKind::ReadOnly { source: place(source)? },
            SavedKind::Writable(source) => MountKind::Writable { source: place(source)? },
            SavedKind::Tmpfs(mode) => MountKind::Tmpfs { mode: *mode },
            SavedKind::HiddenDirectory => MountKind::HiddenDirectory,
            SavedKind::HiddenFile => MountKind::HiddenFile,
            SavedKind::DeniedDirectory => MountKind::DeniedDirectory,
            SavedKind::DeniedFile => MountKind::DeniedFile,
            SavedKind::Proc => MountKind::Proc,
            SavedKind::Sys => MountKind::Sys,
            SavedKind::Dev => MountKind::Dev,
            SavedKind::Overlay(source) => {
                MountKind::Overlay { source: place(source)?, skeleton: false }
            }
        })
    }
}
