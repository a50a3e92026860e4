//! A keyed hash of a page by carry-less multiplication, as fast as memory.
//!
//! Knows the arithmetic alone; who makes the key and what the value is good for is the caller's.

use std::arch::asm;
use std::arch::x86_64::{
    __m128i, __m256i, _mm_clmulepi64_si128, _mm_loadu_si128, _mm_setzero_si128, _mm_storeu_si128,
    _mm_xor_si128, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256,
    _mm256_setzero_si256, _mm256_xor_si256,
};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes of a key: a page and 16 more, since the second value uses the key from byte 16 on.
pub const KEY: usize = PAGE + 16;

/// What of this processor is used. Made only by [`Kind::here`], so each holds on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// VPCLMULQDQ and AVX2.
    wide: bool,
}

impl Kind {
    /// What this processor has; `None` without PCLMULQDQ.
    pub fn here() -> Option<Kind> {
        let narrow = is_x86_feature_detected!("pclmulqdq");
        let wide = is_x86_feature_detected!("vpclmulqdq") && is_x86_feature_detected!("avx2");
        narrow.then_some(Kind { wide })
    }
}

/// Both values of a page under a key, 127 bits each: the sum (exclusive or) over all pairs (a, b) of
/// 64-bit words of the page and their words (j, k) of the key of the carry-less product
/// (a ^ j) * (b ^ k); the second one with the key moved by one pair.
///
/// Two different pages have the same first value for at most one key in 2^64: they differ in some
/// word a, so k decides, and the product with a ^ a' is injective. With the second one, 2^128.
pub fn page(kind: Kind, key: &[u8; KEY], page: &[u8; PAGE]) -> [[u64; 2]; 2] {
    if kind.wide {
        // SAFETY: `Kind::here` has found these features on this processor.
        unsafe { wide(key, page) }
    } else {
        // SAFETY: as above.
        unsafe { narrow(key, page) }
    }
}

/// # Safety
///
/// The processor has PCLMULQDQ.
#[target_feature(enable = "pclmulqdq")]
unsafe fn narrow(key: &[u8; KEY], page: &[u8; PAGE]) -> [[u64; 2]; 2] {
    let mut first = [_mm_setzero_si128(); 2];
    let mut second = [_mm_setzero_si128(); 2];
    let (data, keys) = (page.as_ptr().cast::<__m128i>(), key.as_ptr().cast::<__m128i>());
    for at in 0..PAGE / 16 {
        // SAFETY: `at` counts the 16-byte words of the page, and the key has one more; unaligned
        // loads.
        let (word, here, next) = unsafe {
            (
                _mm_loadu_si128(data.add(at)),
                _mm_loadu_si128(keys.add(at)),
                _mm_loadu_si128(keys.add(at + 1)),
            )
        };
        let (one, two) = (_mm_xor_si128(word, here), _mm_xor_si128(word, next));
        first[at % 2] = _mm_xor_si128(first[at % 2], _mm_clmulepi64_si128::<1>(one, one));
        second[at % 2] = _mm_xor_si128(second[at % 2], _mm_clmulepi64_si128::<1>(two, two));
    }
    [words(_mm_xor_si128(first[0], first[1])), words(_mm_xor_si128(second[0], second[1]))]
}

/// # Safety
///
/// The processor has VPCLMULQDQ and AVX2.
#[target_feature(enable = "avx2")]
unsafe fn wide(key: &[u8; KEY], page: &[u8; PAGE]) -> [[u64; 2]; 2] {
    let mut first = [_mm256_setzero_si256(); 2];
    let mut second = [_mm256_setzero_si256(); 2];
    for at in 0..PAGE / 32 {
        // SAFETY: `at` counts the 32-byte words of the page, and the key is 16 bytes longer;
        // unaligned loads.
        let (word, here, next) = unsafe {
            let keys = key.as_ptr().add(at * 32);
            (
                _mm256_loadu_si256(page.as_ptr().add(at * 32).cast::<__m256i>()),
                _mm256_loadu_si256(keys.cast::<__m256i>()),
                _mm256_loadu_si256(keys.add(16).cast::<__m256i>()),
            )
        };
        let (one, two) = (_mm256_xor_si256(word, here), _mm256_xor_si256(word, next));
        // SAFETY: the caller vouches for both features.
        let (one, two) = unsafe { (halves_multiplied(one), halves_multiplied(two)) };
        first[at % 2] = _mm256_xor_si256(first[at % 2], one);
        second[at % 2] = _mm256_xor_si256(second[at % 2], two);
    }
    let fold = |sums: [__m256i; 2]| {
        let sum = _mm256_xor_si256(sums[0], sums[1]);
        words(_mm_xor_si128(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum)))
    };
    [fold(first), fold(second)]
}

/// Of each 128-bit lane, one half times the other.
///
/// # Safety
///
/// The processor has VPCLMULQDQ and AVX2.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn halves_multiplied(lanes: __m256i) -> __m256i {
    let product;
    // SAFETY: an instruction that changes its output register alone. (Its intrinsic needs a newer
    // compiler than this crate asks for.)
    unsafe {
        asm!(
            "vpclmulqdq {product}, {lanes}, {lanes}, 1",
            product = lateout(ymm_reg) product,
            lanes = in(ymm_reg) lanes,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    product
}

/// The two halves of a register.
fn words(register: __m128i) -> [u64; 2] {
    let mut words = [0u64; 2];
    // SAFETY: the array has room for 16 bytes; an unaligned store.
    unsafe { _mm_storeu_si128(words.as_mut_ptr().cast::<__m128i>(), register) };
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by the definition.
    fn plain(key: &[u8; KEY], page: &[u8; PAGE]) -> [[u64; 2]; 2] {
        let word = |bytes: &[u8], at: usize| {
            u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"))
        };
        let product = |a: u64, b: u64| {
            (0..64).filter(|bit| b >> bit & 1 == 1).fold(0u128, |sum, bit| sum ^ (a as u128) << bit)
        };
        [0, 2].map(|shift| {
            let sum = (0..PAGE / 8).step_by(2).fold(0u128, |sum, at| {
                let a = word(page, at) ^ word(key, at + shift);
                let b = word(page, at + 1) ^ word(key, at + shift + 1);
                sum ^ product(a, b)
            });
            [sum as u64, (sum >> 64) as u64]
        })
    }

    #[test]
    fn both_ways_give_what_the_definition_gives() {
        let Some(kind) = Kind::here() else { return };
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        let mut key = [0; KEY];
        let mut content = [0; PAGE];
        for _ in 0..8 {
            key.fill_with(&mut next);
            content.fill_with(&mut next);
            let expected = plain(&key, &content);
            assert_eq!(page(kind, &key, &content), expected);
            assert_eq!(page(Kind { wide: false }, &key, &content), expected);
        }
    }
}
