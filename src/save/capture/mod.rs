//! Taking what an image knows from stopped guests.
//!
//! [`sandbox`] goes through the processes, and calls one file for each kind of state. All of it runs on
//! the thread that holds the guests ([`crate::sentry::Tracees`]), while none of them runs.

use std::collections::HashSet;
use std::sync::Arc;

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use serde_bytes::ByteBuf;

use crate::notify::Gate;
use crate::save::content;
use crate::save::error::SaveError;
use crate::save::hand::{Area, Borrowed, SLOTS};
use crate::save::pipeline::Facts;
use crate::save::sharing::{Resource, Sharing};
use crate::save::state::{Clocks, Keeper, Process, Table, Thread};
use crate::sentry::{Carried, LaterProgram, ProcessInfo, Tracees, Used};
use crate::sys::agent::Data;
use crate::sys::errno_of;
use crate::sys::ptrace::{Stop, signal_bytes};

pub mod adjustments;
mod apart;
pub mod believed;
mod clock_readers;
pub mod collector;
pub mod descriptors;
pub mod filters;
pub mod flush;
pub mod instruction;
pub mod ipc;
mod keepers;
pub mod kin;
pub mod known;
pub mod layers;
pub mod maps;
pub mod memory;
pub mod notices;
pub mod overruns;
pub mod process;
pub mod ptys;
mod roots;
pub mod shared;
pub mod snapshot;
pub mod sockets;
mod stale;
pub mod stat;
pub mod status;
pub mod threads;
pub mod timers;
pub mod trees;
pub mod waits;
pub mod zeros;

use collector::{Collector, Subject};
pub use descriptors::Streams;
use filters::Filters;
pub(in crate::save) use instruction::instruction_of;
use snapshot::{Copied, Live};
use sockets::Around;
use status::Status;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The processes, a parent before its children.
    pub processes: Vec<Process>,
    /// Address spaces.
    pub spaces: Vec<crate::save::state::Space>,
    /// Descriptor tables.
    pub tables: Vec<Table>,
    /// The guest's clocks.
    pub clocks: Clocks,
    /// Content of file systems in memory.
    pub trees: Vec<crate::save::state::Tree>,
    /// The run's overlays.
    pub overlay: Option<crate::save::state::Overlay>,
    /// System V and POSIX IPC.
    pub ipc: crate::save::ipc::Ipc,
    /// Whether there is anything of System V, as soon as somebody could be asked.
    system_v: Option<bool>,
    /// Everything shared, and where content is.
    pub collector: Collector,
    /// Programs that were started later, as the sentry knows them.
    pub later: Vec<LaterProgram>,
    /// Their keepers, as an image knows them.
    pub keepers: Vec<Keeper>,
    /// What processes and threads share.
    pub kin: kin::Kin,
    /// The same, as an image knows it.
    pub sharing: Vec<Sharing>,
    /// What was known before they were stopped.
    earlier: Earlier,
    /// Processes that have stopped without their parent having been told.
    unheard: HashSet<i32>,
    /// Bytes of small processes, which are read at once.
    read: u64,
    /// Copies that were made of processes, which are to go on before their pages are read.
    pub copies: Vec<Copied>,
}

/// What was known of the guests before they were stopped.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Threads that slept.
    pub asleep: waits::Asleep,
    /// CPU time that they had used before they were restored, if they were.
    pub carried: Arc<Carried>,
    /// CPU time of all of them, those that have ended included; microseconds.
    pub cpu_us: u64,
}

impl Found {
    /// Nothing yet.
    pub fn new(earlier: Earlier, around: Around) -> Found {
        let mut found = Found { earlier, ..Found::default() };
        found.collector.sockets.around = around;
        found
    }

    /// Whether a process with so much memory of its own is read sooner than copied, and is read at once.
    fn is_small(&mut self, memory: Option<u64>) -> bool {
        /// To make a copy takes some fifteen times as long as to read so much of it at most.
        const SMALL: u64 = 256 << 10;
        /// All that is read so takes room until it is written.
        const MOST: u64 = 64 << 20;
        let Some(memory) = memory.filter(|it| *it <= SMALL && self.read + it <= MOST) else {
            return false;
        };
        self.read += memory;
        true
    }
}

/// Goes through all guests, which are stopped, and adds to `found`. `live`: they are to go on before their
/// memory is read.
pub fn sandbox(
    tracees: &mut Tracees,
    filters: Filters<'_>,
    guests: &[ProcessInfo],
    facts: &Facts,
    live: Option<&Live>,
    found: &mut Found,
) -> Result<(), SaveError> {
    let done = all_of(tracees, filters, guests, facts, live, found);
    filters.gate.pass_no_more();
    done
}

