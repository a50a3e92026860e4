//! What every row of the table has to keep to.

use std::collections::HashSet;

use nix::errno::Errno;

use super::*;
use crate::notify::filter::tests::{ALLOW, ERRNO, run};
use crate::notify::filter::{Action, Test, generate, native_arch};
use crate::sentry::Features;
use crate::sentry::syscalls::Class;
use crate::sentry::syscalls::row::{ArgTest, Exception};
use crate::sys::seccomp::{RET_USER_NOTIF, sock_filter};

fn filter(features: Features) -> Vec<sock_filter> {
    let rules: Vec<_> = ROWS.iter().map(|row| row.rule(features)).collect();
    generate(&rules).unwrap()
}

fn classes(row: &Row) -> impl Iterator<Item = &Class> {
    std::iter::once(&row.class).chain(row.except.iter().map(|exception| &exception.class))
}

#[test]
fn every_row_is_found_by_its_number_and_its_name() {
    for expected in ROWS {
        assert_eq!(row(expected.number).map(|row| row.name), Some(expected.name));
        assert_eq!(by_name(expected.name).map(|row| row.number), Some(expected.number));
    }
    assert_eq!(by_name("SYS_openat").map(|row| row.number), Some(257));
}

#[test]
fn unknown_numbers_and_names_have_no_row() {
    for number in [337, 386, 423, 470, 511, 0x4000_0000, u32::MAX] {
        assert!(row(number).is_none(), "{number}");
    }
    for name in ["", "SYS_", "READ", "openat3"] {
        assert!(by_name(name).is_none(), "{name}");
    }
}

#[test]
fn numbers_are_sorted_and_complete_and_names_unique() {
    let numbers: Vec<u32> = ROWS.iter().map(|row| row.number).collect();
    let expected: Vec<u32> = (0..=336).chain(424..=469).collect();
    assert_eq!(numbers, expected);
    let names: HashSet<&str> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), ROWS.len());
}

#[test]
fn a_row_has_at_most_six_arguments_each_with_a_name_of_its_own() {
    for row in ROWS {
        let names: HashSet<&str> = row.args.iter().map(|arg| arg.name).collect();
        assert!(row.args.len() <= 6 && names.len() == row.args.len(), "{}", row.name);
        assert!(names.iter().all(|name| !name.ends_with('_')), "{}", row.name);
        assert!(row.args.iter().all(|arg| arg.bits == 32 || arg.bits == 64), "{}", row.name);
    }
}

#[test]
fn every_class_but_native_and_handled_says_why() {
    for row in ROWS {
        for class in classes(row) {
            let (reason, remedy) = match class {
                Class::Native | Class::Handled { .. } => continue,
                Class::Denied { reason, .. } | Class::Unimplemented { reason } => (reason, None),
                Class::Refused { reason, remedy, .. } => (reason, Some(remedy)),
            };
            assert!(reason.len() >= 10 && !reason.ends_with('.'), "{}: {reason}", row.name);
            assert!(remedy.is_none_or(|remedy| remedy.len() >= 10), "{}", row.name);
        }
    }
}

#[test]
fn exceptions_belong_to_rows_that_run_natively_or_trap_as_their_row_does_and_ask_each_argument_once()
 {
    let mut exceptions = 0;
    for row in ROWS {
        for exception in row.except {
            for features in
                [Features::default(), Features::ALWAYS | Features::VIRTUAL_TIME, Features::all()]
            {
                let fits = match row.class.action(features) {
                    Action::Allow => true,
                    // What the filter leaves to the sentry anyway may differ there.
                    Action::Notify => exception.class.action(features) == Action::Notify,
                    Action::Errno(_) => false,
                };
                assert!(fits, "{}", row.name);
            }
            let args: HashSet<u8> = exception.tests.iter().map(|test| test.arg).collect();
            assert!(!args.is_empty() && args.len() == exception.tests.len(), "{}", row.name);
            assert!(args.iter().all(|arg| usize::from(*arg) < row.args.len()), "{}", row.name);
            exceptions += 1;
        }
    }
    assert!(exceptions > 0);
}

#[test]
fn filter_is_small() {
    let program = filter(Features::all());
    println!("{} instructions", program.len());
    assert!(program.len() < 4096, "{} instructions", program.len());
}

