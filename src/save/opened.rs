//! An image as far as it can be read before anything is made of it.
//!
//! Owns the order (features, their check, state) and the decoding of the state. Content stays unread: the
//! [`Reader`] stands before it. Nothing here executes or makes anything.

use std::io::Read;

use super::error::RestoreError;
use super::image::{Features, OtherVdso, Reader};
use super::state::Sandbox;

/// How deep values of the state are nested at most: ours need about ten.
const DEPTH: usize = 32;

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
pub fn decode(mut bytes: &[u8]) -> Result<Sandbox, RestoreError> {
    let malformed =
        |what: &str| RestoreError::refused(format!("the image is malformed: its state {what}"));
    let sandbox = ciborium::de::from_reader_with_recursion_limit(&mut bytes, DEPTH)
        .map_err(|_| malformed("cannot be understood; it may be of another version of sandbox"))?;
    if bytes.is_empty() { Ok(sandbox) } else { Err(malformed("is followed by something")) }
}
