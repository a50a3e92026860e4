//! The guests' own seccomp filters: seccomp(2) and prctl(2) with PR_SET_SECCOMP.
//!
//! A plain filter only takes away from its own thread, so the kernel may load it, and continuing is
//! safe although the program lies in guest memory. It is recorded, since the kernel does not give
//! it back to an ordinary user and a save has to load it again. A guest that changes the program
//! between our look and the kernel's deceives its own save, nobody else.

use nix::errno::Errno;

use super::args::{Addr, Flags, Operation, PrctlOption, ULong};
use crate::notify::{Answer, GuestMemory};
use crate::sentry::RecordedFilter;
use crate::sentry::call::Call;
use crate::sentry::filter_log;
use crate::sys::seccomp::FILTER_FLAG_NEW_LISTENER;

/// BPF_MAXINSNS: the kernel takes no longer program.
const LONGEST_PROGRAM: u16 = 4096;

/// Serves seccomp(2).
pub fn seccomp(call: &Call<'_>, operation: Operation, flags: Flags, args: Addr) -> Answer {
    if operation.0 as u32 != libc::SECCOMP_SET_MODE_FILTER {
        return Answer::Continue;
    }
    // A null program only asks which flags the kernel knows.
    if args.0 != 0 && u64::from(flags.0) & FILTER_FLAG_NEW_LISTENER != 0 {
        call.kernel.refuse(
            call.received().tid,
            "a seccomp listener of a guest's own",
            "the kernel allows one in a task's filters, and the sandbox has it",
            "run the program outside the sandbox",
        );
        return Answer::Fail(Errno::EBUSY);
    }
    record(call, flags.0, args.0);
    Answer::Continue
}

/// Serves prctl(2) with PR_SET_SECCOMP.
pub fn prctl(
    call: &Call<'_>,
    _option: PrctlOption,
    mode: ULong,
    program: ULong,
    _arg4: ULong,
    _arg5: ULong,
) -> Answer {
    if mode.0 == u64::from(libc::SECCOMP_MODE_FILTER) {
        record(call, 0, program.0);
    }
    Answer::Continue
}

/// What cannot be read the kernel will refuse itself.
fn record(call: &Call<'_>, flags: u32, address: u64) {
    let Ok(program) = read_program(call.memory(), address) else { return };
    if let Ok(task) = call.kernel.tasks().get(call.received().tid)
        && call.trapped().is_valid()
    {
        let filter = RecordedFilter { flags, program };
        let count = |tid| filter_log::count(tid).unwrap_or(0);
        let before = count(call.kernel.init_pid());
        call.kernel.filters().record(count(task.tid).saturating_sub(before), filter.clone());
        task.record_filter(filter);
    }
}

/// struct sock_fprog: the count of instructions, and where they are.
fn read_program(memory: GuestMemory<'_>, address: u64) -> Result<Vec<u8>, Errno> {
    let mut header = [0; 16];
    memory.read(address, &mut header)?;
    let count = u16::from_ne_bytes([header[0], header[1]]);
    if count == 0 || count > LONGEST_PROGRAM {
        return Err(Errno::EINVAL);
    }
    let [.., a, b, c, d, e, f, g, h] = header;
    let mut program = vec![0; usize::from(count) * size_of::<libc::sock_filter>()];
    memory.read(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), &mut program)?;
    Ok(program)
}
