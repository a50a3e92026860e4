//! Whose business among processes it is what they share ([`crate::save::sharing`]).

use super::Plant;
use crate::save::error::RestoreError;
use crate::save::sharing::{Classes, Resource};
use crate::save::state::{Process, Sandbox};

/// What of a process is the business of no other one. The first of those that share a thing looks after it, and is
/// the last to be let go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    /// The address space.
    pub(super) space: bool,
    /// The descriptor table.
    pub(super) table: bool,
    /// What signals do.
    pub(super) handlers: bool,
    /// Its root directory.
    pub(super) directory: bool,
    /// No other one works in its memory, where tables of calls lie in the same place, or with its descriptors.
    pub(super) alone: bool,
}

impl Own {
    pub(super) fn of(process: &Process, sandbox: &Sandbox, classes: &Classes) -> Own {
        let is_first = |what| {
            let class = classes.class(what, process.pid);
            let members = class.and_then(|class| classes.all().get(class)).map(|it| &it.1);
            members.is_none_or(|members| {
                let mut others = sandbox.processes.iter().map(|it| it.pid);
                others.find(|it| members.contains(it)) == Some(process.pid)
            })
        };
        Own {
            space: is_first(Resource::Memory),
            table: is_first(Resource::Descriptors),
            handlers: is_first(Resource::Handlers),
            directory: is_first(Resource::Directory),
            alone: [Resource::Memory, Resource::Descriptors]
                .into_iter()
                .all(|what| classes.class(what, process.pid).is_none()),
        }
    }
}

/// The places, among the threads beside the first, of those whose directories are no business of a process or of another
/// thread.
pub(super) fn with_own_directory(
    process: &Process,
    sandbox: &Sandbox,
    classes: &Classes,
) -> Vec<usize> {
    let is_own = |tid: i32| {
        let class = classes.class(Resource::Directory, tid);
        let Some((_, members)) = class.and_then(|class| classes.all().get(class)) else {
            return true;
        };
        let with_process = sandbox.processes.iter().any(|it| members.contains(&it.pid));
        !with_process && members.iter().min() == Some(&tid)
    };
    let apart = process.apart().filter(|(.., apart)| apart.place.is_some());
    apart.filter(|(_, tid, _)| is_own(*tid)).map(|(at, ..)| at).collect()
}

impl Plant<'_> {
    /// What it has been told is over before another one in the same memory, or with the same descriptors, is told
    /// anything.
    pub(super) fn take_turns(&mut self) -> Result<(), RestoreError> {
        match self.own.alone {
            true => Ok(()),
            false => self.hand.rest().map_err(RestoreError::of(&self.who)),
        }
    }
}
