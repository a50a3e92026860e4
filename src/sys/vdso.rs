//! The vDSO: this process's own copy of it, and code that can be put into another one's.
//!
//! The code answers `clock_gettime`, `gettimeofday` and `time` from the kernel's own function and a
//! few numbers behind it ([`Numbers`]), or by a system call, and `getrandom` by a system call. It is position-independent, keeps to
//! the C calling convention and needs 64 bytes of stack besides the kernel's function.

use std::arch::global_asm;

// clock_gettime(edi: id, rsi: timespec): ids whose bit is set in `trapped` are asked of the kernel;
// those in `computed` become guest + (now - host) * guest_rate / host_rate, and `least` at least; others
// are the kernel's. If `generation` has changed meanwhile, what the kernel said and the numbers do not belong
// together (the program was saved in between, and restored): it is asked again.
global_asm!(
    ".pushsection .rodata.sandbox_vdso, \"a\"",
    ".balign 16",
    "sandbox_vdso_begin:",
    "sandbox_vdso_clock_gettime:",
    "cmp edi, 32",
    "jae 8f",
    "mov eax, [rip + sandbox_vdso_trapped]",
    "bt eax, edi",
    "jc 7f",
    "mov eax, [rip + sandbox_vdso_computed]",
    "bt eax, edi",
    "jnc 8f",
    "push rbx",
    "push r12",
    "sub rsp, 24",
    "mov rbx, rsi",
    "lea r12, [rip + sandbox_vdso_realtime]",
    // CLOCK_REALTIME and CLOCK_REALTIME_COARSE
    "test edi, edi",
    "jz 2f",
    "cmp edi, 5",
    "je 2f",
    "lea r12, [rip + sandbox_vdso_boottime]",
    "cmp edi, 7",
    "je 2f",
    "lea r12, [rip + sandbox_vdso_monotonic]",
    // CLOCK_MONOTONIC_RAW has no base of its own.
    "cmp edi, 4",
    "jne 2f",
    "mov edi, 1",
    "2:",
    "mov [rsp + 16], edi",
    "10:",
    "mov eax, [rip + sandbox_vdso_generation]",
    "mov [rsp + 20], eax",
    "mov edi, [rsp + 16]",
    "mov rsi, rsp",
    "lea rax, [rip + sandbox_vdso_begin]",
    "add rax, [rip + sandbox_vdso_original]",
    "call rax",
    "test eax, eax",
    "jnz 6f",
    "imul rax, [rsp], 1000000000",
    "add rax, [rsp + 8]",
    "sub rax, [r12]",
    "imul qword ptr [r12 + 16]",
    "mov rcx, [r12 + 24]",
    "cmp rcx, 1",
    "je 3f",
    "idiv rcx",
    "3:",
    "add rax, [r12 + 8]",
    "cmp rax, [r12 + 32]",
    "cmovl rax, [r12 + 32]",
    "mov ecx, [rsp + 20]",
    "cmp ecx, [rip + sandbox_vdso_generation]",
    "jne 10b",
    "xor edx, edx",
    "mov ecx, 1000000000",
    "div rcx",
    "mov [rbx], rax",
    "mov [rbx + 8], rdx",
    "xor eax, eax",
    "6:",
    "add rsp, 24",
    "pop r12",
    "pop rbx",
    "ret",
    "7:",
    "mov eax, 228",
    "syscall",
    "ret",
    "8:",
    "lea rax, [rip + sandbox_vdso_begin]",
    "add rax, [rip + sandbox_vdso_original]",
    "jmp rax",
    // gettimeofday(rdi: timeval, rsi: timezone)
    "sandbox_vdso_gettimeofday:",
    "test dword ptr [rip + sandbox_vdso_trapped], 1",
    "jnz 9f",
    "push rbx",
    "push r12",
    "sub rsp, 24",
    "mov rbx, rdi",
    "mov r12, rsi",
    "xor edi, edi",
    "mov rsi, rsp",
    "call sandbox_vdso_clock_gettime",
    "test rbx, rbx",
    "jz 4f",
    "mov rax, [rsp]",
    "mov [rbx], rax",
    "mov eax, [rsp + 8]",
    "xor edx, edx",
    "mov ecx, 1000",
    "div ecx",
    "mov [rbx + 8], rax",
    "4:",
    "test r12, r12",
    "jz 5f",
    "mov qword ptr [r12], 0",
    "5:",
    "xor eax, eax",
    "add rsp, 24",
    "pop r12",
    "pop rbx",
    "ret",
    "9:",
    "mov eax, 96",
    "syscall",
    "ret",
    // time(rdi: time_t)
    "sandbox_vdso_time:",
    "test dword ptr [rip + sandbox_vdso_trapped], 1",
    "jnz 9f",
    "push rbx",
    "sub rsp, 16",
    "mov rbx, rdi",
    "mov edi, 5",
    "mov rsi, rsp",
    "call sandbox_vdso_clock_gettime",
    "mov rax, [rsp]",
    "test rbx, rbx",
    "jz 5f",
    "mov [rbx], rax",
    "5:",
    "add rsp, 16",
    "pop rbx",
    "ret",
    "9:",
    "mov eax, 201",
    "syscall",
    "ret",
    // getrandom(rdi: buffer, esi: length, edx: flags, rcx: state, r8: its length), as the kernel's own
    // (lib/vdso/getrandom.c). Who asks for the form of the state (the length is all ones) is told that
    // there is none to be had, and makes system calls from then on.
    "sandbox_vdso_getrandom:",
    "mov eax, -38",
    "cmp r8, -1",
    "je 2f",
    "mov eax, 318",
    "syscall",
    "2:",
    "cdqe",
    "ret",
    ".balign 8",
    "sandbox_vdso_numbers:",
    "sandbox_vdso_trapped: .long 0",
    "sandbox_vdso_computed: .long 0",
    "sandbox_vdso_original: .quad 0",
    "sandbox_vdso_generation: .quad 0",
    "sandbox_vdso_realtime: .quad 0, 0, 0, 0, 0",
    "sandbox_vdso_monotonic: .quad 0, 0, 0, 0, 0",
    "sandbox_vdso_boottime: .quad 0, 0, 0, 0, 0",
    "sandbox_vdso_end:",
    ".popsection",
);

