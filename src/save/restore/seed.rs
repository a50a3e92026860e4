//! The seed: the smallest program there is, which a restored process grows from.
//!
//! It is the agent ([`crate::sys::agent`]) in a file that the kernel can execute, so that a process has
//! an address space of its own with nothing in it but the agent, the kernel's pages and a stack, which
//! it gives up. It waits at its first instruction for the one who traces it.

use crate::save::hand::{AREA, CODE, TABLE};
use crate::sys::agent;

/// Where a seed may lie: between what programs are usually linked to and where the kernel maps.
const LOWEST: u64 = 0x1000_0000_0000;
const HIGHEST: u64 = 0x5000_0000_0000;
const STEP: u64 = 0x10_0000_0000;

/// What is taken there: the seed's own area, the one that it settles in, and room to move the kernel's pages.
const ROOM: u64 = 4 << 20;

/// Where a seed at `area` settles ([`super::space::settle`]).
pub fn settled(area: u64) -> u64 {
    area + AREA.next_multiple_of(1 << 20)
}

/// A place for the agent that none of the ranges covers: (start, end) of each, in any order.
pub fn place(ranges: &[(u64, u64)]) -> Option<u64> {
    let mut candidate = LOWEST;
    while candidate < HIGHEST {
        let end = candidate + ROOM;
        if ranges.iter().all(|(from, to)| *to <= candidate || *from >= end) {
            return Some(candidate);
        }
        candidate += STEP;
    }
    None
}

/// The seed's file: an ELF executable whose code and table lie at `area` (elf(5)).
///
/// It begins with pause(2), again and again, so that it does nothing until somebody traces it; the agent
/// lies behind that in the file and is moved to `area` by being mapped there as a segment of its own.
pub fn file(area: u64) -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    /// mov eax, 34 (pause); syscall; jmp to the begin.
    const WAIT: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
    let code = agent::code();
    let mut file = vec![0; CODE * 2];
    file[..16].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut at = 16;
    let mut put = |bytes: &[u8]| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    let entry = area + WAITS_AT as u64;
    put(&2u16.to_le_bytes()); // ET_EXEC
    put(&62u16.to_le_bytes()); // EM_X86_64
    put(&1u32.to_le_bytes());
    put(&entry.to_le_bytes());
    put(&64u64.to_le_bytes()); // program headers
    put(&0u64.to_le_bytes());
    put(&0u32.to_le_bytes());
    put(&64u16.to_le_bytes());
    put(&56u16.to_le_bytes());
    put(&2u16.to_le_bytes());
    put(&[0; 6]);
    let mut segment = |flags: u32, offset: u64, address: u64, in_file: u64, in_memory: u64| {
        put(&1u32.to_le_bytes()); // PT_LOAD
        put(&flags.to_le_bytes());
        for word in [offset, address, address, in_file, in_memory, CODE as u64] {
            put(&word.to_le_bytes());
        }
    };
    segment(5, CODE as u64, area, CODE as u64, CODE as u64);
    // No page of the file: it is all bss.
    segment(6, 0, area + CODE as u64, 0, TABLE as u64);
    const { assert!(HEADERS <= CODE) };
    file[CODE..CODE + code.len()].copy_from_slice(code);
    let wait = CODE + WAITS_AT;
    file[wait..wait + WAIT.len()].copy_from_slice(&WAIT);
    file
}

/// Where the waiting is, in the page of the code.
const WAITS_AT: usize = 2048;

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::*;
    use crate::save::hand::Hand;
    use crate::save::restore::courier::{self, Courier};
    use crate::sys::{memfd, ptrace};

    /// A seed that runs on the host and is held by the calling thread.
    ///
    /// Its standard input is the courier's other end.
    pub(crate) fn plant() -> (std::process::Child, Hand, Courier) {
        use std::io::Write;
        let (courier, theirs) = courier::pair(0).unwrap();
        let area = place(&[]).unwrap();
        let mut program = memfd::anonymous_file(c"seed").unwrap();
        program.write_all(&file(area)).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), program.as_raw_fd());
        let child = Command::new(path).stdin(theirs).spawn().unwrap();
        let tid = child.id() as i32;
        ptrace::seize(tid).unwrap().interrupt().unwrap();
        let stopped = ptrace::wait_for(tid).unwrap();
        (child, Hand::new(stopped, area), courier)
    }

    #[test]
    fn a_place_is_found_beside_what_is_there() {
        assert_eq!(place(&[]), Some(LOWEST));
        assert_eq!(place(&[(LOWEST + 4096, LOWEST + 8192)]), Some(LOWEST + STEP));
        assert_eq!(place(&[(0, u64::MAX)]), None);
    }

    #[test]
    fn a_seed_makes_the_calls_that_it_is_told_to() {
        let (mut child, mut hand, _courier) = plant();
        assert_eq!(hand.call(libc::SYS_getpid, []).unwrap(), u64::from(child.id()));
        let fd = hand.call_path(libc::SYS_openat, b"/dev/null", |path| [0, path, 2]).unwrap();
        let mut table = hand.table();
        let copy = table.call(libc::SYS_dup, [fd]);
        let moved = table.call(libc::SYS_dup3, [0, 77, 0]);
        table.forward(copy, moved, 0);
        let bad = table.attempt(libc::SYS_close, [999]);
        let last = table.call(libc::SYS_getppid, []);
        let done = hand.run(&table).unwrap();
        assert_eq!(done.result(moved), Ok(77));
        assert_eq!(done.result(bad), Err(nix::errno::Errno::EBADF));
        assert_eq!(done.result(last), Ok(u64::from(std::process::id())));
        let failed = hand.call(libc::SYS_close, [999]).unwrap_err();
        assert_eq!(failed.to_string(), "close: Bad file number");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
