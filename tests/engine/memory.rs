//! Guest memory: what can be read and written, with and without process_vm_readv(2), and that the
//! memory of a guest that has died is nobody's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox::notify::{GuestMemory, Options, Trapped};
use sandbox::sys::spawn;

use crate::common::{LIMIT, comes_true, is_root, skip, wait_for};
use crate::stage::{FULL, OWN, Served, Stage, now};

const PAGE: u64 = 4096;

#[test]
fn memory_is_read_and_written_within_its_protection() {
    check_memory(FULL);
}

#[test]
fn without_process_vm_calls_it_is_the_same() {
    check_memory(Options { process_vm: false, ..FULL });
}

/// The guest fails if the assertions in the handler do.
fn check_memory(options: Options) {
    let serve = |trapped: &Trapped| {
        let received = trapped.received();
        assert_eq!(received.number, OWN);
        let memory = GuestMemory::of(trapped);
        check_protection(memory, received.args[0]);
        check_strings(memory, received.args[1]);
        assert_eq!(memory.write(received.args[0], b"written"), Ok(()));
        now(0)
    };
    let stage = Stage::start(options, &["traps", "memory"], Served::by(serve));
    assert_eq!(stage.finish(), 0);
}

/// At `base`: a page of 'x' that ends with the string "tail", a page that cannot be accessed, a
/// read-only page of 'r', and nothing.
fn check_protection(memory: GuestMemory<'_>, base: u64) {
    let read = |address, count: usize| {
        let mut bytes = vec![0; count];
        memory.read(address, &mut bytes).map(|()| bytes)
    };
    assert_eq!(read(base, 3), Ok(b"xxx".to_vec()));
    assert_eq!(read(base + PAGE - 5, 5), Ok(b"tail\0".to_vec()));
    assert_eq!(read(base + 2 * PAGE, PAGE as usize), Ok(vec![b'r'; PAGE as usize]));
    assert_eq!(read(base, 0), Ok(Vec::new()));
    assert_eq!(memory.write(0, b""), Ok(()));
    let unreadable = [
        (base + PAGE - 5, 6),
        (base + PAGE, 1),
        (base + 2 * PAGE - 1, 2),
        (base + 3 * PAGE - 1, 2),
        (base + 3 * PAGE, 1),
        (0, 1),
        (u64::MAX - 100, 8),
        (u64::MAX, 2),
        (1 << 63, 1),
    ];
    for (address, count) in unreadable {
        assert_eq!(read(address, count), Err(Errno::EFAULT), "{:#x}", address.wrapping_sub(base));
        let bytes = vec![b'!'; count];
        // (Where only the first bytes are writable, they may be written before it fails.)
        if address >= base + PAGE || address < base {
            assert_eq!(memory.write(address, &bytes), Err(Errno::EFAULT), "{address:#x}");
        }
    }
    assert_eq!(memory.write(base + 2 * PAGE, b"!"), Err(Errno::EFAULT));
    assert_eq!(memory.write(base + 3 * PAGE - 1, b"!!"), Err(Errno::EFAULT));
    assert_eq!(memory.read_string(base + PAGE - 5), Ok(b"tail".to_vec()));
    assert_eq!(memory.read_string(base + PAGE - 1), Ok(Vec::new()));
    assert_eq!(memory.read_string(base + PAGE), Err(Errno::EFAULT));
    assert_eq!(memory.read_string(base + 3 * PAGE - 7), Err(Errno::EFAULT));
    assert_eq!(memory.read_string(u64::MAX), Err(Errno::EFAULT));
}

/// At `base`: three writable pages of 's', and nothing.
fn check_strings(memory: GuestMemory<'_>, base: u64) {
    // PATH_MAX counts the NUL (limits.h): 4095 characters are the most.
    for start in [0, 1, 100, 255, 256, 2000, 4000, 4095] {
        for length in [0, 1, 255, 256, 4094, 4095, 4096, 4097, 4200] {
            let (address, end) = (base + start, base + start + length);
            memory.write(end, b"\0").unwrap();
            let expected = match length {
                0..=4095 => Ok(vec![b's'; length as usize]),
                _ => Err(Errno::ENAMETOOLONG),
            };
            assert_eq!(memory.read_string(address), expected, "{length} from {start}");
            memory.write(end, b"s").unwrap();
        }
    }
    assert_eq!(memory.read_string(base + 3 * PAGE - 2), Err(Errno::EFAULT));
}

#[test]
fn memory_of_a_guest_that_died_is_nobodys() {
    for process_vm in [true, false] {
        let serve = |trapped: &Trapped| {
            let mut secret = [0; 8];
            let address = trapped.received().args[1];
            assert_eq!(GuestMemory::of(trapped).read(address, &mut secret), Ok(()));
            kill(Pid::from_raw(trapped.received().tid), Signal::SIGKILL).unwrap();
            wait_for("the end of the guest", || !trapped.is_valid());
            nobodys(trapped, address);
            now(0)
        };
        let options = Options { process_vm, ..FULL };
        let stage = Stage::start(options, &["traps", "memory"], Served::by(serve));
        assert_eq!(stage.finish(), 128 + 9);
    }
}

#[test]
fn another_process_of_the_same_number_is_not_taken_for_the_guest() {
    if !is_root() {
        return skip("right to choose process numbers");
    }
    for process_vm in [true, false] {
        // Somebody else's new process may get the number: then with another guest.
        assert!(comes_true(LIMIT, || is_not_mistaken(Options { process_vm, ..FULL })));
    }
}

/// Gives the number of a guest that died in a call to a process of this test, and whether that
/// worked; nothing of that process may be seen through the call.
fn is_not_mistaken(options: Options) -> bool {
    static SECRET: [u8; 8] = *b"a secret";
    let done = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&done);
    let serve = move |trapped: &Trapped| {
        let tid = trapped.received().tid;
        kill(Pid::from_raw(tid), Signal::SIGKILL).unwrap();
        wait_for("the guest to be reaped", || !exists(tid));
        if let Some(pid) = spawn_numbered(tid) {
            let address = (&raw const SECRET) as u64;
            let mut bytes = [0; 8];
            let direct = sandbox::sys::process::read_memory(pid, address, &mut bytes);
            assert_eq!((direct, bytes), (Ok(8), SECRET), "the other process has it");
            nobodys(trapped, address);
            end(pid);
            note.store(true, Ordering::SeqCst);
        }
        now(0)
    };
    let stage = Stage::start(options, &["traps", "own", "0", "1"], Served::by(serve));
    assert_eq!(stage.finish(), 128 + 9);
    done.load(Ordering::SeqCst)
}

/// A process with this number; `None` if somebody else's has it by now.
fn spawn_numbered(wanted: i32) -> Option<i32> {
    while !exists(wanted) {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string()).unwrap();
        let sleep = |(): &()| {
            let _ = spawn::die_with_parent(libc::SIGKILL);
            loop {
                nix::unistd::pause();
            }
        };
        let (pid, _) = spawn::spawn(0, &(), sleep).unwrap();
        if pid == wanted {
            return Some(pid);
        }
        end(pid);
    }
    None
}

fn nobodys(trapped: &Trapped, address: u64) {
    let memory = GuestMemory::of(trapped);
    assert_eq!(memory.read(address, &mut [0; 8]), Err(Errno::ESRCH));
    assert_eq!(memory.write(address, b"written!"), Err(Errno::ESRCH));
    assert_eq!(memory.read_string(address), Err(Errno::ESRCH));
}

fn exists(tid: i32) -> bool {
    kill(Pid::from_raw(tid), None).is_ok()
}

fn end(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
}
