//! The file view as a map: which mount shows what at a path.
//!
//! Pure: built from the mounts of a run, asked about paths that are already resolved. It knows
//! nothing of files, permissions or symlinks.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use super::{Mount, MountKind};

/// Mounts by target. Under no target lies the host's tree, read-only.
#[derive(Debug, Clone, Default)]
pub struct View(BTreeMap<PathBuf, Mount>);

/// What a path of the guest shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown<'v> {
    /// This path of the host: read-only, unless `by` is a writable mount.
    Host {
        /// Where it is on the host.
        path: PathBuf,
        /// The mount that brings it; `None` is the default of every run.
        by: Option<&'v Mount>,
    },
    /// Nothing of the host: this mount's own content.
    Private(&'v Mount),
    /// What this mount hides.
    Hidden(&'v Mount),
}

impl View {
    /// The view that these mounts make.
    pub fn of(mounts: &[Mount]) -> Self {
        mounts.iter().cloned().collect()
    }

    /// The mount at `path` or the nearest one above: the most specific rule wins.
    pub fn covering(&self, path: &Path) -> Option<&Mount> {
        path.ancestors().find_map(|above| self.0.get(above))
    }

    /// The nearest mount strictly above `path`.
    pub(crate) fn above(&self, path: &Path) -> Option<&Mount> {
        self.covering(path.parent()?)
    }

    /// The mount exactly at `path`.
    pub(crate) fn at(&self, path: &Path) -> Option<&Mount> {
        self.0.get(path)
    }

    /// Whether anything is mounted strictly below `path`.
    pub(crate) fn has_below(&self, path: &Path) -> bool {
        // The paths below one follow it directly: paths are ordered by component.
        let mut after = self.0.range::<Path, _>((Bound::Excluded(path), Bound::Unbounded));
        after.next().is_some_and(|(target, _)| target.starts_with(path))
    }

    /// What `path` shows.
    pub fn shown(&self, path: &Path) -> Shown<'_> {
        self.shown_by(self.covering(path), path)
    }

    /// What would be at `path` if nothing were mounted exactly there.
    pub(crate) fn shown_under(&self, path: &Path) -> Shown<'_> {
        self.shown_by(self.above(path), path)
    }

    fn shown_by<'v>(&self, mount: Option<&'v Mount>, path: &Path) -> Shown<'v> {
        let Some(mount) = mount else {
            return Shown::Host { path: path.to_owned(), by: None };
        };
        match &mount.kind {
            MountKind::ReadOnly { source }
            | MountKind::Writable { source }
            | MountKind::Overlay { source, .. } => {
                Shown::Host { path: translate(path, &mount.target, source), by: Some(mount) }
            }
            kind if kind.hides() => Shown::Hidden(mount),
            _ => Shown::Private(mount),
        }
    }

    /// Puts a mount in its place and gives back the one that was there.
    pub(crate) fn insert(&mut self, mount: Mount) -> Option<Mount> {
        self.0.insert(mount.target.clone(), mount)
    }

    /// Takes away what is mounted at `path`.
    pub(crate) fn remove(&mut self, path: &Path) {
        self.0.remove(path);
    }

    /// All mounts, by path.
    pub fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.0.values()
    }

    /// All mounts in an order in which they can be mounted: shallow before deep.
    pub(crate) fn into_mounts(self) -> Vec<Mount> {
        let mut mounts: Vec<Mount> = self.0.into_values().collect();
        // /dev first: what hides is bound from there.
        let dev = |mount: &Mount| mount.kind == MountKind::Dev;
        mounts.sort_by_cached_key(|mount| (mount.target.components().count(), !dev(mount)));
        mounts
    }
}

impl FromIterator<Mount> for View {
    fn from_iter<I: IntoIterator<Item = Mount>>(mounts: I) -> Self {
        View(mounts.into_iter().map(|mount| (mount.target.clone(), mount)).collect())
    }
}

/// `path`, which is at or below `from`, moved to the same place below `to`.
pub(crate) fn translate(path: &Path, from: &Path, to: &Path) -> PathBuf {
    match path.strip_prefix(from) {
        Ok(rest) if !rest.as_os_str().is_empty() => to.join(rest),
        _ => to.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Why;

    fn bind(target: &str, source: &str) -> Mount {
        let kind = MountKind::ReadOnly { source: source.into() };
        Mount { target: target.into(), kind, why: Why::Flag(target.to_owned()) }
    }

    fn host(view: &View, path: &str) -> Option<PathBuf> {
        match view.shown(Path::new(path)) {
            Shown::Host { path, .. } => Some(path),
            _ => None,
        }
    }

    #[test]
    fn a_path_shows_what_the_nearest_mount_brings() {
        let tmpfs = Mount { kind: MountKind::Tmpfs { mode: 0o755 }, ..bind("/a/b", "") };
        let view = View::of(&[bind("/a", "/x"), tmpfs, bind("/a/b/c", "/y")]);
        assert_eq!(host(&view, "/etc"), Some("/etc".into()));
        assert_eq!(host(&view, "/a"), Some("/x".into()));
        assert_eq!(host(&view, "/a/z/q"), Some("/x/z/q".into()));
        assert_eq!(host(&view, "/a/b/z"), None);
        assert_eq!(host(&view, "/a/b/c/z"), Some("/y/z".into()));
        assert_eq!(host(&view, "/ab"), Some("/ab".into()));
        assert!(view.has_below(Path::new("/a/b")) && !view.has_below(Path::new("/a/b/c")));
        assert!(view.has_below(Path::new("/")) && view.has_below(Path::new("/a/")));
    }

    proptest! {
        #[test]
        fn the_most_specific_wins_whatever_the_order(
            targets in proptest::collection::btree_set("(/[ab]){1,4}", 1..8),
            path in "(/[ab]){1,5}",
            seed in any::<u64>(),
        ) {
            let mounts: Vec<Mount> = targets.iter().map(|t| bind(t, &format!("/src{t}"))).collect();
            let mut shuffled = mounts.clone();
            let turn = seed as usize % mounts.len();
            shuffled.rotate_left(turn);
            if seed % 2 == 0 {
                shuffled.reverse();
            }
            // The definition, by looking at every rule: the longest target that contains the path.
            let best = mounts.iter().filter(|m| Path::new(&path).starts_with(&m.target));
            let best = best.max_by_key(|m| m.target.components().count());
            let (one, other) = (View::of(&mounts), View::of(&shuffled));
            prop_assert_eq!(one.covering(Path::new(&path)), best);
            prop_assert_eq!(other.covering(Path::new(&path)), best);
            let ordered = one.into_mounts();
            prop_assert_eq!(&ordered, &other.into_mounts());
            for (index, mount) in ordered.iter().enumerate() {
                let later = &ordered[index + 1..];
                prop_assert!(!later.iter().any(|l| mount.target.starts_with(&l.target)));
            }
        }
    }
}
