//! Threads that do not share with the first of their process what threads usually do: a descriptor table, a working
//! directory, adjustments of semaphores of their own ([`crate::save::sharing::Apart`]).
//!
//! They have been made so ([`super::commons`]). A thread that has such a thing together with others that come before it
//! is given it with them.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use super::courier::Courier;
use super::{Plant, adjustments, descriptors, process as whole};
use crate::save::error::RestoreError;
use crate::save::hand::Hand;
use crate::save::sharing::Place;
use crate::save::state::{Process, Sandbox};

fn lost(who: &str) -> RestoreError {
    RestoreError::refused(format!("the image is damaged: {who}: its threads"))
}

/// They enter their working directories.
pub(super) fn enter(others: &mut [Hand], process: &Process, who: &str) -> Result<(), RestoreError> {
    for (at, tid, apart) in process.apart() {
        let Some(Place { directory, umask, .. }) = &apart.place else { continue };
        let hand = others.get_mut(at).ok_or_else(|| lost(who))?;
        let show = String::from_utf8_lossy(directory);
        hand.call_path(libc::SYS_chdir, directory, |path| [path]).map_err(RestoreError::of(
            format!("{who}: thread {tid} cannot enter its working directory {show}"),
        ))?;
        hand.call(libc::SYS_umask, [u64::from(*umask)]).map_err(RestoreError::of(who))?;
    }
    Ok(())
}

/// They get their descriptors, and their locks on them, if no process has the same table. `hard`: see there.
pub(super) fn give_tables(
    sandbox: &Sandbox,
    plants: &mut [Plant<'_>],
    courier: &Courier,
    files: &[Option<OwnedFd>],
    hard: u64,
) -> Result<(), RestoreError> {
    let mut given: HashSet<u32> = plants.iter().filter_map(|it| it.process.table).collect();
    for Plant { process, who, hand, others, couriers, .. } in plants {
        for (at, tid, apart) in process.apart() {
            let Some(index) = apart.table.filter(|it| given.insert(*it)) else { continue };
            let table = sandbox.tables.get(index as usize).ok_or_else(|| lost(who))?;
            hand.rest().map_err(RestoreError::of(&*who))?;
            let hand = others.get_mut(at).ok_or_else(|| lost(who))?;
            // No other one of the process is told anything meanwhile.
            hand.confine(0, 1);
            let number = descriptors::install_table(hand, courier, table, (files, hard), who)?;
            descriptors::take_locks(hand, sandbox, tid, table)?;
            hand.rest().map_err(RestoreError::of(&*who))?;
            couriers.push((at, number));
        }
    }
    Ok(())
}

/// Closes the courier's ends in those tables.
pub(super) fn close_couriers(
    others: &mut [Hand],
    couriers: &[(usize, i32)],
    who: &str,
) -> Result<(), RestoreError> {
    for (at, number) in couriers {
        let hand = others.get_mut(*at).ok_or_else(|| lost(who))?;
        let mut table = hand.table();
        descriptors::close_courier(&mut table, *number);
        hand.run(&table).map_err(RestoreError::of(who))?;
    }
    Ok(())
}

/// Those at these places among them get root directories that nobody else gives them.
pub(super) fn change_roots(
    others: &mut [Hand],
    places: &[usize],
    process: &Process,
    who: &str,
) -> Result<(), RestoreError> {
    for (at, _, apart) in process.apart().filter(|it| places.contains(&it.0)) {
        let root = apart.place.as_ref().and_then(|place| place.root.as_ref());
        let Some(root) = root else { continue };
        whole::change_root(others.get_mut(at).ok_or_else(|| lost(who))?, root, who)?;
    }
    Ok(())
}

/// They get their adjustments.
pub(super) fn adjust(
    others: &mut [Hand],
    sandbox: &Sandbox,
    process: &Process,
    who: &str,
) -> Result<(), RestoreError> {
    for (at, tid, _) in process.apart().filter(|it| it.2.adjustments) {
        let hand = others.get_mut(at).ok_or_else(|| lost(who))?;
        adjustments::make(hand, sandbox, tid, who)?;
    }
    Ok(())
}
