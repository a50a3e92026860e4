//! The words of the command line, as clap reads them.
//!
//! Owns names, help texts and which flags exclude each other. What the words mean for a run is
//! decided in `config`; here they only become its [`Options`].

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::{LimitWishes, Network, Options, Rule, RuleKind, Voice, Without};

/// Runs a Linux program natively behind the kernel's walls.
///
/// The program sees the host's files read-only, may write in the working directory and in a /tmp
/// of its own, sees no secrets of yours, has no network, and ends with the sandbox.
#[derive(Debug, Parser)]
#[command(
    name = "sandbox",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_help_heading = "Verbs",
    subcommand_value_name = "VERB",
    override_usage = "sandbox [OPTIONS] -- PROG ARGS...\n       sandbox VERB ...",
    after_help = EXIT_STATUS
)]
pub(super) struct CommandLine {
    #[command(flatten)]
    pub(super) run: RunCommand,
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
}

impl CommandLine {
    /// The whole command line. The plain form, `sandbox -- PROG ARGS...`, needs no parser: to describe
    /// every verb and flag to one takes longer than all else before the sandbox is made.
    pub(super) fn read(words: &[OsString]) -> Result<CommandLine, clap::Error> {
        match words {
            [_, separator, argv @ ..] if separator == "--" && !argv.is_empty() => {
                let run = RunCommand { argv: argv.to_vec(), ..RunCommand::default() };
                Ok(CommandLine { run, verb: None })
            }
            words => CommandLine::try_parse_from(words),
        }
    }
}

