//! The command line: parses the words, runs the verb, gives the exit status.
//!
//! Owns the statuses of `sandbox` itself and is the only printer of its errors. Each verb lives in
//! a file of its own.

mod args;
mod ask;
mod commit;
mod diff;
mod discard;
mod dmesg;
pub mod doctor;
mod events;
mod exec;
mod explain;
mod inspect;
mod kill;
mod learn;
mod logs;
mod options;
mod pause;
mod port;
mod profile;
mod progress;
mod ps;
mod record;
mod restore;
mod run;
mod save;
mod sockets;
mod stats;
pub mod syscalls;
mod table;
mod top;
mod wait;
mod why;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::{ContextKind, ErrorKind as ClapError};
use clap_complete::Shell;

use crate::config::{Without, quoted};
use args::{CommandLine, Verb};
use syscalls::Format;

/// An error of sandbox itself.
const OWN_ERROR: i32 = 125;

/// Parses the command line, runs the verb and gives its exit status.
pub fn main() -> ExitCode {
    log_if_asked();
    let words: Vec<OsString> = std::env::args_os().collect();
    let status = match CommandLine::read(&words) {
        Ok(line) => dispatch(line, &words),
        Err(error) => refuse_words(&error),
    };
    // A guest's status and the statuses of this program are all between 0 and 255.
    ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
}

fn dispatch(line: CommandLine, words: &[OsString]) -> i32 {
    match line.verb {
        None if words.len() < 2 => {
            let help = CommandLine::command().render_help();
            let _ = write!(std::io::stderr(), "{help}");
            OWN_ERROR
        }
        None => match ambiguous(&line.run.argv, words) {
            Some(sentence) => fail(sentence),
            None => run::run(line.run),
        },
        Some(Verb::Run(command)) => run::run(command),
        Some(Verb::Learn(command)) => learn::run(command),
        Some(Verb::Exec(command)) => exec::run(command),
        Some(Verb::Ps(command)) => ps::run(&command),
        Some(Verb::Kill(command)) => kill::run(&command),
        Some(Verb::Pause { id }) => pause::pause(&id),
        Some(Verb::Resume { id }) => pause::resume(&id),
        Some(Verb::Save(command)) => save::run(&command),
        Some(Verb::Restore(command)) => restore::run(command),
        Some(Verb::Inspect(command)) => inspect::run(&command),
        Some(Verb::Diff(command)) => diff::run(&command),
        Some(Verb::Commit(command)) => commit::run(&command),
        Some(Verb::Discard(command)) => discard::run(&command),
        Some(Verb::Wait { id }) => wait::run(&id),
        Some(Verb::Stats(command)) => stats::run(&command),
        Some(Verb::Port(command)) => port::run(&command),
        Some(Verb::Sockets(command)) => sockets::run(&command),
        Some(Verb::Top(command)) => top::run(&command),
        Some(Verb::Logs(command)) => logs::run(&command),
        Some(Verb::Dmesg(command)) => dmesg::run(&command),
        Some(Verb::Events(command)) => events::run(&command),
        Some(Verb::Ask(command)) => ask::run(&command),
        Some(Verb::Why(command)) => why::why(command, describe_syscall),
        Some(Verb::Doctor { json, without }) => {
            doctor::run(json, without.iter().map(|name| Without::named(name)).collect())
        }
        Some(Verb::Profile(command)) => profile::run(command),
        Some(Verb::Syscalls { json, markdown }) => syscalls::run(match (json, markdown) {
            (true, _) => Format::Json,
            (_, true) => Format::Markdown,
            _ => Format::Text,
        }),
        Some(Verb::Completions { shell }) => completions(shell),
        Some(Verb::Man { directory }) => manual(&directory),
    }
}

/// The sentry's own work is logged on stderr where SANDBOX_LOG asks for it (`debug`,
/// `sandbox::notify=trace`, ...); otherwise nothing is set up and nothing is paid.
fn log_if_asked() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("SANDBOX_LOG") {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .try_init();
    }
}

