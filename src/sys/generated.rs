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

/// Likewise, of a file that the kernel gives as a whole, if there is room for it (single_open in fs/seq_file.c): one
/// read is enough then.
pub fn single(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut text = vec![0; 4096];
    let count = file.read(&mut text)?;
    text.truncate(count);
    if count == 4096 {
        file.read_to_end(&mut text)?;
    }
    Ok(text)
}

/// A name in such a file as it is: white space and backslashes are three octal digits behind a backslash there
/// (mangle_path in fs/seq_file.c).
pub fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|it| std::str::from_utf8(it).ok());
        match digits.and_then(|it| u8::from_str_radix(it, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                plain.push(byte);
                rest = &behind[3..];
            }
            None => {
                plain.push(*first);
                rest = behind;
            }
        }
    }
    plain
}

/// The same as text. What is no text in it is replaced: a process may call itself anything, and whoever reads
/// of it shall read the rest.
pub fn text(path: impl AsRef<Path>) -> Result<String> {
    Ok(String::from_utf8_lossy(&contents(path)?).into_owned())
}
