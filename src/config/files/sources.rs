//! Rules that come from several sources: which of them say something here, and which of two counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::super::paths::{Kind, Place};
use super::super::{Host, Rule, RuleKind, View, absolute};
use super::Plan;

/// The rules, those of the strongest source first.
pub(super) fn by_strength(rules: &[Rule]) -> Vec<&Rule> {
    let mut rules: Vec<&Rule> = rules.iter().collect();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.rank));
    rules
}

/// So many rules about one directory are worth a list of it.
const CROWD: usize = 100;

/// Lists the directories that many rules are about: most of such a crowd is not there, and one list tells
/// that at once.
pub(super) fn list_crowded(host: &Host, rules: &[&Rule]) {
    if rules.len() < CROWD {
        return;
    }
    let mut counts: HashMap<&Path, usize> = HashMap::new();
    for parent in rules.iter().filter_map(|rule| Path::new(&rule.text).parent()) {
        *counts.entry(parent).or_default() += 1;
    }
    for (parent, _) in counts.into_iter().filter(|(_, count)| *count >= CROWD) {
        if let Ok(path) = absolute(host, parent)
            && let Ok(Place { path, kind: Kind::Directory }) = host.walk(&path)
        {
            host.names(&path);
        }
    }
}

impl<'h> Plan<'h> {
    /// Nothing yet.
    pub(super) fn new(host: &'h Host, homes: Vec<PathBuf>) -> Plan<'h> {
        Plan {
            host,
            homes,
            view: View::default(),
            root_rule: false,
            ranks: HashMap::new(),
            exceptions: BTreeMap::new(),
            patterns: Vec::new(),
            judged: HashSet::new(),
            perhaps: HashSet::new(),
            idle: Vec::new(),
            coming: None,
        }
    }

    /// Whether the rule, which is about `path`, is about nothing on this host, and may be. (What is to be hidden
    /// or denied can be where the host has nothing and the view has: that is seen when all of it is known.)
    pub(super) fn is_in_vain(&self, rule: &Rule, path: &Path) -> bool {
        if matches!(rule.kind, RuleKind::Hide | RuleKind::Deny) {
            return false;
        }
        // (One that is to be made has been, before a program runs.)
        if !rule.may_be_in_vain() && rule.place_to_make().is_none() {
            return false;
        }
        let place = absolute(self.host, path).map(|path| self.host.walk(&path));
        // What leads nowhere (over a file, in a circle) is not there either.
        !matches!(place, Ok(Ok(place)) if place.kind != Kind::Missing)
    }

    /// How strong the source is that has decided about this very place.
    pub(super) fn rank_at(&self, target: &Path) -> Option<usize> {
        self.ranks.get(target).copied()
    }

    /// Whether a stronger source has decided about this very place.
    pub(super) fn is_decided(&mut self, target: &Path, rank: usize) -> bool {
        match self.ranks.get(target) {
            Some(stronger) => *stronger > rank,
            None => {
                self.ranks.insert(target.to_owned(), rank);
                false
            }
        }
    }
}
