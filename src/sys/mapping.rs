//! PROCMAP_QUERY of /proc/PID/maps (include/uapi/linux/fs.h), since Linux 6.11: one mapping, without the text
//! of all.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// struct procmap_query.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const COVERING_OR_NEXT_VMA: u64 = 0x10;
const FILE_BACKED_VMA: u64 = 0x20;
/// _IOWR('f', 17, struct procmap_query).
const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;

/// A mapping of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfFile {
    /// First address.
    pub start: u64,
    /// Address behind it.
    pub end: u64,
    /// Device of the file, as st_dev tells one.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// The first mapping of a file that reaches beyond `address`, if any. `maps` is the process's /proc/PID/maps.
///
/// # Errors
/// ENOTTY: the kernel is older. ESRCH: the process has ended.
pub fn next_of_file(maps: &File, address: u64) -> Result<Option<OfFile>, Errno> {
    let mut query = Query {
        size: size_of::<Query>() as u64,
        query_flags: COVERING_OR_NEXT_VMA | FILE_BACKED_VMA,
        query_addr: address,
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes one argument of the size that it says; it has no pointers.
    let done = unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) };
    match Errno::result(done) {
        Ok(_) => Ok(Some(OfFile {
            start: query.vma_start,
            end: query.vma_end,
            device: libc::makedev(query.dev_major, query.dev_minor),
            inode: query.inode,
        })),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_files_are_those_of_the_text() {
        let maps = File::open("/proc/self/maps").unwrap();
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let first = text.lines().find(|line| line.contains('/')).unwrap();
        match next_of_file(&maps, 0) {
            Ok(found) => {
                let found = found.unwrap();
                assert!(
                    first.starts_with(&format!("{:x}-{:x}", found.start, found.end)),
                    "{first}"
                );
                assert_eq!(first.split_whitespace().nth(4).unwrap(), found.inode.to_string());
                assert_eq!(next_of_file(&maps, 0x7fff_ffff_e000), Ok(None));
            }
            Err(Errno::ENOTTY) => println!("skipped: no PROCMAP_QUERY in this kernel"),
            Err(errno) => panic!("{errno}"),
        }
    }
}
