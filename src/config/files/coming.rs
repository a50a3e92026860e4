//! Names that come to be while a run lasts: what patterns say of them, for the sentry.
//!
//! The same judgement as that of the walk (`walk`), about any path at any time.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::{Mount, MountKind, RuleKind, View};
use super::patterns::Pattern;
use super::walk::Roots;
use crate::sentry::paths::{Rules, Verdict};

/// The patterns of a run, and what they depend on.
#[derive(Debug)]
pub(super) struct Coming {
    /// Without what patterns have added to it.
    view: View,
    patterns: Vec<Pattern>,
    roots: Roots,
}

/// What rules have made of a directory on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Plain,
    Covered { denied: bool },
    As(RuleKind),
}

impl State {
    fn then(self, kind: RuleKind) -> State {
        match (self, kind) {
            (State::Covered { .. }, RuleKind::Allow) => State::Plain,
            // What is covered stays as it is, but for an exception.
            (state @ State::Covered { .. }, _) => state,
            (state, RuleKind::Allow) => state,
            (_, RuleKind::Hide) => State::Covered { denied: false },
            (_, RuleKind::Deny) => State::Covered { denied: true },
            (_, kind) => State::As(kind),
        }
    }

    fn of(mount: &Mount) -> State {
        match &mount.kind {
            kind if kind.hides() => State::Covered { denied: kind.denies() },
            MountKind::ReadOnly { .. } => State::As(RuleKind::ReadOnly),
            _ => State::Plain,
        }
    }
}

/// How far all patterns are at a path.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    state: State,
    /// The places of each pattern that can match further down.
    places: Vec<(usize, u64)>,
}

impl Coming {
    pub(super) fn new(view: View, patterns: Vec<Pattern>, roots: Roots) -> Coming {
        Coming { view, patterns, roots }
    }

    fn standing(&self, path: &Path) -> Standing {
        let mut places: Vec<u64> = self.patterns.iter().map(Pattern::before).collect();
        let mut state = State::Plain;
        let mut at = PathBuf::from("/");
        for name in path.iter().skip(1) {
            let mut best: Option<&Pattern> = None;
            for (pattern, places) in self.patterns.iter().zip(&mut places) {
                *places = pattern.after(*places, name.as_bytes());
                if *places & pattern.whole() != 0 && self.roots.concern(&at, pattern) {
                    best = Some(stronger(best, pattern));
                }
            }
            at.push(name);
            if let Some(mount) = self.view.at(&at) {
                state = State::of(mount);
            } else if let Some(pattern) = best {
                state = state.then(pattern.kind);
            }
        }
        let open = self.patterns.iter().zip(&places).enumerate();
        let open = open.filter(|(_, (pattern, places))| {
            **places & !pattern.whole() != 0 && self.roots.concern(&at, pattern)
        });
        let places = open.map(|(number, (pattern, places))| (number, places & !pattern.whole()));
        Standing { state, places: places.collect() }
    }

    /// Whether patterns can be about this path at all.
    fn concerns(&self, path: &Path) -> bool {
        let starts = self.patterns.iter().filter_map(|pattern| pattern.start.as_ref());
        starts.chain(self.roots.all()).any(|start| path.starts_with(start))
    }
}

/// Which of two that match a path counts. Of equal ones the stricter: at the start that would have been an error.
fn stronger<'p>(best: Option<&'p Pattern>, other: &'p Pattern) -> &'p Pattern {
    let strict = |pattern: &Pattern| match pattern.kind {
        RuleKind::Hide => 3,
        RuleKind::Deny => 2,
        RuleKind::ReadOnly => 1,
        _ => 0,
    };
    match best {
        Some(best) if (best.weight, strict(best)) >= (other.weight, strict(other)) => best,
        _ => other,
    }
}

impl Rules for Coming {
    fn verdict(&self, path: &[u8]) -> Verdict {
        let path = Path::new(OsStr::from_bytes(path));
        if !self.concerns(path) {
            return Verdict::Plain;
        }
        match self.standing(path).state {
            State::Covered { denied: false } => Verdict::Hidden,
            State::Covered { denied: true } => Verdict::Denied,
            State::As(RuleKind::ReadOnly) => Verdict::ReadOnly,
            State::Plain | State::As(_) => Verdict::Plain,
        }
    }

    fn same_below(&self, one: &[u8], other: &[u8]) -> bool {
        let [one, other] = [one, other].map(|path| Path::new(OsStr::from_bytes(path)));
        (!self.concerns(one) && !self.concerns(other)) || self.standing(one) == self.standing(other)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{TestHost, options};
    use super::*;

    fn check(rules: &[&str], expected: &[(&str, Verdict)]) -> std::sync::Arc<dyn Rules> {
        let host = TestHost::ordinary();
        let spec = host.resolve(&options(rules)).unwrap();
        let coming = spec.coming.unwrap();
        for (path, verdict) in expected {
            assert_eq!(coming.verdict(path.as_bytes()), *verdict, "{rules:?} {path}");
        }
        coming
    }

    #[test]
    fn names_that_come_later_are_judged_as_those_that_are_there() {
        let work = |name: &str| format!("/home/me/project/{name}");
        let [env, example, deep, key, below] =
            [".env", ".env.example", "a/b/.env", "a/x.pem", "x.pem/in"].map(work);
        let [denied, hidden] = ["x.pem/.env", ".env.d/x.pem"].map(work);
        check(
            &["--hide .env*", "--allow **/.env.example", "--deny ./**/*.pem"],
            &[
                (&env, Verdict::Hidden),
                (&example, Verdict::Plain),
                (&deep, Verdict::Hidden),
                (&key, Verdict::Denied),
                (&below, Verdict::Denied),
                (&denied, Verdict::Denied),
                (&hidden, Verdict::Hidden),
                ("/usr/x.pem", Verdict::Plain),
                ("/usr/.env", Verdict::Plain),
                ("/home/me/.env", Verdict::Hidden),
            ],
        );
        let [lock, other] = ["Cargo.lock", "main.rs"].map(work);
        check(&["--ro *.lock"], &[(&lock, Verdict::ReadOnly), (&other, Verdict::Plain)]);
    }

    #[test]
    fn a_directory_may_move_where_nothing_in_it_changes() {
        let work = |name: &str| format!("/home/me/project/{name}").into_bytes();
        let [one, two, secret] = ["one", "two", "secret"].map(work);
        let coming = check(&["--hide secret/*.key", "--hide **/.env"], &[]);
        assert!(coming.same_below(&one, &two));
        assert!(!coming.same_below(&one, &secret) && !coming.same_below(&secret, &two));
        assert!(!coming.same_below(&one, b"/usr/one"));
    }
}