fn all_of(
    tracees: &mut Tracees,
    filters: Filters<'_>,
    guests: &[ProcessInfo],
    facts: &Facts,
    live: Option<&Live>,
    found: &mut Found,
) -> Result<(), SaveError> {
    let Some(any) = guests.iter().find(|guest| guest.state != 'Z') else {
        return Err(SaveError::refused("nothing runs in it any more"));
    };
    clock_readers::finish(tracees, filters, guests)?;
    found.kin = kin::Kin::find(guests)?;
    let mut streams = facts.streams(&found.collector.known.view_of(any.pid))?;
    streams.later = found.later.iter().flat_map(LaterProgram::given).collect();
    if let Some(saver) = &facts.overlay {
        // The first, so that whoever restores has it before anything else is made.
        found.overlay = Some(layers::capture(any.pid, saver, &mut found.collector)?);
    }
    let in_layers = found.collector.contents.len();
    for guest in ordered(guests) {
        let mut process = process_of(tracees, filters, (guest, guests), &streams, live, found)?;
        process.stop_unheard = found.unheard.contains(&process.pid);
        found.processes.push(process);
    }
    found.keepers = keepers::capture(&found.later, guests, &found.processes);
    found.sharing = found.kin.sharing()?;
    apart::can_share_again(found)?;
    shared::finish(&mut found.collector, &mut found.spaces);
    found.trees = trees::capture(any.pid, &facts.trees, &mut found.collector)?;
    // Rather by one who may call what it likes.
    let programs = |guest: &ProcessInfo| {
        let process = found.processes.iter().find(|it| it.pid == guest.guest_pid);
        process.map(filters::programs).unwrap_or_default()
    };
    let living = guests.iter().filter(|guest| guest.state != 'Z');
    let any = living.min_by_key(|guest| programs(guest).len()).unwrap_or(any);
    let theirs = programs(any);
    let noticed = ipc_of(tracees, filters.gate, (any, theirs), found)?;
    adjustments::capture(tracees, filters.gate, guests, found)?;
    notices::capture(tracees, filters.gate, guests, noticed, found)?;
    descriptors::finish(&mut found.collector)?;
    // The last that asks guests, since it takes out what waits in them and puts it back.
    ptys::finish(&mut found.collector)?;
    match &facts.overlay {
        Some(saver) if live.is_some() => {
            layers::copy(saver, &mut found.collector.contents[..in_layers])
        }
        _ => Ok(()),
    }
}

/// What no process holds: asked for by one of them, if there is anything. Gives queues that are not complete yet.
fn ipc_of(
    tracees: &mut Tracees,
    gate: &Gate,
    (guest, programs): (&ProcessInfo, Vec<Vec<u8>>),
    found: &mut Found,
) -> Result<Vec<ipc::Noticed>, SaveError> {
    if found.system_v == Some(false) {
        let view = found.collector.known.view_of(guest.pid);
        let (ipc, noticed) = ipc::capture_queues((guest.pid, &view))?;
        found.ipc = ipc;
        return Ok(noticed);
    }
    let who = guest.words();
    let instruction = instruction_of(guest.pid, &who)?;
    let (mut borrowed, _) = lend(tracees, gate, (guest.pid, &who), None, instruction)?;
    borrowed.hand.respect(programs);
    let mut subject = Subject::new(guest.pid, guest.guest_pid, &mut borrowed.hand);
    let captured = ipc::capture(&mut subject, &mut found.collector);
    tracees.put(borrowed.end().map_err(SaveError::of(&who))?);
    let (ipc, noticed) = captured?;
    found.ipc = ipc;
    Ok(noticed)
}

/// Parents before their children. (A parent may have a higher number than its child.)
fn ordered(guests: &[ProcessInfo]) -> Vec<&ProcessInfo> {
    let mut left: Vec<&ProcessInfo> = guests.iter().collect();
    left.sort_by_key(|guest| (guest.started_us, guest.guest_pid));
    let mut ordered: Vec<&ProcessInfo> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let waits = |guest: &&ProcessInfo| {
            left.iter().any(|it| it.guest_pid == guest.guest_parent && !std::ptr::eq(*it, *guest))
        };
        let (later, now): (Vec<_>, Vec<_>) = left.iter().copied().partition(waits);
        // (No circle: a chain of parents ends at init. But what is read is not trusted.)
        if now.is_empty() {
            ordered.extend(later);
            break;
        }
        ordered.extend(now);
        left = later;
    }
    ordered
}

