//! Putting guests together from an image.
//!
//! [`grow`] is the story: seeds ([`seed`]) are planted by init, grow into processes and threads of the
//! right numbers, and get their memory ([`space`]), what is shared ([`maker`], [`courier`]), and at the end
//! their registers. Until all of it is there none of them runs an instruction of its program; if anything
//! fails, init and with it all of them are killed. All of it runs on the one thread that traces.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::quoted;
use crate::launch::{FIRST, Planter};
use crate::notify::Gate;
use crate::save::error::RestoreError;
use crate::save::hand::{Hand, HandError};
use crate::save::image::Run;
use crate::save::sharing::Classes;
use crate::save::state::{Process, Sandbox, Space, Table as DescriptorTable, Thread, TreeKind};
use crate::sentry::{Brought, Kernel, Used};
use crate::sys::ptrace::{self, Stopped};
use crate::timekeeping::Patch;

pub mod adjustments;
mod apart;
mod batch;
mod believed;
mod clock;
pub mod commons;
pub mod courier;
pub mod descriptors;
pub mod direct;
pub mod fill;
mod finish;
mod furnish;
pub mod heritage;
pub mod ipc;
pub mod keepers;
pub mod layers;
pub mod lazy;
pub mod maker;
pub mod network;
pub mod notices;
pub mod overruns;
mod own;
pub mod process;
pub mod ptys;
mod repeat;
pub mod seed;
pub mod shared;
mod skeleton;
pub mod sockets;
pub mod space;
pub mod stops;
pub mod threads;
pub mod timers;
pub mod tree;
pub mod trees;
pub mod waits;

use courier::Courier;
use descriptors::{FilesPolicy, RestoreStreams};
use heritage::{Heritage, There};
use keepers::Kept;
use layers::Layers;
use lazy::Lazy;
use maker::{Maker, Sink};
use own::Own;
use skeleton::{Garden, skeleton};
use space::Sources;
use tree::Step;

/// The first descriptor that is free in a seed: those before are the standard streams and the courier's.
pub const FIRST_FREE: i32 = FIRST + 1;

/// How to restore.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What to think of files that have changed.
    pub files: FilesPolicy,
    /// Where file systems in memory are that may be filled: those of the run itself.
    pub trees: Vec<PathBuf>,
    /// The layers of its overlays, filled.
    pub layers: Option<Arc<Layers>>,
    /// Which of the standard streams are the run's own terminal, if it has one.
    pub terminal: Option<[bool; 3]>,
    /// How programs read clocks of the run's own, if it has any.
    pub clock: Option<Patch>,
}

/// Which content of the memory section is wanted.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'w> {
    /// These pages, before all else. They need not be compared with their checksums yet.
    Ahead(&'w [Run]),
    /// All but what is there; that is compared with its checksums as well.
    Rest(&'w There),
    /// All that is not mapped ([`lazy`]).
    NotMapped,
}

/// Brings content of the memory section into its places. Called once for the rest or what is not mapped, when all of the
/// places are there.
pub type Fill<'f> =
    dyn FnMut(&HashMap<u32, Sink>, Wanted<'_>) -> Result<(), RestoreError> + Send + 'f;

/// The memory section.
pub struct Content<'c> {
    /// Brings it into its places.
    pub fill: &'c mut Fill<'c>,
    /// What is mapped, and not filled.
    pub lazy: Option<&'c Lazy>,
    /// All of its pages, if `fill` can be asked for any of them.
    pub pages: Option<&'c [Run]>,
}

impl Content<'_> {
    /// What processes that are made by these steps can have from each other.
    fn heritage(&self, sandbox: &Sandbox, steps: &[Step], classes: &Classes) -> Heritage {
        let pages = self.pages.filter(|_| self.lazy.is_none());
        pages.map(|pages| Heritage::of(sandbox, steps, classes, pages)).unwrap_or_default()
    }
}

