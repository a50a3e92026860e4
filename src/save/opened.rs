//! An image as far as it can be read before anything is made of it.
//!
//! Owns the order (features, their check, state) and the decoding of the state. Content stays unread: the
//! [`Reader`] stands before it. Nothing here executes or makes anything.

use std::io::Read;

use cbor4ii::core::dec::Read as _;
use cbor4ii::core::utils::SliceReader;
use cbor4ii::serde::Deserializer;
use serde::Deserialize;

use super::error::RestoreError;
use super::image::{Features, OtherVdso, Reader};
use super::state::Sandbox;

/// An image, up to its content.
pub struct Image<R> {
    /// What it needs of the machine.
    pub features: Features,
    /// Its content may be packed.
    pub compressed: bool,
    /// Bytes of the state.
    pub state_bytes: u64,
    /// What it says.
    pub sandbox: Sandbox,
    /// What an overlay that is kept has of it, if it has overlays.
    pub mark: Vec<u8>,
    /// Its content comes next.
    pub reader: Reader<R>,
}

/// Opens an image to look at it, on whatever machine.
///
/// # Errors
/// It is none, or is damaged, or of another version.
pub fn look<R: Read>(from: R) -> Result<Image<R>, RestoreError> {
    open(from, None)
}

/// Opens an image to go on from it here. Features are compared before anything else is read.
///
/// # Errors
/// As [`look`], or this machine lacks what its programs may use.
pub fn check<R: Read>(from: R) -> Result<Image<R>, RestoreError> {
    open(from, Some(&Features::of_this_machine()?))
}

fn open<R: Read>(from: R, here: Option<&Features>) -> Result<Image<R>, RestoreError> {
    let opened = super::image::Opened::open(from)?;
    if let Some(here) = here {
        opened.features().check(here, OtherVdso::Refuse)?;
    }
    let (features, compressed) = (opened.features().clone(), opened.is_compressed());
    let (state, reader) = opened.state()?;
    let state_bytes = state.len() as u64;
    let sandbox = decode(&state)?;
    let mark = sandbox.overlay.as_ref().map_or_else(Vec::new, |overlay| overlay.mark(&state));
    Ok(Image { features, compressed, state_bytes, sandbox, mark, reader })
}

/// What the state section of an image says.
///
/// # Errors
/// It says nothing.
pub fn decode(bytes: &[u8]) -> Result<Sandbox, RestoreError> {
    let malformed =
        |what: &str| RestoreError::refused(format!("the image is malformed: its state {what}"));
    // (How deep values may be nested is bounded by the reader.)
    let mut values = Deserializer::new(SliceReader::new(bytes));
    let sandbox = Sandbox::deserialize(&mut values)
        .map_err(|_| malformed("cannot be understood; it may be of another version of sandbox"))?;
    let mut behind = values.into_inner();
    let Ok(rest) = behind.fill(1);
    if rest.as_ref().is_empty() { Ok(sandbox) } else { Err(malformed("is followed by something")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_bytes::ByteBuf;

    use super::*;
    use crate::save::state::{Mapping, MappingKind, Process, Space, Thread};
    use crate::save::testing;

    /// A state with something of most kinds of values in it.
    fn state() -> (Sandbox, Vec<u8>) {
        let mut sandbox = testing::empty();
        sandbox.run.log = "a line\n".repeat(100);
        sandbox.run.saved_us = -5;
        sandbox.carried = Some(u64::MAX);
        let kinds = [MappingKind::Heap, MappingKind::Vvar("[vvar]".into())];
        let mapping = |(at, kind): (usize, MappingKind)| Mapping {
            start: (at as u64) << 40,
            end: ((at as u64) << 40) + 4096,
            protection: 3,
            kind,
            flags: "rd wr mr".into(),
            name: (at == 0).then(|| ByteBuf::from([0, 255])),
            guards: vec![(1, u64::MAX)],
        };
        let mappings = kinds.into_iter().enumerate().map(mapping).collect();
        sandbox.spaces = vec![Space {
            object: 1,
            mappings,
            layout: Default::default(),
            exe: ByteBuf::from(vec![7; 300]),
            exe_memory: None,
            lock_new: 0,
            dumpable: 1,
            coredump_filter: 0x33,
            flags: [1, 0, u64::MAX],
            membarrier: 0,
        }];
        let thread = Thread { registers: vec![u64::MAX; 27], ..Thread::default() };
        sandbox.processes =
            vec![Process { pid: 2, space: Some(0), threads: vec![thread], ..Process::default() }];
        let mut bytes = Vec::new();
        ciborium::into_writer(&sandbox, &mut bytes).unwrap();
        (sandbox, bytes)
    }

    #[test]
    fn what_was_written_is_read() {
        let (sandbox, bytes) = state();
        assert_eq!(decode(&bytes).unwrap(), sandbox);
        let said = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        assert!(said(&[&bytes[..], &[0]].concat()).ends_with("its state is followed by something"));
        assert!(said(&bytes[..bytes.len() - 1]).contains("cannot be understood"));
        assert!(said(&[]).contains("cannot be understood"));
    }

    #[test]
    fn no_state_is_deeper_or_larger_than_its_bytes() {
        // A key that nobody knows, and behind it lists in lists, or one that is said to be endless.
        let unknown = [&[0xa1, 0x61, b'?'][..], &[0x81; 1 << 20]].concat();
        assert!(decode(&unknown).is_err());
        for kind in [0x5b, 0x7b, 0x9b, 0xbb] {
            let huge = [&[0xa1, 0x66][..], b"spaces", &[kind], &[0x7f; 8]].concat();
            assert!(decode(&huge).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_changed_state_is_read_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            length in any::<prop::sample::Index>(),
        ) {
            let (_, mut bytes) = state();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let _ = decode(&bytes);
            let _ = decode(&bytes[..length.index(bytes.len())]);
        }
    }
}
