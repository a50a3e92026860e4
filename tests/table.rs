//! The syscall table against what else knows of syscalls: the C headers, the libc crate,
//! libseccomp, the man pages, and the documentation that is made from it.

use std::path::{Path, PathBuf};
use std::process::Command;

use libseccomp::{ScmpArch, ScmpSyscall};
use sandbox::sentry::syscalls::table::{ROWS, by_name, row};

/// Fails for each pair of name and number that the table does not have.
fn assert_known(source: &str, calls: impl IntoIterator<Item = (String, u32)>) {
    let calls: Vec<_> = calls.into_iter().collect();
    assert!(calls.len() > 300, "{source} was misread: it names {} calls", calls.len());
    let unknown: Vec<_> = calls
        .iter()
        .filter(|(name, number)| row(*number).is_none_or(|row| row.name != name))
        .collect();
    assert!(unknown.is_empty(), "{source} knows calls that the table lacks: {unknown:?}");
}

/// The number behind `prefix` and a name in a line of C or Rust.
fn definition(line: &str, prefix: &str) -> Option<(String, u32)> {
    let mut words = line.split_once(prefix)?.1.split(|c: char| !c.is_alphanumeric() && c != '_');
    let name = words.next()?.to_owned();
    let number = words.rfind(|word| !word.is_empty())?.parse().ok()?;
    Some((name, number))
}

#[test]
fn every_call_of_the_c_headers_has_a_row() {
    let places = ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"];
    let Some(header) = places.iter().find_map(|path| std::fs::read_to_string(path).ok()) else {
        println!("skipped: no asm/unistd_64.h");
        return;
    };
    let calls = header.lines().filter_map(|line| definition(line, "#define __NR_"));
    assert_known("asm/unistd_64.h", calls);
}

#[test]
fn every_call_of_the_libc_crate_has_a_row() {
    let Some(source) = libc_source() else {
        println!("skipped: no source of the libc crate");
        return;
    };
    let calls = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .filter_map(|line| definition(line, "pub const SYS_"));
    assert_known("the libc crate", calls);
}

/// The file of the libc crate that defines SYS_*, as cargo has unpacked it.
fn libc_source() -> Option<String> {
    let cargo = std::env::var_os("CARGO")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let package = metadata["packages"].as_array()?.iter().find(|p| p["name"] == "libc")?;
    let manifest = PathBuf::from(package["manifest_path"].as_str()?);
    let file = "src/unix/linux_like/linux/gnu/b64/x86_64/not_x32.rs";
    std::fs::read_to_string(manifest.with_file_name(file)).ok()
}

#[test]
fn every_call_of_libseccomp_has_a_row() {
    let calls = (0..1024).filter_map(|number: u32| {
        let call = ScmpSyscall::from(number as i32);
        Some((call.get_name_by_arch(ScmpArch::X8664).ok()?, number))
    });
    assert_known("libseccomp", calls);
}

#[test]
fn arguments_stand_in_the_order_of_the_man_pages() {
    for (name, expected) in [
        ("read", "fd buf count"),
        ("pwrite64", "fd buf count offset"),
        ("open", "pathname flags mode"),
        ("openat", "dirfd pathname flags mode"),
        ("openat2", "dirfd pathname how size"),
        ("mmap", "addr length prot flags fd offset"),
        ("mremap", "old_address old_size new_size flags new_address"),
        // clone(2): the raw call of x86-64.
        ("clone", "flags stack parent_tid child_tid tls"),
        ("clone3", "cl_args size"),
        ("execve", "pathname argv envp"),
        ("execveat", "dirfd pathname argv envp flags"),
        ("wait4", "pid wstatus options rusage"),
        ("waitid", "idtype id infop options rusage"),
        ("ptrace", "request pid addr data"),
        ("prctl", "option arg2 arg3 arg4 arg5"),
        ("socket", "domain type protocol"),
        ("sendto", "sockfd buf len flags dest_addr addrlen"),
        ("recvfrom", "sockfd buf len flags src_addr addrlen"),
        ("setsockopt", "sockfd level optname optval optlen"),
        ("sendfile", "out_fd in_fd offset count"),
        ("splice", "fd_in off_in fd_out off_out len flags"),
        ("epoll_ctl", "epfd op fd event"),
        ("futex", "uaddr futex_op val timeout uaddr2 val3"),
        ("clock_nanosleep", "clockid flags request remain"),
        ("timer_settime", "timerid flags new_value old_value"),
        ("mount", "source target filesystemtype mountflags data"),
        ("linkat", "olddirfd oldpath newdirfd newpath flags"),
        ("symlinkat", "target newdirfd linkpath"),
        ("renameat2", "olddirfd oldpath newdirfd newpath flags"),
        ("statx", "dirfd pathname flags mask statxbuf"),
        ("fchownat", "dirfd pathname owner group flags"),
        ("process_vm_readv", "pid local_iov liovcnt remote_iov riovcnt flags"),
        ("perf_event_open", "attr pid cpu group_fd flags"),
        ("seccomp", "operation flags args"),
        ("syslog", "type bufp len"),
    ] {
        let row = by_name(name).expect(name);
        let args: Vec<&str> = row.args.iter().map(|arg| arg.name).collect();
        assert_eq!(args.join(" "), expected, "{name}");
    }
}

#[test]
fn arguments_are_as_wide_as_the_kernel_takes_them() {
    for (name, arg, bits) in [
        ("ioctl", "fd", 32),
        ("ioctl", "request", 32),
        ("ioctl", "arg", 64),
        ("clone", "flags", 32),
        ("socket", "domain", 32),
        ("openat", "mode", 32),
        ("prctl", "option", 32),
        ("prctl", "arg2", 64),
        ("mmap", "flags", 64),
        ("lseek", "offset", 64),
    ] {
        let row = by_name(name).expect(name);
        let found = row.args.iter().find(|spec| spec.name == arg).expect(arg);
        assert_eq!(found.bits, bits, "{name} {arg}");
    }
}

#[test]
fn documentation_is_made_from_the_table() {
    // scripts/test names a copy that every user can read.
    let sources = std::env::var_os("SANDBOX_TEST_SOURCES");
    let sources = sources.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let path = Path::new(&sources).join("docs/syscalls.md");
    let written = std::fs::read_to_string(&path).expect("docs/syscalls.md can be read");
    let lines = written.lines().filter(|line| line.contains("| `")).count();
    assert!(lines > ROWS.len(), "{lines} lines");
    assert!(
        written == sandbox::cli::syscalls::markdown(),
        "docs/syscalls.md is not what the table says: run `cargo xtask codegen`"
    );
}
