//! Calls that reach past the namespaces into the kernel itself, and the files of /proc and /sys that
//! do the same: none is allowed, as root or as anybody.
//!
//! Each call has arguments that could do no harm where it were allowed.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use common::attack::{must_be_refused, raw};
use common::{LIMIT, Workspace, finish, have, skip, start};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{self, SetArg};

/// Calls that no default run allows.
fn refused_calls() -> Vec<(&'static str, String)> {
    use libc::*;
    let calls: &[(&'static str, i64, &str)] = &[
        ("bpf", SYS_bpf, "0 z:128 128"),
        ("perf_event_open", SYS_perf_event_open, "z:128 0 -1 -1 0"),
        ("userfaultfd", SYS_userfaultfd, "0"),
        ("kexec_load", SYS_kexec_load, "0 0 0 0xffff"),
        ("kexec_file_load", SYS_kexec_file_load, "-1 -1 0 0 0"),
        ("init_module", SYS_init_module, "0 0 s:"),
        ("finit_module", SYS_finit_module, "-1 s: 0"),
        ("delete_module", SYS_delete_module, "s:no-such-module 0x800"),
        ("swapon", SYS_swapon, "s:/nonexistent 0"),
        ("swapoff", SYS_swapoff, "s:/nonexistent"),
        ("reboot", SYS_reboot, "0 0 0 0"),
        ("open_by_handle_at", SYS_open_by_handle_at, "-1 z:128 0"),
        ("acct", SYS_acct, "s:/nonexistent"),
        ("quotactl", SYS_quotactl, "0x80000700 s:/dev/none 0 z:128"),
        ("quotactl_fd", SYS_quotactl_fd, "-1 0 0 0"),
        ("iopl", SYS_iopl, "3"),
        ("ioperm", SYS_ioperm, "0x80 1 1"),
        ("vhangup", SYS_vhangup, ""),
        ("mount", SYS_mount, "s:none s:/nonexistent s:tmpfs 0 0"),
        ("umount2", SYS_umount2, "s:/nonexistent 0"),
        ("pivot_root", SYS_pivot_root, "s:/nonexistent s:/nonexistent"),
        ("chroot", SYS_chroot, "s:/"),
        ("fspick", SYS_fspick, "-100 s:/ 0"),
        ("add_key", SYS_add_key, "s:user s:sandbox-test s:x 1 -3"),
        ("request_key", SYS_request_key, "s:user s:sandbox-test 0 0"),
        ("keyctl", SYS_keyctl, "0 -3 0"),
    ];
    calls.iter().map(|(name, number, words)| (*name, format!("{number} {words}"))).collect()
}

#[test]
fn calls_into_the_host_kernel_are_refused() {
    must_be_refused(&Workspace::new("kernel"), &[], &refused_calls());
}

/// The same with every option that gives more: none of them gives these.
#[test]
fn no_option_allows_calls_into_the_host_kernel() {
    let workspace = Workspace::new("kernel-options");
    must_be_refused(&workspace, &["--net", "host"], &refused_calls());
    must_be_refused(&workspace, &["--user", "0"], &refused_calls());
}

/// Submission queues run calls that no filter sees.
#[test]
fn io_uring_is_not_there() {
    let workspace = Workspace::new("uring");
    let calls = [
        format!("{} 8 z:120", libc::SYS_io_uring_setup),
        format!("{} 0 1 0 0 0 0", libc::SYS_io_uring_enter),
        format!("{} 0 0 0 0", libc::SYS_io_uring_register),
    ];
    let outcome = workspace.inside(&raw(&calls.join(" , ")));
    outcome.success().expect_out("ENOSYS\nENOSYS\nENOSYS\n");
}

/// A key that the caller put into its user keyring is not found inside (keyrings are not held apart
/// by any namespace the guest could be given).
#[test]
fn the_keyrings_of_the_host_are_out_of_reach() {
    let workspace = Workspace::new("keys");
    let description = workspace.mark().to_owned();
    // KEY_SPEC_USER_KEYRING is -4; request_key also looks there through the session keyring.
    let add = raw(&format!("{} s:user s:{description} s:secret 6 -4", libc::SYS_add_key));
    let serial = workspace.native(&add).line();
    if serial.starts_with('E') || serial.starts_with("errno") {
        return skip("keyrings for this user on this host");
    }
    // KEYCTL_SEARCH is 10, KEYCTL_READ 11, KEYCTL_UNLINK 9.
    let search = format!("{} 10 -4 s:user s:{description} 0", libc::SYS_keyctl);
    let read = format!("{} 11 {serial} z:64 64", libc::SYS_keyctl);
    let calls = [("search", search.clone()), ("read", read)];
    let native = workspace.native(&raw(&search)).line();
    let inside = std::panic::catch_unwind(|| must_be_refused(&workspace, &[], &calls));
    let remove = format!("{} 9 {serial} -4", libc::SYS_keyctl);
    workspace.native(&raw(&remove)).success();
    assert_eq!(native, serial);
    if let Err(failure) = inside {
        std::panic::resume_unwind(failure);
    }
}

/// Files below /proc and /sys that steer the host, opened for writing. Opening changes nothing.
#[test]
fn kernel_files_cannot_be_written() {
    let workspace = Workspace::new("kernel-files");
    let files = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/fs/suid_dumpable",
        "/proc/sys/kernel/printk",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/devices/system/cpu/cpu0/online",
        "/sys/fs/cgroup/cgroup.procs",
    ];
    let calls = files.map(|file| format!("{} s:{file} {}", libc::SYS_open, libc::O_WRONLY));
    let outcome = workspace.inside(&raw(&calls.join(" , ")));
    for (file, answer) in files.iter().zip(outcome.success().out().lines()) {
        let refused = ["EROFS", "EACCES", "EPERM", "ENOENT"].contains(&answer);
        assert!(refused, "{file} answers {answer}");
    }
    // Whatever else there is: nothing that access(2) takes for writable.
    let search = "find /proc/sys /sys /proc/sysrq-trigger /proc/irq /proc/bus /proc/fs /proc/acpi \
                  /proc/scsi -type f -writable 2>/dev/null | head";
    workspace.inside_sh(search).expect_out("");
}

