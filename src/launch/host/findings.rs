//! What the facts about a host mean for a run: findings, each with its use, what is done without
//! it, and its remedy.

mod processes;
mod surroundings;
mod traps;
mod walls;

use super::{Host, name};
use crate::sys::probe::Tried;

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The heading it stands under.
    pub group: Group,
    /// A stable key, lower case with hyphens.
    pub name: &'static str,
    /// How well the host offers it.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What it is for.
    pub needed_for: &'static str,
    /// What is done without it; `None` where a run is impossible then.
    pub fallback: Option<&'static str>,
    /// What to do to have it, where it is not all there.
    pub remedy: Option<String>,
    /// The finding that keeps this one from being tried, and whose remedy comes first.
    pub rests_on: Option<&'static str>,
}

impl Finding {
    /// Whether no run can do without it.
    #[must_use]
    pub fn required(&self) -> bool {
        self.fallback.is_none()
    }
}

/// How well a host offers something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As well as any.
    Ok,
    /// In part, or another way has to be taken.
    Limited,
    /// Not at all.
    Missing,
}

impl State {
    /// The mark in a report.
    #[must_use]
    pub fn mark(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Limited => "limited",
            State::Missing => "missing",
        }
    }
}

/// A heading of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The kernel itself.
    Kernel,
    /// Namespaces, mounts, rights.
    Walls,
    /// Seccomp and its notifications.
    Traps,
    /// What the supervisor does to guests.
    Processes,
    /// Limits, terminal, state, libraries.
    Surroundings,
}

impl Group {
    /// The heading's words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Group::Kernel => "Kernel",
            Group::Walls => "Walls",
            Group::Traps => "Trapped calls",
            Group::Processes => "Reaching into guests",
            Group::Surroundings => "Surroundings",
        }
    }
}

/// Whether `sandbox -- prog` can work with all default walls where this was found.
#[must_use]
pub fn able(findings: &[Finding]) -> bool {
    !findings.iter().any(|finding| finding.required() && finding.state == State::Missing)
}

/// All findings, in the order of the report.
pub(super) fn of(host: &Host) -> Vec<Finding> {
    let mut findings = vec![kernel(host)];
    walls::add(host, &mut findings);
    traps::add(host, &mut findings);
    processes::add(host, &mut findings);
    surroundings::add(host, &mut findings);
    point_to_causes(&mut findings);
    findings
}

/// Says of everything that could not be tried what has to be mended first.
fn point_to_causes(findings: &mut [Finding]) {
    let first_wall = findings
        .iter()
        .find(|finding| {
            let refused = finding.state == State::Missing && finding.found != UNTRIED;
            finding.group == Group::Walls && finding.required() && refused
        })
        .map_or("user-namespaces", |finding| finding.name);
    let lacks = |name| findings.iter().any(|it| it.name == name && it.state == State::Missing);
    let no_pidfds = lacks("pidfd-open") && !lacks("listener");
    for finding in findings.iter_mut().filter(|finding| finding.found == UNTRIED) {
        // Only the walls have a rehearsal of their own; all else is tried on a listener.
        let cause = if finding.group == Group::Walls && finding.name != "no-new-privs" {
            first_wall
        } else if finding.name == "pidfd-getfd" && no_pidfds {
            "pidfd-open"
        } else {
            "listener"
        };
        finding.found = format!("not tried, because it rests on {cause}");
        finding.remedy = Some(format!("see {cause}"));
        finding.rests_on = Some(cause);
    }
}

/// Found, until it is known why, where a rehearsal did not come to something.
const UNTRIED: &str = "not tried";

/// The oldest kernel that a run works on: mount_setattr(2) came with it.
const OLDEST: (u32, u32) = (5, 12);
/// What later kernels add, each with what it is worth.
const NEWER: [((u32, u32), &str); 5] = [
    ((5, 14), "descriptors answered in one step"),
    ((5, 19), "calls that signals do not restart"),
    ((6, 6), "traps at an eighth of the cost"),
    ((6, 9), "pidfds of threads"),
    ((6, 11), "the listener's hang-up"),
];

fn kernel(host: &Host) -> Finding {
    let subject = Subject::required(Group::Kernel, "kernel", "everything a run is built of");
    let version = host.release.version;
    let text = &host.release.text;
    let lacks: Vec<String> = NEWER
        .iter()
        .filter(|(since, _)| version < *since)
        .map(|((major, minor), what)| format!("{major}.{minor} adds {what}"))
        .collect();
    if version < OLDEST {
        let found = format!("Linux {text}, 5.12 is the oldest that will do");
        subject.missing(found, "boot Linux 5.12 or later, best 6.11 or later")
    } else if lacks.is_empty() {
        subject.ok(format!("Linux {text}"))
    } else {
        subject.ok(format!("Linux {text} ({})", lacks.join(", ")))
    }
}

/// What a finding is about, before it is known how things stand.
#[derive(Clone, Copy)]
struct Subject {
    group: Group,
    name: &'static str,
    needed_for: &'static str,
    fallback: Option<&'static str>,
}

impl Subject {
    /// Something no run can do without.
    fn required(group: Group, name: &'static str, needed_for: &'static str) -> Self {
        Subject { group, name, needed_for, fallback: None }
    }

    /// Something that has a substitute.
    fn optional(
        group: Group,
        name: &'static str,
        needed_for: &'static str,
        fallback: &'static str,
    ) -> Self {
        Subject { group, name, needed_for, fallback: Some(fallback) }
    }

    fn ok(self, found: impl Into<String>) -> Finding {
        self.finding(State::Ok, found.into(), None)
    }

    fn limited(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(State::Limited, found.into(), Some(remedy.into()))
    }

    fn missing(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(State::Missing, found.into(), Some(remedy.into()))
    }

    /// By whether it worked.
    fn tried(self, tried: Tried, remedy: impl FnOnce() -> String) -> Finding {
        if tried.works() { self.ok("works") } else { self.missing(said(tried), remedy()) }
    }

    fn finding(self, state: State, found: String, remedy: Option<String>) -> Finding {
        let Subject { group, name, needed_for, fallback } = self;
        Finding { group, name, state, found, needed_for, fallback, remedy, rests_on: None }
    }
}

/// What came of a try, in words.
fn said(tried: Tried) -> String {
    match tried {
        Tried::Works => "works".into(),
        Tried::Refused(errno) => format!("refused with {}", name(errno)),
        Tried::NotReached => UNTRIED.into(),
    }
}

/// How to have something that a kernel from `version` on offers: a newer kernel, or where this one
/// is new enough, whatever hides it.
fn since(host: &Host, version: (u32, u32)) -> String {
    let (major, minor) = version;
    if host.release.version < version {
        return format!("boot Linux {major}.{minor} or later");
    }
    match &host.refusal.container {
        Some(container) => container.remedy(),
        None => format!(
            "this kernel should offer it (Linux {major}.{minor} does): start it without the \
             seccomp filter that hides it"
        ),
    }
}
