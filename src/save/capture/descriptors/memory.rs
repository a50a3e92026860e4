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
        // As /proc/PID/maps prints it (save::capture::maps).
        let (device, inode) = found.inode();
        let device = u64::from(libc::major(device)) << 32 | u64::from(libc::minor(device));
        let key = (device, inode);
        let known = self.collector.shared_by_inode.get(&key).copied();
        let by_mappings =
            |index: u32| self.collector.shared_mappings.iter().any(|it| it.0 == index);
        if let Some(index) = known.filter(|index| !by_mappings(*index)) {
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
        let (size, mode) = (found.stat.size(), found.stat.mode());
        let kind = SharedKind::Memfd { name, seals, mode };
        // What was known of it by mappings alone is better known by this.
        let index = known.unwrap_or(self.collector.shared.len() as u32);
        self.collector.shared_mappings.retain(|it| it.0 != index);
        let object = match self.collector.shared.get_mut(index as usize) {
            Some(shared) => {
                (shared.size, shared.kind) = (size, kind);
                shared.object
            }
            None => {
                let object = self.collector.object();
                self.collector.shared.push(SharedMemory { object, size, kind });
                object
            }
        };
        self.collector.shared_by_inode.insert(key, index);
        self.collector.contents.push(Content::File { object, file: file.into(), size });
        Ok(FileKind::Memory(index))
    }
}
