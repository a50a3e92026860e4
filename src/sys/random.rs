//! Random numbers of the kernel's.

use nix::errno::Errno;

/// Fills the bytes (getrandom(2)); waits, early after boot only, until the kernel has enough.
pub fn fill(mut bytes: &mut [u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of one slice that is ours to write to.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match Errno::result(count) {
            Ok(count) => bytes = &mut bytes[count as usize..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A random number.
pub fn number() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
