//! The agent: a few instructions that carry out a table of system calls inside a stopped guest.
//!
//! A traced thread that makes one call costs several switches between two processes; a list of them
//! costs as much as one. The agent runs down a table in the memory that it lies in, without a stack and
//! with no register but its own, and stops at a breakpoint: at the end, or behind the first call that
//! failed and may not. It owns nothing: where it lies and what the table says is the caller's.

use std::arch::global_asm;

use nix::errno::Errno;

/// Bytes of an entry of the table.
const ENTRY: usize = 80;
/// Bytes in front of the entries.
const HEAD: usize = 64;
/// In the word of the number: the agent goes on although the call fails.
const MAY_FAIL: u64 = 1 << 32;
/// In the word of the number: no call, but a look at pages ([`Table::look`]).
const LOOK: u64 = 1 << 33;

// r15: the table. Its head: [0] how many entries are left. An entry: [0] number and flags, [8..56]
// arguments, [56] result, [64] where else the result goes (0: nowhere).
// A call clobbers rax, rcx and r11 (the x86-64 ABI, appendix A.2.1).
// A look goes over rsi pages, the first at rdi and the next ones r10 bytes further each, and sets bit rcx behind rdx
// where page rcx is zero. It reads at the speed of memory, in general registers only: those of the FPU are the guest's.
global_asm!(
    ".pushsection .rodata.sandbox_agent, \"a\", @progbits",
    ".global sandbox_agent_begin",
    ".global sandbox_agent_behind",
    ".global sandbox_agent_end",
    "sandbox_agent_begin:",
    "2:",
    "lea r14, [r15 + 64]",
    "3:",
    "cmp qword ptr [r15], 0",
    "je 5f",
    "mov r13, [r14]",
    "mov rdi, [r14 + 8]",
    "mov rsi, [r14 + 16]",
    "mov rdx, [r14 + 24]",
    "mov r10, [r14 + 32]",
    "bt r13, 33",
    "jc 20f",
    "mov eax, r13d",
    "mov r8, [r14 + 40]",
    "mov r9, [r14 + 48]",
    "syscall",
    "7:",
    "mov [r14 + 56], rax",
    "mov rbx, [r14 + 64]",
    "test rbx, rbx",
    "jz 4f",
    "mov [rbx], rax",
    "4:",
    "cmp rax, -4095",
    "jb 6f",
    "bt r13, 32",
    "jnc 5f",
    "6:",
    "add r14, 80",
    "dec qword ptr [r15]",
    "jmp 3b",
    "20:",
    "xor ecx, ecx",
    "22:",
    "xor eax, eax",
    "cmp rcx, rsi",
    "jae 7b",
    "lea r8, [rdi + 4096]",
    "lea r9, [rdi + r10]",
    "23:",
    "mov rax, [rdi]",
    "mov rbx, [rdi + 8]",
    ".irp place, 16, 32, 48, 64, 80, 96, 112",
    "or rax, [rdi + \\place]",
    "or rbx, [rdi + \\place + 8]",
    ".endr",
    "or rax, rbx",
    "jnz 24f",
    "sub rdi, -128",
    "cmp rdi, r8",
    "jb 23b",
    "bts [rdx], rcx",
    "24:",
    "mov rdi, r9",
    "inc rcx",
    "jmp 22b",
    "5:",
    "int3",
    "sandbox_agent_behind:",
    "jmp 2b",
    "sandbox_agent_end:",
    ".popsection",
);

unsafe extern "C" {
    static sandbox_agent_begin: u8;
    static sandbox_agent_behind: u8;
    static sandbox_agent_end: u8;
}

/// The agent's instructions. They may lie anywhere and begin with the first.
pub fn code() -> &'static [u8] {
    let begin = &raw const sandbox_agent_begin;
    let end = &raw const sandbox_agent_end;
    // SAFETY: both symbols are in one section above, in this order, and never written to.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}

/// Where in them a thread is that has come to the breakpoint.
pub fn behind_breakpoint() -> u64 {
    let (begin, behind) = (&raw const sandbox_agent_begin, &raw const sandbox_agent_behind);
    (behind.addr() - begin.addr()) as u64
}

/// A table under construction, for a place in the memory of the guest.
#[derive(Debug, Clone)]
pub struct Table {
    /// Where it will lie.
    address: u64,
    /// How many bytes there are for it and what its calls point to.
    capacity: usize,
    entries: Vec<[u64; ENTRY / 8]>,
    /// What the calls point to. Lies behind the room for `most` entries.
    data: Vec<u8>,
    most: usize,
}

/// A call in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(usize);

/// What a call pointed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// Where it is in the memory of the guest.
    pub address: u64,
    at: usize,
    length: usize,
}

/// The table is full, or a call in it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// Number of the call.
    pub number: u64,
    /// Its place in the table.
    pub at: usize,
    /// Why.
    pub errno: Errno,
}

