//! The one table of what a run can be told: each row is a key of a profile and a flag of a run.
//!
//! Owns names, forms, help and, for every key, what a project's own file may say of it unasked.
//! The command line makes its flags of these rows, so there is no flag without a key.

use std::path::PathBuf;

use super::super::deterministic;
use super::super::environment;
use super::super::error::refuse;
use super::super::limits;
use super::super::paths::{check, parse_pair};
use super::super::root;
use super::super::{
    ConfigError, Network, Options, Rule, RuleKind, Voice, Walls, Without, check_container,
    check_hostname, quoted,
};
use super::setting::Setting;
use crate::sentry::asking::About;
use crate::sentry::net;
use crate::timekeeping::TimeSpec;

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Its name in a file and, behind two dashes, on the command line.
    pub name: &'static str,
    /// How its value is written.
    pub form: Form,
    /// What becomes of several sources that name it.
    pub merge: Merge,
    /// Whether a project's own file may say it without being trusted.
    pub project: Project,
    /// What the value is called in help texts.
    pub value: &'static str,
    /// What it does, as an order.
    pub help: &'static str,
    /// What it is without anybody's word.
    pub default: &'static str,
    /// Where it stands in help texts.
    pub group: Group,
    /// The only words that mean something, where that is so.
    pub choices: &'static [&'static str],
    /// It is for tests of sandbox itself.
    pub hidden: bool,
    set: Set,
}

/// Checks a setting as far as that needs no look at the host, and carries it into the wishes.
type Set = fn(&mut Options, &Setting) -> Result<(), ConfigError>;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A boolean.
    Switch,
    /// A boolean, or a string or an integer that switches it on and says how.
    Choice,
    /// A string.
    Word,
    /// An integer, or a string with a unit.
    Number,
    /// The path of something.
    Path,
    /// Strings.
    Words,
    /// Integers.
    Numbers,
    /// Paths.
    Paths,
    /// Paths, or patterns of paths.
    Patterns,
    /// `PATH[:DST]`, several.
    Pairs,
}

/// What becomes of several sources that name a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// The strongest counts.
    Strongest,
    /// All count.
    All,
    /// All elements of the strongest source that names it count.
    Source,
    /// The strongest of each variable counts.
    Variable,
}

/// Whether what a project's own file says of a key is taken from a file that is not trusted: only what
/// cannot allow more than the run is allowed without the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Project {
    /// Always: it says nothing about what the program may.
    Taken,
    /// Never: any value can allow more, or is the user's to choose.
    LeftOut,
    /// If it is `true`.
    On,
    /// If it is `false`, or is on anyway.
    Off,
    /// If it is not above the limit that there is without it.
    Lower,
    /// If it is `none`, or what there is without it.
    Network,
    /// If it shows, or lets the program write, nothing but what it could without it.
    Place(RuleKind),
}

/// Where a key stands in help texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// About the file view.
    Files,
    /// About environment and identity.
    Who,
    /// About the network and descriptors.
    Network,
    /// About limits.
    Limits,
    /// About the command itself rather than what its program may.
    Command,
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.name == other.name
    }
}

impl Eq for Key {}

impl Key {
    const fn new(
        name: &'static str,
        form: Form,
        project: Project,
        group: Group,
        default: &'static str,
        set: Set,
    ) -> Key {
        let merge = match form {
            Form::Switch | Form::Choice | Form::Word | Form::Number | Form::Path => {
                Merge::Strongest
            }
            Form::Words | Form::Numbers | Form::Paths | Form::Patterns | Form::Pairs => Merge::All,
        };
        let (value, help, choices, hidden) = ("", "", [].as_slice(), false);
        Key { name, form, merge, project, value, help, default, group, choices, hidden, set }
    }

    const fn help(self, value: &'static str, help: &'static str) -> Key {
        Key { value, help, ..self }
    }

    const fn merged(self, merge: Merge) -> Key {
        Key { merge, ..self }
    }

