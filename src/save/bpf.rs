//! What a seccomp filter says of a call (seccomp(2)): classic BPF, as the kernel takes it for that.
//!
//! Guests may have filters of their own, and what a hand calls inside a guest passes them too: a call
//! that one would answer with the guest's death must not be made. The program is a guest's and may be
//! anything; what the kernel would not have loaded counts as a denial.

/// struct seccomp_data.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Number of the call.
    pub number: u32,
    /// Where the instruction is.
    pub instruction_pointer: u64,
    /// Arguments.
    pub arguments: [u64; 6],
}

/// include/uapi/linux/audit.h
const ARCH_X86_64: u32 = 0xc000_003e;
/// The 32-bit words of struct seccomp_data.
const WORDS: usize = 16;
/// BPF_MEMWORDS
const MEMORY: usize = 16;

impl Call {
    fn words(&self) -> [u32; WORDS] {
        let mut words = [0; WORDS];
        (words[0], words[1]) = (self.number, ARCH_X86_64);
        let long = std::iter::once(self.instruction_pointer).chain(self.arguments);
        for (pair, word) in words[2..].chunks_mut(2).zip(long) {
            (pair[0], pair[1]) = (word as u32, (word >> 32) as u32);
        }
        words
    }
}

/// Whether a filter lets a call through as it is. `program`: struct sock_filter, 8 bytes each.
pub fn allows(program: &[u8], call: &Call) -> bool {
    let verdict = run(program, &call.words());
    verdict.is_some_and(|it| {
        matches!(it & 0xffff_0000, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG)
    })
}

struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

fn fetch(program: &[u8], at: usize) -> Option<Instruction> {
    let [a, b, if_true, if_false, k @ ..] = *program.get(at * 8..)?.first_chunk::<8>()?;
    let (code, k) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes(k));
    Some(Instruction { code, if_true, if_false, k })
}

/// The value that the program returns. It only jumps forward, so it ends.
fn run(program: &[u8], data: &[u32; WORDS]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; MEMORY]);
    let mut at = 0;
    loop {
        let Instruction { code, if_true, if_false, k } = fetch(program, at)?;
        at += 1;
        // include/uapi/linux/bpf_common.h; which of them a filter may have: seccomp_check_filter in
        // kernel/seccomp.c.
        match code {
            0x20 => a = *data.get(k as usize / 4)?,   // LD | W | ABS
            0x80 => a = WORDS as u32 * 4,             // LD | W | LEN
            0x81 => x = WORDS as u32 * 4,             // LDX | W | LEN
            0x00 => a = k,                            // LD | IMM
            0x01 => x = k,                            // LDX | IMM
            0x60 => a = *memory.get(k as usize)?,     // LD | MEM
            0x61 => x = *memory.get(k as usize)?,     // LDX | MEM
            0x02 => *memory.get_mut(k as usize)? = a, // ST
            0x03 => *memory.get_mut(k as usize)? = x, // STX
            0x07 => x = a,                            // MISC | TAX
            0x87 => a = x,                            // MISC | TXA
            0x06 => return Some(k),                   // RET | K
            0x16 => return Some(a),                   // RET | A
            0x05 => at = at.checked_add(k as usize)?, // JMP | JA
            0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d => {
                let with = if code & 8 == 0 { k } else { x };
                let holds = match code & 0xf0 {
                    0x10 => a == with,
                    0x20 => a > with,
                    0x30 => a >= with,
                    _ => a & with != 0,
                };
                at += usize::from(if holds { if_true } else { if_false });
            }
            _ if code & 7 == 4 => a = calculate(code, a, if code & 8 == 0 { k } else { x })?,
            _ => return None,
        }
    }
}

/// ALU instructions.
fn calculate(code: u16, a: u32, with: u32) -> Option<u32> {
    Some(match code & 0xf0 {
        0x00 => a.wrapping_add(with),
        0x10 => a.wrapping_sub(with),
        0x20 => a.wrapping_mul(with),
        // Division by 0 ends the program with 0 (bpf_prog_run): a kill.
        0x30 => a.checked_div(with)?,
        0x40 => a | with,
        0x50 => a & with,
        0x60 => a.checked_shl(with).unwrap_or(0),
        0x70 => a.checked_shr(with).unwrap_or(0),
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ with,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        let bytes = instructions.iter().flat_map(|(code, yes, no, k)| {
            let [a, b] = code.to_ne_bytes();
            let [c, d, e, f] = k.to_ne_bytes();
            [a, b, *yes, *no, c, d, e, f]
        });
        bytes.collect()
    }

    fn call(number: u32, first: u64) -> Call {
        Call { number, instruction_pointer: 0x1000, arguments: [first, 0, 0, 0, 0, 0] }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    #[test]
    fn a_filter_is_followed_to_its_verdict() {
        // Number 7 is denied, unless the upper half of its first argument is 5.
        let filter = program(&[
            (0x20, 0, 0, 0),
            (0x15, 0, 2, 7),
            (0x20, 0, 0, 20),
            (0x15, 0, 1, 5),
            (0x06, 0, 0, ALLOW),
            (0x06, 0, 0, libc::SECCOMP_RET_ERRNO | 1),
        ]);
        assert!(!allows(&filter, &call(7, 5)));
        assert!(allows(&filter, &call(7, 5 << 32)));
        assert!(allows(&filter, &call(8, 0)));
    }

    #[test]
    fn what_no_kernel_takes_denies() {
        for broken in [&[][..], &[(0x05, 0, 0, 9)], &[(0x20, 0, 0, 64)], &[(0xff, 0, 0, 0)]] {
            assert!(!allows(&program(broken), &call(1, 0)));
        }
        // Memory, arithmetic, and the register X.
        let filter = program(&[
            (0x00, 0, 0, ALLOW / 2),
            (0x02, 0, 0, 3),
            (0x61, 0, 0, 3),
            (0x0c, 0, 0, 0),
            (0x16, 0, 0, 0),
        ]);
        assert!(allows(&filter, &call(1, 0)));
        assert!(!allows(&program(&[(0x34, 0, 0, 0), (0x06, 0, 0, ALLOW)]), &call(1, 0)));
    }
}
