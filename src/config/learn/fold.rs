//! Places that were written to become as few rules as say the same.
//!
//! Owns when several places are one: where a directory holds at least three of them, and these are at least
//! half of what is in it, the directory is the rule. No home and nothing right below `/` becomes one that way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::Host;
use super::needs::{Needs, Place};

/// A place that is to be writable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Learned {
    /// Where it is.
    pub(super) path: PathBuf,
    /// A directory that the program made, and that is made for it from now on.
    pub(super) is_made: bool,
    /// How many paths in it were written to.
    pub(super) count: usize,
}

/// Less than that is told one by one.
const FEWEST: usize = 3;

/// The rules for all places of `needs`.
pub(super) fn fold(needs: &Needs, host: &Host) -> Vec<Learned> {
    let mut places = needs.places.clone();
    drop_inner(&mut places);
    let deepest = places.keys().map(|path| depth(path)).max().unwrap_or(0);
    // What becomes of deep ones counts where they lie.
    for level in (1..=deepest).rev() {
        for directory in full(&places, level, needs, host) {
            let inner: Vec<PathBuf> = below(&places, &directory).cloned().collect();
            let count =
                inner.iter().filter_map(|path| places.remove(path)).map(|it| it.count).sum();
            places.insert(directory, Place { is_made: false, count });
        }
    }
    let learned = |(path, Place { is_made, count })| Learned { path, is_made, count };
    places.into_iter().map(learned).collect()
}

/// Paths of `places` strictly below a directory.
fn below<'p>(
    places: &'p BTreeMap<PathBuf, Place>,
    directory: &'p Path,
) -> impl Iterator<Item = &'p PathBuf> {
    let after = (std::ops::Bound::Excluded(directory), std::ops::Bound::Unbounded);
    places
        .range::<Path, _>(after)
        .map(|(path, _)| path)
        .take_while(move |it| it.starts_with(directory))
}

/// What lies in a place that is one itself says nothing new.
fn drop_inner(places: &mut BTreeMap<PathBuf, Place>) {
    let outer: Vec<PathBuf> = places.keys().cloned().collect();
    for directory in outer {
        let inner: Vec<PathBuf> = below(places, &directory).cloned().collect();
        let count: usize =
            inner.iter().filter_map(|path| places.remove(path)).map(|it| it.count).sum();
        if let Some(place) = places.get_mut(&directory) {
            place.count += count;
        }
    }
}

/// Directories that stand for what is in them, of those that hold places at this level.
fn full(
    places: &BTreeMap<PathBuf, Place>,
    level: usize,
    needs: &Needs,
    host: &Host,
) -> Vec<PathBuf> {
    let mut held: BTreeMap<&Path, (usize, usize)> = BTreeMap::new();
    for (path, place) in places.iter().filter(|(path, _)| depth(path) == level) {
        let Some(parent) = path.parent() else { continue };
        let (all, made) = held.entry(parent).or_default();
        *all += 1;
        *made += usize::from(place.is_made);
    }
    let stands = |(directory, (all, made)): &(&Path, (usize, usize))| {
        *all >= FEWEST && needs.may_stand(directory, host) && {
            // What the program has made is not there yet.
            let others = host.names(directory).names.len() + made;
            2 * all >= others
        }
    };
    held.into_iter().filter(stands).map(|(directory, _)| directory.to_owned()).collect()
}

fn depth(path: &Path) -> usize {
    path.components().count()
}