/// Memory and messages of the host's kernel.
#[test]
fn kernel_memory_and_messages_cannot_be_read() {
    let workspace = Workspace::new("kernel-memory");
    let files = ["/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmem", "/dev/port"];
    let calls = files.map(|file| format!("{} s:{file} {}", libc::SYS_open, libc::O_RDONLY));
    let outcome = workspace.inside(&raw(&calls.join(" , ")));
    for (file, answer) in files.iter().zip(outcome.success().out().lines()) {
        assert!(["EACCES", "EPERM", "ENOENT"].contains(&answer), "{file} answers {answer}");
    }
    if !have("dmesg") {
        return;
    }
    let native = workspace.native(&["dmesg"]);
    if native.status != 0 || native.out().lines().count() < 10 {
        return skip("kernel log that this user may read");
    }
    let inside = workspace.inside_sh("dmesg; dmesg --syslog; cat /dev/kmsg");
    let native = native.out();
    let shared = native.lines().filter(|line| line.len() > 40 && inside.out().contains(line));
    assert_eq!(shared.count(), 0, "{}", inside.report());
}

#[test]
fn the_host_keeps_its_name_and_its_time() {
    let workspace = Workspace::new("name");
    let name = workspace.native(&["uname", "-n"]).line();
    workspace.inside_sh("hostname evil-name || true; echo evil-name > /proc/sys/kernel/hostname");
    assert_eq!(workspace.native(&["uname", "-n"]).line(), name);
    // A change by nothing: the same nominal tick, which only a privileged caller may set.
    // struct timex begins with modes; ADJ_TICK is 0x4000, tick stands at byte 88.
    let mut timex = [0u8; 208];
    timex[..4].copy_from_slice(&0x4000u32.to_ne_bytes());
    timex[88..96].copy_from_slice(&10_000u64.to_ne_bytes());
    let adjust = format!("{} {}", libc::SYS_adjtimex, common::attack::hex(&timex));
    must_be_refused(&workspace, &[], &[("adjtimex", adjust)]);
}

/// TIOCSTI types into a terminal as if the user had, TIOCLINUX pastes a selection; the kernel looks
/// at the low half of the request alone, and so must the filter.
#[test]
fn typing_into_a_terminal_is_refused() {
    let workspace = Workspace::new("tiocsti");
    let requests = [libc::TIOCSTI, libc::TIOCLINUX];
    for request in requests {
        let calls = [
            ("plain", format!("{} 0 {request} s:x", libc::SYS_ioctl)),
            ("high bits", format!("{} 0 {} s:x", libc::SYS_ioctl, 1 << 32 | request)),
            (
                "all high bits",
                format!("{} 0 {} s:x", libc::SYS_ioctl, (-1i64) << 32 | request as i64),
            ),
        ];
        must_be_refused(&workspace, &[], &calls);
    }
}