const EXIT_STATUS: &str = "Exit status: the program's own; 128+N if signal N ended it; 125 an error of \
    sandbox itself; 126 PROG cannot be executed; 127 PROG was not found.";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a program (the same as without a verb)
    #[command(override_usage = "sandbox run [OPTIONS] -- PROG ARGS...", after_help = EXIT_STATUS)]
    Run(RunCommand),
    /// Run another program in a running sandbox
    #[command(
        override_usage = "sandbox exec [OPTIONS] ID -- PROG ARGS...",
        after_help = EXIT_STATUS
    )]
    Exec(super::exec::Command),
    /// List the sandboxes, or the processes of one
    Ps(super::ps::Command),
    /// Stop every task of a sandbox; returns once all have stopped
    Pause {
        /// Which sandbox
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Let the tasks of a paused sandbox go on
    Resume {
        /// Which sandbox
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Save all of a running sandbox to an image, and end it
    #[command(
        visible_alias = "checkpoint",
        after_help = "The sandbox ends, with status 137, only when the image is whole and on the disk. \
            Exit status: 0 saved, 125 not saved, and it goes on."
    )]
    Save(super::save::Command),
    /// Go on from an image that sandbox save has written
    #[command(after_help = EXIT_STATUS)]
    Restore(super::restore::Command),
    /// Tell what is in an image, or in a running sandbox; executes nothing of it
    #[command(
        after_help = "A word with a slash in it, or that names a file in the current directory, is an \
            image; - is one on the standard input."
    )]
    Inspect(super::inspect::Command),
    /// List what a sandbox with --overlay has changed
    #[command(
        after_help = "Each line is a letter and a path: A added, M modified, D deleted (a directory with all \
            that is in it), T of another type, P other permissions, owner or extended attributes.\n\n\
            Exit status: 0 no change, 1 changes, 2 no answer."
    )]
    Diff(super::diff::Command),
    /// Apply what a sandbox with --overlay has changed to the host's files
    #[command(
        after_help = "A path that the host has changed meanwhile is a conflict; then nothing is applied.\n\n\
            Exit status: 0 applied, 1 conflicts, 125 something could not be applied."
    )]
    Commit(super::commit::Command),
    /// Drop what a sandbox with --overlay has changed
    Discard(super::discard::Command),
    /// Send a signal to the program of a sandbox, or to other processes in it
    Kill(super::kill::Command),
    /// Wait for the end of a sandbox; exits with its status
    Wait {
        /// Which sandbox
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Print what a sandbox has used
    Stats(super::stats::Command),
    /// Watch what the sandboxes use, or the processes of one (q ends it)
    Top(super::top::Command),
    /// Print what a detached sandbox has printed
    Logs(super::logs::Command),
    /// Print the kernel log of a sandbox
    Dmesg(super::dmesg::Command),
    /// Print what has happened in a sandbox, and what happens
    Events(super::events::Command),
    /// Tell whether a path, a host or a system call would be allowed, and by which rule
    #[command(
        override_usage = "sandbox why [RUN OPTIONS] [--] PATH|HOST[:PORT]|SYSCALL",
        after_help = "A word with a slash in it, or that names something in the current directory, \
            is a path (./mount is always a path); else the name of a system call is that; else it \
            is a host if it looks like one. A path counts as allowed if it can be read.\n\n\
            Exit status: 0 allowed, 1 refused, 125 no answer."
    )]
    Why(WhyCommand),
    /// Tell what this host offers to a sandbox, what is missing and what to do about it
    Doctor {
        /// For programs to read
        #[arg(long)]
        json: bool,
        /// Do without facilities of the host, as if they were absent
        #[arg(long, value_enum, value_delimiter = ',', value_name = "FACILITY,...", hide = true)]
        without: Vec<Facility>,
    },
    /// List every system call and what becomes of it
    Syscalls {
        /// For programs to read
        #[arg(long, conflicts_with = "markdown")]
        json: bool,
        /// As a page of documentation
        #[arg(long)]
        markdown: bool,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// Where to; it must exist
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// `sandbox run`
#[derive(Debug, Default, Args)]
pub(super) struct RunCommand {
    #[command(flatten)]
    pub(super) options: RunOptions,
    /// Name the sandbox, for the verbs that take an ID
    #[arg(long, value_name = "NAME")]
    pub(super) id: Option<String>,
    /// Run in the background: print the ID once the program runs, and return
    #[arg(long)]
    pub(super) detach: bool,
    /// Say on stderr what was decided and why
    #[arg(short, long, conflicts_with = "quiet")]
    pub(super) verbose: bool,
    /// Say nothing but errors; refusals are not explained
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Print what was decided and why, and run nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// The program and its arguments
    #[arg(value_name = "PROG", trailing_var_arg = true)]
    pub(super) argv: Vec<OsString>,
}

/// `sandbox why`
#[derive(Debug, Args)]
pub(super) struct WhyCommand {
    #[command(flatten)]
    pub(super) options: RunOptions,
    /// For programs to read
    #[arg(long)]
    pub(super) json: bool,
    /// What to ask about
    #[arg(value_name = "PATH|HOST|SYSCALL", required = true)]
    pub(super) question: OsString,
}

const FILES: &str = "Files (the most specific path wins, in whatever order)";
const WHO: &str = "Environment and identity";
const LIMITS: &str = "Limits";
const NETWORK: &str = "Network and descriptors";

/// What a run is allowed.
#[derive(Debug, Default, Args)]
pub(super) struct RunOptions {
    /// Show PATH, read-only, at DST (`\:` is a colon of the path itself)
    #[arg(long, value_name = "PATH[:DST]", help_heading = FILES)]
    ro: Vec<OsString>,
    /// Show PATH, writable, at DST
    #[arg(long, value_name = "PATH[:DST]", help_heading = FILES)]
    rw: Vec<OsString>,
    /// Hide a file or a directory
    #[arg(long, value_name = "PATH", help_heading = FILES)]
    hide: Vec<OsString>,
    /// Put an empty directory in memory at PATH
    #[arg(long, value_name = "PATH", help_heading = FILES)]
    tmpfs: Vec<OsString>,
    /// Let the program change DIR for itself alone (/ is everything); see sandbox diff
    #[arg(long, value_name = "DIR", help_heading = FILES)]
    overlay: Vec<OsString>,
    /// Keep what changes in overlays in PATH, instead of ~/.local/state/sandbox/overlays
    #[arg(long, value_name = "PATH", help_heading = FILES)]
    overlay_dir: Option<PathBuf>,
    /// Start in DIR and make it writable, instead of the current directory
    #[arg(long, value_name = "DIR", help_heading = FILES)]
    workdir: Option<PathBuf>,
    /// Set a variable; NAME alone passes yours, even if it looks like a secret
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = WHO)]
    env: Vec<OsString>,
    /// Pass no variables but those of --env
    #[arg(long, help_heading = WHO)]
    clear_env: bool,
    /// Name the container that the program is in; with --id of a running sandbox, open one there
    #[arg(long, value_name = "NAME", help_heading = WHO)]
    pub(super) container: Option<String>,
    /// Give the sandbox a host name of its own
    #[arg(long, value_name = "NAME", help_heading = WHO)]
    hostname: Option<OsString>,
    /// Be this user inside
    #[arg(long, value_name = "UID[:GID]|NAME", help_heading = WHO)]
    user: Option<OsString>,
    /// Give the sandbox a clock of its own: a date, +3d, -2h30m, rate=10, frozen, joined by commas
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, help_heading = WHO)]
    time: Vec<String>,
    /// Let programs read the sandbox's log at /dev/kmsg (every open is trapped for that)
    #[arg(long, help_heading = WHO)]
    kmsg: bool,
    /// Which network the program is in
    #[arg(
        long,
        value_enum,
        default_value = "none",
        value_name = "none|host",
        hide_possible_values = true,
        help_heading = NETWORK
    )]
    net: Net,
    /// Let the program inherit this open descriptor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..), help_heading = NETWORK)]
    fd: Vec<RawFd>,
    #[command(flatten)]
    limits: LimitOptions,
    /// Do without facilities of the host, as if they were absent
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FACILITY,...", hide = true)]
    without: Vec<Facility>,
}

