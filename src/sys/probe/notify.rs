//! A rehearsal of user notification: a supervising child, a guest of its own, one trapped call
//! served from end to end.

use std::fmt::Write;
use std::mem::MaybeUninit;
use std::ptr;

use nix::errno::Errno;

use super::{
    Board, ExitOnDrop, FilterFlag, Outcomes, Tried, checked, done, exit, filter_flag, fork_raw,
    in_child, reap,
};

/// What came of each step of the rehearsal. A step that rests on one that was refused is not
/// reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notify {
    /// prctl(2) PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: Tried,
    /// Loading a filter with a listener; EBUSY where a filter that this process inherited has one.
    pub listener: Tried,
    /// SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (Linux 6.6).
    pub sync_wake_up: Tried,
    /// SECCOMP_IOCTL_NOTIF_ADDFD (Linux 5.9).
    pub addfd: Tried,
    /// SECCOMP_ADDFD_FLAG_SEND (Linux 5.14).
    pub addfd_send: Tried,
    /// A call was trapped, received, answered with a value, and the guest saw that value.
    pub round_trip: Tried,
    /// process_vm_readv(2) on the guest, and what it read is what is there.
    pub vm_read: Tried,
    /// process_vm_writev(2) on the guest.
    pub vm_write: Tried,
    /// Reading /proc/PID/mem of the guest.
    pub proc_mem: Tried,
    /// pidfd_open(2) of the guest.
    pub pidfd_open: Tried,
    /// pidfd_getfd(2) of a descriptor of the guest.
    pub pidfd_getfd: Tried,
}

mod slot {
    pub(super) const NO_NEW_PRIVS: usize = 0;
    pub(super) const LISTENER: usize = 1;
    pub(super) const SYNC_WAKE_UP: usize = 2;
    pub(super) const ADDFD: usize = 3;
    pub(super) const ADDFD_SEND: usize = 4;
    pub(super) const ROUND_TRIP: usize = 5;
    pub(super) const VM_READ: usize = 6;
    pub(super) const VM_WRITE: usize = 7;
    pub(super) const PROC_MEM: usize = 8;
    pub(super) const PIDFD_OPEN: usize = 9;
    pub(super) const PIDFD_GETFD: usize = 10;
}

/// Serves one trapped call of a guest.
#[must_use]
pub fn rehearse_notify() -> Notify {
    let mut flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    if filter_flag(FilterFlag::WaitKillable).works() {
        flags |= libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    }
    in_child(|board| supervise(board, flags)).into()
}

impl Notify {
    /// What a host without listeners would give.
    #[must_use]
    pub fn refused(errno: Errno) -> Self {
        Notify { no_new_privs: Tried::Works, ..Outcomes::refused_at(slot::LISTENER, errno).into() }
    }
}

impl From<Outcomes> for Notify {
    fn from(outcomes: Outcomes) -> Self {
        Notify {
            no_new_privs: outcomes.at(slot::NO_NEW_PRIVS),
            listener: outcomes.at(slot::LISTENER),
            sync_wake_up: outcomes.at(slot::SYNC_WAKE_UP),
            addfd: outcomes.at(slot::ADDFD),
            addfd_send: outcomes.at(slot::ADDFD_SEND),
            round_trip: outcomes.at(slot::ROUND_TRIP),
            vm_read: outcomes.at(slot::VM_READ),
            vm_write: outcomes.at(slot::VM_WRITE),
            proc_mem: outcomes.at(slot::PROC_MEM),
            pidfd_open: outcomes.at(slot::PIDFD_OPEN),
            pidfd_getfd: outcomes.at(slot::PIDFD_GETFD),
        }
    }
}

/// The call that is trapped: no C library function that a child uses makes it.
const TRAPPED: libc::c_long = libc::SYS_getppid;
/// What it is answered with: no pid.
const ANSWER: i64 = 1 << 40;
/// A word of memory before the guest is born, as the guest leaves it, as the supervisor leaves it.
const BEFORE: u64 = 0x1111;
const IN_GUEST: u64 = 0x2222;
const WRITTEN: u64 = 0x3333;
/// How long the guest may take to its call, in milliseconds: a busy machine's worst case.
const PATIENCE: libc::c_int = 5_000;

