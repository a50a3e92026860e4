//! Memory that has a descriptor (memfd_create(2)).

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::fstatfs;
use serde_bytes::ByteBuf;

use super::{Capture, Found};
use crate::save::capture::collector::Content;
use crate::save::error::SaveError;
use crate::save::state::{FileKind, SharedKind, SharedMemory};

/// include/uapi/linux/magic.h
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

impl Capture<'_, '_> {
    pub(super) fn memory(&mut self, found: &Found) -> Result<FileKind, SaveError> {
        let known = self.collector.known.shared_by_inode(found.inode());
        // One that was only seen as a mapping so far is known too little of.
        let only_mapped = known.is_some_and(|index| self.collector.mapped.has(index));
        if let (Some(index), false) = (known, only_mapped) {
            return Ok(FileKind::Memory(index));
        }
        let file = self.holder.reopen(found.fd, OFlag::O_RDONLY)?;
        let failed = self.holder.failed_with(found.fd, "read the seals");
        if fstatfs(file.as_fd()).map_err(&failed)?.filesystem_type().0 == HUGETLBFS_MAGIC {
            return Err(self.holder.refused(found.fd, "memory of huge pages (MFD_HUGETLB)"));
        }
        let seals = fcntl(file.as_fd(), FcntlArg::F_GET_SEALS).map_err(failed)? as u32;
        let name = found.link.strip_suffix(b" (deleted)").unwrap_or(&found.link);
        let name = ByteBuf::from(name.strip_prefix(b"/memfd:").unwrap_or(name));
        let object = match known.and_then(|index| self.collector.shared.get(index as usize)) {
            Some(shared) => shared.object,
            None => self.collector.object(),
        };
        let size = found.stat.size();
        let kind = SharedKind::Memfd { name, seals, mode: found.stat.mode() };
        self.collector.contents.push(Content::File { object, file: file.into(), size });
        let shared = SharedMemory { object, size, kind };
        if let Some(index) = known {
            self.collector.mapped.forget(index);
            self.collector.shared[index as usize] = shared;
            return Ok(FileKind::Memory(index));
        }
        let index = self.collector.shared.len() as u32;
        self.collector.shared.push(shared);
        self.collector.known.shared_is(found.inode(), index);
        Ok(FileKind::Memory(index))
    }
}
