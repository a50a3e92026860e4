//! Processes that have been made get their memory, what they have beside that, and their threads.

use super::courier::Courier;
use super::heritage::Heritage;
use super::lazy::Lazy;
use super::space::{self, Sources};
use super::{
    Plant, apart, first_and_rest, process, ptys, rest, rest_unless_alone, space_of, threads,
};
use crate::notify::Gate;
use crate::save::error::RestoreError;
use crate::save::hand::{Hand, SLOTS};
use crate::save::state::{Sandbox, Thread};

/// All get their mappings, but for what they have from those that made them. Those that are alone open the files meanwhile that they have mapped.
pub(super) fn map_all(
    sandbox: &Sandbox,
    plants: &mut [Plant<'_>],
    sources: &Sources<'_>,
    heritage: &Heritage,
) -> Result<(), RestoreError> {
    let mut alone = Vec::with_capacity(plants.len());
    for plant in plants.iter_mut() {
        ptys::give_controlling(&mut plant.hand, sandbox, plant.process.pid)?;
        if !plant.own.space {
            continue;
        }
        let space = space_of(sandbox, plant)?;
        let stays = heritage.stays(plant.process.pid, space);
        let opening = space::clear(&mut plant.hand, space, &stays)?;
        if plant.own.alone {
            alone.push((plant, space, opening, stays));
            continue;
        }
        space::map(&mut plant.hand, (space, &opening), sources, &stays, &plant.who)?;
        plant.take_turns()?;
    }
    for (plant, space, opening, stays) in alone {
        space::map(&mut plant.hand, (space, &opening), sources, &stays, &plant.who)?;
    }
    Ok(())
}

/// Content is in place. Step by step for all: while one makes its calls, the next is told of its own.
pub(super) fn furnish_all(
    sandbox: &Sandbox,
    plants: &mut [Plant<'_>],
    gate: &Gate,
    courier: &Courier,
    lazy: Option<&Lazy>,
) -> Result<(), RestoreError> {
    for plant in plants.iter_mut().filter(|it| it.own.space) {
        let space = space_of(sandbox, plant)?;
        if let Some(lazy) = lazy {
            lazy.map(&mut plant.hand, space, courier, &plant.who)?;
        }
        space::protect(&mut plant.hand, space, &plant.who)?;
        plant.take_turns()?;
    }
    for plant in plants.iter_mut() {
        let space = space_of(sandbox, plant)?;
        process::equip(&mut plant.hand, plant.process, space, &plant.who)?;
        if !plant.own.alone {
            process::settle(&mut plant.hand, plant.process, &plant.who)?;
        }
    }
    plants.iter_mut().try_for_each(|plant| furnish(plant, gate))?;
    rest(plants)
}

/// Where it works, and its threads.
fn furnish(plant: &mut Plant<'_>, gate: &Gate) -> Result<(), RestoreError> {
    let Plant { process, who, hand, others, early, kept, .. } = plant;
    process::settle(hand, process, who)?;
    let (first, rest) = first_and_rest(process, who)?;
    *others = threads::make(hand, rest, early, who)?;
    others.iter().for_each(|other| gate.pass(other.tid()));
    apart::enter(others, process, who)?;
    if !rest.is_empty() {
        threads::equip(hand, first, None, who)?;
        rest_unless_alone(hand, process, who)?;
    }
    let kept = process::is_furnished_for_good(process).then_some(*kept);
    let equip = |hand: &mut Hand, thread: &Thread| threads::equip(hand, thread, kept, who);
    threads::side_by_side((others, rest), SLOTS, who, equip)?;
    plant.take_turns()
}
