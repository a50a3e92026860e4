//! Keepers of programs that were started later, made again by init before everything else: what is theirs is
//! planted by them, so that it is in their session and below them.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::config::quoted;
use crate::launch::{self, Planter};
use crate::notify::Gate;
use crate::save::error::RestoreError;
use crate::save::state::{Keeper, Process, Sandbox};
use crate::sentry::Kernel;

/// One in the making.
pub(super) struct Shelter<'s> {
    saved: &'s Keeper,
    /// What plants below it.
    pub(super) planter: Planter,
    /// As the host numbers it, and what stands for it.
    host: i32,
    pidfd: OwnedFd,
}

/// One that keeps a program, or what one has left behind.
#[derive(Debug)]
pub struct Kept {
    /// Speaks to it.
    pub keeper: launch::Keeper,
    /// As the host numbers it.
    pub host: i32,
    /// Stands for it.
    pub pidfd: OwnedFd,
    /// Its program as the host numbers it, if that has not ended.
    pub program: Option<i32>,
    /// What it is to the image.
    pub saved: Keeper,
}

/// Makes all, by number.
pub(super) fn make<'s>(
    planter: &Planter,
    sandbox: &'s Sandbox,
    kernel: &Kernel,
) -> Result<HashMap<i32, Shelter<'s>>, RestoreError> {
    let parents = parents(&sandbox.processes)?;
    check(sandbox, &parents)?;
    let mut all = HashMap::with_capacity(sandbox.keepers.len());
    for saved in &sandbox.keepers {
        let (host, pidfd, planter) =
            planter.shelter(saved.number).map_err(failed(saved, "made"))?;
        kernel.add_keeper(host, &saved.container);
        all.insert(saved.number, Shelter { saved, planter, host, pidfd });
    }
    Ok(all)
}

/// The parent of each process, by number. Each is there once, and after its parent, as whoever plans with them
/// relies on: no chain of parents is a circle.
fn parents(processes: &[Process]) -> Result<HashMap<i32, i32>, RestoreError> {
    let all: HashSet<i32> = processes.iter().map(|it| it.pid).collect();
    let mut parents = HashMap::with_capacity(processes.len());
    for Process { pid, parent, .. } in processes {
        let is_early = all.contains(parent) && !parents.contains_key(parent);
        if *pid <= 1 || is_early || parents.insert(*pid, *parent).is_some() {
            return Err(RestoreError::refused(format!("the image is damaged: process {pid}")));
        }
    }
    Ok(parents)
}

/// Each is nothing else, and its program is its own.
fn check(sandbox: &Sandbox, parents: &HashMap<i32, i32>) -> Result<(), RestoreError> {
    let threads = sandbox.processes.iter().flat_map(|it| &it.threads).map(|thread| thread.tid);
    let mut numbers: HashSet<i32> = parents.keys().copied().chain(threads).collect();
    for keeper in &sandbox.keepers {
        let is_own = |pid: i32| parents.get(&pid) == Some(&keeper.number);
        let is_right = keeper.number > 1
            && numbers.insert(keeper.number)
            && (keeper.program == 0 || is_own(keeper.program))
            && crate::config::check_container(&keeper.container).is_ok();
        if !is_right {
            let number = keeper.number;
            return Err(RestoreError::refused(format!(
                "the image is damaged: what process {number} keeps"
            )));
        }
    }
    Ok(())
}

/// All that they and init have planted has grown: they keep it from here on. They give up capabilities by calls that root's
/// guests have trapped. `hosts`: the numbers of processes for the host, by those for the guest.
pub(super) fn adopt(
    (init, shelters): (&Planter, HashMap<i32, Shelter<'_>>),
    gate: &Gate,
    hosts: &HashMap<i32, i32>,
    (sandbox, kernel): (&Sandbox, &Kernel),
) -> Result<Vec<Kept>, RestoreError> {
    let keepers = shelters.values().map(|shelter| shelter.host);
    keepers.chain([kernel.init_pid()]).for_each(|host| gate.pass(host));
    let mut all = Vec::with_capacity(shelters.len());
    for shelter in shelters.into_values() {
        let Shelter { saved, planter, host, pidfd } = shelter;
        let adopted = planter.adopt(saved.program, saved.hang_up);
        let keeper = adopted.and_then(|()| planter.into_keeper()).map_err(failed(saved, "kept"))?;
        let program = hosts.get(&saved.program).copied();
        all.push(Kept { keeper, host, pidfd, program, saved: saved.clone() });
    }
    init.adopt(sandbox.run.program, false)
        .map_err(|errno| RestoreError::failed("init does not keep the program", errno.desc()))?;
    Ok(all)
}

fn failed(keeper: &Keeper, what: &'static str) -> impl Fn(Errno) -> RestoreError {
    let who = format!("the keeper {} of {}", keeper.number, quoted(&keeper.path));
    move |errno| RestoreError::failed(format!("{who} cannot be {what}"), errno.desc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save::state::testing::process;

    /// (process, parent, session, group)
    fn checked(all: &[(i32, i32, i32, i32)]) -> Result<HashMap<i32, i32>, String> {
        let all = all
            .iter()
            .map(|(pid, parent, session, group)| process(*pid, *parent, *session, *group));
        parents(&all.collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    #[test]
    fn parents_come_first_and_nobody_twice() {
        let fine = checked(&[(2, 1, 1, 2), (9, 7, 7, 9), (3, 9, 7, 9), (4, 2, 1, 2)]).unwrap();
        assert_eq!(fine, HashMap::from([(2, 1), (9, 7), (3, 9), (4, 2)]));
        let damaged: [&[(i32, i32, i32, i32)]; 5] = [
            &[(2, 1, 1, 2), (5, 1, 5, 5), (5, 5, 5, 5), (6, 1, 5, 5)],
            &[(2, 1, 1, 2), (5, 5, 5, 5)],
            &[(2, 1, 1, 2), (5, 6, 1, 2), (6, 5, 1, 2)],
            &[(1, 0, 1, 1), (2, 1, 1, 2)],
            &[(-4, 1, 1, 2)],
        ];
        for (all, number) in damaged.iter().zip([5, 5, 5, 1, -4]) {
            let refused = checked(all).unwrap_err();
            assert!(refused.contains(&format!("damaged: process {number}")), "{refused}");
        }
    }
}
