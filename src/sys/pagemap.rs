//! Which pages of another process hold something of its own (proc_pid_pagemap(5)).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::errno_of;
use nix::errno::Errno;

const PAGE: u64 = 4096;

// include/uapi/linux/fs.h, since Linux 6.7.
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Since Linux 6.15.
const PAGE_IS_GUARD: u64 = 1 << 8;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// PAGEMAP_SCAN, _IOWR('f', 16, struct pm_scan_arg).
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// Ranges of addresses: (start, end), in order.
pub type Ranges = Vec<(u64, u64)>;

/// The pages in a range that are the process's own: private and touched, or changed where they began as
/// a file's. Pages that were only read, and are zero, are left out where the kernel tells.
///
/// `pagemap` is the process's /proc/PID/pagemap.
pub fn own_pages(pagemap: &File, start: u64, end: u64) -> Result<Ranges, Errno> {
    own_pages_and_guards(pagemap, start, end).map(|(own, _)| own)
}

/// The same, and what [`guards`] tells, for the time of one of them.
pub fn own_pages_and_guards(
    pagemap: &File,
    start: u64,
    end: u64,
) -> Result<(Ranges, Ranges), Errno> {
    match own_pages_and_guards_anywhere(pagemap, start, end) {
        Err(Errno::ENOTTY) => Ok((read(pagemap, start, end, FILE)?, Vec::new())),
        done => done,
    }
}

/// The same of a range that may be most of an address space, with much that is not mapped. ENOTTY: before Linux 6.7
/// that would take forever.
pub fn own_pages_and_guards_anywhere(
    pagemap: &File,
    start: u64,
    end: u64,
) -> Result<(Ranges, Ranges), Errno> {
    let not = PAGE_IS_FILE | PAGE_IS_PFNZERO;
    let any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
    let (mut own, mut guards) = (Vec::new(), Vec::new());
    // A guard counts as swapped out (pagemap_page_category in fs/proc/task_mmu.c).
    let done = scan(pagemap, start, end, (not, not, any), PAGE_IS_GUARD, |region| {
        let ranges = if region.categories & PAGE_IS_GUARD == 0 { &mut own } else { &mut guards };
        push(ranges, region.start, region.end);
    });
    match done {
        Ok(()) => return Ok((own, guards)),
        // Before Linux 6.15.
        Err(Errno::EINVAL) => own = scanned(pagemap, start, end, (not, not, any))?,
        Err(errno) => return Err(errno),
    }
    Ok((own, Vec::new()))
}

/// The pages in a range that are in memory, or swapped out, whosever they are; no guards, where the kernel tells.
pub fn present_pages(pagemap: &File, start: u64, end: u64) -> Result<Ranges, Errno> {
    let any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
    match scanned(pagemap, start, end, (PAGE_IS_GUARD, PAGE_IS_GUARD, any)) {
        Err(Errno::EINVAL) => scanned(pagemap, start, end, (0, 0, any)),
        Err(Errno::ENOTTY) => read(pagemap, start, end, 0),
        done => done,
    }
}

/// The guard regions in a range (MADV_GUARD_INSTALL of madvise(2)). Nobody can tell before Linux 6.15.
pub fn guards(pagemap: &File, start: u64, end: u64) -> Result<Ranges, Errno> {
    match scanned(pagemap, start, end, (0, PAGE_IS_GUARD, 0)) {
        Err(Errno::EINVAL | Errno::ENOTTY) => Ok(Vec::new()),
        done => done,
    }
}

/// Whether the kernel tells of guards.
pub fn tells_of_guards(pagemap: &File) -> bool {
    scanned(pagemap, 0, PAGE, (0, PAGE_IS_GUARD, 0)).is_ok()
}

/// The ranges of [`scan`].
fn scanned(pagemap: &File, start: u64, end: u64, wanted: (u64, u64, u64)) -> Result<Ranges, Errno> {
    let mut found = Vec::new();
    scan(pagemap, start, end, wanted, PAGE_IS_PRESENT, |it| push(&mut found, it.start, it.end))?;
    Ok(found)
}

/// Calls `each` with the regions in order. `wanted`: the categories that are inverted, those that must be there, and
/// those of which one must. `told`: the categories that a region tells, and by which it differs from its neighbours.
fn scan(
    pagemap: &File,
    start: u64,
    end: u64,
    wanted: (u64, u64, u64),
    told: u64,
    mut each: impl FnMut(&Region),
) -> Result<(), Errno> {
    // Most ask about a mapping with a few; who has many gets more room.
    let mut room = 64;
    let mut regions = vec![Region::default(); room];
    let mut at = start;
    while at < end {
        let mut arguments = Scan {
            size: size_of::<Scan>() as u64,
            start: at,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: room as u64,
            category_inverted: wanted.0,
            category_mask: wanted.1,
            category_anyof_mask: wanted.2,
            return_mask: told,
            ..Scan::default()
        };
        // SAFETY: the kernel reads and writes one argument, and at most `vec_len` regions.
        let done = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
        let count = Errno::result(done)? as usize;
        regions.iter().take(count).for_each(&mut each);
        if arguments.walk_end <= at {
            break;
        }
        at = arguments.walk_end;
        if count == room && room < 4096 {
            room *= 8;
            regions.resize(room, Region::default());
        }
    }
    Ok(())
}

/// A word of the file says that a page is a file's, or shared memory.
const FILE: u64 = 1 << 61;

/// Pages that are there, but those whose word has one of the bits of `not`.
fn read(pagemap: &File, start: u64, end: u64, not: u64) -> Result<Ranges, Errno> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    let mut found = Vec::new();
    let mut words = vec![0; 64 << 10];
    let mut at = start;
    while at < end {
        let most = ((end - at) / PAGE * 8).min(words.len() as u64) as usize;
        let count =
            pagemap.read_at(&mut words[..most], at / PAGE * 8).map_err(|error| errno_of(&error))?;
        if count < 8 {
            break;
        }
        for word in words[..count].as_chunks::<8>().0 {
            let word = u64::from_ne_bytes(*word);
            if word & (PRESENT | SWAPPED) != 0 && word & not == 0 {
                push(&mut found, at, at + PAGE);
            }
            at += PAGE;
        }
    }
    Ok(found)
}

fn push(found: &mut Ranges, start: u64, end: u64) {
    match found.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => found.push((start, end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_pages_are_found_both_ways_and_untouched_ones_are_not() {
        let pages = 64u64;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping of this test's own.
        let begin = unsafe {
            let map =
                libc::mmap(std::ptr::null_mut(), (pages * PAGE) as usize, protection, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            libc::madvise(map, (pages * PAGE) as usize, libc::MADV_NOHUGEPAGE);
            for page in [5, 6, 9] {
                map.cast::<u8>().add(page * PAGE as usize).write(1);
            }
            map as u64
        };
        let file = File::open("/proc/self/pagemap").unwrap();
        let (start, end) = (begin + 4 * PAGE, begin + 16 * PAGE);
        let expected =
            vec![(begin + 5 * PAGE, begin + 7 * PAGE), (begin + 9 * PAGE, begin + 10 * PAGE)];
        assert_eq!(read(&file, start, end, FILE).unwrap(), expected);
        assert_eq!(present_pages(&file, start, end).unwrap(), expected);
        assert_eq!(own_pages(&file, start, end).unwrap(), expected);
        assert_eq!(guards(&file, start, end).unwrap(), vec![]);
        // SAFETY: nothing refers to it.
        unsafe { libc::munmap(begin as *mut libc::c_void, (pages * PAGE) as usize) };
    }
}