/// What a run may use.
#[derive(Debug, Default, Args)]
struct LimitOptions {
    /// Give all processes together this much memory
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    memory: Option<String>,
    /// Allow so many processes and threads
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    pids: Option<String>,
    /// Give the program N processors, and show it no more
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    cpus: Option<String>,
    /// Allow each process so many open descriptors
    #[arg(long, value_name = "N", help_heading = LIMITS)]
    open_files: Option<String>,
    /// Let no file grow beyond this
    #[arg(long, value_name = "SIZE", help_heading = LIMITS)]
    file_size: Option<String>,
    /// End all processes when they have used this much CPU time together: SIGXCPU at SOFT, SIGKILL at
    /// HARD (a second later)
    #[arg(long, value_name = "SOFT[:HARD]", help_heading = LIMITS)]
    cpu_time: Option<String>,
    /// End all processes after this much time: SIGTERM, and SIGKILL five seconds later
    #[arg(long, value_name = "DURATION", help_heading = LIMITS)]
    timeout: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, ValueEnum)]
enum Net {
    /// A network of its own with nothing but a loopback
    #[default]
    None,
    /// The host's
    Host,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Facility {
    UserNamespaces,
    SeccompNotify,
    WaitKillable,
    SyncWakeUp,
    ProcessVm,
    Landlock,
    TimeNamespaces,
}

impl From<Facility> for Without {
    fn from(facility: Facility) -> Self {
        match facility {
            Facility::UserNamespaces => Without::USER_NAMESPACES,
            Facility::SeccompNotify => Without::SECCOMP_NOTIFY,
            Facility::WaitKillable => Without::WAIT_KILLABLE,
            Facility::SyncWakeUp => Without::SYNC_WAKE_UP,
            Facility::ProcessVm => Without::PROCESS_VM,
            Facility::Landlock => Without::LANDLOCK,
            Facility::TimeNamespaces => Without::TIME_NAMESPACES,
        }
    }
}

impl RunOptions {
    /// The wishes of a run, with no program yet.
    pub(super) fn into_options(self) -> Options {
        let kinds = [
            (RuleKind::ReadOnly, self.ro),
            (RuleKind::Writable, self.rw),
            (RuleKind::Hide, self.hide),
            (RuleKind::Tmpfs, self.tmpfs),
            (RuleKind::Overlay, self.overlay),
        ];
        let rules = kinds
            .into_iter()
            .flat_map(|(kind, texts)| texts.into_iter().map(move |text| Rule { kind, text }));
        Options {
            argv: Vec::new(),
            rules: rules.collect(),
            overlay_dir: self.overlay_dir,
            env: self.env,
            clear_env: self.clear_env,
            workdir: self.workdir,
            container: self.container,
            hostname: self.hostname,
            user: self.user,
            time: self.time,
            kmsg: self.kmsg,
            network: match self.net {
                Net::None => Network::None,
                Net::Host => Network::Host,
            },
            descriptors: self.fd,
            limits: self.limits.into_wishes(),
            without: self.without.into_iter().map(Without::from).collect(),
            observed: false,
            voice: Voice::Normal,
        }
    }
}

impl LimitOptions {
    fn into_wishes(self) -> LimitWishes {
        let LimitOptions { memory, pids, cpus, open_files, file_size, cpu_time, timeout } = self;
        LimitWishes { memory, pids, cpus, open_files, file_size, cpu_time, timeout }
    }
}

impl RunCommand {
    /// The sandbox that a further container is meant for, if one is named and there may be one.
    pub(super) fn host_of_container(&self) -> Option<&str> {
        self.id.as_deref().filter(|_| self.options.container.is_some() && !self.dry_run)
    }

    /// The program of a further container. An error names the first option that it cannot have.
    pub(super) fn into_container(self) -> Result<super::exec::Wish, &'static str> {
        let detach = self.detach;
        let options = self.into_options();
        let limits = LimitWishes::default();
        for (given, flag) in [
            (!options.rules.is_empty(), "--ro, --rw, --hide, --tmpfs and --overlay"),
            (options.hostname.is_some(), "--hostname"),
            (options.user.is_some(), "--user"),
            (options.kmsg, "--kmsg"),
            (options.network != Network::None, "--net"),
            (!options.descriptors.is_empty(), "--fd"),
            (options.limits != limits, "limits"),
        ] {
            if given {
                return Err(flag);
            }
        }
        let Options { argv, container, workdir, env, clear_env, .. } = options;
        let opens_container = true;
        Ok(super::exec::Wish { argv, container, opens_container, workdir, env, clear_env, detach })
    }

    /// The wishes of the run.
    pub(super) fn into_options(self) -> Options {
        let voice = match (self.quiet, self.verbose) {
            (true, _) => Voice::Quiet,
            (_, true) => Voice::Verbose,
            _ => Voice::Normal,
        };
        let observed = self.detach || self.id.is_some();
        Options { argv: self.argv, observed, voice, ..self.options.into_options() }
    }
}
