//! What the saved run was asked for, as bytes of the kernel state ([`super::state::Run::spec`]).
//!
//! Owns the encoding alone: what is kept and what is checked is [`crate::config::SavedSpec`]'s business.

use serde_bytes::ByteBuf;

use super::error::RestoreError;
use crate::config::{Host, RunSpec, SavedSpec};

/// Bytes at most: arguments and variables have a bound of their own, and so have mounts.
const MOST: usize = 64 << 20;
/// How deep values are nested at most: ours need six.
const DEPTH: usize = 12;

/// What is kept of `spec`.
pub fn save(spec: &RunSpec) -> ByteBuf {
    let mut bytes = Vec::new();
    // Writing to memory does not fail, and nothing in it is of a kind that CBOR has not.
    let written = ciborium::into_writer(&SavedSpec::of(spec), &mut bytes);
    debug_assert!(written.is_ok());
    ByteBuf::from(bytes)
}

/// What was kept, unchecked: for people to look at.
///
/// # Errors
/// The bytes are none of [`save`]'s.
pub fn read(bytes: &[u8]) -> Result<SavedSpec, RestoreError> {
    let malformed = |cause: &str| {
        RestoreError::refused(format!(
            "the image is malformed: what the run was asked for {cause}; save it again"
        ))
    };
    if bytes.len() > MOST {
        return Err(malformed("is too long"));
    }
    let mut rest = bytes;
    let saved = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH)
        .map_err(|_| malformed("cannot be understood"))?;
    if rest.is_empty() { Ok(saved) } else { Err(malformed("is followed by something")) }
}

/// The run again, for the user and on the machine that `host` describes, where it can be granted
/// nothing that a command line of this user could not.
///
/// # Errors
/// The first thing that this user cannot have here.
pub fn restore(bytes: &[u8], host: &Host) -> Result<RunSpec, RestoreError> {
    read(bytes)?.restore(host).map_err(|error| RestoreError::refused(error.to_string()))
}
