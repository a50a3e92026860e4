//! getdents(2) and getdents64(2) in runs that repeat (`--deterministic`): names come sorted
//! (`sentry::listings`).

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::args::{Dirent, Dirent64, Fd, Out, UInt};
use crate::notify::{Answer, hand_over};
use crate::sentry::call::Call;
use crate::sentry::listings::Form;
use crate::sentry::task::copy_descriptor;

/// At once at most: programs ask for 32 KiB, or for a MiB.
const MOST: u32 = 4 << 20;

/// Serves getdents(2).
pub fn getdents(call: &Call<'_>, fd: Fd, entries: Out<Dirent>, count: UInt) -> Answer {
    serve(call, fd, entries.address, count, Form::Old)
}

/// Serves getdents64(2).
pub fn getdents64(call: &Call<'_>, fd: Fd, entries: Out<Dirent64>, count: UInt) -> Answer {
    serve(call, fd, entries.address, count, Form::New)
}

fn serve(call: &Call<'_>, fd: Fd, address: u64, count: UInt, form: Form) -> Answer {
    // A file system of the host may take its time.
    hand_over();
    let tid = call.received().tid;
    let refuse = |why, remedy| call.kernel.refuse(tid, "a sorted directory", why, remedy);
    let let_through = |why, remedy| call.kernel.let_through(tid, "a sorted directory", why, remedy);
    let directory = match copy_descriptor(tid, fd.0) {
        Ok(directory) => directory,
        Err(errno @ (Errno::EBADF | Errno::ESRCH | Errno::EMFILE | Errno::ENFILE)) => {
            return Answer::Fail(errno);
        }
        Err(_) => {
            let_through(
                "the host does not let its descriptors be copied (pidfd_getfd)",
                "it is listed as the file system has it; sandbox doctor says what the host lacks",
            );
            return Answer::Continue;
        }
    };
    if !call.trapped().is_valid() {
        return Answer::Fail(Errno::ESRCH);
    }
    // Processes come in the order of their numbers, all else in that of the kernel's own tables.
    if fstatfs(directory.as_fd()).is_ok_and(|it| it.filesystem_type() == PROC_SUPER_MAGIC) {
        return Answer::Continue;
    }
    let give = |bytes: &[u8]| call.memory().write(address, bytes);
    match call.kernel.listings().read(directory.as_fd(), form, count.0.min(MOST) as usize, give) {
        Ok(count) => Answer::Return(count as i64),
        Err(Errno::E2BIG) => {
            refuse(
                "it has more than a million names",
                "leave --deterministic out, or spread them over several directories",
            );
            Answer::Fail(Errno::ENOMEM)
        }
        Err(errno) => Answer::Fail(errno),
    }
}
