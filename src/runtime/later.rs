//! Programs that are started later in a running sandbox: `sandbox exec`, and further containers.
//!
//! Init makes a keeper for each; here one task a program follows the keeper, tells the kernel what
//! happens, and passes events and orders between the keeper and whoever asked for the program. Whoever
//! asked may go away: the program goes on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_bytes::ByteBuf;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::beginning::{NO_CONTENT, fetch_program};
use crate::config::{RunSpec, check_container};

use crate::control::protocol::Exec;
use crate::launch::{Behind, End, Event, Keeper, LaunchError, Order, Program};
use crate::save::restore::keepers::Kept;
use crate::sentry::{self, GivenStream, Kernel, LaterProgram, Starting};
use crate::sys::process::exit_status;
use crate::sys::ready::watch_readable;
use crate::sys::{message, process};
use crate::terminal::Settings;

/// A program that somebody wants to be started.
#[derive(Debug)]
pub struct Wish {
    /// The program and its arguments; never empty.
    pub argv: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Where it starts, as the guest sees it; `None` is where the run's program did.
    pub workdir: Option<PathBuf>,
    /// The container it is to belong to; `None` is the run's own.
    pub container: Option<String>,
    /// The container is to be a new one, which ends with this program.
    pub opens_container: bool,
    /// Its standard streams; those that are neither here nor a terminal are closed.
    pub streams: [Option<OwnedFd>; 3],
    /// Its terminal, and in place of which streams it is.
    pub terminal: Option<(Settings, [bool; 3])>,
    /// It starts in the foreground of that terminal.
    pub foreground: bool,
}

impl Wish {
    /// What a client asked for, with these variables of the run's program.
    ///
    /// # Errors
    /// Why it cannot be, as the end of a sentence.
    pub fn new(
        exec: Exec,
        streams: Vec<OwnedFd>,
        environment: &[(OsString, OsString)],
    ) -> Result<Wish, String> {
        let text = |bytes: ByteBuf| OsString::from_vec(bytes.into_vec());
        let argv: Vec<OsString> = exec.argv.into_iter().map(text).collect();
        if argv.first().is_none_or(|program| program.is_empty()) {
            return Err("no program is named".to_owned());
        }
        if let Some(name) = &exec.container {
            check_container(name).map_err(|error| error.to_string())?;
        }
        let set: Vec<(OsString, OsString)> =
            exec.variables.into_iter().map(|(name, value)| (text(name), text(value))).collect();
        let kept = environment.iter().filter(|_| !exec.clear_env);
        let kept = kept.filter(|(name, _)| !set.iter().any(|(other, _)| other == name));
        let mut streams = streams.into_iter();
        let streams = exec.open.map(|open| if open { streams.next() } else { None });
        if exec.open.iter().zip(&streams).any(|(open, stream)| *open != stream.is_some()) {
            return Err("a standard stream did not arrive".to_owned());
        }
        let terminal = match exec.terminal {
            None => None,
            Some((words, replaced)) => {
                let settings = Settings::from_words(&words).ok_or("its terminal makes no sense")?;
                Some((settings, replaced))
            }
        };
        let workdir = exec.workdir.map(|path| PathBuf::from(text(path)));
        if workdir.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err("the working directory is no absolute path".to_owned());
        }
        Ok(Wish {
            argv,
            environment: kept.cloned().chain(set.clone()).collect(),
            workdir,
            container: exec.container,
            opens_container: exec.opens_container,
            streams,
            terminal,
            foreground: exec.foreground,
        })
    }
}

/// What whoever asked gets: the program's events arrive here and orders to its keeper are given here,
/// and the master of its terminal if it has one.
#[derive(Debug)]
pub struct Started {
    /// Speaks as [`Keeper`] does.
    pub session: OwnedFd,
    /// See above.
    pub master: Option<OwnedFd>,
}

/// What all later programs of a sandbox share.
#[derive(Debug, Clone)]
pub struct Later {
    kernel: Arc<Kernel>,
    /// Names of the containers that there are. A leaf: held for a few instructions.
    containers: Arc<Mutex<BTreeSet<String>>>,
}

