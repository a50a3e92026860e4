//! `sandbox exec`: another program in a running sandbox; and `sandbox run` with a further container.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_bytes::ByteBuf;

use super::{OWN_ERROR, fail};
use crate::config::{self, Host, check_container};
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Exec, Reply, Request};
use crate::runtime::{self, Caller, Finished, Started};

/// `sandbox exec`
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// Which container of it, instead of that of the run's own program
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// Start in DIR, instead of where the run's program did
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Set a variable beside those of the run's program; NAME alone passes yours
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Pass no variables but those of --env
    #[arg(long)]
    clear_env: bool,
    /// Return once the program runs; it has no input, and prints where the sandbox does in the background
    #[arg(long)]
    detach: bool,
    /// The program and its arguments
    #[arg(value_name = "PROG", trailing_var_arg = true, required = true)]
    argv: Vec<OsString>,
}

/// A program for a running sandbox.
pub(super) struct Wish {
    pub(super) argv: Vec<OsString>,
    pub(super) container: Option<String>,
    pub(super) opens_container: bool,
    pub(super) workdir: Option<PathBuf>,
    pub(super) env: Vec<OsString>,
    pub(super) clear_env: bool,
    pub(super) detach: bool,
}

/// Runs the program. Returns its exit status, or that of an error.
pub(super) fn run(command: Command) -> i32 {
    let Command { id, container, workdir, env, clear_env, detach, argv } = command;
    let opens_container = false;
    let wish = Wish { argv, container, opens_container, workdir, env, clear_env, detach };
    match Sandbox::find(&id) {
        Ok(sandbox) => start(&sandbox, wish),
        Err(error) => fail(error),
    }
}

/// Runs a program in a sandbox that was found. Returns its exit status, or that of an error.
pub(super) fn start(sandbox: &Sandbox, wish: Wish) -> i32 {
    match attempt(sandbox, wish) {
        Ok(finished) => {
            for note in &finished.notes {
                let _ = writeln!(std::io::stderr(), "sandbox: {note}");
            }
            if finished.interrupted {
                runtime::interrupt_job();
            }
            finished.status
        }
        Err(Failure(status, sentence)) => {
            fail(sentence);
            status
        }
    }
}

/// An exit status and why, in a sentence.
struct Failure(i32, String);

impl<E: Into<Trouble>> From<E> for Failure {
    fn from(error: E) -> Failure {
        match error.into() {
            Trouble::Client(error) => Failure(OWN_ERROR, error.to_string()),
            Trouble::Config(error) => Failure(OWN_ERROR, error.to_string()),
            Trouble::Runtime(error) => Failure(error.status(), error.to_string()),
        }
    }
}

enum Trouble {
    Client(ClientError),
    Config(config::ConfigError),
    Runtime(runtime::Error),
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        Trouble::Client(error)
    }
}

impl From<config::ConfigError> for Trouble {
    fn from(error: config::ConfigError) -> Trouble {
        Trouble::Config(error)
    }
}

impl From<runtime::Error> for Trouble {
    fn from(error: runtime::Error) -> Trouble {
        Trouble::Runtime(error)
    }
}

fn attempt(sandbox: &Sandbox, wish: Wish) -> Result<Finished, Failure> {
    let caller = Caller::new(!wish.detach)?;
    if let Some(name) = &wish.container {
        check_container(name)?;
    }
    let streams = match wish.detach {
        false => caller.streams()?,
        true => detached_streams(sandbox)?,
    };
    let host = Host::current();
    let mut variables = config::variables(&wish.env, &host)?;
    // A terminal is what its user's is.
    let kind = host.variable("TERM").filter(|_| caller.terminal().is_some());
    if let Some(kind) = kind
        && !variables.iter().any(|(name, _)| name == "TERM")
    {
        variables.push(("TERM".into(), kind.to_owned()));
    }
    let exec = Exec {
        argv: wish.argv.iter().map(|word| bytes(word)).collect(),
        variables: variables.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        clear_env: wish.clear_env,
        workdir: wish.workdir.as_deref().map(|path| bytes(&absolute(path))),
        container: wish.container,
        opens_container: wish.opens_container,
        open: [0, 1, 2].map(|fd: usize| streams[fd].is_some()),
        terminal: caller.terminal().map(|(settings, replaced)| (settings.to_words(), replaced)),
        foreground: caller.foreground(),
    };
    let fds: Vec<_> = streams.iter().flatten().map(AsFd::as_fd).collect();
    let call = sandbox.call(&Request::Exec(Box::new(exec)), &fds)?;
    let (reply, descriptors) = call.reply_with_descriptors()?;
    let mut descriptors = descriptors.into_iter();
    let (Reply::Kept, Some(session)) = (&reply, descriptors.next()) else {
        return Err(ClientError::unexpected(&sandbox.listed.id, &reply).into());
    };
    // What is copied in a pipe's other end must end with the program that reads it.
    drop(streams);
    let name = wish.argv[0].to_string_lossy();
    Ok(caller.attend(&name, Started { session, master: descriptors.next() }, wish.detach)?)
}

/// Nothing to read, and the file where a sandbox in the background prints.
fn detached_streams(sandbox: &Sandbox) -> Result<[Option<OwnedFd>; 3], Failure> {
    let own = |error| Failure(OWN_ERROR, format!("cannot open streams for the program: {error}"));
    let null = || File::options().read(true).write(true).open("/dev/null");
    let output = || match sandbox.listed.append_output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => null(),
        opened => opened,
    };
    let (stdin, stdout, stderr) =
        (null().map_err(own)?, output().map_err(own)?, output().map_err(own)?);
    Ok([stdin, stdout, stderr].map(|file| Some(file.into())))
}

/// As the guest sees it: a relative path starts where the caller is.
fn absolute(path: &Path) -> OsString {
    std::path::absolute(path).map_or_else(|_| path.as_os_str().to_owned(), Into::into)
}

fn bytes(text: &OsStr) -> ByteBuf {
    ByteBuf::from(text.as_bytes())
}