impl Table {
    /// An empty table that will lie at `address`, with `capacity` bytes, a third of them for the calls.
    pub fn new(address: u64, capacity: usize) -> Table {
        let most = (capacity / 3).saturating_sub(HEAD) / ENTRY;
        Table { address, capacity, entries: Vec::new(), data: Vec::new(), most }
    }

    fn data_offset(&self) -> usize {
        HEAD + self.most * ENTRY
    }

    /// Whether so many calls and bytes still find room.
    pub fn has_room(&self, calls: usize, bytes: usize) -> bool {
        self.entries.len() + calls <= self.most
            && self.data_offset() + self.data.len() + bytes + 16 * (calls + 1) <= self.capacity
    }

    /// Whether it lies in its room: calls are in front of what they point to, and nothing is behind the end. Must
    /// hold before it is used, since its length may be what somebody else has said.
    pub fn fits(&self) -> bool {
        self.entries.len() <= self.most && self.data_offset() + self.data.len() <= self.capacity
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.data.clear();
    }

    /// Adds a call. What is not given is 0.
    pub fn call<const N: usize>(&mut self, number: libc::c_long, arguments: [u64; N]) -> Place {
        self.push(number as u64, &arguments)
    }

    /// Adds a call that may fail.
    pub fn attempt<const N: usize>(&mut self, number: libc::c_long, arguments: [u64; N]) -> Place {
        self.push(number as u64 | MAY_FAIL, &arguments)
    }

    /// Adds a look at so many pages, the first at `start`, the next ones `step` bytes further each; all can be read.
    /// `map` has a bit for each, from the lowest of each byte on, and is a multiple of 8 bytes, which are 0: bits of
    /// pages that are all zeros are set.
    pub fn look(&mut self, (start, step): (u64, u64), pages: u64, map: Data) -> Place {
        debug_assert!(pages <= map.length as u64 * 8 && map.length.is_multiple_of(8));
        self.push(LOOK, &[start, pages, map.address, step])
    }

    fn push(&mut self, number: u64, arguments: &[u64]) -> Place {
        let mut entry = [0; ENTRY / 8];
        entry[0] = number;
        entry[1..=arguments.len()].copy_from_slice(arguments);
        self.entries.push(entry);
        Place(self.entries.len() - 1)
    }

    /// The result of `from` becomes argument `argument` (from 0) of `to`, which comes later.
    pub fn forward(&mut self, from: Place, to: Place, argument: usize) {
        debug_assert!(from.0 < to.0 && argument < 6);
        let target = HEAD + to.0 * ENTRY + 8 * (1 + argument);
        self.entries[from.0][8] = self.address + target as u64;
    }

    /// The result of `from` becomes the word at `offset` of what a later call points to.
    pub fn forward_into(&mut self, from: Place, data: Data, offset: usize) {
        debug_assert!(offset + 8 <= data.length);
        self.entries[from.0][8] = data.address + offset as u64;
    }

    /// Bytes for a call to read or to write, aligned to 16.
    pub fn data(&mut self, bytes: &[u8]) -> Data {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        let address = self.address + (self.data_offset() + at) as u64;
        Data { address, at, length: bytes.len() }
    }

    /// Room for a call to write to.
    pub fn room(&mut self, length: usize) -> Data {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at + length, 0);
        Data { address: self.address + (self.data_offset() + at) as u64, at, length }
    }

    /// A string for a call to read.
    pub fn string(&mut self, bytes: &[u8]) -> Data {
        self.data(&[bytes, &[0]].concat())
    }

    /// The table as it has to lie in the memory of the guest: (where, what).
    pub fn encode(&self) -> Vec<(u64, Vec<u8>)> {
        let mut head = Vec::with_capacity(HEAD + self.entries.len() * ENTRY);
        head.resize(HEAD, 0);
        head[..8].copy_from_slice(&(self.entries.len() as u64).to_ne_bytes());
        for word in self.entries.iter().flatten() {
            head.extend_from_slice(&word.to_ne_bytes());
        }
        let mut pieces = vec![(self.address, head)];
        if !self.data.is_empty() {
            pieces.push((self.address + self.data_offset() as u64, self.data.clone()));
        }
        pieces
    }

    /// The calls: number and arguments.
    pub fn calls(&self) -> impl Iterator<Item = (u32, [u64; 6])> + '_ {
        self.entries.iter().filter(|entry| entry[0] & LOOK == 0).map(|entry| {
            let [number, a, b, c, d, e, f, ..] = *entry;
            (number as u32, [a, b, c, d, e, f])
        })
    }

    /// Where the table lies.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Which call a thread is at, from its register r14.
    pub fn under_way(&self, r14: u64) -> Option<usize> {
        let behind = usize::try_from(r14.checked_sub(self.address)?).ok()?.checked_sub(HEAD)?;
        let at = behind / ENTRY;
        (behind.is_multiple_of(ENTRY) && at < self.entries.len()).then_some(at)
    }

    /// How many bytes its calls take, and its data (to be read back): (where, how many).
    pub fn extents(&self) -> [(u64, usize); 2] {
        [
            (self.address, HEAD + self.entries.len() * ENTRY),
            (self.address + self.data_offset() as u64, self.data.len()),
        ]
    }

    /// What has become of it, from the two pieces that were read back.
    pub fn decode(&self, calls: Vec<u8>, data: Vec<u8>) -> Result<Done, Failed> {
        let word = |at: usize| {
            let bytes = calls.get(at..at + 8).and_then(|it| it.try_into().ok());
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        let left = word(0) as usize;
        if left > 0 {
            let at = self.entries.len().saturating_sub(left);
            let errno =
                Errno::from_raw((word(HEAD + at * ENTRY + 56) as i64).wrapping_neg() as i32);
            let number = self.entries.get(at).map_or(0, |entry| entry[0] & 0xffff_ffff);
            return Err(Failed { number, at, errno });
        }
        let results =
            (0..self.entries.len()).map(|at| word(HEAD + at * ENTRY + 56) as i64).collect();
        Ok(Done { results, data })
    }
}

