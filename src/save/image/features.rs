//! What an image needs of the machine, and what this machine has.
//!
//! Owns the names of the processor's features that programs can use and the comparison. Does not know
//! how the section lies in the file.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::error::ImageError;
use super::format::PAGE;
use super::hash::checksum;
use crate::sys::{cpu, vdso};

mod names;

/// The host facts of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// The kernel's release, as uname(2) says it. Tells people; nothing depends on it.
    pub kernel: String,
    /// Bytes of a page.
    pub page_size: u32,
    /// The instructions that programs can use and may have chosen to, by the names of /proc/cpuinfo.
    pub flags: BTreeSet<String>,
    /// The parts of extended state that are on.
    pub xcr0: u64,
    /// Where each of them lies in the XSAVE area (uncompacted, as ptrace and signal frames have it).
    pub components: Vec<Component>,
    /// Bytes of that area.
    pub xsave_size: u32,
    /// The code that the kernel maps into programs.
    pub vdso: Vdso,
}

/// A part of the extended state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its bit in XCR0.
    pub number: u32,
    /// Its first byte in the area.
    pub offset: u32,
    /// Its bytes.
    pub size: u32,
}

/// The identity of a vDSO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vdso {
    /// Its bytes, whole pages; 0 where the kernel maps none.
    pub size: u64,
    /// Their checksum.
    pub checksum: u64,
}

/// What to make of an image whose vDSO is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherVdso {
    /// An error.
    Refuse,
    /// The caller sees to it.
    Accept,
}

/// The most nested value that the section may hold; it needs four.
const DEPTH: usize = 8;

impl Features {
    /// What this machine has.
    pub fn of_this_machine() -> Result<Features, ImageError> {
        let names = nix::sys::utsname::uname()
            .map_err(|error| ImageError::io("cannot ask for the kernel's release", error))?;
        let xcr0 = cpu::xcr0();
        // CPUID 0xd (Intel SDM, volume 1, 13.2): of each part from 2 on, size in eax, offset in ebx.
        let components = (2..63).filter(|number| xcr0 >> number & 1 == 1).map(|number| {
            let [size, offset, ..] = cpu::cpuid(0xd, number);
            Component { number, offset, size }
        });
        let image = vdso::own_image().unwrap_or_default();
        Ok(Features {
            kernel: names.release().to_string_lossy().into_owned(),
            page_size: PAGE as u32,
            flags: names::of_this_processor(),
            xcr0,
            components: components.collect(),
            xsave_size: cpu::cpuid(0xd, 0)[1],
            vdso: Vdso { size: image.len() as u64, checksum: checksum(&image) },
        })
    }

    /// Whether an image with these features can go on on a machine that has those of `here`. A machine
    /// with more is fine; the kernel's release does not matter.
    pub fn check(&self, here: &Features, other_vdso: OtherVdso) -> Result<(), ImageError> {
        if self.page_size != here.page_size {
            return Err(ImageError::PageSize { image: self.page_size, here: here.page_size });
        }
        let mut lacks: Vec<String> = self.flags.difference(&here.flags).cloned().collect();
        let parts = self.xcr0 & !here.xcr0;
        lacks.extend((0..64).filter(|bit| parts >> bit & 1 == 1).map(names::component));
        if !lacks.is_empty() {
            return Err(ImageError::Processor { lacks });
        }
        for component in &self.components {
            if !here.components.contains(component) {
                return Err(ImageError::Layout { component: names::component(component.number) });
            }
        }
        if self.vdso != here.vdso && other_vdso == OtherVdso::Refuse {
            return Err(ImageError::Vdso { image: self.kernel.clone(), here: here.kernel.clone() });
        }
        Ok(())
    }

    /// As the section holds it.
    pub(super) fn encode(&self) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        ciborium::into_writer(self, &mut bytes)
            .map_err(|error| ImageError::Unwritable { what: format!("its features: {error}") })?;
        Ok(bytes)
    }

    /// From the section, which is short ([`super::format::MOST_FEATURES`]) and may be hostile.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Features, ImageError> {
        let features: Features = ciborium::de::from_reader_with_recursion_limit(&mut bytes, DEPTH)
            .map_err(|_| ImageError::impossible("its list of features cannot be read"))?;
        if !bytes.is_empty() {
            return Err(ImageError::impossible("something follows its list of features"));
        }
        Ok(features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_like_itself_and_comes_back_from_bytes() {
        let here = Features::of_this_machine().unwrap();
        assert!(here.flags.contains("sse2") && here.xcr0 & 3 == 3 && !here.kernel.is_empty());
        here.check(&here, OtherVdso::Refuse).unwrap();
        assert_eq!(Features::decode(&here.encode().unwrap()).unwrap(), here);
    }

    #[test]
    fn our_names_are_those_of_the_kernel() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let line = text.lines().find(|line| line.starts_with("flags")).unwrap();
        let theirs: BTreeSet<&str> = line.split_whitespace().collect();
        let ours = Features::of_this_machine().unwrap().flags;
        // The kernel may hide what it has switched off or does not know; it names nothing otherwise.
        let known: Vec<&str> = names::all().filter(|name| theirs.contains(name)).collect();
        assert!(known.len() > 20, "{known:?}");
        assert!(known.iter().all(|name| ours.contains(*name)), "{known:?} {ours:?}");
    }

    #[test]
    fn a_processor_with_more_will_do_and_one_with_less_is_named() {
        let here = Features::of_this_machine().unwrap();
        let mut more = here.clone();
        more.flags.insert("avx1024".into());
        here.check(&more, OtherVdso::Refuse).unwrap();
        let error = more.check(&here, OtherVdso::Refuse).unwrap_err().to_string();
        assert_eq!(error, "the image needs a processor with avx1024; this one lacks it");
        let mut amx = here.clone();
        amx.xcr0 |= 1 << 40;
        let error = amx.check(&here, OtherVdso::Refuse).unwrap_err().to_string();
        assert!(error.contains("extended state part 40"), "{error}");
    }

    #[test]
    fn another_vdso_is_refused_unless_told_otherwise() {
        let here = Features::of_this_machine().unwrap();
        let mut other = here.clone();
        other.vdso.checksum ^= 1;
        let error = other.check(&here, OtherVdso::Refuse).unwrap_err();
        assert!(matches!(error, ImageError::Vdso { .. }), "{error}");
        other.check(&here, OtherVdso::Accept).unwrap();
    }

    #[test]
    fn another_layout_is_named() {
        let here = Features::of_this_machine().unwrap();
        let mut other = here.clone();
        other.components.push(Component { number: 9, offset: 1, size: 8 });
        let error = other.check(&here, OtherVdso::Refuse).unwrap_err().to_string();
        assert!(error.contains("protection keys"), "{error}");
    }
}
