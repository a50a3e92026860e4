//! Keepers of an image's programs: of those that were started later than the run's own. Child side.
//!
//! Such a keeper has the number that it had, since it leads the session of its program and is the parent of
//! what that leaves behind. It plants what was below it, as init does with the rest ([`super::plant`]), and
//! becomes a keeper as any other when that has grown. Its program's streams are no business of its own.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::init::Fault;
use super::keep::{Keeping, live};
use super::plan::Plan;
use super::plant;
use super::program::Lists;
use super::protocol::Event;
use crate::sys::{files, spawn};

/// What such a keeper begins with.
struct Shelter<'s> {
    plan: &'s Plan,
    /// Its own, to the supervisor.
    socket: BorrowedFd<'s>,
    /// Init's, of which it is a copy.
    not_its_own: RawFd,
}

/// Makes the keeper of this number. `socket` is init's, `theirs` will be the keeper's.
pub(super) fn make(
    plan: &Plan,
    pid: i32,
    socket: BorrowedFd<'_>,
    theirs: BorrowedFd<'_>,
) -> Result<OwnedFd, Errno> {
    // Where standard streams of init's are closed, their numbers are the first that are free.
    let lifted = files::duplicate_above(theirs.as_raw_fd(), 3)?;
    let task = Shelter { plan, socket: lifted.as_fd(), not_its_own: socket.as_raw_fd() };
    spawn::spawn_as(pid, &task, keeper)
}

fn keeper(task: &Shelter<'_>) -> ! {
    live(task.plan, task.socket, &[task.not_its_own], || keep(task))
}

fn keep(task: &Shelter<'_>) -> Result<(), Fault> {
    let Some(grown) = plant::serve(task.plan, task.socket, None)? else { return Ok(()) };
    if grown.hang_up && grown.program > 0 {
        // As it is when whoever held the other end lets go (see `look_around` in keep.rs).
        let _ = spawn::kill(-grown.program, libc::SIGHUP);
        let _ = spawn::kill(-grown.program, libc::SIGCONT);
    }
    match grown.program {
        0 => drop(Event::Started.send(task.socket, &[])),
        program => {
            let keeping = Keeping {
                plan: task.plan,
                program: Lists(&task.plan.lists),
                socket: task.socket,
                terminal: None,
                is_init: false,
                closed: [false; 3],
            };
            keeping.adopt(program)?;
        }
    }
    while spawn::await_end().is_ok() {}
    Ok(())
}
