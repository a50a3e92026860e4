//! Checksums, the test for zero pages, and the memory of pages already written.
//!
//! Checksums (xxh3, 64 bits, no seed) find accidents and are no defence against a forger. Whether two
//! pages are the same must hold against a guest that would like to have pages confused, so it is
//! decided by a hash whose key nobody else ever learns, with a proven bound (see [`Seen`]).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::error::ImageError;
use super::format::PAGE;
use crate::sys::{clmul, random};

/// The checksum of some bytes. A fuzzer, which could not make any that fits, gets the same for all.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    if cfg!(fuzzing) {
        return 0;
    }
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// A checksum over what comes in pieces.
#[derive(Default)]
pub(super) struct Sum(twox_hash::XxHash3_64);

impl Sum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The same as [`checksum`] of everything together.
    pub(super) fn finish(&self) -> u64 {
        if cfg!(fuzzing) { 0 } else { self.0.finish() }
    }
}

/// Whether a page is all zeros.
pub(super) fn is_zero(page: &[u8]) -> bool {
    // In steps that the compiler turns into vector instructions; the first decides nearly always.
    page.chunks(256).all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
}

/// What is known of a page before it is compared with others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Class {
    /// All zeros.
    Zero,
    /// It has this hash ([`Key::hash`]).
    Hashed([u64; 2]),
    /// Nothing.
    #[default]
    Unknown,
}

/// Looks at pages, one by one: the work that several threads can share.
pub(super) fn classify(key: Option<&Key>, pages: &[u8], classes: &mut [Class]) {
    for (page, class) in pages.as_chunks::<PAGE>().0.iter().zip(classes) {
        *class = match key {
            _ if is_zero(page) => Class::Zero,
            Some(key) => Class::Hashed(key.hash(page)),
            None => Class::Unknown,
        };
    }
}

/// So many different pages are remembered (64 GiB of them); later ones are written again.
const MOST: usize = 1 << 24;

/// The pages written so far, by content.
///
/// For two different pages, the probability over the key that they get the same hash is at most
/// 2^-126: each half collides with 2^-64 in [`clmul::page`] and with 2^-64 in the multiply-shift that
/// brings it to 64 bits, and the halves have independent keys but for the overlap that Toeplitz'
/// construction allows. The key is random for each image and is not written down, so whoever made the
/// pages had to make them without it. Among the 2^55 pairs of a 1 TiB image none collides but with 2^-71.
pub(super) struct Seen {
    key: Arc<Key>,
    pages: HashMap<[u64; 2], u64, BuildHasherDefault<First>>,
}

/// What pages are hashed with. Threads that look at pages share it.
pub(super) struct Key {
    kind: clmul::Kind,
    bytes: Box<[u8; clmul::KEY]>,
    /// Three numbers for each half: a constant and a factor for each word.
    fold: [[u128; 3]; 2],
}

impl Key {
    /// The hash of a page.
    pub(super) fn hash(&self, page: &[u8; PAGE]) -> [u64; 2] {
        let halves = clmul::page(self.kind, &self.bytes, page);
        let fold = |[low, high]: [u64; 2], [start, one, two]: [u128; 3]| {
            let sum = start
                .wrapping_add(one.wrapping_mul(u128::from(low)))
                .wrapping_add(two.wrapping_mul(u128::from(high)));
            (sum >> 64) as u64
        };
        [fold(halves[0], self.fold[0]), fold(halves[1], self.fold[1])]
    }
}

impl Seen {
    /// Nothing seen yet; `None` where the processor cannot hash so fast, and each page is written.
    pub(super) fn new() -> Result<Option<Seen>, ImageError> {
        let Some(kind) = clmul::Kind::here() else { return Ok(None) };
        let mut bytes = Box::new([0; clmul::KEY]);
        let mut numbers = [0; 96];
        for part in [&mut bytes[..], &mut numbers[..]] {
            random::fill(part)
                .map_err(|error| ImageError::io("cannot get random numbers", error))?;
        }
        let mut numbers = numbers
            .chunks_exact(16)
            .map(|it| it.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte)));
        let mut three = || [(); 3].map(|()| numbers.next().unwrap_or_default());
        let fold = [three(), three()];
        let key = Arc::new(Key { kind, bytes, fold });
        Ok(Some(Seen { key, pages: HashMap::default() }))
    }

    /// What pages are hashed with.
    pub(super) fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// The number of the stored page with this hash. If there is none, `number` becomes it.
    pub(super) fn find_or_add(&mut self, hash: [u64; 2], number: u64) -> Option<u64> {
        if self.pages.len() == MOST {
            return self.pages.get(&hash).copied();
        }
        match self.pages.entry(hash) {
            Entry::Occupied(found) => Some(*found.get()),
            Entry::Vacant(place) => {
                place.insert(number);
                None
            }
        }
    }
}

/// The keys of the table are hashes already: takes their first word.
#[derive(Default)]
struct First(u64);

impl Hasher for First {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}

    fn write_u64(&mut self, word: u64) {
        self.0 ^= word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_all_zeros() {
        let mut page = [0; PAGE];
        assert!(is_zero(&page));
        for at in [0, 255, 256, PAGE - 1] {
            page[at] = 1;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }

    #[test]
    fn a_sum_of_pieces_is_that_of_the_whole() {
        let bytes: Vec<u8> = (0..100_000u32).map(|it| (it.wrapping_mul(it) >> 3) as u8).collect();
        for size in [1, 7, 256, 4096, 99_999] {
            let mut sum = Sum::default();
            bytes.chunks(size).for_each(|piece| sum.add(piece));
            assert_eq!(sum.finish(), checksum(&bytes));
        }
    }

    #[test]
    fn pages_are_known_by_content() {
        let Some(mut seen) = Seen::new().unwrap() else { return };
        let mut page = [1; PAGE];
        let one = seen.key().hash(&page);
        page[4095] = 2;
        let other = seen.key().hash(&page);
        assert_ne!(one, other);
        assert_eq!(seen.find_or_add(one, 7), None);
        assert_eq!(seen.find_or_add(one, 8), Some(7));
        assert_eq!(seen.find_or_add(other, 8), None);
        // Another key gives another hash.
        assert_ne!(Seen::new().unwrap().unwrap().key().hash(&page), other);
    }
}