fn supervise(board: &Board, flags: libc::c_ulong) {
    // SAFETY: plain numbers; concerns only this child.
    let outcome = done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    board.put(slot::NO_NEW_PRIVS, outcome);
    let listener = match load_filter(flags) {
        Ok(listener) => listener,
        Err(errno) => {
            board.put(slot::LISTENER, Err(errno));
            return;
        }
    };
    board.put(slot::LISTENER, Ok(()));
    board.put(slot::SYNC_WAKE_UP, set_sync_wake_up(listener));
    board.put(slot::ADDFD, addfd_knows(listener, 0));
    board.put(slot::ADDFD_SEND, addfd_knows(listener, libc::SECCOMP_ADDFD_FLAG_SEND as u32));

    let mut word = BEFORE;
    // SAFETY: the child makes raw system calls only and exits.
    match unsafe { fork_raw() } {
        Ok(None) => {
            let _never_return = ExitOnDrop;
            guest(&raw mut word);
        }
        Ok(Some(guest)) => {
            let served = serve(board, listener, guest, (&raw const word) as usize);
            // Without its listener a call that was not answered ends with ENOSYS: the guest always
            // comes to its end.
            // SAFETY: the descriptor is ours.
            unsafe { libc::close(listener) };
            let seen = if reap(guest) == 0 { Ok(()) } else { Err(Errno::EPROTO) };
            board.put(slot::ROUND_TRIP, served.and(seen));
        }
        Err(errno) => {
            board.put(slot::ROUND_TRIP, Err(errno));
        }
    }
}

/// The guest's side: exits with 0 if its call was answered as arranged.
fn guest(word: *mut u64) -> ! {
    // A guest lives in a user namespace that belongs to its supervisor, which decides what the
    // supervisor may do to it (ptrace(2), access mode checking). Where that is refused, the
    // rehearsal goes on without.
    // SAFETY: plain numbers; `word` is this process's own copy of a live variable.
    unsafe {
        libc::unshare(libc::CLONE_NEWUSER);
        ptr::write_volatile(word, IN_GUEST);
    }
    // SAFETY: takes no arguments.
    let answer = unsafe { libc::syscall(TRAPPED) };
    exit(i32::from(answer != ANSWER))
}

/// Receives the guest's call, looks into the guest while it waits, and answers.
fn serve(
    board: &Board,
    listener: libc::c_int,
    guest: libc::pid_t,
    word: usize,
) -> Result<(), Errno> {
    // SAFETY: plain numbers; the descriptor goes with this child.
    let pidfd = checked(unsafe { libc::syscall(libc::SYS_pidfd_open, guest, 0) });
    board.put(slot::PIDFD_OPEN, pidfd.map(drop));
    // poll(2) leaves out negative descriptors.
    let id = receive(listener, pidfd.unwrap_or(-1) as libc::c_int)?;
    let read = vm_read(guest, word).and_then(|found| expect(found == IN_GUEST));
    board.put(slot::VM_READ, read);
    let wrote = vm_write(guest, word, WRITTEN);
    board.put(slot::VM_WRITE, wrote);
    let stored = if wrote.is_ok() { WRITTEN } else { IN_GUEST };
    let read = proc_mem_read(guest, word).and_then(|found| expect(found == stored));
    board.put(slot::PROC_MEM, read);
    if let Ok(pidfd) = pidfd {
        // The guest inherited the listener under the same number.
        // SAFETY: plain numbers.
        let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, listener, 0) };
        board.put(
            slot::PIDFD_GETFD,
            checked(taken).map(|fd| {
                // This copy must not keep the listener alive.
                // SAFETY: the descriptor is ours.
                unsafe { libc::close(fd as libc::c_int) };
            }),
        );
    }
    respond(listener, id)
}

fn expect(holds: bool) -> Result<(), Errno> {
    if holds { Ok(()) } else { Err(Errno::EPROTO) }
}

fn load_filter(flags: libc::c_ulong) -> Result<libc::c_int, Errno> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        // The number of the call is the first field of seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: TRAPPED as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads a program of the length given from live memory.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    // A descriptor fits.
    checked(result).map(|fd| fd as libc::c_int)
}

fn set_sync_wake_up(listener: libc::c_int) -> Result<(), Errno> {
    /// include/uapi/linux/seccomp.h
    const SYNC_WAKE_UP: u64 = 1;
    // The flags are the argument itself, not behind a pointer (kernel/seccomp.c,
    // seccomp_notify_ioctl).
    // SAFETY: plain numbers.
    done(unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) })
}

/// Whether ADDFD takes these flags: it checks them before the descriptor to install, so that with
/// an impossible one it says EBADF if it does and EINVAL if not (seccomp_notify_addfd).
fn addfd_knows(listener: libc::c_int, flags: u32) -> Result<(), Errno> {
    let request =
        libc::seccomp_notif_addfd { id: 0, flags, srcfd: u32::MAX, newfd: 0, newfd_flags: 0 };
    // SAFETY: the kernel reads one live structure.
    match done(unsafe {
        libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const request)
    }) {
        Err(Errno::EBADF) => Ok(()),
        outcome => outcome,
    }
}

