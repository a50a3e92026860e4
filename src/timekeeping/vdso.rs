//! The vDSO of a program whose clocks are the sandbox's own.
//!
//! A program reads clocks through code that the kernel maps into it, without a call that could be
//! trapped. So between the exec and the program's first instruction that code is changed, in the
//! program's own copy of the page: the symbols of the three time functions lead to code of ours,
//! which lies behind the kernel's in the same pages ([`crate::sys::vdso`]). Where there is no room,
//! the kernel's functions begin with a system call instead. Everything else of the vDSO stays.
//!
//! A fork inherits the changed pages; an exec gets fresh ones, so each exec is followed.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::SECOND;
use super::clock::Rate;
use super::timekeeper::Timekeeper;
use crate::sys::tracing;
use crate::sys::vdso::{self, Code, Numbers};

/// What is written into the vDSO of every program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Words by their offset in the vDSO.
    words: Vec<(u64, u64)>,
    /// Where our code is, if it is ours, and what it is.
    ours: Option<(u64, Code)>,
    /// What the program is given as random bytes for its start (AT_RANDOM, getauxval(3)).
    random: Option<[u64; 2]>,
    /// How fast steady clocks go on.
    rate: Rate,
}

/// Why programs cannot be given other clocks on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoVdso;

const FUNCTIONS: [(&str, &str); 3] = [
    ("__vdso_clock_gettime", "clock_gettime"),
    ("__vdso_gettimeofday", "gettimeofday"),
    ("__vdso_time", "time"),
];

/// In vDSOs from Linux 6.11 on: draws random bytes from a state of the program's own (vgetrandom).
const GETRANDOM: (&str, &str) = ("__vdso_getrandom", "getrandom");

impl Patch {
    /// The patch for programs on this host that read these clocks. `begin`: the random bytes that one finds at
    /// its start, and the nanoseconds that its steady clocks begin with, where they are to stand.
    ///
    /// # Errors
    /// This host's vDSO looks like none that is known.
    pub fn new(time: &Timekeeper, begin: Option<([u64; 2], u32)>) -> Result<Patch, NoVdso> {
        let (random, nanoseconds) = begin.unzip();
        let numbers = time.numbers(nanoseconds.unwrap_or(0));
        // A kernel without a vDSO (vdso=0) makes its programs call it anyway.
        match vdso::own_image() {
            Some(image) => {
                let patch = Patch::of(&image, numbers, time.repeats()).ok_or(NoVdso)?;
                Ok(Patch { random, rate: time.rate(), ..patch })
            }
            None => Ok(Patch { words: Vec::new(), ours: None, random, rate: time.rate() }),
        }
    }

    /// `trap_random`: getrandom(2) is to be a system call.
    fn of(image: &[u8], numbers: Numbers, trap_random: bool) -> Option<Patch> {
        let symbols = Symbols::of(image)?;
        let [clock_gettime, gettimeofday, time] = FUNCTIONS.map(|(name, _)| symbols.value(name));
        let mut bytes = Bytes { image, changed: BTreeMap::new() };
        let room = symbols.behind.next_multiple_of(16);
        let original = clock_gettime? as i64 - room as i64;
        let code = vdso::code(Numbers { original, ..numbers });
        if room + code.bytes.len() <= image.len() {
            bytes.write(room, &code.bytes);
            let entries = [code.clock_gettime, code.gettimeofday, code.time];
            for ((name, alias), entry) in FUNCTIONS.iter().zip(entries) {
                for at in symbols.places(name).chain(symbols.places(alias)) {
                    bytes.write(at, &((room + entry) as u64).to_le_bytes());
                }
            }
            if trap_random {
                for at in symbols.places(GETRANDOM.0).chain(symbols.places(GETRANDOM.1)) {
                    bytes.write(at, &((room + code.getrandom) as u64).to_le_bytes());
                }
            }
            let ours = Some((room as u64, code));
            return Some(Patch { words: bytes.words(), ours, random: None, rate: Rate::ONE });
        }
        for (at, number) in [
            (clock_gettime?, libc::SYS_clock_gettime),
            (gettimeofday?, libc::SYS_gettimeofday),
            (time?, libc::SYS_time),
        ] {
            // mov eax, number; syscall; ret
            let [a, b, c, d] = (number as u32).to_le_bytes();
            bytes.write(at, &[0xb8, a, b, c, d, 0x0f, 0x05, 0xc3]);
        }
        if let (true, Some(at)) = (trap_random, symbols.value(GETRANDOM.0)) {
            // mov eax, -ENOSYS; ret. Its callers make the system call then (as from 6.11 on for those who
            // have no state).
            bytes.write(at, &[0xb8, 0xda, 0xff, 0xff, 0xff, 0x48, 0x98, 0xc3]);
        }
        Some(Patch { words: bytes.words(), ours: None, random: None, rate: Rate::ONE })
    }