/// A process under construction.
struct Plant<'s> {
    process: &'s Process,
    /// As an error names it.
    who: String,
    hand: Hand,
    /// The threads beside the one of `hand`.
    others: Vec<Hand>,
    /// Those of them that are there already, by number.
    early: HashMap<i32, Hand>,
    /// The number of the courier's end.
    courier: i32,
    /// Numbers of that in tables of its threads' own: the place in `others`.
    couriers: Vec<(usize, i32)>,
    /// What it has not in common with a process before it.
    own: Own,
    /// The places, in `others`, of those who have root directories for themselves.
    roots: Vec<usize>,
    /// The capabilities that its programs have.
    kept: u64,
}

/// What goes on.
#[derive(Debug)]
pub struct Grown {
    /// Stands for the run's program.
    pub program: OwnedFd,
    /// Who keeps programs that were started later.
    pub kept: Vec<Kept>,
}

/// Where a seed for these processes may lie.
pub fn area(sandbox: &Sandbox) -> Result<u64, RestoreError> {
    let mappings = sandbox.spaces.iter().flat_map(|space| &space.mappings);
    let ranges: Vec<(u64, u64)> = mappings.map(|mapping| (mapping.start, mapping.end)).collect();
    seed::place(&ranges)
        .ok_or_else(|| RestoreError::refused("the image is damaged: its mappings leave no room"))
}

/// Puts all processes together and lets them go. `planter`: see there; `area`: where its seeds lie.
/// Gives what there is to be followed.
pub fn grow(
    planter: &Planter,
    gate: &Gate,
    area: u64,
    sandbox: &Sandbox,
    options: &Options,
    content: Content<'_>,
    kernel: &Arc<Kernel>,
) -> Result<Grown, RestoreError> {
    let (courier, theirs) = courier::pair(FIRST)
        .map_err(|errno| RestoreError::failed("a socket to the new processes", errno.desc()))?;
    let (free, keepers) = (free_number(sandbox), HashMap::new());
    let mut garden = Garden { planter, keepers, gate, area, theirs, free };
    let (mut maker_hand, _) = garden.plant(tree::INIT, free, "the maker")?;
    planter
        .confine()
        .map_err(|errno| RestoreError::failed("cannot keep files by Landlock", errno.desc()))?;
    garden.keepers = keepers::make(planter, sandbox, kernel)?;
    kernel.note_whole_view(maker_hand.tid());
    let mut maker = Maker {
        hand: &mut maker_hand,
        courier: &courier,
        sandbox,
        files: Vec::new(),
        shared: Vec::new(),
        sinks: done(sandbox),
        finishes: Vec::new(),
        hands: HashMap::new(),
        gate,
        devices: Vec::new(),
        kernel: Some(kernel),
    };
    trees::restore(&mut maker, &options.trees)?;
    ipc::restore(&mut maker)?;
    ptys::restore_files(&mut maker)?;
    let streams = streams(&mut maker, options)?;
    let classes = classes(sandbox)?;
    let steps = garden.steps(sandbox, &classes)?;
    let heritage = content.heritage(sandbox, &steps, &classes);
    let Content { fill, lazy, .. } = content;
    let mut giver =
        skeleton::Giver { heritage: &heritage, courier: &courier, options, fill: &mut *fill };
    let (hands, program) = skeleton(&garden, sandbox, &steps, &mut giver)?;
    maker.hands = hands;
    descriptors::make_files(&mut maker, &streams, options.files)?;
    drop(streams);
    network::go_on(sandbox, kernel)?;
    let shared = shared::make(&mut maker)?;

    let plants = plants(sandbox, std::mem::take(&mut maker.hands), &classes)?;
    let memory = &sandbox.shared;
    let sources = Sources {
        courier: &courier,
        shared: &shared,
        memory,
        policy: options.files,
        trees: &options.trees,
        files: &maker.files,
    };
    let hosts: HashMap<i32, i32> =
        plants.iter().map(|plant| (plant.process.pid, plant.hand.tid())).collect();
    let (zombies, mut plants): (Vec<_>, Vec<_>) =
        plants.into_iter().partition(|plant| plant.process.zombie.is_some());
    furnish::map_all(sandbox, &mut plants, &sources, &heritage)?;
    sinks_of(sandbox, &plants, &mut maker.sinks)?;
    own_foreground(sandbox, &mut plants)?;
    rest(&mut plants)?;
    let wanted = if lazy.is_some() { Wanted::NotMapped } else { Wanted::Rest(heritage.there()) };
    fill(&maker.sinks, wanted)?;
    for plant in plants.iter().filter(|it| it.own.space) {
        clock::renew(plant.hand.tid(), space_of(sandbox, plant)?, options, &plant.who)?;
    }
    furnish::furnish_all(sandbox, &mut plants, gate, &courier, lazy)?;
    descriptors::make_late_files(&mut maker, options.files)?;
    for finish in std::mem::take(&mut maker.finishes) {
        finish(&mut maker)?;
    }
    for plant in plants.iter_mut().filter(|it| it.own.space) {
        // (A program in a tree of the sandbox's own can be executed from here on.)
        let space = space_of(sandbox, plant)?;
        space::seal(&mut plant.hand, space, (&courier, &shared), &plant.who)?;
        plant.take_turns()?;
    }
    repeat::resume(&mut maker, &hosts, kernel)?;
    believed::resume_files(&maker, kernel)?;
    give_tables(sandbox, &mut plants, &courier, &maker.files)?;
    drop(maker);
    end(maker_hand)?;
    zombies.into_iter().try_for_each(die)?;
    kernel.carried().bring(brought(sandbox, &hosts, &plants));
    let tasks = believed::tasks(&plants);
    let ready = finish::complete_all(sandbox, plants, kernel)?;
    believed::resume_guests(sandbox, &tasks, kernel)?;
    let kept = keepers::adopt((planter, garden.keepers), gate, &hosts, (sandbox, kernel))?;
    gate.pass_no_more();
    let let_all_go = || ready.into_iter().rev().flatten().try_for_each(let_go);
    with_layers(sandbox, options, let_all_go)?;
    Ok(Grown { program, kept })
}