unsafe extern "C" {
    safe static sandbox_vdso_begin: u8;
    safe static sandbox_vdso_clock_gettime: u8;
    safe static sandbox_vdso_gettimeofday: u8;
    safe static sandbox_vdso_time: u8;
    safe static sandbox_vdso_getrandom: u8;
    safe static sandbox_vdso_numbers: u8;
    safe static sandbox_vdso_end: u8;
}

/// The numbers that the code works with, as they lie behind it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Clock ids that are asked of the kernel by a system call, one bit each.
    pub trapped: u32,
    /// Clock ids that are computed.
    pub computed: u32,
    /// Where the kernel's own `clock_gettime` begins, from the beginning of the code.
    pub original: i64,
    /// Grows whenever the numbers change while a program may be reading a clock. (Half of it counts.)
    pub generation: i64,
    /// REALTIME, MONOTONIC, BOOTTIME.
    pub clocks: [Line; 3],
}

/// One clock as a function of the kernel's, in nanoseconds.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// What the kernel's clock showed at a moment.
    pub host: i64,
    /// What ours shows then.
    pub guest: i64,
    /// Nanoseconds of the guest in so many (`host_rate`) of the host; 0 stands still.
    pub guest_rate: i64,
    /// See above; not 0.
    pub host_rate: i64,
    /// It shows this while it would show less.
    pub least: i64,
}