    /// Changes a program that has been executed and has not run yet; the caller traces it and it is
    /// stopped. A program without a vDSO needs no change of it. `passed`: how long ago the patch was
    /// made, where it was made for this program: what is to stand at its start stands from now on. Child side.
    ///
    /// # Errors
    /// The program's memory cannot be changed, as that of one whose file may not be read.
    pub fn apply(&self, tid: i32, passed: Duration) -> Result<(), Errno> {
        if let Some(random) = self.random
            && let Some(at) = tracing::auxiliary(tid, libc::AT_RANDOM)?
        {
            tracing::poke(tid, at, random[0])?;
            tracing::poke(tid, at + 8, random[1])?;
        }
        let Some(base) = tracing::auxiliary(tid, libc::AT_SYSINFO_EHDR)? else { return Ok(()) };
        let later = self.later(passed);
        let places = self.trapped().map(|numbers| vdso::LEAST.map(|at| numbers + at));
        for (offset, word) in &self.words {
            let moved = match places.is_some_and(|places| places.contains(offset)) {
                true => word.wrapping_add(later.cast_unsigned()),
                false => *word,
            };
            tracing::poke(tid, base + offset, moved)?;
        }
        Ok(())
    }

    /// By how much later steady clocks that stand first begin to move: whole seconds, which leave their nanoseconds
    /// as they are. Less than a tenth of a second makes no difference. Child side.
    fn later(&self, passed: Duration) -> i64 {
        let passed = i64::try_from(passed.as_nanos()).unwrap_or(i64::MAX);
        self.rate.to_guest(passed).saturating_add(SECOND * 9 / 10) / SECOND * SECOND
    }

    /// Where, from the beginning of a program's vDSO, the set of trapped clocks lies.
    pub fn trapped(&self) -> Option<u64> {
        self.ours.as_ref().map(|(at, code)| at + code.numbers as u64)
    }

    /// Where, from the beginning of a program's vDSO, our code with its numbers lies, and how long it is.
    pub fn place(&self) -> Option<(u64, usize)> {
        self.ours.as_ref().map(|(at, code)| (*at, code.bytes.len()))
    }

    /// What tells our code from that of another version: a program may be in the midst of it.
    pub fn code(&self) -> Vec<u8> {
        let code = self.ours.iter().flat_map(|(at, code)| {
            let fixed = code.bytes.get(..code.numbers).unwrap_or_default();
            at.to_le_bytes().into_iter().chain(fixed.iter().copied())
        });
        Sha256::digest(code.collect::<Vec<u8>>()).to_vec()
    }

    /// What is to be at [`Patch::place`] in a program that stands still, was given the sandbox's clock before, and
    /// goes on by these clocks. Its steady clocks are what they were: those of its kernel, time namespace
    /// included, go on where they stood. `None`: what was found there is not our code.
    pub fn renewed(&self, found: &[u8]) -> Option<Vec<u8>> {
        let (_, code) = self.ours.as_ref()?;
        let (fixed, wanted) = code.bytes.split_at_checked(code.numbers)?;
        let (before, numbers) = found.split_at_checked(code.numbers)?;
        if before != fixed || numbers.len() != wanted.len() {
            return None;
        }
        let mut renewed = found.to_vec();
        let (_, numbers) = renewed.split_at_mut_checked(code.numbers)?;
        for range in [vdso::IDS, vdso::REALTIME] {
            numbers[range.clone()].copy_from_slice(&wanted[range]);
        }
        let generation = numbers[vdso::GENERATION].first_chunk_mut::<8>()?;
        *generation = u64::from_le_bytes(*generation).wrapping_add(1).to_le_bytes();
        Some(renewed)
    }
}