impl Later {
    /// No program has been started yet but the run's own.
    pub fn new(kernel: Arc<Kernel>) -> Later {
        let first = BTreeSet::from([kernel.container().to_owned()]);
        Later { kernel, containers: Arc::new(Mutex::new(first)) }
    }

    /// Starts a program, and follows it in a task of its own from then on. Gives the future in which
    /// whoever asked hears that it is ready to be started, or a sentence that says why not.
    pub fn start(
        &self,
        behind: &Behind,
        spec: &RunSpec,
        wish: Wish,
        starting: Starting,
    ) -> impl Future<Output = Result<Started, String>> + Send + use<> {
        let workdir = wish.workdir.clone().unwrap_or_else(|| spec.workdir.clone());
        let terminal = wish.terminal.map(|(_, streams)| streams).unwrap_or_default();
        let program =
            Program { argv: &wish.argv, environment: &wish.environment, workdir: &workdir };
        let fetched = self.kernel.content().map_or(Ok(()), |it| fetch_program(&**it, &program));
        let fetched = fetched.map_err(|errno| format!("cannot {NO_CONTENT}: {}", errno.desc()));
        let kept = fetched.and_then(|()| self.enter(&wish)).and_then(|place| {
            let keeper = behind.keep(&program, &wish.streams, terminal);
            Ok((keeper.map_err(|error| error.to_string())?, place))
        });
        let kernel = Arc::clone(&self.kernel);
        async move {
            let (keeper, place) = kept?;
            let follower = Follower::new(kernel, keeper, place, starting, &wish)?;
            let ready = timeout(LONGEST_STEP, follower.get_ready(wish, workdir)).await;
            ready.unwrap_or_else(|_| {
                Err("the program's keeper does not get ready; a guest may have stopped it"
                    .to_owned())
            })
        }
    }

    /// Follows what has been restored with a run, as if it had been started in it; nobody has asked for it.
    ///
    /// # Errors
    /// Its keeper cannot be heard.
    pub fn resume(&self, kept: Kept) -> std::io::Result<()> {
        let Kept { keeper, host, pidfd, program, saved } = kept;
        let heard = watch_readable(keeper.socket())?;
        let open = saved.opens_container.then(|| Arc::clone(&self.containers));
        let mut names = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        // (One that has ended has nothing but what is about to end.)
        names.insert(saved.container.clone());
        drop(names);
        let follower = Follower {
            kernel: Arc::clone(&self.kernel),
            keeper,
            heard,
            place: Place { name: saved.container, open },
            made: Some((host, pidfd)),
            pid: program.unwrap_or(0),
            path: saved.path,
            given: [None; 3],
            starting: None,
        };
        follower.tell_kernel(program);
        match program {
            Some(_) => follower.emit_started(),
            None => follower.close_container(),
        }
        tokio::spawn(follower.follow(None));
        Ok(())
    }

    /// The container of a wish: one that there is, or a new one.
    fn enter(&self, wish: &Wish) -> Result<Place, String> {
        let name = wish.container.as_deref().unwrap_or(self.kernel.container()).to_owned();
        let mut names = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        match (names.contains(&name), wish.opens_container) {
            (true, true) => Err(format!(
                "it has a container named {name} already; choose another name, or run the program in \
                 that one with sandbox exec --container {name}"
            )),
            (false, false) => {
                let known: Vec<&str> = names.iter().map(String::as_str).collect();
                Err(format!(
                    "it has no container named {name}, only {}; sandbox run --container {name} opens \
                     one",
                    known.join(", ")
                ))
            }
            (_, opens) => {
                names.insert(name.clone());
                let open = opens.then(|| Arc::clone(&self.containers));
                Ok(Place { name, open })
            }
        }
    }
}

/// A program's container.
#[derive(Debug)]
struct Place {
    name: String,
    /// Of the program that the container ends with: where its name is to be given up.
    open: Option<Arc<Mutex<BTreeSet<String>>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(names) = &self.open {
            names.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        }
    }
}