/// The same on a terminal that is the controlling one, seen from outside: nothing was typed.
#[test]
fn nothing_is_typed_into_the_callers_terminal() {
    let workspace = Workspace::new("typed");
    let terminal = openpty(None, None).unwrap();
    let mut settings = termios::tcgetattr(&terminal.slave).unwrap();
    // Without line editing every byte that was typed can be seen at once.
    termios::cfmakeraw(&mut settings);
    termios::tcsetattr(&terminal.slave, SetArg::TCSANOW, &settings).unwrap();
    let calls = format!(
        "{} 0 {} s:x , {} 0 {} s:x",
        libc::SYS_ioctl,
        libc::TIOCSTI,
        libc::SYS_ioctl,
        1 << 32 | libc::TIOCSTI
    );
    let mut command = workspace.command("setsid");
    command.args(["--ctty", "--wait"]).arg(common::sandbox_program()).arg("--").args(raw(&calls));
    command.stdin(Stdio::from(terminal.slave.try_clone().unwrap()));
    let words = common::command_line(&command);
    let outcome = finish(start(command), words, b"", LIMIT);
    outcome.success().expect_out("EPERM\nEPERM\n");
    assert!(!can_be_read(&terminal.slave), "the guest typed into the terminal");
}

fn can_be_read(terminal: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
}

/// A file handle names a file past all mounts (open_by_handle_at(2)): whoever may open one may open
/// every file of the file system. That is decided before the handle itself is looked at.
#[test]
fn files_cannot_be_opened_by_their_handles() {
    let workspace = Workspace::new("handle");
    // A struct file_handle: 8 bytes of handle, of type 1 (inode number and generation).
    let handle = "h:08000000010000000200000000000000";
    let open = format!("{} -100 {handle} 0", libc::SYS_open_by_handle_at);
    must_be_refused(&workspace, &[], &[("open_by_handle_at", open)]);
}

/// Machine-wide effects that rights over one's own processes could have.
#[test]
fn scheduling_above_others_is_refused() {
    let workspace = Workspace::new("scheduling");
    let real_time = format!("{} 0 {} h:01000000", libc::SYS_sched_setscheduler, libc::SCHED_FIFO);
    let nice = format!("{} {} 0 -20", libc::SYS_setpriority, libc::PRIO_PROCESS);
    let io = format!("{} 1 0 0x2000", libc::SYS_ioprio_set);
    let calls = [("SCHED_FIFO", real_time), ("nice -20", nice), ("real-time io", io)];
    must_be_refused(&workspace, &[], &calls);
}

/// The guest's devices are the host's own: their mode, owner and times are nobody's inside, also
/// where the guest is root and owns them.
#[test]
fn the_hosts_devices_cannot_be_changed() {
    let workspace = Workspace::new("devices");
    let facts = || {
        let metadata = ["null", "zero", "full", "random", "urandom", "tty"]
            .map(|name| std::fs::metadata(format!("/dev/{name}")).unwrap());
        metadata.map(|it| (it.mode(), it.uid(), it.gid()))
    };
    let before = facts();
    let script = "cd /dev; for d in null zero full random urandom tty; do \
                  touch -c -d 2001-02-03 $d && echo touched $d; \
                  chmod $(stat -c %a $d) $d && echo chmod $d; \
                  chown $(stat -c %u $d) $d && echo chown $d; done; \
                  echo text > null && echo written";
    workspace.inside_sh(script).success().expect_out("written\n");
    assert_eq!(facts(), before);
}

/// What only the host's root may read of the kernel's memory is not for a guest of root's either.
#[test]
fn files_of_the_hosts_root_in_proc_cannot_be_read() {
    let workspace = Workspace::new("proc-root");
    let script = "for f in kpagecount kpageflags kpagecgroup slabinfo vmallocinfo pagetypeinfo \
                  allocinfo kcore kmsg; do head -c 8 /proc/$f; done; \
                  find /proc/pressure /proc/driver /proc/dynamic_debug -type f -writable";
    workspace.inside_sh(script).expect_out("");
}

/// A crash must not start the host's crash handler (core(5), core_pattern with `|`), which runs
/// outside: it is run whatever the limit, unless that is 1.
#[test]
fn a_crash_starts_no_program_of_the_host() {
    let workspace = Workspace::new("core");
    let limits = "sed -n 's/^Max core file size *//p' /proc/self/limits";
    let native = workspace.native(&["sh", "-c", limits]).out();
    let hard = native.split_whitespace().nth(1).unwrap();
    let soft = if hard == "0" { "0" } else { "1" };
    let inside = workspace.inside_sh(limits);
    let inside = inside.success().out();
    let seen: Vec<&str> = inside.split_whitespace().take(2).collect();
    assert_eq!(seen, [soft, hard]);
}
