//! The caller's standard streams, found again among the descriptors of guests.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

use serde_bytes::ByteBuf;

use super::{Found, Holder, identity};
use crate::save::error::SaveError;
use crate::save::state::{FileKind, Identity};
use crate::sentry::GivenStream;
use crate::sys::descriptors;

/// The caller's standard streams, as the supervisor holds them, and the terminal that the guest got in
/// place of the caller's.
#[derive(Debug, Default)]
pub struct Streams {
    own: Vec<Stream>,
    /// Device and inode of the guest's own terminal.
    pub terminal: Option<(u64, u64)>,
    /// What programs that were started later were given, by number.
    pub later: Vec<(u32, GivenStream)>,
}

#[derive(Debug)]
struct Stream {
    number: u32,
    file: File,
    inode: (u64, u64),
    /// Of a regular file: its name on the host.
    regular: Option<(ByteBuf, Identity)>,
}

impl Streams {
    /// Streams by number. The descriptors are duplicated.
    pub fn new(streams: &[(u32, BorrowedFd<'_>)]) -> io::Result<Streams> {
        let own = streams.iter().map(|(number, fd)| {
            let file = File::from(fd.try_clone_to_owned()?);
            let stat = file.metadata()?;
            let regular = if stat.is_file() {
                let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
                Some((ByteBuf::from(name.into_os_string().into_vec()), identity(&stat)))
            } else {
                None
            };
            Ok(Stream { number: *number, file, inode: (stat.dev(), stat.ino()), regular })
        });
        Ok(Streams { own: own.collect::<io::Result<_>>()?, ..Streams::default() })
    }

    /// Which stream a descriptor stands for, and whether by another description than the caller's.
    ///
    /// The launcher opens regular files that the caller gave for reading once more, through a read-only
    /// mount (launch::init): those are streams as well, though the caller's description is another.
    pub(super) fn stands_for(
        &self,
        holder: &Holder,
        found: &Found,
    ) -> Result<Option<(u32, bool)>, SaveError> {
        let own_pid = std::process::id() as i32;
        let preferred = |a: Option<u32>, number: u32| match a {
            Some(a) if i64::from(number) != i64::from(found.fd) => Some(a),
            _ => Some(number),
        };
        let (mut same, mut like) = (None, None);
        for stream in self.own.iter().filter(|it| it.inode == found.inode()) {
            let (own, theirs) = ((own_pid, stream.file.as_raw_fd()), (holder.tid, found.fd));
            let order = descriptors::compare(own, theirs)
                .map_err(holder.failed_with(found.fd, "compare the description"))?;
            match order {
                Ordering::Equal => same = preferred(same, stream.number),
                _ => like = preferred(like, stream.number),
            }
        }
        if let Some(number) = same {
            return Ok(Some((number, false)));
        }
        let Some(number) = like else { return Ok(None) };
        // What the guest reaches by name it has opened by that.
        if found.link.starts_with(b"/") && holder.leads_to(&found.link, found.inode()) {
            return Ok(None);
        }
        Ok(Some((number, !found.stat.is_file() || i64::from(found.fd) != i64::from(number))))
    }

    /// Which stream of a later program a descriptor stands for.
    pub(super) fn given_later(&self, found: &Found) -> Option<u32> {
        let mount = found.info.mount()?;
        let own = GivenStream { inode: found.inode(), mount };
        let all = self.later.iter().filter(|(_, given)| *given == own).map(|(number, _)| *number);
        // What can be written to is rather for output, whatever else it is.
        let writes = found.access()[1];
        all.min_by_key(|number| {
            (writes != (*number > 0), i64::from(*number) != i64::from(found.fd))
        })
    }

    pub(super) fn kind(&self, number: u32, reopened: bool) -> FileKind {
        let file = self.own.iter().find(|it| it.number == number).and_then(|it| it.regular.clone());
        FileKind::Stream { stream: number, file, reopened }
    }
}
