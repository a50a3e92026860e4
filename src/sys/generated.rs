//! Files that the kernel generates as they are read (proc(5)).

use std::fs::File;
use std::io::{Read, Result};
use std::path::Path;

/// All of such a file. Its size is not known beforehand, so that `std::fs::read` would ask for it, begin
/// with 32 bytes and double; most fit in here at once.
pub fn contents(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let mut text = Vec::with_capacity(4096);
    File::open(path)?.take(u64::MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// The same as text. What is no text in it is replaced: a process may call itself anything, and whoever reads
/// of it shall read the rest.
pub fn text(path: impl AsRef<Path>) -> Result<String> {
    Ok(String::from_utf8_lossy(&contents(path)?).into_owned())
}
