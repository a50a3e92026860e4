//! Starting a sandbox in the background: two processes, and the verdict that one waits for.
//!
//! Owns the fork, the session without a terminal and the pipe between the two. What the child runs is
//! its caller's business.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use crate::sys::{files, spawn};

/// What became of a detached run, as far as its starter waits for it.
#[derive(Debug)]
pub enum Outcome {
    /// The program runs in the sandbox of this id.
    Started(String),
    /// It does not: exit status and a sentence (empty: it has been said).
    Refused(i32, String),
}

/// The right to tell the starter how it went, once. Dropped untold, it tells of an end without a word.
#[derive(Debug)]
pub struct Verdict {
    pipe: File,
}

/// Which of the two processes the caller is.
#[derive(Debug)]
pub enum Side {
    /// The one that the user started: the outcome is known.
    Starter(Outcome),
    /// The one that stays, in a session of its own and with no input.
    Stayer(Verdict),
}

/// Splits the caller in two. Call it before there is any other thread.
///
/// # Errors
/// The host gave no process or no pipe.
pub fn split() -> io::Result<Side> {
    let (read, write) = files::pipe()?;
    let null = File::open("/dev/null")?;
    if spawn::fork()?.is_some() {
        drop(write);
        return Ok(Side::Starter(outcome(File::from(read))?));
    }
    drop(read);
    spawn::new_session()?;
    files::place(null.as_raw_fd(), 0)?;
    Ok(Side::Stayer(Verdict { pipe: File::from(write) }))
}

/// Directs what this process and its children print to `output`.
///
/// # Errors
/// The host refused it.
pub fn print_to(output: impl AsFd) -> io::Result<()> {
    let fd = output.as_fd().as_raw_fd();
    files::place(fd, 1)?;
    files::place(fd, 2)?;
    Ok(())
}

impl Verdict {
    /// Closes all that this process has inherited but the standard streams and `kept`: whoever waits
    /// for the end of a pipe of the starter's must not wait for the sandbox. Call it before anything
    /// else is opened.
    pub fn close_inherited(&self, kept: &[RawFd]) {
        let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let numbers: Vec<RawFd> =
            open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        for fd in numbers {
            if fd > 2 && fd != self.pipe.as_raw_fd() && !kept.contains(&fd) {
                // The listing's own descriptor is in it, and closed by now.
                let _ = files::close_now(fd);
            }
        }
    }

    /// The program runs in the sandbox `id`.
    ///
    /// # Errors
    /// The starter is gone.
    pub fn started(mut self, id: &str) -> io::Result<()> {
        self.pipe.write_all(format!("+{id}\n").as_bytes())
    }

    /// The program does not run: the exit status for the starter, and a sentence.
    pub fn refused(mut self, status: i32, sentence: &str) {
        // The starter may be gone: then nobody is left to tell.
        let _ = self.pipe.write_all(format!("-{status} {sentence}\n").as_bytes());
    }
}

/// Waits for the verdict.
fn outcome(pipe: File) -> io::Result<Outcome> {
    let mut text = String::new();
    // A line, and not all until the end: the guest's init has a copy of the other end for good.
    io::BufReader::new(pipe).read_line(&mut text)?;
    let text = text.trim_end();
    let refused = |rest: &str| {
        let (status, sentence) = rest.split_once(' ')?;
        Some(Outcome::Refused(status.parse().ok()?, sentence.to_owned()))
    };
    let told = match text.split_at_checked(1) {
        Some(("+", id)) => Some(Outcome::Started(id.to_owned())),
        Some(("-", rest)) => refused(rest),
        _ => None,
    };
    Ok(told.unwrap_or_else(|| {
        let sentence = "the process that was to keep the sandbox ended without a word";
        Outcome::Refused(125, sentence.to_owned())
    }))
}