/// Does what lets the guests run, with the layers of their overlays in place, which have it if that can be done.
fn with_layers(
    sandbox: &Sandbox,
    options: &Options,
    let_all_go: impl FnOnce() -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let Some(layers) = options.layers.as_deref() else { return let_all_go() };
    layers.take_place(sandbox)?;
    let gone = let_all_go();
    match &gone {
        Ok(()) => layers.settle(),
        Err(_) => layers.give_back(),
    }
    gone
}

/// Content of memory goes to its processes.
fn sinks_of(
    sandbox: &Sandbox,
    plants: &[Plant<'_>],
    sinks: &mut HashMap<u32, Sink>,
) -> Result<(), RestoreError> {
    for plant in plants.iter().filter(|it| it.own.space) {
        let space = space_of(sandbox, plant)?;
        let files = space::files_below(space);
        sinks.insert(space.object, Sink::Space { pid: plant.hand.tid(), files });
    }
    Ok(())
}

/// Content that is where it belongs: that of layers.
fn done(sandbox: &Sandbox) -> HashMap<u32, Sink> {
    let layers = sandbox.overlay.iter().flat_map(|overlay| &overlay.layers);
    let entries = layers.flat_map(|layer| &layer.tree.entries);
    let objects = entries.filter_map(|entry| match entry.kind {
        TreeKind::File { object, .. } => Some((object, Sink::Done)),
        _ => None,
    });
    objects.collect()
}

/// All get their descriptors, and their locks on them: who shares a table gets it with the first of those.
fn give_tables(
    sandbox: &Sandbox,
    plants: &mut [Plant<'_>],
    courier: &Courier,
    files: &[Option<OwnedFd>],
) -> Result<(), RestoreError> {
    let Some(first) = plants.first_mut() else { return Ok(()) };
    let hard = descriptors::hard_limit(&mut first.hand)?;
    for plant in plants.iter_mut().filter(|it| it.own.table) {
        let table = table_of(sandbox, plant)?;
        let Plant { hand, who, .. } = plant;
        plant.courier = descriptors::install_table(hand, courier, table, (files, hard), who)?;
        descriptors::take_locks(&mut plant.hand, sandbox, plant.process.pid, table)?;
        plant.take_turns()?;
    }
    apart::give_tables(sandbox, plants, courier, files, hard)
}

fn let_go(stopped: Stopped) -> Result<(), RestoreError> {
    // ESRCH: it was killed, by one that goes on already.
    match stopped.detach() {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(RestoreError::failed("a process cannot go on", errno.desc())),
    }
}

/// The CPU time that the processes bring along. `hosts`: their numbers for the host, by those for the guest.
fn brought(sandbox: &Sandbox, hosts: &HashMap<i32, i32>, plants: &[Plant<'_>]) -> Vec<Brought> {
    let used = |[user, system]: [u64; 2]| Used { user, system };
    let of_process = |process: &Process| {
        let [user, system, of_children @ ..] = process.cpu_us;
        let (own, children) = (used([user, system]), used(of_children));
        let plant = plants.iter().find(|plant| plant.process.pid == process.pid);
        let threads = plant.map_or_else(Vec::new, |plant| {
            let hands = std::iter::once(&plant.hand).chain(&plant.others).map(Hand::tid);
            hands.zip(process.threads.iter().map(|thread| used(thread.cpu_us))).collect()
        });
        let parent = hosts.get(&process.parent).copied().unwrap_or(0);
        Some(Brought { pid: *hosts.get(&process.pid)?, parent, own, children, threads })
    };
    sandbox.processes.iter().filter_map(of_process).collect()
}

/// The group that was in the foreground of the run's own terminal is again.
fn own_foreground(sandbox: &Sandbox, plants: &mut [Plant<'_>]) -> Result<(), RestoreError> {
    let Some(own) = &sandbox.terminal else { return Ok(()) };
    let group = own.pty.foreground;
    let member = plants.iter_mut().find(|it| it.process.session == 1 && it.process.group == group);
    member.map_or(Ok(()), |plant| ptys::set_own_foreground(&mut plant.hand, group))
}

/// A number that none of the image's processes and threads has.
fn free_number(sandbox: &Sandbox) -> i32 {
    let threads = sandbox.processes.iter().flat_map(|process| &process.threads);
    let processes = sandbox.processes.iter().flat_map(|it| [it.pid, it.group, it.session]);
    let processes = processes.chain(sandbox.keepers.iter().map(|it| it.number));
    processes.chain(threads.map(|thread| thread.tid)).max().unwrap_or(1) + 1
}

/// What is shared, if the image agrees with itself.
fn classes(sandbox: &Sandbox) -> Result<Classes, RestoreError> {
    Classes::of(&sandbox.processes, &sandbox.sharing).map_err(|it| {
        let (task, what) = (it.task, it.what.words());
        RestoreError::refused(format!(
            "the image is damaged: task {task} shares {what} and does not"
        ))
    })
}

/// The processes that have been made, in the order of the image.
fn plants<'s>(
    sandbox: &'s Sandbox,
    mut hands: HashMap<i32, Hand>,
    classes: &Classes,
) -> Result<Vec<Plant<'s>>, RestoreError> {
    let twice = || RestoreError::refused("the image is damaged: a process is in it twice");
    let mut plants = Vec::with_capacity(sandbox.processes.len());
    for process in &sandbox.processes {
        let hand = hands.remove(&process.pid).ok_or_else(twice)?;
        let early = process.apart().filter_map(|(_, tid, _)| Some((tid, hands.remove(&tid)?)));
        let early = early.collect();
        plants.push(Plant {
            process,
            who: name(process),
            hand,
            others: Vec::new(),
            early,
            courier: FIRST,
            couriers: Vec::new(),
            own: Own::of(process, sandbox, classes),
            roots: own::with_own_directory(process, sandbox, classes),
            kept: sandbox.capabilities(),
        });
    }
    Ok(plants)
}

fn name(process: &Process) -> String {
    use std::os::unix::ffi::OsStrExt;
    match process.threads.first() {
        Some(first) => {
            let name = std::ffi::OsStr::from_bytes(&first.name);
            format!("process {} ({})", process.pid, quoted(name))
        }
        None => format!("process {}", process.pid),
    }
}

fn space_of<'s>(sandbox: &'s Sandbox, plant: &Plant<'_>) -> Result<&'s Space, RestoreError> {
    let index = plant.process.space.and_then(|index| sandbox.spaces.get(index as usize));
    index.ok_or_else(|| RestoreError::refused(format!("the image is damaged: {}", plant.who)))
}

/// Waits for what all of them have been told.
fn rest(plants: &mut [Plant<'_>]) -> Result<(), RestoreError> {
    plants.iter_mut().try_for_each(|it| it.hand.rest().map_err(RestoreError::of(&it.who)))
}

/// What the leader has been told is over before its threads are: their tables lie in the same place.
fn rest_unless_alone(hand: &mut Hand, process: &Process, who: &str) -> Result<(), RestoreError> {
    if process.threads.len() > 1 {
        hand.rest().map_err(RestoreError::of(who))?;
    }
    Ok(())
}

/// The leader of a process, and its other threads.
fn first_and_rest<'p>(
    process: &'p Process,
    who: &str,
) -> Result<(&'p Thread, &'p [Thread]), RestoreError> {
    let threads = process.threads.split_first();
    threads.ok_or_else(|| RestoreError::refused(format!("the image is damaged: {who}")))
}

/// The standard streams and the terminal of who restores, as init has prepared them.
fn streams(maker: &mut Maker<'_>, options: &Options) -> Result<RestoreStreams, RestoreError> {
    let mut own = Vec::with_capacity(3);
    for fd in 0..3 {
        own.push(match maker.courier.take(maker.hand, fd) {
            Ok(stream) => stream,
            // It is closed.
            Err(_) => {
                let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
                null.map_err(|error| RestoreError::failed("/dev/null", error))?.into()
            }
        });
    }
    let terminal = options.terminal.and_then(|streams| streams.iter().position(|it| *it));
    let terminal = terminal.map(|at| own[at].try_clone()).transpose();
    let terminal = terminal.map_err(|error| RestoreError::failed("the terminal", error))?;
    let own = own.try_into().map_err(|_| RestoreError::refused("there are three streams"))?;
    Ok(RestoreStreams { own, terminal })
}

/// The process's descriptors.
fn table_of<'s>(
    sandbox: &'s Sandbox,
    plant: &Plant<'_>,
) -> Result<&'s DescriptorTable, RestoreError> {
    let table = plant.process.table.and_then(|index| sandbox.tables.get(index as usize));
    table.ok_or_else(|| RestoreError::refused(format!("the image is damaged: {}", plant.who)))
}