/// The code and where things are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Its bytes, with the numbers.
    pub bytes: Vec<u8>,
    /// Where each function begins.
    pub clock_gettime: usize,
    /// See above.
    pub gettimeofday: usize,
    /// See above.
    pub time: usize,
    /// See above.
    pub getrandom: usize,
    /// Where the numbers begin; the first four bytes are `trapped`.
    pub numbers: usize,
}

/// The numbers as they lie behind the code.
fn block(numbers: Numbers) -> Vec<u8> {
    let Numbers { trapped, computed, original, generation, clocks } = numbers;
    let words =
        clocks.into_iter().flat_map(|Line { host, guest, guest_rate, host_rate, least }| {
            [host, guest, guest_rate, host_rate, least]
        });
    let words = [original, generation].into_iter().chain(words);
    let mut block: Vec<u8> = [trapped, computed].into_iter().flat_map(u32::to_ne_bytes).collect();
    block.extend(words.flat_map(i64::to_ne_bytes));
    block
}

/// Of those bytes: the sets of ids, the generation, and the time of day.
pub const IDS: std::ops::Range<usize> = 0..8;
/// See above.
pub const GENERATION: std::ops::Range<usize> = 16..24;
/// See above.
pub const REALTIME: std::ops::Range<usize> = 24..64;
/// Where what MONOTONIC and BOOTTIME show at least ([`Line::least`]) lies among them, a whole word each.
pub const LEAST: [u64; 2] = [96, 136];

/// The code with these numbers.
pub fn code(numbers: Numbers) -> Code {
    let begin = &raw const sandbox_vdso_begin;
    let offset = |symbol: *const u8| symbol as usize - begin as usize;
    let length = offset(&raw const sandbox_vdso_end);
    // SAFETY: the symbols enclose one read-only section of this program.
    let mut bytes = unsafe { std::slice::from_raw_parts(begin, length) }.to_vec();
    let at = offset(&raw const sandbox_vdso_numbers);
    bytes[at..].copy_from_slice(&block(numbers));
    Code {
        bytes,
        clock_gettime: offset(&raw const sandbox_vdso_clock_gettime),
        gettimeofday: offset(&raw const sandbox_vdso_gettimeofday),
        time: offset(&raw const sandbox_vdso_time),
        getrandom: offset(&raw const sandbox_vdso_getrandom),
        numbers: at,
    }
}

/// A copy of this process's vDSO, whole pages. The kernel maps the same one into every 64-bit
/// program (arch/x86/entry/vdso). `None` where there is none.
pub fn own_image() -> Option<Vec<u8>> {
    // SAFETY: asks for a number.
    let begin = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (first, last) = line.split(' ').next()?.split_once('-')?;
    let (first, last) =
        (usize::from_str_radix(first, 16).ok()?, usize::from_str_radix(last, 16).ok()?);
    if begin == 0 || begin != first {
        return None;
    }
    // SAFETY: the kernel has mapped these pages readable, and nothing in this program unmaps them.
    Some(unsafe { std::slice::from_raw_parts(begin as *const u8, last - first) }.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_numbers_lie_where_they_are_said_to() {
        let line = |first| {
            let [host, guest, guest_rate, host_rate, least] =
                std::array::from_fn(|at| first + at as i64);
            Line { host, guest, guest_rate, host_rate, least }
        };
        let clocks = [line(10), line(20), line(30)];
        let block = block(Numbers { trapped: 1, computed: 2, original: 3, generation: 4, clocks });
        let word = |at: usize| i64::from_ne_bytes(block[at..at + 8].try_into().unwrap());
        assert_eq!(block[IDS], [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(word(GENERATION.start), 4);
        assert_eq!((word(REALTIME.start), word(REALTIME.end - 8)), (10, 14));
        assert_eq!(LEAST.map(|at| word(at as usize)), [24, 34]);
        // As whole words in a program, too.
        assert_eq!(
            code(Numbers { trapped: 1, computed: 2, original: 3, generation: 4, clocks }).numbers
                % 8,
            0
        );
    }
}
