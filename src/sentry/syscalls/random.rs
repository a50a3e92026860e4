//! Random bytes in runs that repeat (`--deterministic`): getrandom(2), and open(2) of the devices and of what
//! procfs makes up.

use nix::errno::Errno;

use super::args::{DirFd, Flags, Len, OpenFlags, OutBuf, Path};
use super::stamps;
use crate::notify::{Answer, Descriptor, hand_over};
use crate::sentry::call::Call;
use crate::sentry::randomness::Randomness;
use crate::sys::seccomp::Place;

/// As much as one call gives, of which any may give less than it was asked for: what read(2) of /dev/random
/// has as its bound.
const MOST: u64 = (32 << 20) - 1;

/// At once.
const PIECE: usize = 64 << 10;

/// Serves getrandom(2).
pub fn getrandom(call: &Call<'_>, buffer: OutBuf, length: Len, flags: Flags) -> Answer {
    const INSECURE: u32 = 4;
    const KNOWN: u32 = libc::GRND_NONBLOCK | libc::GRND_RANDOM | INSECURE;
    const CONTRARY: u32 = libc::GRND_RANDOM | INSECURE;
    let Some(randomness) = call.kernel.randomness() else { return Answer::Continue };
    // (sys_getrandom in drivers/char/random.c.)
    if flags.0 & !KNOWN != 0 || flags.0 & CONTRARY == CONTRARY {
        return Answer::Fail(Errno::EINVAL);
    }
    hand_over();
    let given = match length.0.min(MOST) {
        // (It has asked all the same.)
        0 => drawn(call, randomness.prepare(call.kernel, call.received().tid)).map(|()| Ok(0)),
        length => give(call, randomness, buffer.0, length),
    };
    given.map_or(Answer::Continue, Answer::from)
}

/// What the caller has drawn from its stream. `None`: it has none; that is told, and it gets what the host has.
fn drawn<T>(call: &Call<'_>, drawn: Result<T, Errno>) -> Option<T> {
    if drawn.is_err() && call.trapped().is_valid() {
        let remedy = "it gets the host's; run it again";
        let why = "whose they are cannot be found out";
        call.kernel.let_through(call.received().tid, "random bytes", why, remedy);
    }
    drawn.ok()
}

/// Gives at least a byte. `None`: see [`drawn`].
fn give(
    call: &Call<'_>,
    randomness: &Randomness,
    buffer: u64,
    length: u64,
) -> Option<Result<i64, Errno>> {
    let mut piece = vec![0; PIECE.min(length as usize)];
    let mut given = 0;
    while given < length {
        let count = piece.len().min((length - given) as usize);
        let filled = randomness.fill(call.kernel, call.received().tid, &mut piece[..count]);
        drawn(call, filled)?;
        let at = buffer.checked_add(given).ok_or(Errno::EFAULT);
        match at.and_then(|at| call.memory().write(at, &piece[..count])) {
            Ok(()) => given += count as u64,
            Err(Errno::EFAULT) if given > 0 => break,
            Err(errno) => return Some(Err(errno)),
        }
    }
    Some(Ok(given as i64))
}

/// What opening some paths for reading gives in place of what is there. `None`: the kernel opens it.
pub fn open(
    call: &Call<'_>,
    dirfd: DirFd,
    path: Path,
    text: &[u8],
    flags: OpenFlags,
) -> Option<Answer> {
    let randomness = call.kernel.randomness()?;
    if let Some(name) = text.strip_prefix(b"/proc/sys/kernel/random/") {
        return identifier(call, randomness, name, flags);
    }
    if !text.ends_with(b"random") || !is_device(call, dirfd, path, text) {
        return None;
    }
    hand_over();
    let stream = drawn(call, randomness.open(call.kernel, call.received().tid))?;
    let nonblocking = flags.0 as i32 & libc::O_NONBLOCK != 0;
    let opened = call.kernel.open_random(stream, nonblocking);
    Some(opened.map_or_else(Answer::Fail, |fd| descriptor(fd, flags)))
}

fn descriptor(fd: std::os::fd::OwnedFd, flags: OpenFlags) -> Answer {
    let cloexec = flags.0 as i32 & libc::O_CLOEXEC != 0;
    Answer::Descriptor(Descriptor { fd, place: Place::Lowest, cloexec, sole: false })
}

/// Whether a path leads to /dev/random or /dev/urandom (mem(4): major 1).
fn is_device(call: &Call<'_>, dirfd: DirFd, path: Path, text: &[u8]) -> bool {
    const RANDOM: u64 = libc::makedev(1, 8);
    const URANDOM: u64 = libc::makedev(1, 9);
    if matches!(text, b"/dev/random" | b"/dev/urandom") {
        return true;
    }
    hand_over();
    stamps::look(call, dirfd.0, Some(path), 0).is_ok_and(|stat| {
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && [RANDOM, URANDOM].contains(&stat.st_rdev)
    })
}

/// `uuid`, which is another one at every opening, and `boot_id` (proc_sys_kernel(5)).
fn identifier(
    call: &Call<'_>,
    randomness: &Randomness,
    name: &[u8],
    flags: OpenFlags,
) -> Option<Answer> {
    let mut bytes = match name {
        b"uuid" => [0; 16],
        b"boot_id" => randomness.of_run(name),
        _ => return None,
    };
    hand_over();
    let tid = call.received().tid;
    let asked = match name {
        b"uuid" => randomness.fill(call.kernel, tid, &mut bytes),
        _ => randomness.prepare(call.kernel, tid),
    };
    drawn(call, asked)?;
    let file = super::machine::file(&uuid(bytes));
    Some(file.map_or_else(Answer::Fail, |fd| descriptor(fd, flags)))
}

/// Version 4 (RFC 9562), as the kernel writes it.
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_written_as_the_kernel_does() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff\n");
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000\n");
    }
}
