//! Planting: the processes of an image begin as seeds, which init makes. Child side.
//!
//! A seed (`save::restore::seed`) is executed with all capabilities that init still has, so that it can
//! make processes and threads of given numbers; it gives them up before it is whole. What it grows into
//! is the supervisor's business. The keepers of programs that were started later plant as init does
//! ([`super::shelter`]).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::init::{At, Fault};
use super::plan::Plan;
use super::protocol::{Event, Order, Stage};
use super::shelter;
use crate::sys::landlock::Ruleset;
use crate::sys::{files, spawn};

/// The first descriptor of a seed beside the standard streams: what came with the order.
pub const FIRST: RawFd = 3;

/// What a seed's process needs between its clone and its exec.
struct Seed<'s> {
    seed: BorrowedFd<'s>,
    first: BorrowedFd<'s>,
    /// Says why it could not be executed; closes by itself when it could.
    report: BorrowedFd<'s>,
    /// It is root inside: an exec gives it all that may be inherited (cap_bprm_creds_from_file in security/commoncap.c), and
    /// calls about capabilities are the sentry's to answer.
    is_root: bool,
}

/// What was planted has grown.
pub(super) struct Grown {
    /// The number of the program to be kept; 0: there is none.
    pub(super) program: i32,
    /// It is to hear that its terminal is gone.
    pub(super) hang_up: bool,
}

/// Plants until it is told which of them to keep; `None`: the supervisor is gone. `wall`: that for files, which what is
/// planted first does without.
pub(super) fn serve(
    plan: &Plan,
    socket: BorrowedFd<'_>,
    mut wall: Option<Ruleset>,
) -> Result<Option<Grown>, Fault> {
    loop {
        match Order::receive(socket) {
            Ok((Order::Plant(pid), [Some(first), ..])) => {
                let pidfd = plant(plan, pid, first.as_fd()).at_index(Stage::Seed, pid as usize)?;
                let _ = Event::Planted.send(socket, &[pidfd.as_fd()]);
            }
            Ok((Order::Shelter(pid), [Some(theirs), ..])) => {
                let pidfd = shelter::make(plan, pid, socket, theirs.as_fd());
                let pidfd = pidfd.at_index(Stage::Seed, pid as usize)?;
                let _ = Event::Planted.send(socket, &[pidfd.as_fd()]);
            }
            Ok((Order::Confine, _)) => {
                wall.take().map_or(Ok(()), Ruleset::restrict).at(Stage::Identity)?;
                let _ = Event::Confined.send(socket, &[]);
            }
            Ok((Order::Adopt { program, hang_up }, _)) => {
                if wall.is_some() {
                    return Err(Errno::EPROTO).at(Stage::Identity);
                }
                spawn::limit_capabilities(plan.capabilities).at(Stage::Identity)?;
                return Ok(Some(Grown { program, hang_up }));
            }
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
    }
}

fn plant(plan: &Plan, pid: i32, first: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let seed = plan.seed.as_ref().ok_or(Errno::EINVAL)?;
    let (result, report) = files::pipe()?;
    let is_root = plan.capabilities != 0;
    let task = Seed { seed: seed.as_fd(), first, report: report.as_fd(), is_root };
    let pidfd = spawn::spawn_as(pid, &task, become_seed)?;
    drop(report);
    let mut failure = [0; 4];
    match files::read_once(result.as_fd(), &mut failure)? {
        0 => Ok(pidfd),
        _ => Err(Errno::from_raw(i32::from_ne_bytes(failure))),
    }
}

fn become_seed(task: &Seed<'_>) -> ! {
    let Err(errno) = execute(task);
    let _ = files::write_whole(task.report, &(errno as i32).to_ne_bytes());
    spawn::exit_now(127)
}

fn execute(task: &Seed<'_>) -> Result<std::convert::Infallible, Errno> {
    if !task.is_root {
        spawn::pass_capabilities_on()?;
    }
    // The first descriptor must not be one that is still needed.
    let seed = files::duplicate_above(task.seed.as_raw_fd(), FIRST + 1)?;
    let report = files::duplicate_above(task.report.as_raw_fd(), FIRST + 1)?;
    let first = files::duplicate_above(task.first.as_raw_fd(), FIRST + 1)?;
    files::place(first.as_raw_fd(), FIRST)?;
    let errno = spawn::execute_descriptor(seed.as_fd());
    let _ = files::write_whole(report.as_fd(), &(errno as i32).to_ne_bytes());
    Err(errno)
}