/// A table that was carried out.
#[derive(Debug, Clone)]
pub struct Done {
    results: Vec<i64>,
    data: Vec<u8>,
}

impl Done {
    /// The result of a call.
    pub fn result(&self, place: Place) -> Result<u64, Errno> {
        match self.results.get(place.0).copied().unwrap_or(-i64::from(libc::ENOSYS)) {
            error @ -4095..=-1 => Err(Errno::from_raw(-error as i32)),
            value => Ok(value as u64),
        }
    }

    /// What a call wrote.
    pub fn bytes(&self, data: Data) -> &[u8] {
        self.data.get(data.at..data.at + data.length).unwrap_or_default()
    }

    /// A word that a call wrote.
    pub fn word(&self, data: Data, index: usize) -> u64 {
        let bytes =
            self.bytes(data).get(index * 8..index * 8 + 8).and_then(|it| it.try_into().ok());
        u64::from_ne_bytes(bytes.unwrap_or_default())
    }

    /// Half a word that a call wrote.
    pub fn half(&self, data: Data, index: usize) -> u32 {
        let bytes =
            self.bytes(data).get(index * 4..index * 4 + 4).and_then(|it| it.try_into().ok());
        u32::from_ne_bytes(bytes.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instructions_are_there_and_end_with_a_breakpoint_and_a_jump() {
        let code = code();
        assert!(code.len() > 40 && code.len() < 512, "{}", code.len());
        assert_eq!(code[behind_breakpoint() as usize - 1], 0xcc);
    }

    #[test]
    fn a_table_is_laid_out_as_the_instructions_read_it() {
        let mut table = Table::new(0x1000, 3 * 4096);
        let text = table.string(b"ab");
        let first = table.call(libc::SYS_openat, [1, text.address]);
        let second = table.attempt(libc::SYS_dup3, [0, 7, 0]);
        table.forward(first, second, 0);
        // Who is at its second call, at none of them, and between two.
        let entry = 0x1000 + HEAD as u64 + ENTRY as u64;
        let at = [entry, 0x1000, entry + ENTRY as u64, entry + 8].map(|at| table.under_way(at));
        assert_eq!(at, [Some(1), None, None, None]);
        let pieces = table.encode();
        let word = |at: usize| u64::from_ne_bytes(pieces[0].1[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), 2);
        assert_eq!(word(HEAD), libc::SYS_openat as u64);
        assert_eq!(word(HEAD + 64), 0x1000 + (HEAD + ENTRY + 8) as u64);
        assert_eq!(word(HEAD + ENTRY), libc::SYS_dup3 as u64 | MAY_FAIL);
        assert_eq!(pieces[1], (text.address, b"ab\0".to_vec()));
        assert!(table.has_room(1, 100) && !table.has_room(1, 3 * 4096));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let mut table = Table::new(0x1000, 4096);
        let most = (4096 / 3 - HEAD) / ENTRY;
        for _ in 0..most {
            table.call(libc::SYS_getpid, []);
        }
        assert!(table.fits());
        let mut long = table.clone();
        long.data(&vec![0; 4096 - HEAD - most * ENTRY]);
        assert!(long.fits());
        long.data(&[0]);
        assert!(!long.fits());
        // One more would lie where data begins.
        table.call(libc::SYS_getpid, []);
        assert!(!table.fits());
    }

    #[test]
    fn a_call_that_failed_is_named() {
        let mut table = Table::new(0x1000, 4096);
        let place = table.call(libc::SYS_read, [0, 0, 0]);
        table.call(libc::SYS_close, [0]);
        let mut calls = table.encode().remove(0).1;
        calls[HEAD + 56..HEAD + 64].copy_from_slice(&(-9i64).to_ne_bytes());
        let failed = table.decode(calls.clone(), Vec::new()).unwrap_err();
        assert_eq!((failed.number, failed.at, failed.errno), (0, 0, Errno::EBADF));
        calls[..8].copy_from_slice(&0u64.to_ne_bytes());
        let done = table.decode(calls, Vec::new()).unwrap();
        assert_eq!(done.result(place), Err(Errno::EBADF));
    }
}