/// How long a keeper may take to get ready, and a program to run before pauses wait for it no more: a
/// guest that stops keepers holds nobody else up for good.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// Follows one program.
struct Follower {
    kernel: Arc<Kernel>,
    keeper: Keeper,
    heard: AsyncFd<OwnedFd>,
    place: Place,
    /// The keeper's process, as the host numbers it and by a descriptor, once init has told; while it
    /// is known to the kernel.
    made: Option<(i32, OwnedFd)>,
    /// The program's process; 0 until it runs.
    pid: i32,
    path: String,
    /// What it was given as standard streams.
    given: [Option<GivenStream>; 3],
    /// While it is being started.
    starting: Option<Starting>,
}

impl Follower {
    fn new(
        kernel: Arc<Kernel>,
        keeper: Keeper,
        place: Place,
        starting: Starting,
        wish: &Wish,
    ) -> Result<Follower, String> {
        let heard = watch_readable(keeper.socket())
            .map_err(|error| format!("the program's keeper cannot be heard: {error}"))?;
        let path = wish.argv[0].to_string_lossy().into_owned();
        let starting = Some(starting);
        let given = wish.streams.each_ref().map(|it| it.as_ref().and_then(GivenStream::of));
        Ok(Follower { kernel, keeper, heard, place, made: None, pid: 0, path, given, starting })
    }

    /// Waits until the keeper is there, and goes on following it.
    async fn get_ready(mut self, wish: Wish, workdir: PathBuf) -> Result<Started, String> {
        let mut master = None;
        let mut ready = false;
        while !ready || self.made.is_none() {
            match self.next().await {
                Ok((Event::Made, [Some(pidfd), ..])) => {
                    let pid = process::pid_of(pidfd.as_fd()).unwrap_or(0);
                    self.kernel.add_keeper(pid, &self.place.name);
                    self.made = Some((pid, pidfd));
                    self.tell_kernel(None);
                }
                Ok((Event::Ready, [given, ..])) => (ready, master) = (true, given),
                Ok((Event::Fault(stage, _, errno), _)) => {
                    let program = Program { argv: &[], environment: &[], workdir: &workdir };
                    return Err(self.keeper.fault(&program, stage, errno).to_string());
                }
                Ok(_) => {}
                Err(_) => return Err(
                    "the program's keeper has ended: so does the sandbox, or a guest has killed it"
                        .to_owned(),
                ),
            }
        }
        if let (Some((settings, _)), Some(master)) = (&wish.terminal, &master) {
            // A master is nobody's controlling terminal: nothing stops the caller.
            settings
                .apply(master.as_fd())
                .map_err(|errno| format!("its terminal cannot be set up: {}", errno.desc()))?;
        }
        let own = |errno: Errno| format!("no socket for the program's events: {}", errno.desc());
        let (ours, session) = message::pair().map_err(own)?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(own)?;
        let asker = Keeper::at(ours);
        let asked = watch_readable(asker.socket()).map_err(|error| error.to_string())?;
        self.order(Order::Start { foreground: wish.foreground });
        tokio::spawn(self.follow(Some((asker, asked))));
        Ok(Started { session, master })
    }

    /// What there is to be saved of it. `program`: as the host numbers it, while it runs.
    fn tell_kernel(&self, program: Option<i32>) {
        let Some((keeper, _)) = &self.made else { return };
        self.kernel.keeps(LaterProgram {
            keeper: *keeper,
            program,
            path: self.path.clone(),
            container: self.place.name.clone(),
            opens_container: self.place.open.is_some(),
            streams: self.given,
        });
    }