#[test]
fn filter_does_what_the_rows_say() {
    let apart = Features::default() | Features::NO_NAMESPACES | Features::NO_LOOPBACK;
    let other = [Features::FOREIGN_IDS, Features::ROOT, Features::NETWORK];
    let paths = [Features::PATTERNS, Features::TWINS];
    let other = other.into_iter().chain(paths).map(|one| Features::default() | one);
    let few = [Features::empty(), Features::default(), apart, Features::all()];
    for features in few.into_iter().chain(other) {
        let program = filter(features);
        for row in ROWS {
            for args in samples(row) {
                let expected = match row.class_of(&args, features).action(features) {
                    Action::Allow => ALLOW,
                    Action::Errno(errno) => ERRNO | errno as u32,
                    Action::Notify => RET_USER_NOTIF,
                };
                let actual = run(&program, row.number, native_arch(), args);
                assert_eq!(actual, expected, "{} {args:x?} {features:?}", row.name);
            }
        }
    }
}

/// Arguments that tell the classes of a row apart: noise, and each way to pass or fail each test of
/// each exception, with and without something in the half of the register that does not count.
fn samples(row: &Row) -> Vec<[u64; 6]> {
    let noise = 0x9e37_79b9_7f4a_7c15u64;
    let mut samples = vec![[0; 6], [1; 6], [u64::MAX; 6], [u64::from(u32::MAX); 6]];
    samples.push(std::array::from_fn(|i| noise.rotate_left(11 * i as u32)));
    for exception in row.except {
        samples.extend(passing(exception));
        for test in exception.tests {
            samples.extend(passing(exception).map(|mut args| {
                args[usize::from(test.arg)] = failing(test.test);
                args
            }));
        }
    }
    const UPPER: u64 = 0xdead_beef_0000_0000;
    let upper: Vec<_> = samples.iter().map(|args| args.map(|value| value ^ UPPER)).collect();
    // In one register alone: what another one says must not be lost for it.
    let tested: HashSet<usize> =
        row.except.iter().flat_map(|one| one.tests).map(|test| usize::from(test.arg)).collect();
    let single: Vec<_> = tested
        .into_iter()
        .flat_map(|arg| {
            samples.iter().map(move |args| {
                let mut args = *args;
                args[arg] ^= UPPER;
                args
            })
        })
        .collect();
    samples.extend(upper);
    samples.extend(single);
    samples
}

/// Arguments that pass all tests of `exception`: each value of each test comes up.
fn passing(exception: &Exception) -> impl Iterator<Item = [u64; 6]> {
    let values = |test: &ArgTest| -> Vec<u64> {
        match test.test {
            Test::Is(value) => vec![value],
            Test::In(values) => values.to_vec(),
            Test::Has(mask) => {
                let bits = (0..64).map(|bit| mask & (1 << bit)).filter(|bit| *bit != 0);
                bits.chain([mask, mask | 0o777]).collect()
            }
            Test::IsNot(own) => vec![own.id() + 1, u64::from(u32::MAX)],
            Test::Type(byte) => vec![u64::from(byte) << 8, u64::from(byte) << 8 | 0xc010_0003],
        }
    };
    let all: Vec<(usize, Vec<u64>)> =
        exception.tests.iter().map(|test| (usize::from(test.arg), values(test))).collect();
    let ways = all.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    (0..ways).map(move |way| {
        let mut args = [0; 6];
        for (arg, values) in &all {
            args[*arg] = values[way % values.len()];
        }
        args
    })
}

fn failing(test: Test) -> u64 {
    match test {
        Test::Is(value) => value ^ 1 << 30,
        Test::In(values) => values.iter().max().map_or(0, |most| most + 1),
        Test::Has(mask) => !mask & 0xffff_ffff,
        Test::IsNot(own) => own.id(),
        Test::Type(byte) => u64::from(byte ^ 0x80) << 8 | 1,
    }
}

/// What the default filter does with one call.
fn decided(name: &str, args: [u64; 6]) -> Action {
    let row = by_name(name).unwrap();
    row.class_of(&args, Features::default()).action(Features::default())
}