fn process_of(
    tracees: &mut Tracees,
    filters: Filters<'_>,
    (guest, guests): (&ProcessInfo, &[ProcessInfo]),
    streams: &Streams,
    live: Option<&Live>,
    found: &mut Found,
) -> Result<Process, SaveError> {
    let who = guest.words();
    let fields = stat::read(guest.pid)
        .ok_or_else(|| SaveError::failed(&who, "it ended while it was saved"))?;
    let mut process = blank(guest, &fields);
    let carried = Arc::clone(&found.earlier.carried);
    let before_restore = || [carried.own(guest.pid), carried.children(guest.pid)];
    if fields.state() == b'Z' {
        process.zombie = Some(fields.signed(52) as i32);
        add_before(&mut process.cpu_us, &before_restore());
        return Ok(process);
    }
    let tids = numbers_of(guest.pid)
        .map_err(|error| SaveError::failed(format!("{who}: its threads"), error.desc()))?;
    let ended = || SaveError::failed(&who, "it ended while it was saved");
    let instruction = instruction_of(guest.pid, &who)?;
    let mut alive = tids.iter().filter_map(|tid| {
        let status = Status::read(*tid)?;
        status.is_alive().then_some((*tid, status.filters))
    });
    let (first, count) = alive.next().ok_or_else(ended)?;
    drop(alive);
    filters::capture(filters, (count, &tids), &who, &mut process)?;
    let others: Vec<i32> = tids.iter().copied().filter(|tid| *tid != first).collect();
    let programs = filters::programs(&process);
    let goes_on = live.is_some();
    let whose = Whose { filters, who: &who, instruction, programs, count, goes_on };
    let (mut borrowed, area) = whose.lend(tracees, first, None)?;
    let before = Before { gate: filters.gate, guest, guests, streams, live };
    let done = leader(&before, &mut borrowed, &mut process, found).and_then(|()| {
        let told = (&mut process, &found.collector);
        let asked = threads::ask(&who, &mut borrowed)?;
        let (thread, why) = whose.hear(&mut borrowed, asked, true, told)?;
        let mut threads = vec![(first, thread, why)];
        let told = (&mut process, &found.collector);
        threads.extend(whose.threads(tracees, &others, area, told)?);
        for tid in found.kin.apart_of(&tids) {
            let apart = whose.apart(tracees, (tid, guest.pid), area, streams, found)?;
            if let Some((_, thread, _)) = threads.iter_mut().find(|(it, ..)| *it == tid) {
                thread.apart = Some(apart);
            }
        }
        Ok(threads)
    });
    // The first one takes the agent out again, whatever came of it.
    tracees.put(borrowed.end().map_err(SaveError::of(&who))?);
    for (tid, mut thread, why) in done? {
        waits::settle(&found.earlier.asleep, tid, &mut thread);
        add_before(&mut thread.cpu_us, &[carried.thread(tid)]);
        process.threads.push(thread);
        if let Stop::Group(signal) = why {
            process.stopped = process.stopped.or(Some(signal));
        }
    }
    add_before(&mut process.cpu_us, &before_restore());
    Ok(process)
}

/// A process whose threads are captured.
struct Whose<'w> {
    filters: Filters<'w>,
    who: &'w str,
    /// A `syscall` instruction of its own.
    instruction: u64,
    /// Its own seccomp filters.
    programs: Vec<Vec<u8>>,
    /// How many filters its first thread has.
    count: usize,
    /// It goes on after the save.
    goes_on: bool,
}

/// What a thread may tell more of: its process, and the collector, which knows the moment of the save.
type About<'a> = (&'a mut Process, &'a Collector);

/// A captured thread: its number for the host, and why it had stopped.
type Captured = (i32, Thread, Stop);