    /// Passes on what happens, to whoever asked for it if anybody is there, until all that the program leaves
    /// behind has ended.
    async fn follow(mut self, mut asker: Option<(Keeper, AsyncFd<OwnedFd>)>) {
        // (Of those two the one who asked sees the end of its socket only when both are closed.)
        let mut overdue = self.starting.is_some().then(|| Box::pin(sleep(LONGEST_STEP)));
        loop {
            let orders = async {
                match &asker {
                    Some((asker, asked)) => next_order(asker, asked).await,
                    None => std::future::pending().await,
                }
            };
            let too_late = async {
                match &mut overdue {
                    Some(overdue) => overdue.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = too_late => (overdue, self.starting) = (None, None),
                event = self.next() => match event {
                    Ok((event, descriptors)) => {
                        overdue = None;
                        self.note(event, &descriptors);
                        let fds: Vec<_> = descriptors.iter().flatten().map(AsFd::as_fd).collect();
                        let told = asker.take_if(|(it, _)| event.send(it.socket(), &fds).is_err());
                        drop(told);
                        if let Event::Ended(_) | Event::NotExecuted(..) = event {
                            // There is nothing more to tell.
                            asker = None;
                            self.close_container();
                        }
                    }
                    Err(_) => return,
                },
                order = orders => match order {
                    Ok(order @ (Order::Group(_) | Order::Signal(_) | Order::Resume { .. })) => {
                        self.order(order);
                    }
                    // It has gone away, or asks for what it may not.
                    _ => asker = None,
                },
            }
        }
    }

    /// Tells the kernel.
    fn note(&mut self, event: Event, descriptors: &[Option<OwnedFd>]) {
        match event {
            Event::Started => {
                let pidfd = descriptors.first().and_then(Option::as_ref);
                self.pid = pidfd.and_then(|pidfd| process::pid_of(pidfd.as_fd())).unwrap_or(0);
                self.kernel.tell_of_clock(self.pid);
                self.tell_kernel((self.pid > 0).then_some(self.pid));
                self.kernel.note_activity();
                self.emit_started();
            }
            Event::Ended(End { status, cpu_us, peak_kib }) => {
                self.tell_kernel(None);
                self.kernel.emit(&sentry::Event::Exited {
                    pid: self.pid,
                    container: self.place.name.clone(),
                    status: exit_status(status),
                    cpu_us,
                    peak_memory: peak_kib * 1024,
                });
            }
            _ => {}
        }
        // Whatever was told, it is no copy of init any more.
        self.starting = None;
    }

    fn emit_started(&self) {
        let (path, container) = (self.path.clone(), self.place.name.clone());
        self.kernel.emit(&sentry::Event::Started { pid: self.pid, path, container });
    }

    /// A container ends with the program that opened it: so does what is left in it.
    fn close_container(&self) {
        if self.place.open.is_some() {
            let (kernel, name) = (Arc::clone(&self.kernel), self.place.name.clone());
            tokio::task::spawn_blocking(move || kernel.signal_container(&name, libc::SIGKILL));
        }
    }

    fn order(&self, order: Order) {
        if let Err(error) = self.keeper.order(order) {
            tracing::warn!(%error, "an order to a program's keeper was lost");
        }
        // A guest may have stopped it (kill -STOP -1): whoever asked could not even interrupt.
        if let Some((_, keeper)) = &self.made {
            let _ = process::pidfd_send_signal(keeper.as_fd(), libc::SIGCONT);
        }
    }

    /// The next event of the keeper; an error when it has ended.
    async fn next(&self) -> Result<(Event, message::Descriptors), LaunchError> {
        loop {
            let mut ready = self
                .heard
                .readable()
                .await
                .map_err(|_| LaunchError::Vanished("while its program ran"))?;
            match self.keeper.event() {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Ok(heard) => return Ok(heard),
                Err(_) => return Err(LaunchError::Vanished("while its program ran")),
            }
        }
    }
}

/// The next order of whoever asked for the program; an error when it has gone away.
async fn next_order(asker: &Keeper, asked: &AsyncFd<OwnedFd>) -> Result<Order, Errno> {
    loop {
        let mut ready = asked.readable().await.map_err(|_| Errno::EPIPE)?;
        match Order::receive(asker.socket()) {
            Err(Errno::EAGAIN) => ready.clear_ready(),
            order => return order.map(|(order, _)| order),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some((pid, _)) = &self.made {
            self.kernel.remove_keeper(*pid);
        }
    }
}
