//! A process gets its descriptor table.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::save::error::RestoreError;
use crate::save::hand::Hand;
use crate::save::restore::courier::Courier;
use crate::save::state::{Descriptor, FileKind, Sandbox, Table};
use crate::sys::agent;
use crate::sys::descriptors::range_lock_bytes;

/// Descriptors that are sent at once.
const AT_ONCE: usize = 128;

/// Gives a process its descriptors. Nobody else works with the same ones meanwhile. `hard`: the hard limit on numbers
/// ([`hard_limit`]). Gives the number of the courier's end, which is the last one to be closed ([`close_courier`]).
pub fn install_table(
    hand: &mut Hand,
    courier: &Courier,
    table: &Table,
    (files, hard): (&[Option<OwnedFd>], u64),
    who: &str,
) -> Result<i32, RestoreError> {
    let wanted = wanted(table);
    let mut calls = hand.table();
    let number = make_room(&mut calls, courier, &wanted, hard)?;
    let failed = || RestoreError::of(format!("{who}: its descriptors"));
    // Those with the highest numbers come first. The lowest free numbers are what is received, so that
    // the Nth of them is never above the Nth of those wanted (all of which are free), and moving them
    // from the last to the first never meets one that was not moved yet.
    let mut all = wanted.rchunks(AT_ONCE);
    let first = all.next().unwrap_or_default();
    if !first.is_empty() {
        // Nothing else is open yet.
        let free: Vec<i32> = (0..).filter(|it| *it != number).take(first.len()).collect();
        courier.put(&sent(first, files)?).map_err(failed())?;
        let receipt = courier.receipt(&mut calls, number, first.len());
        place(&mut calls, &free, first);
        let done = hand.run(&calls).map_err(failed())?;
        if receipt.numbers(&done) != free {
            return Err(RestoreError::refused(format!("{who} cannot be given its descriptors")));
        }
    } else {
        hand.run(&calls).map_err(failed())?;
    }
    for some in all {
        let mut received = courier.send_to(hand, number, &sent(some, files)?).map_err(failed())?;
        received.sort_unstable();
        let mut calls = hand.table();
        place(&mut calls, &received, some);
        hand.run(&calls).map_err(failed())?;
    }
    Ok(number)
}

/// What is to be sent for these.
fn sent<'f>(
    wanted: &[Descriptor],
    files: &'f [Option<OwnedFd>],
) -> Result<Vec<BorrowedFd<'f>>, RestoreError> {
    let file = |it: &Descriptor| {
        let file = files.get(it.file as usize).and_then(Option::as_ref);
        file.map(AsFd::as_fd).ok_or_else(|| {
            RestoreError::refused(format!(
                "the image names an open file ({}) that was not made again",
                it.file
            ))
        })
    };
    wanted.iter().map(file).collect()
}

/// By number.
fn wanted(table: &Table) -> Vec<Descriptor> {
    let mut wanted = table.descriptors.clone();
    wanted.sort_by_key(|it| it.fd);
    wanted
}

/// Closes the courier's end, after which the process has its table and nothing else.
pub fn close_courier(calls: &mut agent::Table, number: i32) {
    calls.call(libc::SYS_close, [number as u64]);
}

/// The hard limit on numbers, which is the same for all new processes.
pub fn hard_limit(hand: &mut Hand) -> Result<u64, RestoreError> {
    let kind = u64::from(libc::RLIMIT_NOFILE);
    let (_, limit) = hand
        .call_with(libc::SYS_prlimit64, &[0; 16], |at| [0, kind, 0, at])
        .map_err(RestoreError::of("cannot give a process its descriptors"))?;
    Ok(limit.last_chunk::<8>().map_or(0, |hard| u64::from_ne_bytes(*hard)))
}

/// Closes everything of a process but the courier's end, and moves that to a number that the table does not
/// use, which it gives. The soft limit on numbers is raised to `hard` for it, and stays there.
fn make_room(
    calls: &mut agent::Table,
    courier: &Courier,
    wanted: &[Descriptor],
    hard: u64,
) -> Result<i32, RestoreError> {
    let from = courier.theirs();
    if wanted.first().is_some_and(|it| it.fd < 0)
        || wanted.windows(2).any(|it| it[0].fd == it[1].fd)
    {
        return Err(RestoreError::refused(
            "the image gives a process two descriptors of one number",
        ));
    }
    let free = |number: i32| wanted.binary_search_by_key(&number, |it| it.fd).is_err();
    let number = if free(from) { from } else { (0..).find(|it| free(*it)).unwrap_or(0) };
    let raised = calls.data(&[hard.to_ne_bytes(), hard.to_ne_bytes()].concat());
    calls.call(libc::SYS_prlimit64, [0, u64::from(libc::RLIMIT_NOFILE), raised.address, 0]);
    if number != from {
        calls.call(libc::SYS_dup3, [from as u64, number as u64, 0]);
    }
    if number > 0 {
        calls.call(libc::SYS_close_range, [0, number as u64 - 1, 0]);
    }
    calls.call(libc::SYS_close_range, [number as u64 + 1, u64::from(u32::MAX), 0]);
    Ok(number)
}

/// Moves what was received to where it is wanted.
fn place(calls: &mut agent::Table, received: &[i32], wanted: &[Descriptor]) {
    for (from, to) in received.iter().zip(wanted).rev() {
        if *from == to.fd {
            if to.close_on_exec {
                let arguments = [*from as u64, libc::F_SETFD as u64, libc::FD_CLOEXEC as u64];
                calls.call(libc::SYS_fcntl, arguments);
            }
            continue;
        }
        let flags = if to.close_on_exec { libc::O_CLOEXEC } else { 0 };
        calls.call(libc::SYS_dup3, [*from as u64, to.fd as u64, flags as u64]);
        calls.call(libc::SYS_close, [*from as u64]);
    }
}

/// Takes the locks that a process holds itself (fcntl(2), F_SETLK), once it has its table. It closes
/// nothing afterwards that is open on a file that it has locked: it would lose them.
pub fn take_locks(
    hand: &mut Hand,
    sandbox: &Sandbox,
    pid: i32,
    table: &Table,
) -> Result<(), RestoreError> {
    for descriptor in &table.descriptors {
        let Some(file) = sandbox.files.get(descriptor.file as usize) else { continue };
        // What takes its place is another file, and may be that of several.
        if matches!(file.kind, FileKind::LaterStream(_)) {
            continue;
        }
        for lock in file.locks.iter().filter(|it| it.pid == pid && pid != 0) {
            let bytes = range_lock_bytes(lock.write, (lock.start, lock.length));
            let arguments = |at| [descriptor.fd as u64, libc::F_SETLK as u64, at];
            hand.call_with(libc::SYS_fcntl, &bytes, arguments).map_err(RestoreError::of(
                format_args!("process {pid} cannot lock {} again", super::describe(file)),
            ))?;
        }
    }
    Ok(())
}
