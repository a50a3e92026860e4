//! The table: one row per syscall of x86_64, in the order of the numbers.

use libc::*;

use super::args::*;
use super::row::syscalls;

syscalls! {
    SYS_read(fd: Fd, buf: OutBuf, count: Len) => native;
    SYS_ioctl(fd: Fd, request: IoctlRequest, arg: Addr) => native, except {
        request is TIOCSTI => denied(EPERM, "types into the terminal"),
    };
    SYS_clone(flags: CloneFlags, stack: Addr, parent_tid: Out<PidCell>, child_tid: Out<PidCell>, tls: Addr)
        => native, except {
            flags has CLONE_NEWUSER | CLONE_NEWNS => refused(EPERM, "makes namespaces", "none"),
        };
}
