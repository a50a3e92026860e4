//! Keepers of programs that were started later. They are no guests, and nothing of themselves is in an image but
//! their numbers, and what they keep.

use super::{guest_number, stat};
use crate::save::state::{Keeper, Process};
use crate::sentry::{LaterProgram, ProcessInfo};

/// Those of `later` that keep anything. The processes have been captured.
pub(super) fn capture(
    later: &[LaterProgram],
    guests: &[ProcessInfo],
    processes: &[Process],
) -> Vec<Keeper> {
    let keeper = |one: &LaterProgram| {
        let number = guest_number(one.keeper)?;
        processes.iter().find(|it| it.parent == number)?;
        let is_program = |it: &&ProcessInfo| Some(it.pid) == one.program;
        let program = guests.iter().find(is_program).map_or(0, |it| it.guest_pid);
        Some(Keeper {
            number,
            program,
            path: one.path.clone(),
            container: one.container.clone(),
            opens_container: one.opens_container,
            hang_up: guests.iter().any(|it| it.guest_session == number && has_terminal(it.pid)),
        })
    };
    later.iter().filter_map(keeper).collect()
}

/// Whether its session has a controlling terminal that has not hung up (tty_nr in proc_pid_stat(5)).
fn has_terminal(pid: i32) -> bool {
    stat::read(pid).is_some_and(|it| it.field(7) != 0)
}