/// What the table says of a system call.
fn describe_syscall(name: &str) -> Option<why::SyscallAnswer> {
    let description = syscalls::describe(name)?;
    let mut rule = description.class;
    for part in description.reason.iter().chain(&description.remedy) {
        rule.push_str("; ");
        rule.push_str(part);
    }
    for exception in &description.exceptions {
        rule.push_str("; where ");
        rule.push_str(exception);
    }
    Some(why::SyscallAnswer { allowed: description.allowed, rule })
}

/// Verbs that the command line keeps for itself, whether or not this version has them: a program
/// of such a name needs a `--` before it, so that no later version changes what a line means.
const RESERVED: &[&str] = &[
    "run",
    "exec",
    "ps",
    "pause",
    "resume",
    "kill",
    "save",
    "checkpoint",
    "restore",
    "inspect",
    "wait",
    "stats",
    "port",
    "top",
    "sockets",
    "dmesg",
    "events",
    "ask",
    "logs",
    "diff",
    "commit",
    "discard",
    "trace",
    "syscalls",
    "doctor",
    "why",
    "profile",
    "learn",
    "completions",
    "man",
    "help",
];

/// Why a line without a verb could be meant in two ways, if it can: a program named without `--`
/// whose name is a verb's.
fn ambiguous(argv: &[OsString], words: &[OsString]) -> Option<String> {
    let name = argv.first()?.to_str()?;
    // The program's words are the last ones of the line, so what stands before them is a `--`
    // exactly if the user wrote one there.
    let separated = words.len() > argv.len() && words[words.len() - argv.len() - 1] == "--";
    if separated || !RESERVED.contains(&name) {
        return None;
    }
    Some(format!(
        "cannot tell whether {name} is the verb or a program: a verb comes before all options, if \
         this version has it; for the program write sandbox [OPTIONS] -- {name}"
    ))
}

/// Prints a sentence of sandbox itself and gives the status of such errors.
fn fail(sentence: impl Display) -> i32 {
    let _ = writeln!(std::io::stderr(), "sandbox: {sentence}");
    OWN_ERROR
}

/// Prints on stdout. A reader that went away (`| head`) is no error.
fn print(text: impl Display) -> Result<(), i32> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(fail(format_args!(
            "cannot write to the standard output: {error}; redirect it elsewhere"
        ))),
        _ => Ok(()),
    }
}

/// Help and version go to stdout and are no error; what clap refuses becomes one line.
fn refuse_words(error: &clap::Error) -> i32 {
    match error.kind() {
        ClapError::DisplayHelp | ClapError::DisplayVersion => {
            print(error.render()).err().unwrap_or(0)
        }
        _ => fail(one_line(error)),
    }
}

/// Clap's message without its headings and blank lines: the error and its own suggestions.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    // Nothing is meant by the words of that advice here.
    let lines = lines.filter(|line| !(line.starts_with("tip: ") && line.contains("as a value")));
    let lines = lines.map(|line| {
        let line = line.strip_prefix("error: ").unwrap_or(line);
        line.strip_prefix("tip: ")
            .unwrap_or(line)
            .replace("the following required arguments were not provided:", "missing on the line:")
    });
    let mut sentence = lines.collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    if error.get(ContextKind::SuggestedArg).is_none() {
        sentence.push_str("; see sandbox --help");
    }
    sentence
}

/// `sandbox completions SHELL`
fn completions(shell: Shell) -> i32 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "sandbox", &mut script);
    print(String::from_utf8_lossy(&script)).err().unwrap_or(0)
}

/// `sandbox man DIR`
fn manual(directory: &Path) -> i32 {
    match clap_mangen::generate_to(CommandLine::command(), directory) {
        Ok(()) => 0,
        Err(error) => fail(format_args!(
            "cannot write the manual pages into {}: {error}; name a directory that exists and that \
             you may write",
            quoted(directory)
        )),
    }
}

#[cfg(test)]
mod tests;
