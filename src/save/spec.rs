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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::testing::{TestHost, options};

    #[test]
    fn a_run_comes_back_and_parts_and_more_are_none() {
        let host = TestHost::ordinary();
        let spec = host.resolve(&options(&["--rw /data"])).unwrap();
        let image = save(&spec);
        let back = restore(&image, &host.host).unwrap();
        assert_eq!(SavedSpec::of(&back), SavedSpec::of(&spec));
        let error = read(&image[..image.len() - 1]).unwrap_err().to_string();
        assert!(error.contains("cannot be understood"), "{error}");
        let longer = [&image[..], &[0]].concat();
        assert!(read(&longer).unwrap_err().to_string().contains("followed by something"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_an_error(image: Vec<u8>) {
            prop_assert!(read(&image).is_err());
        }
    }
}