impl Whose<'_> {
    fn lend(
        &self,
        tracees: &mut Tracees,
        tid: i32,
        area: Option<(Area, Status)>,
    ) -> Result<(Borrowed, Area), SaveError> {
        let (mut borrowed, area) =
            lend(tracees, self.filters.gate, (tid, self.who), area, self.instruction)?;
        borrowed.hand.respect(self.programs.clone());
        Ok((borrowed, area))
    }

    /// Captures threads of the process, in which the agent lies, and why each had stopped. Some at a time: while
    /// one makes its calls, the next is told of its own.
    fn threads(
        &self,
        tracees: &mut Tracees,
        tids: &[i32],
        area: Area,
        (process, collector): About<'_>,
    ) -> Result<Vec<Captured>, SaveError> {
        let mut threads = Vec::with_capacity(tids.len());
        for some in tids.chunks(SLOTS) {
            let mut lent = Vec::with_capacity(SLOTS);
            let about = (&mut *process, collector);
            let done = self.side_by_side(tracees, (some, area), &mut lent, about);
            // Each is given back whatever came of it.
            let mut lost = None;
            for borrowed in lent {
                match borrowed.leave() {
                    Ok(stopped) => tracees.put(stopped),
                    Err(error) => lost = Some(error),
                }
            }
            if let Some(error) = lost {
                return Err(SaveError::of(self.who)(error));
            }
            threads.extend(done?);
        }
        Ok(threads)
    }

    /// Likewise, of no more than [`SLOTS`]. What it borrows is in `lent`.
    fn side_by_side(
        &self,
        tracees: &mut Tracees,
        (tids, area): (&[i32], Area),
        lent: &mut Vec<Borrowed>,
        (process, collector): About<'_>,
    ) -> Result<Vec<Captured>, SaveError> {
        let mut all = Vec::with_capacity(tids.len());
        for (slot, tid) in tids.iter().enumerate() {
            let Some(status) = Status::read(*tid).filter(Status::is_alive) else { continue };
            if status.filters != self.count {
                return Err(filters::differ(self.who));
            }
            lent.push(self.lend(tracees, *tid, Some((area, status)))?.0);
            if let Some(borrowed) = lent.last_mut() {
                borrowed.hand.confine(slot, SLOTS);
                all.push(threads::ask(self.who, borrowed)?);
            }
        }
        let hear = |(borrowed, asked): (&mut Borrowed, _)| {
            let tid = borrowed.hand.tid();
            let (thread, why) = self.hear(borrowed, asked, false, (&mut *process, collector))?;
            Ok((tid, thread, why))
        };
        lent.iter_mut().zip(all).map(hear).collect()
    }

    /// What a thread says that has been asked, and why it had stopped.
    fn hear(
        &self,
        borrowed: &mut Borrowed,
        asked: threads::Asked,
        leader: bool,
        (process, collector): About<'_>,
    ) -> Result<(Thread, Stop), SaveError> {
        let mut thread = threads::hear(self.who, borrowed, asked)?;
        // (What it was about to get is no signal that waits, nor is what the hand has taken away.)
        let taken = usize::from(borrowed.signal().is_some()) + borrowed.traps().of_thread.len();
        let told = overruns::Told { leader, taken, goes_on: self.goes_on };
        overruns::capture(&mut borrowed.hand, &told, process, &mut thread, collector)
            .map_err(SaveError::of(self.who))?;
        Ok((thread, borrowed.why()))
    }
}

/// Borrows the hand of a held thread: its number, and of whom it is. Where that cannot be it stays held, as
/// it was. `area`: where the agent lies in its process already, and what is known of the thread since it has
/// stopped.
pub(in crate::save) fn lend(
    tracees: &mut Tracees,
    gate: &Gate,
    (tid, who): (i32, &str),
    area: Option<(Area, Status)>,
    instruction: u64,
) -> Result<(Borrowed, Area), SaveError> {
    let stopped = tracees.take(tid).ok_or_else(|| not_held(who, tid))?;
    gate.pass(tid);
    let borrowed = match area {
        Some((area, status)) => {
            Borrowed::join(stopped, area, status).map(|borrowed| (borrowed, area))
        }
        None => Borrowed::begin(stopped, instruction),
    };
    borrowed.map_err(|(error, stopped)| {
        stopped.into_iter().for_each(|it| tracees.put(it));
        SaveError::of(who)(error)
    })
}

/// What is known before the first thread is asked.
struct Before<'b> {
    gate: &'b Gate,
    guest: &'b ProcessInfo,
    guests: &'b [ProcessInfo],
    streams: &'b Streams,
    live: Option<&'b Live>,
}

