//! The names of the features that programs can use, where CPUID says them, and those of the parts of
//! extended state.
//!
//! Only what an ordinary program can notice is here: not the kernel's business (virtualisation, control
//! of speculation, interrupt controllers), and not hints about speed that no instruction depends on.

use std::collections::BTreeSet;

use crate::sys::cpu;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Leaf, subleaf, register, and the names by bit.
type Word = (u32, u32, usize, &'static [(u32, &'static str)]);

/// As arch/x86/include/asm/cpufeatures.h of Linux 6.18 has them.
const WORDS: &[Word] = &[
    (
        1,
        0,
        EDX,
        &[
            (0, "fpu"),
            (4, "tsc"),
            (8, "cx8"),
            (15, "cmov"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
        ],
    ),
    (
        1,
        0,
        ECX,
        &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (22, "movbe"),
            (23, "popcnt"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    (
        7,
        0,
        EBX,
        &[
            (0, "fsgsbase"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (8, "bmi2"),
            (9, "erms"),
            (11, "rtm"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (26, "avx512pf"),
            (27, "avx512er"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    (
        7,
        0,
        ECX,
        &[
            (1, "avx512vbmi"),
            (3, "pku"),
            (4, "ospke"),
            (5, "waitpkg"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (22, "rdpid"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    ),
    (
        7,
        0,
        EDX,
        &[
            (2, "avx512_4vnniw"),
            (3, "avx512_4fmaps"),
            (4, "fsrm"),
            (8, "avx512_vp2intersect"),
            (14, "serialize"),
            (16, "tsxldtrk"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
        ],
    ),
    (7, 1, EAX, &[(4, "avx_vnni"), (5, "avx512_bf16")]),
    (0xd, 1, EAX, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1")]),
    (0x8000_0001, 0, EDX, &[(11, "syscall"), (27, "rdtscp"), (29, "lm")]),
    (
        0x8000_0001,
        0,
        ECX,
        &[
            (0, "lahf_lm"),
            (5, "abm"),
            (6, "sse4a"),
            (8, "3dnowprefetch"),
            (11, "xop"),
            (16, "fma4"),
            (21, "tbm"),
            (29, "mwaitx"),
        ],
    ),
    (0x8000_0008, 0, EBX, &[(0, "clzero")]),
];

/// Names for the bits of XCR0 (Intel SDM, volume 1, 13.1).
const COMPONENTS: &[(u32, &str)] = &[
    (0, "x87"),
    (1, "SSE"),
    (2, "AVX"),
    (3, "MPX bounds"),
    (4, "MPX control"),
    (5, "AVX-512 masks"),
    (6, "AVX-512 upper halves"),
    (7, "AVX-512 upper registers"),
    (9, "protection keys"),
    (17, "AMX tile configuration"),
    (18, "AMX tile data"),
    (19, "APX"),
];

/// The features of this processor.
pub(super) fn of_this_processor() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (leaf, subleaf, register, names) in WORDS {
        let word = cpu::cpuid(*leaf, *subleaf)[*register];
        let here = names.iter().filter(|(bit, _)| word >> bit & 1 == 1);
        found.extend(here.map(|(_, name)| (*name).to_owned()));
    }
    found
}

/// All names that are known.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    WORDS.iter().flat_map(|(.., names)| names.iter().map(|(_, name)| *name))
}

/// What a bit of XCR0 stands for.
pub(super) fn component(number: u32) -> String {
    let name = COMPONENTS.iter().find(|(known, _)| *known == number);
    name.map_or_else(|| format!("extended state part {number}"), |(_, name)| (*name).to_owned())
}