    const fn one_of(self, choices: &'static [&'static str]) -> Key {
        Key { choices, ..self }
    }

    const fn hidden(self) -> Key {
        Key { hidden: true, ..self }
    }

    /// The key of that name.
    pub fn named(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Several values add up to a list.
    pub fn is_list(&self) -> bool {
        matches!(
            self.form,
            Form::Words | Form::Numbers | Form::Paths | Form::Patterns | Form::Pairs
        )
    }

    /// Carries a setting of this key into the wishes.
    pub(crate) fn set(&self, options: &mut Options, setting: &Setting) -> Result<(), ConfigError> {
        if !self.choices.is_empty() && !self.choices.iter().any(|word| setting.word() == *word) {
            return Err(refuse!(
                "cannot use --{} {}: choose one of {}",
                self.name,
                quoted(setting.word()),
                self.choices.join(", ")
            ));
        }
        (self.set)(options, setting)
    }
}

/// All keys, in the order of the help texts.
pub static KEYS: &[Key] = &[
    Key::new("ro", Form::Pairs, Project::Place(RuleKind::ReadOnly), Group::Files, "", |o, s| {
        pair(o, s, RuleKind::ReadOnly)
    })
    .help("PATH[:DST]", r"Show PATH, or all that match a pattern, read-only, at DST (`\:` is a colon of the path itself)"),
    Key::new("rw", Form::Pairs, Project::Place(RuleKind::Writable), Group::Files, "", |o, s| {
        pair(o, s, RuleKind::Writable)
    })
    .help("PATH[:DST]", "Show PATH, or all that match a pattern, writable, at DST"),
    Key::new("hide", Form::Patterns, Project::Place(RuleKind::Hide), Group::Files, "", |o, s| {
        place(o, s, RuleKind::Hide)
    })
    .help("PATH", "Hide a file or a directory, or all that match a pattern (ENOENT)"),
    Key::new("deny", Form::Patterns, Project::Place(RuleKind::Deny), Group::Files, "", |o, s| {
        place(o, s, RuleKind::Deny)
    })
    .help("PATH", "Refuse a file or a directory, or all that match a pattern (EACCES)"),
    Key::new("allow", Form::Patterns, Project::LeftOut, Group::Files, "", |o, s| {
        place(o, s, RuleKind::Allow)
    })
    .help("PATH", "Show what lies in something hidden or denied, or what matches a pattern, as if it were not"),
    Key::new("tmpfs", Form::Paths, Project::Place(RuleKind::Tmpfs), Group::Files, "", |o, s| {
        place(o, s, RuleKind::Tmpfs)
    })
    .help("PATH", "Put an empty directory in memory at PATH"),
    Key::new("overlay", Form::Paths, Project::Place(RuleKind::Overlay), Group::Files, "", |o, s| {
        place(o, s, RuleKind::Overlay)
    })
    .help("DIR", "Let the program change DIR for itself alone (/ is everything); see sandbox diff"),
    Key::new("overlay-dir", Form::Path, Project::LeftOut, Group::Files, "your own", |o, s| {
        check("--overlay-dir", s.word().as_ref())?;
        o.overlay_dir = Some(PathBuf::from(s.word()));
        Ok(())
    })
    .help("PATH", "Keep what changes in overlays in PATH, instead of ~/.local/state/sandbox/overlays"),
    Key::new("fake-fsync", Form::Switch, Project::LeftOut, Group::Files, "false", |o, s| {
        o.fake_fsync = s.is_on();
        Ok(())
    })
    .help("", "Let nothing wait for the disk in overlays: fsync and its kin succeed at once"),
    Key::new("workdir", Form::Path, Project::LeftOut, Group::Files, "the current one", |o, s| {
        check("--workdir", s.word().as_ref())?;
        o.workdir = Some(PathBuf::from(s.word()));
        Ok(())
    })
    .help("DIR", "Start in DIR and make it writable, instead of the current directory"),
    Key::new("record-files", Form::Path, Project::LeftOut, Group::Files, "none", |o, s| {
        o.record_files = Some(PathBuf::from(s.word()));
        Ok(())
    })
    .help(
        "FILE",
        "Write down which files the programs touch, with hashes, as JSON (calls on paths are trapped for that)",
    ),
    Key::new("env", Form::Words, Project::LeftOut, Group::Who, "yours, without secrets", |o, s| {
        environment::parse_wish(s.word())?;
        o.env.push(s.word().to_owned());
        Ok(())
    })
    .merged(Merge::Variable)
    .help("NAME[=VALUE]", "Set a variable; NAME alone passes yours, even if it looks like a secret"),
    Key::new("clear-env", Form::Switch, Project::On, Group::Who, "false", |o, s| {
        o.clear_env = s.is_on();
        Ok(())
    })
    .help("", "Pass no variables but those of --env"),
    Key::new("container", Form::Word, Project::Taken, Group::Who, "main", |o, s| {
        o.container = Some(check_container(s.text()?)?);
        Ok(())
    })
    .help(
        "NAME",
        "Name the container that the program is in; with --id of a running sandbox, open one there",
    ),
    Key::new("hostname", Form::Word, Project::Taken, Group::Who, "the host's", |o, s| {
        o.hostname = Some(check_hostname(s.word())?);
        Ok(())
    })
    .help("NAME", "Give the sandbox a host name of its own"),
    Key::new("user", Form::Word, Project::LeftOut, Group::Who, "you", |o, s| {
        o.user = Some(s.word().to_owned());
        Ok(())
    })
    .help("UID[:GID]|NAME", "Be this user inside"),
    Key::new("root", Form::Choice, Project::LeftOut, Group::Who, "false", |o, s| {
        o.root = root::wish(s.word())?;
        Ok(())
    })
    .help(
        "sub-ids",
        "Be root inside, who may own files as anybody and become any user; with sub-ids these are your \
         subordinate ids (subuid(5)), to the kernel as well",
    ),
    Key::new("time", Form::Words, Project::Taken, Group::Who, "the host's", |o, s| {
        let word = s.text()?;
        TimeSpec::parse(&[word]).map_err(|error| refuse!("{error}"))?;
        o.time.push(word.to_owned());
        Ok(())
    })
    .merged(Merge::Source)
    .help(
        "WHEN",
        "Give the sandbox a clock of its own: a date, +3d, -2h30m, rate=10, frozen, joined by commas",
    ),
    Key::new("deterministic", Form::Choice, Project::LeftOut, Group::Who, "false", |o, s| {
        o.deterministic = deterministic::seed(s.word().to_owned());
        Ok(())
    })
    .help(
        "SEED",
        "Do the same whenever it is done: a fixed clock, host name and processor count, random bytes by \
         SEED, sorted directories",
    ),
    Key::new("kmsg", Form::Switch, Project::Off, Group::Who, "false", |o, s| {
        o.kmsg = s.is_on();
        Ok(())
    })
    .help(
        "",
        "Let programs read the sandbox's log at /dev/kmsg (every open is trapped for that)",
    ),
    Key::new("net", Form::Word, Project::Network, Group::Network, "none", |o, s| {
        o.network = match s.text()? {
            "host" => Network::Host,
            "allow" => Network::Allow,
            _ => Network::None,
        };
        Ok(())
    })
    .one_of(&["none", "allow", "host"])
    .help("none|allow|host", "Which network the program is in: none, one with the hosts of --allow-net, the host's"),
    Key::new("allow-net", Form::Words, Project::LeftOut, Group::Network, "", |o, s| {
        o.reach.allow.push(reached(s)?);
        Ok(())
    })
    .help(
        "HOST[:PORT]",
        "Let the program reach HOST, *.HOST, an ADDRESS, a NET/PREFIX, or * (but nothing near the host), at \
         :PORT or :PORT-PORT, by /tcp or /udp",
    ),
    Key::new("deny-net", Form::Words, Project::Taken, Group::Network, "", |o, s| {
        o.reach.deny.push(reached(s)?);
        Ok(())
    })
    .help("HOST[:PORT]", "Do not let it reach this, whatever --allow-net says"),
    Key::new("publish", Form::Words, Project::LeftOut, Group::Network, "", |o, s| {
        o.publish.extend(published(s)?);
        Ok(())
    })
    .help(
        "[[ADDR:]HOSTPORT:]PORT",
        "Lead HOSTPORT of the host (of 127.0.0.1, if no ADDR is named; 0: any that is free) to PORT inside, of /tcp or \
         /udp; see sandbox port",
    ),
    Key::new("unix", Form::Paths, Project::LeftOut, Group::Network, "", |o, s| {
        place(o, s, RuleKind::Socket)
    })
    .help("PATH", "Let the program connect to this unix socket of the host"),
    Key::new("net-log", Form::Path, Project::LeftOut, Group::Network, "none", |o, s| {
        o.net_log = Some(PathBuf::from(s.word()));
        Ok(())
    })
    .help("FILE", "Add a line of JSON to FILE for every name and host that it was let or refused to reach"),
    Key::new("ask", Form::Words, Project::LeftOut, Group::Network, "none", |o, s| {
        o.ask |= match s.text()? {
            "net" => About::NET,
            "files" => About::FILES,
            _ => About::empty(),
        };
        Ok(())
    })
    .one_of(&["none", "net", "files"])
    .merged(Merge::Source)
    .help(
        "net,files",
        "Ask you, at the terminal or by sandbox ask, about hosts and files that no rule names, while the program waits",
    ),
    Key::new("ask-save", Form::Path, Project::LeftOut, Group::Network, "none", |o, s| {
        o.ask_save = Some(PathBuf::from(s.word()));
        Ok(())
    })
    .help("FILE", "Let answers be written to this profile, as rules"),
    Key::new("walls", Form::Word, Project::LeftOut, Group::Network, "namespaces", |o, s| {
        o.walls = if s.word() == "landlock" { Walls::Landlock } else { Walls::Namespaces };
        Ok(())
    })
    .one_of(&["namespaces", "landlock"])
    .help(
        "namespaces|landlock",
        "What keeps the program in: landlock is the weaker wall, for hosts that refuse user namespaces",
    ),
    Key::new("landlock", Form::Switch, Project::On, Group::Network, "true", |o, s| {
        o.landlock = s.is_on();
        Ok(())
    })
    .help("", "Keep files by Landlock as well, behind the mounts, where the host has it; on unless switched off"),
    Key::new("fd", Form::Numbers, Project::LeftOut, Group::Network, "0 1 2", |o, s| {
        let number = s.text()?.parse().ok().filter(|fd| *fd >= 0);
        o.descriptors.push(number.ok_or_else(|| {
            refuse!(
                "cannot use --fd {}: it is no number of a descriptor; write 3 or above",
                quoted(s.word())
            )
        })?);
        Ok(())
    })
    .help("N", "Let the program inherit this open descriptor"),
    Key::new("memory", Form::Number, Project::Lower, Group::Limits, "none", |o, s| {
        o.limits.memory = limit(s)?;
        Ok(())
    })
    .help("SIZE", "Give all processes together this much memory"),
    Key::new("pids", Form::Number, Project::Lower, Group::Limits, "none", |o, s| {
        o.limits.pids = limit(s)?;
        Ok(())
    })
    .help("N", "Allow so many processes and threads"),
    Key::new("cpus", Form::Number, Project::Lower, Group::Limits, "all", |o, s| {
        o.limits.cpus = limit(s)?;
        Ok(())
    })
    .help("N", "Give the program N processors, and show it no more"),
    Key::new("open-files", Form::Number, Project::Lower, Group::Limits, "yours", |o, s| {
        o.limits.open_files = limit(s)?;
        Ok(())
    })
    .help("N", "Allow each process so many open descriptors"),
    Key::new("file-size", Form::Number, Project::Lower, Group::Limits, "yours", |o, s| {
        o.limits.file_size = limit(s)?;
        Ok(())
    })
    .help("SIZE", "Let no file grow beyond this"),
    Key::new("cpu-time", Form::Number, Project::Lower, Group::Limits, "none", |o, s| {
        o.limits.cpu_time = limit(s)?;
        Ok(())
    })
    .help(
        "SOFT[:HARD]",
        "End all processes when they have used this much CPU time together: SIGXCPU at SOFT, SIGKILL \
         at HARD (a second later)",
    ),
    Key::new("timeout", Form::Number, Project::Lower, Group::Limits, "none", |o, s| {
        o.limits.timeout = limit(s)?;
        Ok(())
    })
    .help(
        "DURATION",
        "End all processes after this much time: SIGTERM, and SIGKILL five seconds later",
    ),
    Key::new("net-rate", Form::Number, Project::Lower, Group::Limits, "none", |o, s| {
        o.limits.net_rate = limit(s)?;
        Ok(())
    })
    .help(
        "IN[:OUT]",
        "Let no more bytes a second come from the network's hosts and published ports, and go there (the same, if no OUT is \
         named)",
    ),
    Key::new("net-total", Form::Number, Project::Lower, Group::Limits, "none", |o, s| {
        o.limits.net_total = limit(s)?;
        Ok(())
    })
    .help("SIZE", "Let no more than this come and go in all; then connections are broken off"),
    Key::new("without", Form::Words, Project::LeftOut, Group::Command, "", |o, s| {
        o.without |= Without::named(s.text()?);
        Ok(())
    })
    .one_of(Without::NAMES)
    .hidden()
    .help("FACILITY,...", "Do without facilities of the host, as if they were absent"),
    Key::new("id", Form::Word, Project::LeftOut, Group::Command, "one of its own", |o, s| {
        o.id = Some(s.text()?.to_owned());
        Ok(())
    })
    .help("NAME", "Name the sandbox, for the verbs that take an ID"),
    Key::new("detach", Form::Switch, Project::LeftOut, Group::Command, "false", |o, s| {
        o.detach = s.is_on();
        Ok(())
    })
    .help("", "Run in the background: print the ID once the program runs, and return"),
    Key::new("verbose", Form::Switch, Project::Taken, Group::Command, "false", |o, s| {
        voice(o, s, Voice::Verbose);
        Ok(())
    })
    .help("", "Say on stderr what was decided and why"),
    Key::new("quiet", Form::Switch, Project::LeftOut, Group::Command, "false", |o, s| {
        voice(o, s, Voice::Quiet);
        Ok(())
    })
    .help("", "Say nothing but errors; refusals are not explained"),
    Key::new("dry-run", Form::Switch, Project::LeftOut, Group::Command, "false", |o, s| {
        o.dry_run = s.is_on();
        Ok(())
    })
    .help("", "Print what was decided and why, and run nothing"),
];

