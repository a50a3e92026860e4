//! What the user asked for, word by word, before anything of it is checked.
//!
//! Owns no knowledge of how the words were written (the command line does that) and none of the
//! host: two equal `Options` can become two different runs on two hosts.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::limits::LimitWishes;
use super::paths::{parse_pair, quoted};
use super::profile::{Origin, Setting};
use super::{Network, Root, Voice, Walls, Without};
use crate::sentry::asking::About;
use crate::sentry::net::Policy;
use crate::sentry::net::publish::Wish;

/// The wishes of one run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// Rules about files; their order means nothing.
    pub rules: Vec<Rule>,
    /// Where overlays are kept, if not in the usual place.
    pub overlay_dir: Option<PathBuf>,
    /// `NAME=VALUE` sets a variable, `NAME` passes the caller's. The last one of a name counts.
    pub env: Vec<OsString>,
    /// Pass nothing of the caller's environment but what `env` names.
    pub clear_env: bool,
    /// Where the program starts; `None` is the caller's working directory.
    pub workdir: Option<PathBuf>,
    /// The name of the program's container.
    pub container: Option<String>,
    /// The host name inside.
    pub hostname: Option<OsString>,
    /// `UID[:GID]` or the name of a user.
    pub user: Option<OsString>,
    /// Who is root inside.
    pub root: Root,
    /// What the sandbox's clock shows (`--time`), word by word.
    pub time: Vec<String>,
    /// Do the same whenever it is done; the seed of random bytes.
    pub deterministic: Option<OsString>,
    /// Serve the sandbox's log at /dev/kmsg.
    pub kmsg: bool,
    /// Answer at once who waits for the disk in an overlay.
    pub fake_fsync: bool,
    /// Record which files the guests touch, in this file.
    pub record_files: Option<PathBuf>,
    /// Find out what the run needs (`sandbox learn`).
    pub learn: bool,
    /// Which network.
    pub network: Network,
    /// What keeps the guest in.
    pub walls: Walls,
    /// Landlock behind the mounts.
    pub landlock: bool,
    /// Record what the network decides, in this file.
    pub net_log: Option<PathBuf>,
    /// What is asked about.
    pub ask: About,
    /// Answers can be written to this profile.
    pub ask_save: Option<PathBuf>,
    /// What may be reached, and what not whatever else says so.
    pub reach: Policy,
    /// Ports of the host that are to lead inside.
    pub publish: Vec<Wish>,
    /// Descriptors to inherit.
    pub descriptors: Vec<RawFd>,
    /// What the run may use.
    pub limits: LimitWishes,
    /// Facilities to do without.
    pub without: Without,
    /// The name of the sandbox.
    pub id: Option<String>,
    /// Run in the background.
    pub detach: bool,
    /// Only tell what would be run.
    pub dry_run: bool,
    /// Somebody is likely to read events: the run has an id that a person knows.
    pub observed: bool,
    /// How much is said on stderr.
    pub voice: Voice,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            argv: Vec::new(),
            rules: Vec::new(),
            overlay_dir: None,
            env: Vec::new(),
            clear_env: false,
            workdir: None,
            container: None,
            hostname: None,
            user: None,
            root: Root::No,
            time: Vec::new(),
            deterministic: None,
            kmsg: false,
            fake_fsync: false,
            record_files: None,
            learn: false,
            network: Network::None,
            walls: Walls::Namespaces,
            landlock: true,
            net_log: None,
            ask: About::empty(),
            ask_save: None,
            reach: Policy::default(),
            publish: Vec::new(),
            descriptors: Vec::new(),
            limits: LimitWishes::default(),
            without: Without::empty(),
            id: None,
            detach: false,
            dry_run: false,
            observed: false,
            voice: Voice::Normal,
        }
    }
}

/// One rule about files, as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What to do with the path.
    pub kind: RuleKind,
    /// `PATH[:DST]` for [`RuleKind::ReadOnly`] and [`RuleKind::Writable`], else `PATH`.
    pub text: OsString,
    /// Who said so.
    pub origin: Origin,
    /// Of two rules about one place that contradict each other, the one of the higher rank counts.
    pub(crate) rank: usize,
    /// The only place that it may be about, if it was taken for that.
    pub(crate) judged: Option<PathBuf>,
}

impl Rule {
    /// A rule of `kind` about `text`.
    pub fn new(kind: RuleKind, text: impl AsRef<OsStr>) -> Self {
        let (origin, rank, judged) = (Origin::CommandLine, usize::MAX, None);
        Rule { kind, text: text.as_ref().to_owned(), origin, rank, judged }
    }

    /// The rule of `kind` that a setting asks for.
    pub(crate) fn of(kind: RuleKind, setting: &Setting) -> Self {
        let Setting { origin, rank, judged, .. } = setting.clone();
        Rule { kind, text: setting.word().to_owned(), origin, rank, judged }
    }

    /// The rule as a flag that can be pasted into a shell, and who said so.
    pub fn flag(&self) -> String {
        let flag = format!("{} {}", self.kind.flag(), quoted(&self.text));
        match &self.origin {
            Origin::CommandLine => flag,
            origin => format!("{flag} ({origin})"),
        }
    }

    /// The directory that it is about is made where it is missing, which the slash at its end says.
    pub(crate) fn place_to_make(&self) -> Option<PathBuf> {
        let (path, target) = parse_pair(self.kind.flag(), &self.text).ok()?;
        let is_marked = path.as_os_str().as_bytes().ends_with(b"/");
        (self.kind == RuleKind::Writable && target.is_none() && is_marked).then_some(path)
    }

    /// It says nothing where its place is missing: a built-in profile is for every host, and what is
    /// not there need not be hidden. Who wrote a flag or named another place in a file is told.
    pub(crate) fn may_be_in_vain(&self) -> bool {
        match self.origin {
            Origin::BuiltIn(_) => true,
            Origin::File { .. } => {
                matches!(self.kind, RuleKind::Hide | RuleKind::Deny | RuleKind::Allow)
            }
            Origin::CommandLine => false,
        }
    }
}

/// What a rule does with its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// `--ro`
    ReadOnly,
    /// `--rw`
    Writable,
    /// `--hide`
    Hide,
    /// `--tmpfs`
    Tmpfs,
    /// `--overlay`
    Overlay,
    /// `--deny`
    Deny,
    /// `--allow`
    Allow,
    /// `--unix`
    Socket,
}

impl RuleKind {
    /// Its path may be a pattern.
    pub(crate) fn takes_patterns(self) -> bool {
        !matches!(self, RuleKind::Tmpfs | RuleKind::Overlay | RuleKind::Socket)
    }

    /// It takes something away, and shows nothing.
    pub(crate) fn closes(self) -> bool {
        matches!(self, RuleKind::Hide | RuleKind::Deny)
    }

    /// The flag's name.
    pub fn flag(self) -> &'static str {
        match self {
            RuleKind::ReadOnly => "--ro",
            RuleKind::Writable => "--rw",
            RuleKind::Hide => "--hide",
            RuleKind::Tmpfs => "--tmpfs",
            RuleKind::Overlay => "--overlay",
            RuleKind::Deny => "--deny",
            RuleKind::Allow => "--allow",
            RuleKind::Socket => "--unix",
        }
    }
}
