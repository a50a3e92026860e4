//! What epoll descriptions watch, by index of the description.
//!
//! An epoll description knows its targets by description and by the number under which each was
//! registered; that number may be closed or stand for something else by now.

use nix::errno::Errno;

use crate::save::capture::collector::Collector;
use crate::save::capture::known::{Known, Waiting};
use crate::save::error::SaveError;
use crate::save::state::FileKind;
use crate::sys::descriptors;
use crate::sys::fdinfo::Watched;

pub(super) fn finish(collector: &mut Collector) -> Result<(), SaveError> {
    for epoll in std::mem::take(&mut collector.known.epolls) {
        let targets = targets(&collector.known, &epoll)?;
        collector.files[epoll.file as usize].kind = FileKind::Epoll(targets);
    }
    Ok(())
}

fn targets(
    known: &Known,
    epoll: &Waiting<Watched>,
) -> Result<Vec<(i32, u32, u32, u64)>, SaveError> {
    let mut targets = Vec::with_capacity(epoll.items.len());
    for (at, item) in epoll.items.iter().enumerate() {
        // Of several under one number, which (get_epoll_tfile_raw_ptr in fs/eventpoll.c walks them in
        // the order in which fdinfo shows them).
        let which = epoll.items[..at].iter().filter(|it| it.number == item.number).count() as u32;
        let failed = |errno: Errno| {
            let what = format!(
                "cannot tell what the epoll descriptor {} of {} watches",
                epoll.place.1, epoll.holder
            );
            SaveError::failed(what, errno.desc())
        };
        let compare = |place| descriptors::compare_epoll(place, epoll.place, item.number, which);
        match known.search(item.inode, compare).map_err(failed)? {
            Ok(file) => targets.push((item.number as i32, file, item.events, item.data)),
            Err(_) => {
                return Err(SaveError::refused(format!(
                    "{} watches with its epoll descriptor {} something (registered as descriptor {}) \
                     that no process has open any more, which cannot be saved",
                    epoll.holder, epoll.place.1, item.number
                )));
            }
        }
    }
    Ok(targets)
}
