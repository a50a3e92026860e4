//! Processes that are to be told when a POSIX message queue gets a message (mq_notify(3)).
//!
//! The queue's file says who and by which signal, but not what the signal carries (mqueue_read_file in
//! ipc/mqueue.c). So it is let come true: the queue is emptied and gets a message, the process's hand takes the
//! signal, and registers the process again as it was. What had been in the queue is put back before that, since
//! the first message ends the registration (__do_notify). Whoever is told by a thread (SIGEV_THREAD) is told
//! through a socket of the C library, by words that only it knows: that is refused.

use serde_bytes::ByteBuf;

use super::ipc::{self, Noticed};
use super::{Found, filters, instruction_of, lend};
use crate::notify::Gate;
use crate::save::error::SaveError;
use crate::save::hand::Hand;
use crate::save::ipc::Notice;
use crate::save::state::{FileKind, Process};
use crate::sentry::{ProcessInfo, Tracees};
use crate::sys::message_queue;

/// Completes the queues of which somebody is notified.
pub fn capture(
    tracees: &mut Tracees,
    gate: &Gate,
    guests: &[ProcessInfo],
    all: Vec<Noticed>,
    found: &mut Found,
) -> Result<(), SaveError> {
    for noticed in all {
        let refused = || refuse(&noticed, "in a way that nobody can ask for");
        let guest = guests.iter().find(|it| it.pid == noticed.pid && it.state != 'Z');
        let guest = guest.ok_or_else(refused)?;
        let process = found.processes.iter().find(|it| it.pid == guest.guest_pid);
        let process = process.ok_or_else(refused)?;
        let name = &found.ipc.queues[noticed.queue].name;
        let descriptor = descriptor_of(process, name, found).ok_or_else(refused)?;
        let programs = filters::programs(process);
        let who = guest.words();
        let instruction = instruction_of(guest.pid, &who)?;
        let (mut borrowed, _) = lend(tracees, gate, (guest.pid, &who), None, instruction)?;
        borrowed.hand.respect(programs);
        let mut messages = Vec::new();
        let value = ask(&mut borrowed.hand, &noticed, descriptor, &mut messages);
        tracees.put(borrowed.end().map_err(SaveError::of(&who))?);
        let queue = &mut found.ipc.queues[noticed.queue];
        queue.messages = messages;
        let Noticed { notify, signal, .. } = noticed;
        queue.notice = Some(Notice { pid: guest.guest_pid, notify, signal, value: value? });
    }
    Ok(())
}

fn refuse(noticed: &Noticed, why: &str) -> SaveError {
    SaveError::refused(format!(
        "{} has a process that waits to be notified (mq_notify) {why}, which cannot be saved; let it \
         withdraw that first",
        noticed.show
    ))
}

/// A descriptor of the queue. (Who closes one is not notified any more, mqueue_flush_file in ipc/mqueue.c, so
/// no other can be opened for this.)
fn descriptor_of(process: &Process, name: &[u8], found: &Found) -> Option<i32> {
    let table = found.tables.get(process.table? as usize)?;
    let mut all = table.descriptors.iter();
    let is_of = |kind: &FileKind| matches!(kind, FileKind::MessageQueue(it) if it == name);
    all.find(|it| is_of(&found.collector.files[it.file as usize].kind)).map(|it| it.fd)
}

/// What the signal carries. Takes the messages down as well. The hand is the process's first thread's.
fn ask(
    hand: &mut Hand,
    noticed: &Noticed,
    descriptor: i32,
    messages: &mut Vec<(u32, ByteBuf)>,
) -> Result<u64, SaveError> {
    let Noticed { file, notify, signal, show, .. } = noticed;
    let failed = || SaveError::of(show);
    let is_told = match *notify {
        // (Without a signal nobody is told.)
        libc::SIGEV_SIGNAL => *signal != 0,
        libc::SIGEV_NONE => false,
        _ => return Err(refuse(noticed, "by a thread (SIGEV_THREAD)")),
    };
    let mut taking = hand.table();
    let set = taking.data(&(1u64 << ((*signal as u32).wrapping_sub(1) % 64)).to_ne_bytes());
    let (information, no_time) = (taking.room(128), taking.room(16));
    let arguments = [set.address, information.address, no_time.address, 8];
    taking.attempt(libc::SYS_rt_sigtimedwait, arguments);
    if is_told {
        let number = |it: &libc::siginfo_t| it.si_signo == *signal;
        let stopped = hand.stopped().map_err(failed())?;
        let waits = [true, false].map(|shared| stopped.pending_signals(shared));
        if waits.iter().any(|it| it.as_ref().map_or(true, |all| all.iter().any(number))) {
            return Err(SaveError::passing(format!(
                "{show} notifies a process (mq_notify) by the signal {signal}, of which one waits \
                 already, which cannot be saved; have it take that first"
            )));
        }
        // (Sent to find out, SIGCONT would let a stopped process go on: prepare_signal in kernel/signal.c.)
        const ACTS: [i32; 6] = [
            libc::SIGKILL,
            libc::SIGSTOP,
            libc::SIGCONT,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
        ];
        if ACTS.contains(signal) {
            return Err(refuse(noticed, "by a signal that kills, stops or continues it"));
        }
    }
    if !hand.may_run(&taking) || !hand.may_run(&registering(hand, noticed, descriptor, 0)) {
        return Err(refuse(noticed, "with a seccomp filter of its own that forbids to ask for it"));
    }
    let own = |errno: nix::errno::Errno| SaveError::failed(show, errno.desc());
    let taken = ipc::drain(file, messages);
    let told = match (is_told, &taken) {
        (true, Ok(())) => tell(file),
        _ => Ok(()),
    };
    ipc::fill(file, messages).and(taken).and(told).map_err(own)?;
    let value = match is_told {
        true => {
            let done = hand.run(&taking).map_err(failed())?;
            let code = done.half(information, 2) as i32;
            // SI_MESGQ (sigaction(2)). Where there is no memory for a signal it carries nothing.
            if code != -3 {
                return Err(SaveError::failed(show, "what notifies its process is not told"));
            }
            done.word(information, 3)
        }
        false => 0,
    };
    if is_told || !messages.is_empty() {
        hand.run(&registering(hand, noticed, descriptor, value)).map_err(failed())?;
    }
    Ok(value)
}

/// A message comes into the empty queue, and goes.
fn tell(file: &std::fs::File) -> Result<(), nix::errno::Errno> {
    message_queue::send(std::os::fd::AsFd::as_fd(file), b"", 0)?;
    ipc::drain(file, &mut Vec::new())
}

/// Registers the process as it was.
fn registering(
    hand: &Hand,
    noticed: &Noticed,
    descriptor: i32,
    value: u64,
) -> crate::sys::agent::Table {
    let mut table = hand.table();
    let notice = Notice { pid: 0, notify: noticed.notify, signal: noticed.signal, value };
    let event = table.data(&notice.event());
    table.call(libc::SYS_mq_notify, [descriptor as u64, event.address]);
    table
}