/// Changes of an image, gathered into whole words.
struct Bytes<'i> {
    image: &'i [u8],
    changed: BTreeMap<usize, u8>,
}

impl Bytes<'_> {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.changed.extend(bytes.iter().enumerate().map(|(index, byte)| (at + index, *byte)));
    }

    fn words(&self) -> Vec<(u64, u64)> {
        let mut words = BTreeMap::new();
        for (at, byte) in &self.changed {
            let start = at & !7;
            let word = words.entry(start).or_insert_with(|| {
                let mut word = [0; 8];
                let old = self.image.get(start..start + 8).unwrap_or(&[0; 8]);
                word.copy_from_slice(old);
                word
            });
            word[at - start] = *byte;
        }
        words.into_iter().map(|(at, word)| (at as u64, u64::from_le_bytes(word))).collect()
    }
}

/// The dynamic symbols of a vDSO (elf(5)), read with every number checked.
struct Symbols<'i> {
    image: &'i [u8],
    table: usize,
    count: usize,
    names: usize,
    /// Where the last thing in the image ends.
    behind: usize,
}

const SYMBOL: usize = 24;

impl<'i> Symbols<'i> {
    fn of(image: &'i [u8]) -> Option<Symbols<'i>> {
        const SHT_DYNSYM: u64 = 11;
        if image.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let sections = number(image, 40, 8)?;
        let size = number(image, 58, 2)?;
        let count = number(image, 60, 2)?;
        let section = |index: usize| sections.checked_add(index.checked_mul(size)?);
        let table = (0..count).find_map(|index| {
            section(index).filter(|at| number(image, at + 4, 4) == Some(SHT_DYNSYM as usize))
        })?;
        let strings = section(number(image, table + 40, 4)?)?;
        // Section headers stand last in the kernel's images (vdso2c), but nothing has to.
        let used = image.iter().rposition(|byte| *byte != 0)? + 1;
        Some(Symbols {
            image,
            table: number(image, table + 24, 8)?,
            count: number(image, table + 32, 8)? / SYMBOL,
            names: number(image, strings + 24, 8)?,
            behind: used.max(section(count)?),
        })
    }

    /// Where the values of symbols of this name are.
    fn places(&self, name: &str) -> impl Iterator<Item = usize> {
        (0..self.count.min(256)).filter_map(move |index| {
            let at = self.table + index * SYMBOL;
            let begin = self.names.checked_add(number(self.image, at, 4)?)?;
            let found = self.image.get(begin..begin.checked_add(name.len() + 1)?)?;
            let matches = found.strip_suffix(b"\0") == Some(name.as_bytes());
            matches.then_some(at + 8)
        })
    }

    fn value(&self, name: &str) -> Option<usize> {
        let value = number(self.image, self.places(name).next()?, 8)?;
        (value + 8 <= self.image.len()).then_some(value)
    }
}

/// A little-endian number of `size` bytes.
fn number(image: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = image.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timekeeping::{Namespace, TimeSpec};

    fn keeper(words: &str) -> Timekeeper {
        let spec = TimeSpec::parse(&[words]).unwrap();
        Timekeeper::new(spec.as_ref(), Namespace::default())
    }

    #[test]
    fn leads_the_symbols_of_this_hosts_vdso_elsewhere_and_leaves_its_code_alone() {
        let Some(image) = vdso::own_image() else { return };
        let patch = Patch::of(&image, keeper("+3d").numbers(0), true).unwrap();
        let mut changed = image.clone();
        for (at, word) in &patch.words {
            changed[*at as usize..*at as usize + 8].copy_from_slice(&word.to_le_bytes());
        }
        let (before, after) = (Symbols::of(&image).unwrap(), Symbols::of(&changed).unwrap());
        for (name, alias) in FUNCTIONS {
            assert_ne!(before.value(name), after.value(name));
            assert_eq!(after.value(alias), after.value(name));
            let code = before.value(name).unwrap();
            assert_eq!(image[code..code + 64], changed[code..code + 64]);
        }
        assert_eq!(before.value("__vdso_getcpu"), after.value("__vdso_getcpu"));
        match before.value(GETRANDOM.0) {
            Some(code) => assert_ne!(after.value(GETRANDOM.0), Some(code)),
            None => println!("skipped: no getrandom in this host's vDSO"),
        }
        let untouched = Patch::of(&image, keeper("+3d").numbers(0), false).unwrap();
        assert!(untouched.words.len() < patch.words.len() || before.value(GETRANDOM.0).is_none());
    }

    #[test]
    fn a_program_that_goes_on_gets_the_time_of_day_anew_and_keeps_the_rest() {
        let Some(image) = vdso::own_image() else { return };
        let of = |words: &str| Patch::of(&image, keeper(words).numbers(0), true).unwrap();
        let (before, after) = (of("@1000000,frozen"), of("@2000000,frozen"));
        assert_eq!(before.code(), after.code());
        let found = before.ours.as_ref().unwrap().1.bytes.clone();
        let (_, length) = after.place().unwrap();
        assert_eq!(found.len(), length);
        let renewed = after.renewed(&found).unwrap();
        let wanted = &after.ours.as_ref().unwrap().1;
        let (code, numbers) = renewed.split_at(wanted.numbers);
        assert_eq!(code, &found[..wanted.numbers]);
        assert_eq!(numbers[vdso::REALTIME], wanted.bytes[wanted.numbers..][vdso::REALTIME]);
        assert_eq!(numbers[vdso::GENERATION], 1u64.to_le_bytes());
        let steady = vdso::REALTIME.end;
        assert_eq!(numbers[steady..], found[wanted.numbers + steady..]);
        assert_eq!(after.renewed(&image[..length]), None);
        assert_eq!(after.renewed(&found[1..]), None);
        assert_eq!(after.renewed(&[]), None);
    }

    #[test]
    fn without_room_the_kernels_functions_call_the_kernel() {
        let Some(image) = vdso::own_image() else { return };
        let image = &image[..Symbols::of(&image).unwrap().behind];
        let patch = Patch::of(image, keeper("+3d").numbers(0), true).unwrap();
        assert_eq!(patch.trapped(), None);
        let code = Symbols::of(image).unwrap().value("__vdso_time").unwrap() as u64;
        assert!(patch.words.iter().any(|(at, word)| *at == code && *word == 0xc3050f000000c9b8));
    }

    #[test]
    fn clocks_that_stand_begin_to_move_whole_seconds_later_for_a_program_that_begins_late() {
        let Some(image) = vdso::own_image() else { return };
        let patch = Patch::of(&image, keeper("+3d").numbers(0), true).unwrap();
        let later = |patch: &Patch, milliseconds| patch.later(Duration::from_millis(milliseconds));
        for (milliseconds, seconds) in [(0, 0), (99, 0), (100, 1), (1099, 1), (1100, 2)] {
            assert_eq!(later(&patch, milliseconds), seconds * SECOND, "{milliseconds}");
        }
        let fast = Patch { rate: Rate::new(10, 1).unwrap(), ..patch.clone() };
        assert_eq!(later(&fast, 500), 5 * SECOND);
        assert_eq!(patch.later(Duration::MAX) % SECOND, 0);
    }

    proptest::proptest! {
        #[test]
        fn a_broken_image_is_refused_without_a_panic(
            broken in proptest::collection::vec((0usize..8192, 0u8..), 1..40),
            length in 0usize..8192,
        ) {
            if let Some(mut image) = vdso::own_image() {
                for (at, byte) in broken {
                    if let Some(place) = image.get_mut(at) {
                        *place = byte;
                    }
                }
                let _ = Patch::of(&image[..length.min(image.len())], keeper("+3d").numbers(0), true);
            }
        }
    }
}