/// What belongs to the process as a whole, by its first thread.
fn leader(
    before: &Before<'_>,
    borrowed: &mut Borrowed,
    process: &mut Process,
    found: &mut Found,
) -> Result<(), SaveError> {
    let Before { gate, guest, guests, streams, live } = *before;
    let memory = borrowed.status().memory;
    let (action, waited) = (borrowed.traps().action, signals(&borrowed.traps().of_process));
    let mut subject = Subject::new(guest.pid, guest.guest_pid, &mut borrowed.hand);
    if found.clocks == Clocks::default() {
        found.clocks = clocks(&mut subject)?;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok();
        found.collector.moment = now.map(|now| now.tv_sec() * 1_000_000_000 + now.tv_nsec());
    }
    if found.system_v.is_none() && process.filters.is_empty() {
        found.system_v = Some(ipc::is_any(&mut subject)?);
    }
    process::capture(&mut subject, process)?;
    process.root = roots::of(subject.hand.tid(), &found.collector.known, &subject.to_string())?;
    // The hand has taken these away.
    process.pending.extend(waited);
    if let Some(action) = action {
        process.actions[libc::SIGTRAP as usize - 1] = action;
    }
    timers::set_back(process, &found.collector);
    let children = guests.iter().filter(|it| it.guest_parent == guest.guest_pid);
    let children: Vec<i32> = children.map(|it| it.guest_pid).collect();
    found.unheard.extend(process::unheard_stops(&mut subject, &children)?);
    process.table = Some(apart::table_of(&mut subject, streams, found)?);
    let tid = subject.hand.tid();
    if let Some(space) = found.kin.captured(Resource::Memory, tid) {
        process.space = Some(space);
        return Ok(());
    }
    let is_small = live.is_some() && found.is_small(memory);
    let copied = match live {
        Some(live) if !is_small => live.copy(&mut subject, gate, process, found)?,
        _ => None,
    };
    let from = found.collector.contents.len();
    let space = memory::capture(&mut subject, live.zip(copied), &mut found.collector)?;
    if is_small {
        content::read_pages(&mut found.collector.contents[from..])?;
    }
    let index = found.spaces.len() as u32;
    process.space = Some(index);
    found.kin.captured_as(Resource::Memory, tid, index);
    found.spaces.push(space);
    Ok(())
}

fn clocks(subject: &mut Subject<'_>) -> Result<Clocks, SaveError> {
    let who = subject.to_string();
    let mut table = subject.hand.table();
    let mut ask = |clock: i32| -> Data {
        let time = table.room(16);
        table.call(libc::SYS_clock_gettime, [clock as u64, time.address]);
        time
    };
    let asked = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_REALTIME].map(&mut ask);
    let done = subject.hand.run(&table).map_err(SaveError::of(who))?;
    let [monotonic, boottime, realtime] =
        asked.map(|it| done.word(it, 0) as i64 * 1_000_000_000 + done.word(it, 1) as i64);
    Ok(Clocks { monotonic, boottime, realtime })
}

fn blank(guest: &ProcessInfo, fields: &stat::Fields) -> Process {
    /// Microseconds in a clock tick of user space (USER_HZ is 100).
    const TICK: u64 = 10_000;
    Process {
        pid: guest.guest_pid,
        parent: guest.guest_parent,
        group: guest.guest_group,
        session: guest.guest_session,
        exit_signal: fields.signed(38) as i32,
        cpu_us: [14, 15, 16, 17].map(|field| fields.field(field) * TICK),
        container: guest.container.clone(),
        ..Process::default()
    }
}

/// Adds what was used before a restore, from which on the kernel counts.
fn add_before(used: &mut [u64], before: &[Used]) {
    let before = before.iter().flat_map(|it| [it.user, it.system]);
    for (used, before) in used.iter_mut().zip(before) {
        *used = used.saturating_add(before);
    }
}

/// Signals as an image knows them.
fn signals(all: &[libc::siginfo_t]) -> Vec<ByteBuf> {
    all.iter().map(|it| ByteBuf::from(signal_bytes(it))).collect()
}

/// Mostly this is a thread that is just ending: the next attempt does not meet it any more.
fn not_held(who: &str, tid: i32) -> SaveError {
    SaveError::passing(format!(
        "{who}: thread {tid} does not stand still (it waits in vfork(2), or another guest debugs it); \
         try again later"
    ))
}

/// The threads of a process that live, its leader first.
pub(in crate::save) fn threads_of(pid: i32) -> Result<Vec<i32>, Errno> {
    let mut all = numbers_of(pid)?;
    let has_ended = |it: stat::Fields| matches!(it.state(), b'Z' | b'X');
    all.retain(|tid| !stat::read_thread(pid, *tid).is_none_or(has_ended));
    Ok(all)
}

/// The same with those that have ended.
pub(in crate::save) fn numbers_of(pid: i32) -> Result<Vec<i32>, Errno> {
    let directory =
        std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| errno_of(&error))?;
    let mut all: Vec<i32> =
        directory.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    all.sort_by_key(|tid| (*tid != pid, *tid));
    Ok(all)
}

/// The number of a thread as the guest knows it.
fn guest_number(tid: i32) -> Option<i32> {
    Status::read(tid).map(|status| status.thread)
}
