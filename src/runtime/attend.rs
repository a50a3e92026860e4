//! The client of a program that was started later: its terminal, signals and status are the caller's,
//! as those of a run's program are.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::job::{Job, Reaction, Signals};
use super::later::Started;
use super::sources::{Next, Sources};
use super::{Error, Finished};
use crate::launch::{Event, Keeper, LaunchError, Order};
use crate::sys::process::exit_status;
use crate::terminal::{Settings, Terminal};

/// The caller's side of a program to come.
pub struct Caller {
    signals: Signals,
    terminal: Option<Terminal>,
    job: Job,
}

impl Caller {
    /// Takes the caller's signals over and looks at its terminal, if the program may have one like it.
    /// Call it before there is any other
    /// thread.
    pub fn new(with_terminal: bool) -> Result<Caller, Error> {
        let signals = Signals::take()?;
        let terminal = with_terminal.then(Terminal::of_standard_streams).flatten();
        let job = Job::new(terminal.as_ref());
        Ok(Caller { signals, terminal, job })
    }

    /// The terminal that the program is to get one like, and in place of which streams.
    pub fn terminal(&self) -> Option<(Settings, [bool; 3])> {
        self.terminal.as_ref().map(|terminal| (terminal.settings(), terminal.streams()))
    }

    /// Whether the program is to start in the foreground of its terminal.
    pub fn foreground(&self) -> bool {
        self.terminal.is_some() && self.job.foreground()
    }

    /// The standard streams that are handed over: those that are open and not the terminal.
    ///
    /// A file that is open for reading only comes through a pipe: as it is, the guest could open it
    /// for writing (/proc/self/fd), since its mount is the host's own.
    ///
    /// # Errors
    /// A stream that would lead out of the sandbox: a directory, a block device.
    pub fn streams(&self) -> Result<[Option<OwnedFd>; 3], Error> {
        let replaced = self.terminal.as_ref().map(Terminal::streams).unwrap_or_default();
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let all = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let mut streams = [None, None, None];
        for (index, fd) in all.into_iter().enumerate().filter(|(index, _)| !replaced[*index]) {
            streams[index] = hand_over(fd)?;
        }
        Ok(streams)
    }

    /// Follows the program, named `name` by the user, to its end, or only until it runs.
    pub fn attend(self, name: &str, started: Started, detach: bool) -> Result<Finished, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::Own("start the runtime", error))?;
        runtime.block_on(self.follow(name, started, detach))
    }

    async fn follow(self, name: &str, started: Started, detach: bool) -> Result<Finished, Error> {
        let Caller { signals, terminal, mut job } = self;
        let keeper = Keeper::at(started.session);
        fcntl(keeper.socket(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(|errno| Error::Own("prepare the program's socket", errno.into()))?;
        let mut terminal = terminal.zip(started.master);
        let mut sources = Sources::new(signals, &keeper)?;
        loop {
            match sources.next(&keeper, job.is_carrying()).await {
                Ok(Next::Told(event, _)) => match event {
                    Event::Started if detach => {
                        return Ok(Finished::default());
                    }
                    // Not before: see `Supervisor::run`.
                    Event::Started => {
                        if let Some((terminal, master)) = terminal.take() {
                            sources.terminal = Some(job.carry(terminal, master)?);
                        }
                    }
                    Event::Stopped(signal) => keeper.order(job.suspend(signal))?,
                    Event::NotExecuted(errno, _) => {
                        let errno = nix::errno::Errno::from_raw(errno);
                        return Err(Error::NotExecuted { program: name.to_owned(), errno });
                    }
                    Event::Ended(end) => {
                        let interrupted = job.finish(end.status);
                        let status = exit_status(end.status);
                        return Ok(Finished { status, interrupted, ..Finished::default() });
                    }
                    _ => {}
                },
                Ok(Next::Signal(signal)) => match job.on_signal(&signal) {
                    Reaction::Order(order) => keeper.order(order)?,
                    Reaction::Pass(number) => keeper.order(Order::Signal(number))?,
                    Reaction::Done => {}
                },
                Ok(Next::TerminalGone) => job.hang_up(),
                Ok(Next::Nothing) => {}
                // Everything inside is killed with the sandbox. (A guest may kill keepers, too.)
                Err(Error::Launch(LaunchError::Vanished(_))) => {
                    job.finish(libc::SIGKILL);
                    let notes =
                        vec![format!("{name} is lost: the sandbox ended, or its keeper in it")];
                    let status = exit_status(libc::SIGKILL);
                    return Ok(Finished { status, notes, ..Finished::default() });
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A stream as the program may have it; `None`: it is closed.
fn hand_over(fd: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
    let Ok(copy) = fd.try_clone_to_owned() else { return Ok(None) };
    let file = File::from(copy);
    let own = |error| Error::Own("look at the standard streams", error);
    let metadata = file.metadata().map_err(own)?;
    if metadata.is_dir() || metadata.file_type().is_block_device() {
        let what = "pass a directory or a block device on, which would lead out of the sandbox";
        return Err(Error::Own(what, std::io::ErrorKind::InvalidInput.into()));
    }
    let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(|errno| own(errno.into()))?;
    if metadata.is_file() && flags & libc::O_ACCMODE == libc::O_RDONLY {
        return through_a_pipe(file).map(Some).map_err(own);
    }
    Ok(Some(file.into()))
}

/// The reading end of a pipe that a thread fills from `file`.
fn through_a_pipe(mut file: File) -> std::io::Result<OwnedFd> {
    let (reader, mut writer) = std::io::pipe()?;
    // A program that reads no more is no error, and this process ignores SIGPIPE.
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let _ = std::io::copy(&mut file, &mut writer);
    })?;
    debug_assert!(reader.as_raw_fd() > 2);
    Ok(reader.into())
}