/// Room for a notification of a kernel whose structure has grown.
#[repr(C, align(8))]
struct Room([u8; 512]);

/// Receives the guest's call; ESRCH if the guest, whose pidfd this is, ends without one.
fn receive(listener: libc::c_int, guest: libc::c_int) -> Result<u64, Errno> {
    let mut poll =
        [listener, guest].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: two live structures.
        match checked(unsafe { libc::poll(poll.as_mut_ptr(), 2, PATIENCE) }.into()) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) if poll[0].revents & libc::POLLIN == 0 => return Err(Errno::ESRCH),
            Ok(_) => break,
        }
    }
    // The kernel wants zeroes (seccomp_unotify(2)).
    let mut room = Room([0; 512]);
    // SAFETY: there is room for the kernel's structure, whose size is far below 512 bytes.
    done(unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut room) })?;
    // SAFETY: `room` is aligned for the structure and larger than it, and any bytes are a valid one.
    let notification = unsafe { &*(&raw const room).cast::<libc::seccomp_notif>() };
    Ok(notification.id)
}

fn respond(listener: libc::c_int, id: u64) -> Result<(), Errno> {
    let response = libc::seccomp_notif_resp { id, val: ANSWER, error: 0, flags: 0 };
    // SAFETY: the kernel reads one live structure.
    done(unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) })
}

fn vm_read(guest: libc::pid_t, address: usize) -> Result<u64, Errno> {
    let mut value = 0u64;
    let local = iovec((&raw mut value) as usize);
    let remote = iovec(address);
    // SAFETY: the kernel writes eight bytes to `value`; the remote address is the guest's.
    let result =
        unsafe { libc::process_vm_readv(guest, &raw const local, 1, &raw const remote, 1, 0) };
    checked(result as libc::c_long)?;
    Ok(value)
}

fn vm_write(guest: libc::pid_t, address: usize, value: u64) -> Result<(), Errno> {
    let local = iovec((&raw const value) as usize);
    let remote = iovec(address);
    // SAFETY: the kernel reads eight bytes of `value` and writes to the guest only.
    let result =
        unsafe { libc::process_vm_writev(guest, &raw const local, 1, &raw const remote, 1, 0) };
    checked(result as libc::c_long).map(drop)
}

fn iovec(address: usize) -> libc::iovec {
    libc::iovec { iov_base: address as *mut libc::c_void, iov_len: size_of::<u64>() }
}

fn proc_mem_read(guest: libc::pid_t, address: usize) -> Result<u64, Errno> {
    let mut path = ShortText::new();
    write!(path, "/proc/{guest}/mem").map_err(|_| Errno::ENAMETOOLONG)?;
    // SAFETY: `ShortText` always ends with a zero byte.
    let fd = unsafe { libc::open(path.0.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
    done(fd)?;
    let mut value = MaybeUninit::<u64>::zeroed();
    // SAFETY: the kernel writes at most eight bytes to `value`.
    let result = unsafe {
        libc::pread(fd, value.as_mut_ptr().cast(), size_of::<u64>(), address as libc::off_t)
    };
    let outcome = checked(result as libc::c_long);
    // SAFETY: the descriptor is ours.
    unsafe { libc::close(fd) };
    outcome?;
    // SAFETY: any eight bytes are a u64.
    Ok(unsafe { value.assume_init() })
}

/// A C string of at most 31 bytes, formatted without allocation.
struct ShortText([u8; 32], usize);

impl ShortText {
    fn new() -> Self {
        ShortText([0; 32], 0)
    }
}

impl Write for ShortText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.1 + text.len();
        if end >= self.0.len() {
            return Err(std::fmt::Error);
        }
        self.0[self.1..end].copy_from_slice(text.as_bytes());
        self.1 = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_served_from_end_to_end() {
        let notify = rehearse_notify();
        if !notify.listener.works() {
            println!("skipped: no seccomp listener ({:?})", notify.listener);
            return;
        }
        assert_eq!(notify.no_new_privs, Tried::Works);
        assert_eq!(notify.round_trip, Tried::Works);
        assert!(notify.vm_read.works() || notify.proc_mem.works(), "{notify:?}");
    }

    #[test]
    fn short_text_refuses_what_does_not_fit() {
        let mut text = ShortText::new();
        assert!(write!(text, "/proc/{}/mem", i32::MAX).is_ok());
        assert!(write!(text, "{}", "x".repeat(32)).is_err());
        assert_eq!(text.0[31], 0);
    }
}
