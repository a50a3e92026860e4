//! `sandbox logs`: what a detached sandbox has printed.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::fail;
use crate::control::ClientError;
use crate::control::client::{Call, Sandbox};
use crate::control::protocol::Request;

/// The words of `sandbox logs`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// Go on until the sandbox ends
    #[arg(short, long)]
    follow: bool,
}

/// Prints it. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let sandbox = match Sandbox::find(&command.id) {
        Ok(sandbox) => sandbox,
        Err(error) => return fail(error),
    };
    let id = &command.id;
    if !sandbox.listed.info.detached {
        return fail(format_args!(
            "the sandbox {id} was not started with --detach: what it prints goes to its caller"
        ));
    }
    let printed = sandbox.listed.output().and_then(|mut output| {
        match command.follow && sandbox.listed.ended.is_none() {
            true => follow(&sandbox, &mut output),
            false => copy(&mut output),
        }
    });
    match printed {
        Ok(()) => 0,
        // Whoever reads it has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(error) => fail(format_args!("cannot print the output of the sandbox {id}: {error}")),
    }
}

/// Everything from where `output` stands to its end.
fn copy(output: &mut File) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let mut room = vec![0; 64 << 10];
    loop {
        match output.read(&mut room)? {
            0 => return stdout.flush(),
            count => stdout.write_all(&room[..count])?,
        }
    }
}

/// What is there and what comes, until the sandbox ends.
fn follow(sandbox: &Sandbox, output: &mut File) -> std::io::Result<()> {
    let written = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let file = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(output)));
    written.add_watch(&file, AddWatchFlags::IN_MODIFY)?;
    let mut end = match sandbox.call(&Request::Wait, &[]) {
        Ok(call) => call,
        // It has just ended.
        Err(_) => return copy(output),
    };
    loop {
        copy(output)?;
        if wait(&written, &mut end)? {
            return copy(output);
        }
    }
}

/// Waits until more has been written (`false`) or the sandbox has ended (`true`).
fn wait(written: &Inotify, end: &mut Call) -> std::io::Result<bool> {
    let mut both = [
        PollFd::new(written.as_fd(), PollFlags::POLLIN),
        PollFd::new(end.socket(), PollFlags::POLLIN),
    ];
    match poll(&mut both, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let ended = both[1].any().unwrap_or(false);
    // Taken before the file is read, so that nothing written afterwards goes unnoticed.
    let _ = written.read_events();
    if ended {
        let _: Result<_, ClientError> = end.reply();
    }
    Ok(ended)
}