fn pair(options: &mut Options, setting: &Setting, kind: RuleKind) -> Result<(), ConfigError> {
    parse_pair(kind.flag(), setting.word())?;
    options.rules.push(Rule::of(kind, setting));
    Ok(())
}

fn place(options: &mut Options, setting: &Setting, kind: RuleKind) -> Result<(), ConfigError> {
    check(kind.flag(), setting.word().as_ref())?;
    options.rules.push(Rule::of(kind, setting));
    Ok(())
}

fn reached(setting: &Setting) -> Result<net::Rule, ConfigError> {
    let text = setting.text()?;
    net::Rule::parse(text).map_err(|error| {
        refuse!(
            "cannot use --{} {}: it {error}",
            setting.key.name,
            quoted(std::ffi::OsStr::new(text))
        )
    })
}

fn published(setting: &Setting) -> Result<Vec<net::publish::Wish>, ConfigError> {
    let text = setting.text()?;
    net::publish::parse(text).map_err(|error| {
        refuse!("cannot use --publish {}: it {error}", quoted(std::ffi::OsStr::new(text)))
    })
}

fn limit(setting: &Setting) -> Result<Option<String>, ConfigError> {
    let text = setting.text()?;
    limits::weigh(setting.key.name, text)?;
    Ok(Some(text.to_owned()))
}

fn voice(options: &mut Options, setting: &Setting, voice: Voice) {
    if setting.is_on() {
        options.voice = voice;
    } else if options.voice == voice {
        options.voice = Voice::Normal;
    }
}
