//! What tasks have in common with some and not with others ([`super::kin`]), captured once for each that has it.

use super::collector::Subject;
use super::status::Status;
use super::{Found, Streams, Whose, descriptors, kin, roots};
use crate::save::error::SaveError;
use crate::save::hand::Area;
use crate::save::restore::commons;
use crate::save::sharing::{Apart, Classes, Place, Resource};
use crate::sentry::Tracees;

impl Whose<'_> {
    /// What a thread has of its own.
    pub(super) fn apart(
        &self,
        tracees: &mut Tracees,
        (tid, pid): (i32, i32),
        area: Area,
        streams: &Streams,
        found: &mut Found,
    ) -> Result<Apart, SaveError> {
        let status = Status::read(tid)
            .ok_or_else(|| SaveError::failed(self.who, "one of its threads has ended meanwhile"))?;
        let mut apart = Apart {
            adjustments: found.kin.is_apart(tid, Resource::Adjustments),
            ..Apart::default()
        };
        if found.kin.is_apart(tid, Resource::Directory) {
            let root = roots::of(tid, &found.collector.known, self.who)?;
            apart.place = Some(Place { root, ..kin::place(tid, &status, self.who)? });
        }
        if !found.kin.is_apart(tid, Resource::Descriptors) {
            return Ok(apart);
        }
        let number = status.thread;
        let (mut borrowed, _) = self.lend(tracees, tid, Some((area, status)))?;
        let mut subject = Subject::new(pid, number, &mut borrowed.hand);
        let table = table_of(&mut subject, streams, found);
        tracees.put(borrowed.leave().map_err(SaveError::of(self.who))?);
        apart.table = Some(table?);
        Ok(apart)
    }
}

/// The table of the thread whose hand the subject has: its index.
pub(super) fn table_of(
    subject: &mut Subject<'_>,
    streams: &Streams,
    found: &mut Found,
) -> Result<u32, SaveError> {
    let tid = subject.hand.tid();
    if let Some(table) = found.kin.captured(Resource::Descriptors, tid) {
        return Ok(table);
    }
    let table = descriptors::capture_table(subject, streams, &mut found.collector)?;
    let index = found.tables.len() as u32;
    found.kin.captured_as(Resource::Descriptors, tid, index);
    found.tables.push(table);
    Ok(index)
}

/// Who restores it comes to where they are: refused otherwise, while nothing has been lost.
pub(super) fn can_share_again(found: &Found) -> Result<(), SaveError> {
    if found.sharing.is_empty() && found.keepers.is_empty() {
        return Ok(());
    }
    let impossible = |why: String| {
        SaveError::refused(format!("{why}; end one of those that share it, or have it execute"))
    };
    let classes = Classes::of(&found.processes, &found.sharing).map_err(|it| {
        let what = it.what.words();
        impossible(format!("task {} shares {what} with tasks that have ended in part", it.task))
    })?;
    let free = i32::MAX / 2;
    let keepers: Vec<i32> = found.keepers.iter().map(|it| it.number).collect();
    commons::plan(&found.processes, &keepers, &classes, free)
        .map(drop)
        .map_err(|why| impossible(why.to_string()))
}
