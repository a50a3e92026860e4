//! What the processor says of itself: CPUID and XGETBV.
//!
//! Knows no names of features and compares nothing.

use std::arch::x86_64::{__cpuid, __cpuid_count, __get_cpuid_max, _xgetbv};

/// The registers that CPUID answers in: eax, ebx, ecx, edx.
pub type Registers = [u32; 4];

/// The answer for a leaf; zeros for one that the processor does not have.
pub fn cpuid(leaf: u32, subleaf: u32) -> Registers {
    // Every x86-64 processor has CPUID.
    let (most, _) = __get_cpuid_max(leaf & 0x8000_0000);
    if leaf > most {
        return [0; 4];
    }
    let answer = __cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// The parts of extended state that the kernel has switched on (XCR0); x87 and SSE alone where there
/// is no XSAVE.
pub fn xcr0() -> u64 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 3;
    }
    // SAFETY: OSXSAVE says that the processor has the instruction and that the kernel uses it.
    unsafe { read_xcr0() }
}

/// # Safety
///
/// CPUID reports OSXSAVE.
#[target_feature(enable = "xsave")]
unsafe fn read_xcr0() -> u64 {
    // SAFETY: the caller has checked OSXSAVE; register 0 always exists then.
    unsafe { _xgetbv(0) }
}