/// Ends a process as it had ended; it waits for its parent to ask.
fn die(plant: Plant<'_>) -> Result<(), RestoreError> {
    let Plant { process, who, mut hand, .. } = plant;
    let status = process.zombie.unwrap_or(0);
    let failed = |errno: Errno| RestoreError::failed(format!("{who} does not end"), errno.desc());
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        let stopped = hand.stopped().map_err(RestoreError::of(&who))?;
        stopped.set_signal_mask(0).map_err(failed)?;
        let stopped = hand.release().map_err(RestoreError::of(&who))?;
        return match stopped.run_with(signal) {
            Err(Errno::ESRCH) => Ok(()),
            Ok(_) => {
                Err(RestoreError::refused(format!("{who} cannot have ended by signal {signal}")))
            }
            Err(errno) => Err(failed(errno)),
        };
    }
    let code = libc::WEXITSTATUS(status) as u64;
    match hand.call(libc::SYS_exit_group, [code]) {
        Err(HandError::Killed) => Ok(()),
        done => Err(RestoreError::failed(format!("{who} does not end"), format!("{done:?}"))),
    }
}

/// Ends a process that is not of the image.
fn end(hand: Hand) -> Result<(), RestoreError> {
    let tid = hand.tid();
    let _ = kill(Pid::from_raw(tid), Signal::SIGKILL);
    loop {
        match ptrace::wait_for(tid) {
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => {
                return Err(RestoreError::failed("a helper process does not end", errno.desc()));
            }
            Ok(_) => {}
        }
    }
}