#[test]
fn calls_that_programs_make_often_or_do_not_expect_to_fail_are_never_filtered() {
    for name in [
        "read",
        "write",
        "close",
        "stat",
        "fstat",
        "newfstatat",
        "statx",
        "poll",
        "lseek",
        "mmap",
        "mprotect",
        "munmap",
        "brk",
        "pread64",
        "readv",
        "writev",
        "access",
        "pipe2",
        "dup",
        "dup2",
        "dup3",
        "nanosleep",
        "getpid",
        "getppid",
        "sendto",
        "recvfrom",
        "sendmsg",
        "recvmsg",
        "connect",
        "accept4",
        "fork",
        "vfork",
        "clone3",
        "exit",
        "exit_group",
        "wait4",
        "waitid",
        "kill",
        "tgkill",
        "fcntl",
        "getdents64",
        "futex",
        "epoll_wait",
        "epoll_pwait",
        "epoll_ctl",
        "clock_gettime",
        "clock_nanosleep",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "ptrace",
        "process_vm_readv",
        "pidfd_open",
        "pidfd_send_signal",
        "rseq",
        "restart_syscall",
        "uretprobe",
        "uprobe",
        "sched_yield",
        "getrandom",
        "unlink",
        "rename",
    ] {
        let rule = by_name(name).unwrap().rule(Features::default());
        assert!(rule.action == Action::Allow && rule.exceptions.is_empty(), "{name}");
    }
}

#[test]
fn a_default_run_traps_no_execve() {
    assert_eq!(decided("execve", [0; 6]), Action::Allow);
    let traced = by_name("execve").unwrap().class.action(Features::EXEC_EVENTS);
    assert_eq!(traced, Action::Notify);
}

#[test]
fn setuid_files_cannot_be_made() {
    let (creat, tmpfile) = (libc::O_CREAT as u64, libc::O_TMPFILE as u64);
    for (name, args) in [
        ("chmod", [0, 0o4755, 0, 0, 0, 0]),
        ("fchmod", [0, 0o4000, 0, 0, 0, 0]),
        ("fchmodat", [0, 0, 0o6755, 0, 0, 0]),
        ("fchmodat2", [0, 0, 0o4755, 0, 0, 0]),
        ("creat", [0, 0o4755, 0, 0, 0, 0]),
        ("open", [0, creat | 1, 0o4755, 0, 0, 0]),
        ("openat", [0, 0, creat, 0o4755, 0, 0]),
        ("openat", [0, 0, tmpfile | 1, 0o4755, 0, 0]),
        ("mknod", [0, 0o104755, 0, 0, 0, 0]),
        ("mknodat", [0, 0, 0o104755, 0, 0, 0]),
    ] {
        assert_eq!(decided(name, args), Action::Notify, "{name} {args:x?}");
        let class = by_name(name).unwrap().class_of(&args, Features::default());
        let refused = matches!(class, Class::Refused { errno: Errno::EPERM, .. });
        assert!(refused, "{name} {args:x?} {class:?}");
    }
    assert_eq!(decided("openat2", [0; 6]), Action::Errno(Errno::ENOSYS));
}

#[test]
fn a_mode_that_open_does_not_look_at_may_hold_anything() {
    let directory = libc::O_DIRECTORY as u64;
    assert_eq!(decided("open", [0, 0, u64::MAX, 0, 0, 0]), Action::Allow);
    assert_eq!(decided("openat", [0, 0, directory, u64::MAX, 0, 0]), Action::Allow);
    assert_eq!(decided("chmod", [0, 0o2755, 0, 0, 0, 0]), Action::Allow);
}

#[test]
fn only_usual_address_families_have_sockets() {
    for family in 0..46 {
        let usual = [libc::AF_UNSPEC, libc::AF_UNIX, libc::AF_INET, libc::AF_INET6]
            .contains(&family)
            || family == libc::AF_NETLINK;
        let expected = if usual { Action::Allow } else { Action::Errno(Errno::EAFNOSUPPORT) };
        for name in ["socket", "socketpair"] {
            assert_eq!(decided(name, [family as u64, 1, 0, 0, 0, 0]), expected, "{name} {family}");
        }
    }
}

#[test]
fn new_namespaces_are_refused_and_plain_clones_are_not() {
    let threads = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_THREAD;
    let child = (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD) as u64;
    assert_eq!(decided("clone", [threads as u64, 0, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(decided("clone", [child, 0, 0, 0, 0, 0]), Action::Allow);
    // The low byte is a signal's number.
    assert_eq!(decided("clone", [libc::CLONE_NEWTIME as u64, 0, 0, 0, 0, 0]), Action::Allow);
    assert_eq!(decided("unshare", [libc::CLONE_FILES as u64, 0, 0, 0, 0, 0]), Action::Allow);
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        let flags = (flag | libc::CLONE_FS) as u64;
        assert_eq!(decided("clone", [flags, 0, 0, 0, 0, 0]), Action::Notify);
        assert_eq!(decided("unshare", [flags, 0, 0, 0, 0, 0]), Action::Notify);
    }
    let time = libc::CLONE_NEWTIME as u64;
    assert_eq!(decided("unshare", [time, 0, 0, 0, 0, 0]), Action::Notify);
}
