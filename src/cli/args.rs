//! The words of the command line, as clap reads them.
//!
//! Owns names, help texts and which flags exclude each other. What the words mean for a run is
//! decided in `config`; here they only become its [`Request`]. The options that a profile can name too
//! are those of the table of keys: see [`RunOptions`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::options::RunOptions;
use crate::config::profile::{Group, Request, Value};
use crate::config::{Options, Without};

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
    /// Run a program in an overlay of everything, and write a profile of what it needed
    #[command(
        override_usage = "sandbox learn [RUN OPTIONS] [-o FILE] -- PROG ARGS...",
        after_help = EXIT_STATUS
    )]
    Learn(super::learn::Command),
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
    /// Print which ports of the host lead to a sandbox (--publish)
    Port(super::port::Command),
    /// List the sockets of a sandbox: where they lead, who holds them, what they have carried
    Sockets(super::sockets::Command),
    /// Watch what the sandboxes use, or the processes of one (q ends it)
    Top(super::top::Command),
    /// Print what a detached sandbox has printed
    Logs(super::logs::Command),
    /// Print the kernel log of a sandbox
    Dmesg(super::dmesg::Command),
    /// Print what has happened in a sandbox, and what happens
    Events(super::events::Command),
    /// List what a sandbox run with --ask asks, and answer it
    #[command(
        after_help = "A line is the number of a question and what is asked. once and no are for those who ask \
            now, always and never for the rest of the run."
    )]
    Ask(super::ask::Command),
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
        #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(Without::NAMES),
            value_delimiter = ',', value_name = "FACILITY,...", hide = true)]
        without: Vec<String>,
    },
    /// Tell what profiles there are, and what they come to
    #[command(subcommand)]
    Profile(super::profile::Command),
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
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_name = "true|false", hide_possible_values = true)]
    pub(super) detach: Option<bool>,
    /// Say on stderr what was decided and why
    #[arg(short, long, conflicts_with = "quiet")]
    pub(super) verbose: bool,
    /// Say nothing but errors; refusals are not explained
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Print what was decided and why, and run nothing
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_name = "true|false", hide_possible_values = true)]
    pub(super) dry_run: Option<bool>,
    /// The program and its arguments
    #[arg(value_name = "PROG", trailing_var_arg = true)]
    pub(super) argv: Vec<OsString>,
}

/// `sandbox profile show`
#[derive(Debug, Args)]
pub(super) struct CommandProfile {
    #[command(flatten)]
    pub(super) options: RunOptions,
    /// For programs to read
    #[arg(long)]
    pub(super) json: bool,
    /// Of this profile, as if it stood behind --profile
    #[arg(value_name = "NAME|FILE")]
    pub(super) name: Option<OsString>,
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

impl RunCommand {
    /// The sandbox that a further container is meant for, if one is named and there may be one.
    pub(super) fn host_of_container(&self) -> Option<&str> {
        let opens = self.options.word("container").is_some() && self.dry_run != Some(true);
        self.id.as_deref().filter(|_| opens)
    }

    /// The program of a further container, of which profiles say nothing: it lives within the walls of a
    /// sandbox. An error names the first option that it cannot have, or what is wrong with one.
    pub(super) fn into_container(self, sandbox: &str) -> Result<super::exec::Wish, String> {
        let (request, argv) = self.into_request();
        let allowed = ["container", "workdir", "env", "clear-env"];
        let cannot = |flag: &str| {
            format!(
                "cannot give a container --{flag} of its own: it shares the walls and limits of the \
                 sandbox {sandbox}; leave it out, or run a sandbox of its own under another --id"
            )
        };
        if !request.profiles.is_empty() || request.trusts_project {
            return Err(cannot("profile"));
        }
        let flags = request.flags.iter();
        let mut wrong =
            flags.filter(|it| it.key.group != Group::Command && !allowed.contains(&it.key.name));
        if let Some(wrong) = wrong.next() {
            return Err(cannot(wrong.key.name));
        }
        let options = Options::of(&request.flags).map_err(|error| error.to_string())?;
        let Options { container, workdir, env, clear_env, detach, .. } = options;
        let opens_container = true;
        Ok(super::exec::Wish { argv, container, opens_container, workdir, env, clear_env, detach })
    }

    /// What the command line says of the run, and the program with its arguments.
    pub(super) fn into_request(self) -> (Request, Vec<OsString>) {
        let RunCommand { mut options, id, detach, verbose, quiet, dry_run, argv } = self;
        options.add("id", id.map(|id| Value::Word(id.into())));
        options.add("detach", detach.map(Value::Switch));
        options.add("verbose", verbose.then_some(Value::Switch(true)));
        options.add("quiet", quiet.then_some(Value::Switch(true)));
        options.add("dry-run", dry_run.map(Value::Switch));
        (options.request, argv)
    }
}
