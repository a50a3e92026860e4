//! The rows, in the order of the numbers.
//!
//! A row names its arguments as the call's man page does (where the C library's function differs
//! from the kernel's call, as in preadv(2), the call's own arguments are meant). What the walls
//! decide already is native: a program inside has no capability, cannot gain one, and sees a file
//! view that is read-only where it has to be. Never trapped in a default run is what programs call
//! often, or do not expect to be interrupted by a signal.

use libc::*;

use super::super::args::*;
use super::super::row::syscalls;
use super::super::{
    apart, attributes, believed, clocks, directories, exec, filters, identity, interfaces, kept,
    klog, lazy, machine, modes, network, owners, paths, processes, random, sleeps, stamps, sync,
    timeouts, usage, watch,
};
use crate::notify::filter::Own;
use crate::sys::message;
// By name, so that a later libc crate that knows them too makes no difference.
use crate::sys::numbers::{
    SYS_cachestat, SYS_create_module, SYS_file_getattr, SYS_file_setattr, SYS_futex_requeue,
    SYS_futex_wait, SYS_futex_wake, SYS_get_kernel_syms, SYS_getxattrat, SYS_io_pgetevents,
    SYS_listmount, SYS_listxattrat, SYS_lsm_get_self_attr, SYS_lsm_list_modules,
    SYS_lsm_set_self_attr, SYS_map_shadow_stack, SYS_open_tree_attr, SYS_query_module,
    SYS_removexattrat, SYS_setxattrat, SYS_statmount, SYS_uprobe, SYS_uretprobe,
};

/// The flags of open(2) that make it look at its mode (fs/open.c, WILL_CREATE). Without them the
/// mode is whatever the register holds.
const CREATES: c_int = O_CREAT | (O_TMPFILE & !O_DIRECTORY);

/// The flags of open(2) with which a file is changed.
const WRITES: c_int = O_WRONLY | O_RDWR | O_TRUNC;

/// The namespaces that clone(2) can make.
const NAMESPACES: c_int = CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET;

/// The address families that ordinary programs use.
const USUAL_FAMILIES: &[c_int] = &[AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];

/// All others.
const REFUSED_FAMILIES: &[u64] = &families_without::<41>(&[USUAL_FAMILIES]);

/// Those without a reason of their own.
const RARE_FAMILIES: &[u64] = &families_without::<36>(&[
    USUAL_FAMILIES,
    &[AF_PACKET, AF_VSOCK, AF_ALG, AF_BLUETOOTH, AF_KEY],
]);

/// What the sandbox's own messages are told by.
const OWN_MESSAGE: u64 = message::FLAGS as u64;

const OWN_WAY: &str = "leads packets another way than their address says";
const SETUID: &str = "a setuid file would outlive the sandbox";
const SET_OUTSIDE: &str = "give it the setuid bit outside the sandbox";
const BEHIND_POINTER: &str =
    "its mode, which could ask for a setuid file, lies behind a pointer; openat takes its place";
const RARE_FAMILY: &str = "reaches rarely used parts of the host kernel";
const MAKES_NAMESPACES: &str = "makes namespaces, in which a program gains rights";
const FIXED_VIEW: &str = "changes the file view, which is fixed when the program starts";
const FIXED_NAME: &str = "changes the host name, which is fixed when the program starts";
const SETS_CLOCK: &str = "sets the host's clock";
const OWN_CLOCK: &str = "--time +0s gives the sandbox a clock of its own, which its root may set";
const LOADS_MODULES: &str = "loads code into the host kernel";
const REPLACES_KERNEL: &str = "replaces the host kernel";
const PORTS: &str = "reaches the machine's input and output ports";
const QUOTAS: &str = "reads and sets the host's disk quotas";
const KEYRINGS: &str = "reaches keys of the host's session";
const RINGS: &str = "its submission queues bypass the filter";
const NEVER: &str = "a reserved number that Linux has never used";

// What namespaces keep where there are some.
const HOSTS_IPC: &str = "the objects that it names would be the host's, without an ipc namespace";
const NO_NETWORK: &str = "there is no network without a network namespace, not even a loopback";
const NO_DATAGRAMS: &str = "a message names its receiver in memory, where no filter sees it, and nothing else keeps it inside";
const HIDDEN_FLAGS: &str =
    "its flags, which could ask for namespaces, lie behind a pointer; clone takes its place";
const NEW_ATTRIBUTES: &str =
    "changes attributes of files past Landlock; older calls take its place";
const XATTRS_AT: &str = "reaches extended attributes in a way that the sentry does not serve; older calls take its place";

const OUTSIDE: &str = "run it outside the sandbox";
const VIEW_FLAGS: &str = "--ro, --rw, --hide and --tmpfs shape the file view";
const CHROOT_FLAG: &str = "--root lets it";
const HOSTNAME_FLAG: &str = "--hostname sets it";

/// The address families of Linux 6.18 (include/linux/socket.h: AF_MAX is 46) without some.
const fn families_without<const N: usize>(without: &[&[c_int]]) -> [u64; N] {
    const AF_MAX: c_int = 46;
    let mut families = [0; N];
    let (mut family, mut found) = (1, 0);
    while family < AF_MAX {
        if !contains(without, family) {
            families[found] = family as u64;
            found += 1;
        }
        family += 1;
    }
    assert!(found == N);
    families
}

const fn contains(lists: &[&[c_int]], value: c_int) -> bool {
    let mut list = 0;
    while list < lists.len() {
        let mut i = 0;
        while i < lists[list].len() {
            if lists[list][i] == value {
                return true;
            }
            i += 1;
        }
        list += 1;
    }
    false
}

syscalls! {
    SYS_read(fd: Fd, buf: OutBuf, count: Len) => native;
    SYS_write(fd: Fd, buf: InBuf, count: Len) => native;
    SYS_open(pathname: Path, flags: OpenFlags, mode: Mode)
        => handled(async paths::open, MACHINE_VIEW | KMSG | FILE_LOG | DETERMINISTIC | PATTERNS | TWINS | ASK_FILES), except {
        flags has CREATES, mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE),
        flags has CREATES, mode has S_ISGID => handled(async paths::open, ROOT),
        flags has WRITES => handled(async paths::open, ROOT),
    };
    SYS_close(fd: Fd) => native;
    SYS_stat(pathname: Path, statbuf: Out<Stat>) => handled(sync stamps::stat, VIRTUAL_TIME | ROOT | FILE_LOG);
    SYS_fstat(fd: Fd, statbuf: Out<Stat>) => handled(sync stamps::fstat, VIRTUAL_TIME | ROOT);
    SYS_lstat(pathname: Path, statbuf: Out<Stat>) => handled(sync stamps::lstat, VIRTUAL_TIME | ROOT | FILE_LOG);
    SYS_poll(fds: InOut<PollFd>, nfds: UInt, timeout: Int) => handled(sync timeouts::poll, VIRTUAL_RATE);
    SYS_lseek(fd: Fd, offset: Offset, whence: Whence) => native;
    SYS_mmap(addr: Addr, length: Len, prot: Prot, flags: MapFlags, fd: Fd, offset: Offset)
        => native;
    SYS_mprotect(addr: Addr, len: Len, prot: Prot) => native;
    SYS_munmap(addr: Addr, length: Len) => native;
    SYS_brk(addr: Addr) => native;
    SYS_rt_sigaction(signum: Signal, act: In<SigAction>, oldact: Out<SigAction>, sigsetsize: Len)
        => native;
    SYS_rt_sigprocmask(how: Operation, set: In<SigSet>, oldset: Out<SigSet>, sigsetsize: Len)
        => native;
    SYS_rt_sigreturn() => native;
    SYS_ioctl(fd: Fd, request: IoctlRequest, arg: Addr) => native, except {
        request is TIOCSTI => denied(EPERM, "types into the terminal as if the user had done it"),
        request is TIOCLINUX => denied(EPERM, "pastes the console's selection into its input"),
        request is TIOCSETD => denied(EPERM, "loads line disciplines into the host kernel"),
        request is TIOCGPTPEER => handled(sync apart::open_peer, NO_NAMESPACES),
        request of 0x94 => handled(sync apart::ioctl, NO_NAMESPACES),
        request of b'f' => handled(sync apart::ioctl, NO_NAMESPACES),
        request of b'v' => handled(sync apart::ioctl, NO_NAMESPACES),
        request of b'X' => handled(sync apart::ioctl, NO_NAMESPACES),
        request of b'o' => handled(sync apart::ioctl, NO_NAMESPACES),
        request of b'n' => handled(sync apart::ioctl, NO_NAMESPACES),
        request of 0x97 => handled(sync apart::ioctl, NO_NAMESPACES),
        request of 0xbc => handled(sync apart::ioctl, NO_NAMESPACES),
        request of 0xf5 => handled(sync apart::ioctl, NO_NAMESPACES),
        request of 0x89 => handled(sync interfaces::ioctl, NETWORK),
        // Of wireless ones (include/uapi/linux/wireless.h), of which guests' own network has none.
        request of 0x8b => denied(EOPNOTSUPP, "tells of the host's wireless interfaces", when NETWORK),
    };
    SYS_pread64(fd: Fd, buf: OutBuf, count: Len, offset: Offset) => native;
    SYS_pwrite64(fd: Fd, buf: InBuf, count: Len, offset: Offset) => native;
    SYS_readv(fd: Fd, iov: In<Iovec>, iovcnt: ULong) => native;
    SYS_writev(fd: Fd, iov: In<Iovec>, iovcnt: ULong) => native;
    SYS_access(pathname: Path, mode: AccessMode) => handled(sync watch::access, FILE_LOG), except {
        mode has W_OK => handled(sync believed::access, ROOT),
    };
    SYS_pipe(pipefd: Out<FdPair>) => native;
    SYS_select(
        nfds: Int, readfds: InOut<FdSet>, writefds: InOut<FdSet>, exceptfds: InOut<FdSet>,
        timeout: InOut<Timeval>
    ) => handled(sync timeouts::select, VIRTUAL_RATE);
    SYS_sched_yield() => native;
    SYS_mremap(old_address: Addr, old_size: Len, new_size: Len, flags: WideFlags, new_address: Addr)
        => handled(async lazy::mremap, LAZY);
    SYS_msync(addr: Addr, length: Len, flags: Flags) => native;
    SYS_mincore(addr: Addr, length: Len, vec: OutBuf) => native;
    SYS_madvise(addr: Addr, length: Len, advice: Advice) => native, except {
        advice in lazy::ADVICE => handled(async lazy::madvise, LAZY),
    };
    SYS_shmget(key: Key, size: Len, shmflg: Flags)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_shmat(shmid: IpcId, shmaddr: Addr, shmflg: Flags)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_shmctl(shmid: IpcId, cmd: Operation, buf: InOut<ShmidDs>)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_dup(oldfd: Fd) => native;
    SYS_dup2(oldfd: Fd, newfd: Fd) => native;
    SYS_pause() => native;
    SYS_nanosleep(req: In<Timespec>, rem: Out<Timespec>) => handled(sync sleeps::nanosleep, VIRTUAL_RATE | DETERMINISTIC);
    SYS_getitimer(which: Operation, curr_value: Out<Itimerval>) => handled(sync timeouts::getitimer, VIRTUAL_RATE);
    SYS_alarm(seconds: UInt) => handled(sync timeouts::alarm, VIRTUAL_RATE);
    SYS_setitimer(which: Operation, new_value: In<Itimerval>, old_value: Out<Itimerval>) => handled(sync timeouts::setitimer, VIRTUAL_RATE);
    SYS_getpid() => native;
    SYS_sendfile(out_fd: Fd, in_fd: Fd, offset: InOut<OffsetCell>, count: Len) => native;
    SYS_socket(domain: Family, type_: SockType, protocol: Int) => native, except {
        domain is AF_PACKET => denied(EAFNOSUPPORT, "reads and writes raw network frames"),
        domain is AF_VSOCK => denied(EAFNOSUPPORT, "reaches the hypervisor past the network walls"),
        domain is AF_ALG => denied(EAFNOSUPPORT, "runs ciphers in the host kernel"),
        domain is AF_BLUETOOTH => denied(EAFNOSUPPORT, "reaches radios past the network walls"),
        domain is AF_KEY => denied(EAFNOSUPPORT, "manages the host's IPsec keys"),
        domain in RARE_FAMILIES => denied(EAFNOSUPPORT, RARE_FAMILY),
        domain is AF_INET => denied(EAFNOSUPPORT, NO_NETWORK, when NO_LOOPBACK),
        domain is AF_INET6 => denied(EAFNOSUPPORT, NO_NETWORK, when NO_LOOPBACK),
        domain is AF_NETLINK => denied(EAFNOSUPPORT, NO_NETWORK, when NO_LOOPBACK),
        // SOCK_DGRAM and SOCK_RAW, which is the same to these sockets (unix_create in net/unix/af_unix.c).
        domain is AF_UNIX, type_ has SOCK_DGRAM
            => denied(ESOCKTNOSUPPORT, NO_DATAGRAMS, when NO_NAMESPACES),
    };
    SYS_connect(sockfd: Fd, addr: In<SockAddr>, addrlen: Int)
        => handled(async apart::connect, LEARN | NETWORK | NO_NAMESPACES);
    SYS_accept(sockfd: Fd, addr: Out<SockAddr>, addrlen: InOut<SockLen>) => native;
    SYS_sendto(
        sockfd: Fd, buf: InBuf, len: Len, flags: MsgFlags, dest_addr: In<SockAddr>, addrlen: Int
    ) => native, except {
        addrlen has u32::MAX => handled(async network::sendto, LEARN | NETWORK),
        flags has libc::MSG_FASTOPEN => handled(async network::sendto, NETWORK),
    };
    SYS_recvfrom(
        sockfd: Fd, buf: OutBuf, len: Len, flags: MsgFlags, src_addr: Out<SockAddr>,
        addrlen: InOut<SockLen>
    ) => native;
    // (Init hands the listener over by one with those flags, which say nothing to its kind of socket.)
    SYS_sendmsg(sockfd: Fd, msg: In<MsgHdr>, flags: MsgFlags) => native, except {
        flags differs Own::Number(OWN_MESSAGE) => handled(async network::sendmsg, NETWORK),
    };
    SYS_recvmsg(sockfd: Fd, msg: InOut<MsgHdr>, flags: MsgFlags) => native;
    SYS_shutdown(sockfd: Fd, how: Operation) => native;
    SYS_bind(sockfd: Fd, addr: In<SockAddr>, addrlen: Int) => handled(sync network::bind, NETWORK);
    SYS_listen(sockfd: Fd, backlog: Int) => handled(sync network::listen, NETWORK);
    SYS_getsockname(sockfd: Fd, addr: Out<SockAddr>, addrlen: InOut<SockLen>) => native;
    SYS_getpeername(sockfd: Fd, addr: Out<SockAddr>, addrlen: InOut<SockLen>) => native;
    // The kernel makes two sockets of the family, and loads its module, before it finds that the
    // family knows no pairs (net/socket.c, __sys_socketpair).
    SYS_socketpair(domain: Family, type_: SockType, protocol: Int, sv: Out<FdPair>)
        => native, except {
        domain in REFUSED_FAMILIES => denied(EAFNOSUPPORT, RARE_FAMILY),
        domain is AF_UNIX, type_ has SOCK_DGRAM
            => denied(ESOCKTNOSUPPORT, NO_DATAGRAMS, when NO_NAMESPACES),
    };
    // What makes another kind of socket of one, or leads its packets another way.
    SYS_setsockopt(sockfd: Fd, level: Int, optname: Int, optval: InBuf, optlen: Int)
        => native, except {
        level is libc::IPPROTO_TCP, optname is network::TCP_ULP => denied(ENOENT, "makes a socket of another kind of one", when NETWORK),
        level is libc::IPPROTO_IP, optname in network::WAYS_V4 => denied(EPERM, OWN_WAY, when NETWORK),
        level is libc::IPPROTO_IPV6, optname in network::WAYS_V6 => denied(EPERM, OWN_WAY, when NETWORK),
        level is libc::SOL_SOCKET, optname in network::WAYS => denied(EPERM, OWN_WAY, when NETWORK),
    };
    SYS_getsockopt(sockfd: Fd, level: Int, optname: Int, optval: OutBuf, optlen: InOut<SockLen>)
        => native, except {
        level is libc::SOL_SOCKET, optname is network::SO_PEERPIDFD => denied(ENOPROTOOPT, "stands for the sentry, where that has let a socket listen", when NETWORK),
    };
    // The low byte of the flags is the signal that the child sends at its end, so this call cannot
    // make a time namespace: CLONE_NEWTIME is in that byte (clone(2)).
    SYS_clone(
        flags: CloneFlags, stack: Addr, parent_tid: Out<PidCell>, child_tid: Out<PidCell>,
        tls: Addr
    ) => native, except {
        flags has NAMESPACES => refused(EPERM, MAKES_NAMESPACES, OUTSIDE),
    };
    SYS_fork() => native;
    SYS_vfork() => native;
    SYS_execve(pathname: Path, argv: StrArray, envp: StrArray)
        => handled(sync exec::execve, EXEC_EVENTS | CPU_CLOCK | VIRTUAL_TIME | FILE_LOG | PATTERNS | TWINS);
    SYS_exit(status: Int) => native;
    SYS_wait4(pid: Pid, wstatus: Out<IntCell>, options: WaitOptions, rusage: Out<Rusage>) => native;
    SYS_kill(pid: Pid, sig: Signal) => native;
    SYS_uname(buf: Out<UtsName>) => native;
    SYS_semget(key: Key, nsems: Int, semflg: Flags)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_semop(semid: IpcId, sops: In<SemBuf>, nsops: UInt)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_semctl(semid: IpcId, semnum: Int, cmd: Operation, arg: Addr)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_shmdt(shmaddr: Addr) => native;
    SYS_msgget(key: Key, msgflg: Flags)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_msgsnd(msqid: IpcId, msgp: In<MsgBuf>, msgsz: Len, msgflg: Flags)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_msgrcv(msqid: IpcId, msgp: Out<MsgBuf>, msgsz: Len, msgtyp: Long, msgflg: Flags)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_msgctl(msqid: IpcId, cmd: Operation, buf: InOut<MsqidDs>)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_fcntl(fd: Fd, cmd: FcntlCommand, arg: ULong) => native;
    SYS_flock(fd: Fd, operation: Operation) => native;
    SYS_fsync(fd: Fd) => handled(sync sync::fsync, FAKE_SYNC);
    SYS_fdatasync(fd: Fd) => handled(sync sync::fdatasync, FAKE_SYNC);
    SYS_truncate(path: Path, length: Offset) => handled(async paths::truncate, FILE_LOG | ROOT | PATTERNS | TWINS);
    SYS_ftruncate(fd: Fd, length: Offset) => native;
    SYS_getdents(fd: Fd, dirp: Out<Dirent>, count: UInt)
        => handled(sync directories::getdents, DETERMINISTIC);
    SYS_getcwd(buf: OutBuf, size: Len) => native;
    SYS_chdir(path: Path) => handled(sync watch::chdir, FILE_LOG);
    SYS_fchdir(fd: Fd) => native;
    SYS_rename(oldpath: Path, newpath: Path) => handled(sync paths::rename, FILE_LOG | ROOT | PATTERNS);
    SYS_mkdir(pathname: Path, mode: Mode) => handled(sync paths::mkdir, FILE_LOG | ROOT | PATTERNS);
    SYS_rmdir(pathname: Path) => handled(sync paths::rmdir, FILE_LOG | PATTERNS);
    SYS_creat(pathname: Path, mode: Mode)
        => handled(async paths::creat, FILE_LOG | ROOT | PATTERNS | TWINS | ASK_FILES), except {
        mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE),
    };
    SYS_link(oldpath: Path, newpath: Path) => handled(sync paths::link, FILE_LOG | ROOT | PATTERNS);
    SYS_unlink(pathname: Path) => handled(sync paths::unlink, FILE_LOG | PATTERNS);
    SYS_symlink(target: Path, linkpath: Path) => handled(sync paths::symlink, FILE_LOG | ROOT | PATTERNS);
    SYS_readlink(pathname: Path, buf: OutBuf, bufsiz: Int) => handled(sync watch::readlink, FILE_LOG);
    SYS_chmod(pathname: Path, mode: Mode) => handled(sync kept::chmod, FILE_LOG | ROOT | NO_NAMESPACES), except {
        mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE, unless sync modes::chmod, ROOT),
    };
    SYS_fchmod(fd: Fd, mode: Mode) => handled(sync kept::fchmod, ROOT | NO_NAMESPACES), except {
        mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE, unless sync modes::fchmod, ROOT),
    };
    SYS_chown(pathname: Path, owner: Uid, group: Gid) => handled(sync owners::chown, FILE_LOG | ROOT | NO_NAMESPACES), except {
        owner differs Own::User => handled(sync owners::chown, FOREIGN_IDS),
        group differs Own::Group => handled(sync owners::chown, FOREIGN_IDS),
    };
    SYS_fchown(fd: Fd, owner: Uid, group: Gid) => handled(sync owners::fchown, ROOT | NO_NAMESPACES), except {
        owner differs Own::User => handled(sync owners::fchown, FOREIGN_IDS),
        group differs Own::Group => handled(sync owners::fchown, FOREIGN_IDS),
    };
    SYS_lchown(pathname: Path, owner: Uid, group: Gid) => handled(sync owners::lchown, FILE_LOG | ROOT | NO_NAMESPACES), except {
        owner differs Own::User => handled(sync owners::lchown, FOREIGN_IDS),
        group differs Own::Group => handled(sync owners::lchown, FOREIGN_IDS),
    };
    SYS_umask(mask: Mode) => native;
    SYS_gettimeofday(tv: Out<Timeval>, tz: Out<Timezone>)
        => handled(sync clocks::gettimeofday, VIRTUAL_TIME);
    SYS_getrlimit(resource: Resource, rlim: Out<Rlimit>) => native;
    SYS_getrusage(who: Int, usage: Out<Rusage>) => handled(sync usage::getrusage, RESTORED);
    SYS_sysinfo(info: Out<SysInfo>) => handled(sync machine::sysinfo, MACHINE_VIEW);
    SYS_times(buf: Out<Tms>) => handled(sync usage::times, RESTORED);
    SYS_ptrace(request: PtraceRequest, pid: Pid, addr: Addr, data: Addr) => native;
    SYS_getuid() => handled(sync identity::getuid, ROOT);
    SYS_syslog(type_: Operation, bufp: OutBuf, len: Int)
        => handled(sync klog::syslog, ALWAYS), except {
            type_ is klog::READ => handled(async klog::read, ALWAYS),
        };
    SYS_getgid() => handled(sync identity::getgid, ROOT);
    SYS_setuid(uid: Uid) => handled(sync identity::setuid, ROOT);
    SYS_setgid(gid: Gid) => handled(sync identity::setgid, ROOT);
    SYS_geteuid() => handled(sync identity::geteuid, ROOT);
    SYS_getegid() => handled(sync identity::getegid, ROOT);
    SYS_setpgid(pid: Pid, pgid: Pid) => native;
    SYS_getppid() => native;
    SYS_getpgrp() => native;
    SYS_setsid() => native;
    SYS_setreuid(ruid: Uid, euid: Uid) => handled(sync identity::setreuid, ROOT);
    SYS_setregid(rgid: Gid, egid: Gid) => handled(sync identity::setregid, ROOT);
    SYS_getgroups(size: Int, list: Out<GidCell>) => handled(sync identity::getgroups, ROOT);
    SYS_setgroups(size: Int, list: In<GidCell>) => handled(sync identity::setgroups, ROOT);
    SYS_setresuid(ruid: Uid, euid: Uid, suid: Uid) => handled(sync identity::setresuid, ROOT);
    SYS_getresuid(ruid: Out<UidCell>, euid: Out<UidCell>, suid: Out<UidCell>) => handled(sync identity::getresuid, ROOT);
    SYS_setresgid(rgid: Gid, egid: Gid, sgid: Gid) => handled(sync identity::setresgid, ROOT);
    SYS_getresgid(rgid: Out<GidCell>, egid: Out<GidCell>, sgid: Out<GidCell>) => handled(sync identity::getresgid, ROOT);
    SYS_getpgid(pid: Pid) => native;
    SYS_setfsuid(fsuid: Uid) => handled(sync identity::setfsuid, ROOT);
    SYS_setfsgid(fsgid: Gid) => handled(sync identity::setfsgid, ROOT);
    SYS_getsid(pid: Pid) => native;
    SYS_capget(hdrp: InOut<CapHeader>, datap: Out<CapData>) => handled(sync identity::capget, ROOT);
    SYS_capset(hdrp: InOut<CapHeader>, datap: In<CapData>) => handled(sync identity::capset, ROOT);
    SYS_rt_sigpending(set: Out<SigSet>, sigsetsize: Len) => native;
    SYS_rt_sigtimedwait(set: In<SigSet>, info: Out<SigInfo>, timeout: In<Timespec>, sigsetsize: Len)
        => handled(sync timeouts::rt_sigtimedwait, VIRTUAL_RATE);
    SYS_rt_sigqueueinfo(tgid: Pid, sig: Signal, info: In<SigInfo>) => native;
    SYS_rt_sigsuspend(mask: In<SigSet>, sigsetsize: Len) => native;
    SYS_sigaltstack(ss: In<SigStack>, old_ss: Out<SigStack>) => native;
    SYS_utime(filename: Path, times: In<Utimbuf>) => handled(sync kept::utime, FILE_LOG | ROOT | NO_NAMESPACES);
    SYS_mknod(pathname: Path, mode: Mode, dev: Dev) => handled(sync paths::mknod, FILE_LOG | ROOT | PATTERNS), except {
        mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE, unless sync modes::mknod, ROOT),
    };
    SYS_uselib(library: Path)
        => unimplemented("loaded shared libraries in the a.out format; Linux dropped it");
    // gdb and rr need ADDR_NO_RANDOMIZE, so this stays with the kernel.
    SYS_personality(persona: UInt) => native;
    SYS_ustat(dev: Dev, ubuf: Out<Ustat>) => native;
    SYS_statfs(path: Path, buf: Out<Statfs>) => native;
    SYS_fstatfs(fd: Fd, buf: Out<Statfs>) => native;
    SYS_sysfs(option: Int, arg1: ULong, arg2: ULong) => native;
    SYS_getpriority(which: Operation, who: Int) => native;
    SYS_setpriority(which: Operation, who: Int, prio: Int)
        => handled(sync apart::set_priority, NO_NAMESPACES);
    SYS_sched_setparam(pid: Pid, param: In<SchedParam>) => native, except {
        pid differs Own::Itself => handled(sync apart::sched_setparam, NO_NAMESPACES),
    };
    SYS_sched_getparam(pid: Pid, param: Out<SchedParam>) => native;
    SYS_sched_setscheduler(pid: Pid, policy: SchedPolicy, param: In<SchedParam>) => native, except {
        pid differs Own::Itself => handled(sync apart::sched_setscheduler, NO_NAMESPACES),
    };
    SYS_sched_getscheduler(pid: Pid) => native;
    SYS_sched_get_priority_max(policy: SchedPolicy) => native;
    SYS_sched_get_priority_min(policy: SchedPolicy) => native;
    SYS_sched_rr_get_interval(pid: Pid, tp: Out<Timespec>) => native;
    SYS_mlock(addr: Addr, len: Len) => native;
    SYS_munlock(addr: Addr, len: Len) => native;
    SYS_mlockall(flags: Flags) => native;
    SYS_munlockall() => native;
    SYS_vhangup() => native;
    // Wine and DOS emulators need 16-bit segments.
    SYS_modify_ldt(func: Operation, ptr: InOut<UserDesc>, bytecount: ULong) => native;
    SYS_pivot_root(new_root: Path, put_old: Path) => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS__sysctl(args: InOut<Struct>)
        => unimplemented("read and set kernel parameters; Linux dropped it for /proc/sys");
    SYS_prctl(option: PrctlOption, arg2: ULong, arg3: ULong, arg4: ULong, arg5: ULong)
        => native, except {
        option is PR_SET_SECCOMP => handled(sync filters::prctl, ALWAYS),
        option is lazy::PR_SET_VMA => handled(async lazy::prctl, LAZY),
        option in identity::PRCTL => handled(sync identity::prctl, ROOT),
    };
    SYS_arch_prctl(code: Operation, addr: Addr) => native;
    // Reading the clock's state is common; setting it needs a capability.
    SYS_adjtimex(buf: InOut<Timex>) => handled(sync clocks::adjtimex, VIRTUAL_TIME);
    SYS_setrlimit(resource: Resource, rlim: In<Rlimit>) => native;
    SYS_chroot(path: Path)
        => refused(EPERM, FIXED_VIEW, CHROOT_FLAG, unless sync identity::chroot, ROOT | SUB_IDS);
    SYS_sync() => handled(sync sync::sync, FAKE_SYNC_ALL);
    SYS_acct(filename: Path) => refused(EPERM, "switches the host's process accounting", OUTSIDE);
    SYS_settimeofday(tv: In<Timeval>, tz: In<Timezone>)
        => refused(EPERM, SETS_CLOCK, OWN_CLOCK, unless sync clocks::settimeofday, VIRTUAL_TIME);
    SYS_mount(source: Path, target: Path, filesystemtype: Str, mountflags: MountFlags, data: Addr)
        => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_umount2(target: Path, flags: Flags) => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_swapon(path: Path, swapflags: Flags)
        => refused(EPERM, "changes the host's swap space", OUTSIDE);
    SYS_swapoff(path: Path) => refused(EPERM, "changes the host's swap space", OUTSIDE);
    SYS_reboot(magic: Int, magic2: Int, cmd: UInt, arg: Addr)
        => refused(EPERM, "restarts or halts the host", OUTSIDE);
    SYS_sethostname(name: InBuf, len: Int) => refused(EPERM, FIXED_NAME, HOSTNAME_FLAG);
    SYS_setdomainname(name: InBuf, len: Int)
        => refused(EPERM, "changes the NIS domain name", OUTSIDE);
    SYS_iopl(level: UInt) => refused(EPERM, PORTS, OUTSIDE);
    SYS_ioperm(from: ULong, num: ULong, turn_on: Int) => refused(EPERM, PORTS, OUTSIDE);
    SYS_create_module(name: Str, size: Len)
        => unimplemented("loaded modules before Linux 2.6; dropped since");
    SYS_init_module(module_image: InBuf, len: Len, param_values: Str)
        => refused(EPERM, LOADS_MODULES, OUTSIDE);
    SYS_delete_module(name: Str, flags: Flags)
        => refused(EPERM, "removes code from the host kernel", OUTSIDE);
    SYS_get_kernel_syms(table: Out<Struct>)
        => unimplemented("listed kernel symbols before Linux 2.6; dropped since");
    SYS_query_module(name: Str, which: Operation, buf: OutBuf, bufsize: Len, ret: Out<SizeCell>)
        => unimplemented("asked for modules before Linux 2.6; dropped since");
    SYS_quotactl(cmd: UInt, special: Path, id: UInt, addr: Addr) => refused(EPERM, QUOTAS, OUTSIDE);
    SYS_nfsservctl(cmd: Operation, argp: In<Struct>, resp: Out<Struct>)
        => unimplemented("spoke to the kernel's NFS server; Linux dropped it");
    SYS_getpmsg() => unimplemented(NEVER);
    SYS_putpmsg() => unimplemented(NEVER);
    SYS_afs_syscall() => unimplemented(NEVER);
    SYS_tuxcall() => unimplemented(NEVER);
    SYS_security() => unimplemented(NEVER);
    SYS_gettid() => native;
    SYS_readahead(fd: Fd, offset: Offset, count: Len) => native;
    SYS_setxattr(path: Path, name: Str, value: InBuf, size: Len, flags: Flags) => handled(sync kept::setxattr, ROOT | NO_NAMESPACES);
    SYS_lsetxattr(path: Path, name: Str, value: InBuf, size: Len, flags: Flags) => handled(sync kept::lsetxattr, ROOT | NO_NAMESPACES);
    SYS_fsetxattr(fd: Fd, name: Str, value: InBuf, size: Len, flags: Flags) => handled(sync kept::fsetxattr, ROOT | NO_NAMESPACES);
    SYS_getxattr(path: Path, name: Str, value: OutBuf, size: Len) => handled(sync attributes::getxattr, ROOT);
    SYS_lgetxattr(path: Path, name: Str, value: OutBuf, size: Len) => handled(sync attributes::lgetxattr, ROOT);
    SYS_fgetxattr(fd: Fd, name: Str, value: OutBuf, size: Len) => handled(sync attributes::fgetxattr, ROOT);
    SYS_listxattr(path: Path, list: OutBuf, size: Len) => handled(sync attributes::listxattr, ROOT);
    SYS_llistxattr(path: Path, list: OutBuf, size: Len) => handled(sync attributes::llistxattr, ROOT);
    SYS_flistxattr(fd: Fd, list: OutBuf, size: Len) => handled(sync attributes::flistxattr, ROOT);
    SYS_removexattr(path: Path, name: Str) => handled(sync kept::removexattr, ROOT | NO_NAMESPACES);
    SYS_lremovexattr(path: Path, name: Str) => handled(sync kept::lremovexattr, ROOT | NO_NAMESPACES);
    SYS_fremovexattr(fd: Fd, name: Str) => handled(sync kept::fremovexattr, ROOT | NO_NAMESPACES);
    SYS_tkill(tid: Pid, sig: Signal) => native;
    SYS_time(tloc: Out<Time>) => handled(sync clocks::time, VIRTUAL_TIME);
    SYS_futex(
        uaddr: InOut<FutexWord>, futex_op: FutexOperation, val: UInt, timeout: In<Timespec>,
        uaddr2: InOut<FutexWord>, val3: UInt
    ) => native, except {
        futex_op in timeouts::DAY_FUTEXES => handled(sync timeouts::futex, VIRTUAL_TIME),
        futex_op in timeouts::STEADY_FUTEXES => handled(sync timeouts::futex, VIRTUAL_RATE),
    };
    SYS_sched_setaffinity(pid: Pid, cpusetsize: UInt, mask: In<CpuMask>)
        => handled(sync processes::sched_setaffinity, CPU_SET), except {
        pid differs Own::Itself => handled(sync apart::sched_setaffinity, NO_NAMESPACES),
    };
    SYS_sched_getaffinity(pid: Pid, cpusetsize: UInt, mask: Out<CpuMask>) => native;
    SYS_set_thread_area(u_info: InOut<UserDesc>)
        => unimplemented("exists for 32-bit programs only");
    SYS_io_setup(nr_events: UInt, ctx_idp: InOut<IoContextCell>)
        => handled(async lazy::io_setup, LAZY);
    SYS_io_destroy(ctx_id: IoContext) => native;
    SYS_io_getevents(
        ctx_id: IoContext, min_nr: Long, nr: Long, events: Out<IoEvent>, timeout: In<Timespec>
    ) => handled(sync timeouts::io_getevents, VIRTUAL_RATE);
    SYS_io_submit(ctx_id: IoContext, nr: Long, iocbpp: In<IocbArray>) => native;
    SYS_io_cancel(ctx_id: IoContext, iocb: In<Iocb>, result: Out<IoEvent>) => native;
    SYS_get_thread_area(u_info: InOut<UserDesc>)
        => unimplemented("exists for 32-bit programs only");
    SYS_lookup_dcookie(cookie: ULong, buffer: OutBuf, len: Len)
        => unimplemented("told a profiler the host's paths; Linux dropped it");
    SYS_epoll_create(size: Int) => native;
    SYS_epoll_ctl_old() => unimplemented(NEVER);
    SYS_epoll_wait_old() => unimplemented(NEVER);
    SYS_remap_file_pages(addr: Addr, size: Len, prot: Prot, pgoff: ULong, flags: MapFlags)
        => native;
    SYS_getdents64(fd: Fd, dirp: Out<Dirent64>, count: UInt)
        => handled(sync directories::getdents64, DETERMINISTIC);
    SYS_set_tid_address(tidptr: Out<PidCell>) => native;
    SYS_restart_syscall() => native;
    SYS_semtimedop(semid: IpcId, sops: In<SemBuf>, nsops: UInt, timeout: In<Timespec>) => handled(sync apart::semtimedop, VIRTUAL_RATE | NO_NAMESPACES);
    SYS_fadvise64(fd: Fd, offset: Offset, len: Len, advice: FileAdvice) => native;
    SYS_timer_create(clockid: ClockId, sevp: In<SigEvent>, timerid: Out<TimerIdCell>) => native;
    SYS_timer_settime(
        timerid: TimerId, flags: Flags, new_value: In<Itimerspec>, old_value: Out<Itimerspec>
    ) => handled(sync timeouts::timer_settime, VIRTUAL_RATE), except {
        flags has TIMER_ABSTIME => handled(sync timeouts::timer_settime, VIRTUAL_TIME),
    };
    SYS_timer_gettime(timerid: TimerId, curr_value: Out<Itimerspec>) => handled(sync timeouts::timer_gettime, VIRTUAL_RATE);
    SYS_timer_getoverrun(timerid: TimerId) => native;
    SYS_timer_delete(timerid: TimerId) => native;
    SYS_clock_settime(clockid: ClockId, tp: In<Timespec>)
        => refused(EPERM, SETS_CLOCK, OWN_CLOCK, unless sync clocks::clock_settime, VIRTUAL_TIME);
    // Programs read most of these in their vDSO (timekeeping/vdso.rs).
    SYS_clock_gettime(clockid: ClockId, tp: Out<Timespec>) => native, except {
        clockid in clocks::TIME_OF_DAY => handled(sync clocks::clock_gettime, VIRTUAL_TIME),
        clockid in clocks::STEADY => handled(sync clocks::clock_gettime, VIRTUAL_RATE),
        clockid in usage::CPU => handled(sync usage::clock_gettime, RESTORED),
        clockid has usage::DYNAMIC => handled(sync usage::clock_gettime, RESTORED),
    };
    SYS_clock_getres(clockid: ClockId, res: Out<Timespec>) => native;
    SYS_clock_nanosleep(
        clockid: ClockId, flags: Flags, request: In<Timespec>, remain: Out<Timespec>
    ) => handled(sync sleeps::clock_nanosleep, VIRTUAL_RATE | DETERMINISTIC), except {
        clockid in clocks::TIME_OF_DAY, flags has TIMER_ABSTIME
            => handled(sync sleeps::clock_nanosleep, VIRTUAL_TIME),
    };
    SYS_exit_group(status: Int) => native;
    SYS_epoll_wait(epfd: Fd, events: Out<EpollEvent>, maxevents: Int, timeout: Int) => handled(sync timeouts::epoll_wait, VIRTUAL_RATE);
    SYS_epoll_ctl(epfd: Fd, op: Operation, fd: Fd, event: In<EpollEvent>) => native;
    SYS_tgkill(tgid: Pid, tid: Pid, sig: Signal) => native;
    SYS_utimes(filename: Path, times: In<TimevalPair>) => handled(sync kept::utimes, FILE_LOG | ROOT | NO_NAMESPACES);
    SYS_vserver() => unimplemented(NEVER);
    SYS_mbind(
        addr: Addr, len: Len, mode: ULong, nodemask: In<NodeMask>, maxnode: ULong, flags: Flags
    ) => native;
    SYS_set_mempolicy(mode: Int, nodemask: In<NodeMask>, maxnode: ULong) => native;
    SYS_get_mempolicy(
        mode: Out<IntCell>, nodemask: Out<NodeMask>, maxnode: ULong, addr: Addr, flags: WideFlags
    ) => native;
    SYS_mq_open(name: Str, oflag: OpenFlags, mode: Mode, attr: In<MqAttr>)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_mq_unlink(name: Str)
        => denied(ENOSYS, HOSTS_IPC, when NO_NAMESPACES);
    SYS_mq_timedsend(
        mqdes: Fd, msg_ptr: InBuf, msg_len: Len, msg_prio: UInt, abs_timeout: In<Timespec>
    ) => handled(sync timeouts::mq_timedsend, VIRTUAL_TIME);
    SYS_mq_timedreceive(
        mqdes: Fd, msg_ptr: OutBuf, msg_len: Len, msg_prio: Out<UIntCell>,
        abs_timeout: In<Timespec>
    ) => handled(sync timeouts::mq_timedreceive, VIRTUAL_TIME);
    SYS_mq_notify(mqdes: Fd, sevp: In<SigEvent>) => native;
    SYS_mq_getsetattr(mqdes: Fd, newattr: In<MqAttr>, oldattr: Out<MqAttr>) => native;
    SYS_kexec_load(entry: ULong, nr_segments: ULong, segments: In<KexecSegment>, flags: WideFlags)
        => denied(EPERM, REPLACES_KERNEL);
    SYS_waitid(
        idtype: Operation, id: Pid, infop: Out<SigInfo>, options: WaitOptions, rusage: Out<Rusage>
    ) => native;
    SYS_add_key(type_: Str, description: Str, payload: InBuf, plen: Len, keyring: KeySerial)
        => denied(EPERM, KEYRINGS);
    SYS_request_key(type_: Str, description: Str, callout_info: Str, dest_keyring: KeySerial)
        => denied(EPERM, KEYRINGS);
    SYS_keyctl(operation: Operation, arg2: ULong, arg3: ULong, arg4: ULong, arg5: ULong)
        => denied(EPERM, KEYRINGS);
    SYS_ioprio_set(which: Operation, who: Int, ioprio: Int)
        => handled(sync apart::set_io_priority, NO_NAMESPACES);
    SYS_ioprio_get(which: Operation, who: Int) => native;
    SYS_inotify_init() => native;
    SYS_inotify_add_watch(fd: Fd, pathname: Path, mask: Flags)
        => handled(sync apart::inotify_add_watch, NO_NAMESPACES);
    SYS_inotify_rm_watch(fd: Fd, wd: Int) => native;
    SYS_migrate_pages(pid: Pid, maxnode: ULong, old_nodes: In<NodeMask>, new_nodes: In<NodeMask>)
        => native;
    SYS_openat(dirfd: DirFd, pathname: Path, flags: OpenFlags, mode: Mode)
        => handled(async paths::openat, MACHINE_VIEW | KMSG | FILE_LOG | DETERMINISTIC | PATTERNS | TWINS | ASK_FILES), except {
        flags has CREATES, mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE),
        flags has CREATES, mode has S_ISGID => handled(async paths::openat, ROOT),
        flags has WRITES => handled(async paths::openat, ROOT),
    };
    SYS_mkdirat(dirfd: DirFd, pathname: Path, mode: Mode) => handled(sync paths::mkdirat, FILE_LOG | ROOT | PATTERNS);
    SYS_mknodat(dirfd: DirFd, pathname: Path, mode: Mode, dev: Dev) => handled(sync paths::mknodat, FILE_LOG | ROOT | PATTERNS), except {
        mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE, unless sync modes::mknodat, ROOT),
    };
    SYS_fchownat(dirfd: DirFd, pathname: Path, owner: Uid, group: Gid, flags: AtFlags)
        => handled(sync owners::fchownat, FILE_LOG | ROOT | NO_NAMESPACES), except {
            owner differs Own::User => handled(sync owners::fchownat, FOREIGN_IDS),
            group differs Own::Group => handled(sync owners::fchownat, FOREIGN_IDS),
        };
    SYS_futimesat(dirfd: DirFd, pathname: Path, times: In<TimevalPair>) => handled(sync kept::futimesat, FILE_LOG | ROOT | NO_NAMESPACES);
    SYS_newfstatat(dirfd: DirFd, pathname: Path, statbuf: Out<Stat>, flags: AtFlags) => handled(sync stamps::newfstatat, VIRTUAL_TIME | ROOT | FILE_LOG);
    SYS_unlinkat(dirfd: DirFd, pathname: Path, flags: AtFlags) => handled(sync paths::unlinkat, FILE_LOG | PATTERNS);
    SYS_renameat(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path) => handled(sync paths::renameat, FILE_LOG | ROOT | PATTERNS);
    SYS_linkat(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path, flags: AtFlags)
        => handled(sync paths::linkat, FILE_LOG | ROOT | PATTERNS);
    SYS_symlinkat(target: Path, newdirfd: DirFd, linkpath: Path) => handled(sync paths::symlinkat, FILE_LOG | ROOT | PATTERNS);
    SYS_readlinkat(dirfd: DirFd, pathname: Path, buf: OutBuf, bufsiz: Int) => handled(sync watch::readlinkat, FILE_LOG);
    SYS_fchmodat(dirfd: DirFd, pathname: Path, mode: Mode) => handled(sync kept::fchmodat, FILE_LOG | ROOT | NO_NAMESPACES), except {
        mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE, unless sync modes::fchmodat, ROOT),
    };
    SYS_faccessat(dirfd: DirFd, pathname: Path, mode: AccessMode) => handled(sync watch::faccessat, FILE_LOG), except {
        mode has W_OK => handled(sync believed::faccessat, ROOT),
    };
    SYS_pselect6(
        nfds: Int, readfds: InOut<FdSet>, writefds: InOut<FdSet>, exceptfds: InOut<FdSet>,
        timeout: InOut<Timespec>, sigmask: In<SigMaskArg>
    ) => handled(sync timeouts::pselect6, VIRTUAL_RATE);
    SYS_ppoll(
        fds: InOut<PollFd>, nfds: UInt, tmo_p: InOut<Timespec>, sigmask: In<SigSet>,
        sigsetsize: Len
    ) => handled(sync timeouts::ppoll, VIRTUAL_RATE);
    SYS_unshare(flags: CloneFlags) => native, except {
        flags has NAMESPACES | CLONE_NEWTIME => refused(EPERM, MAKES_NAMESPACES, OUTSIDE),
    };
    SYS_set_robust_list(head: In<RobustList>, len: Len)
        => handled(sync processes::set_robust_list, CPU_CLOCK);
    SYS_get_robust_list(pid: Pid, head_ptr: Out<AddrCell>, len_ptr: Out<SizeCell>) => native;
    SYS_splice(
        fd_in: Fd, off_in: InOut<OffsetCell>, fd_out: Fd, off_out: InOut<OffsetCell>, len: Len,
        flags: Flags
    ) => native;
    SYS_tee(fd_in: Fd, fd_out: Fd, len: Len, flags: Flags) => native;
    SYS_sync_file_range(fd: Fd, offset: Offset, nbytes: Offset, flags: Flags) => handled(sync sync::sync_file_range, FAKE_SYNC);
    SYS_vmsplice(fd: Fd, iov: In<Iovec>, nr_segs: ULong, flags: Flags) => native;
    SYS_move_pages(
        pid: Pid, count: ULong, pages: In<AddrCell>, nodes: In<IntCell>, status: Out<IntCell>,
        flags: Flags
    ) => native;
    SYS_utimensat(dirfd: DirFd, pathname: Path, times: In<TimespecPair>, flags: AtFlags) => handled(sync kept::utimensat, FILE_LOG | ROOT | NO_NAMESPACES);
    SYS_epoll_pwait(
        epfd: Fd, events: Out<EpollEvent>, maxevents: Int, timeout: Int, sigmask: In<SigSet>,
        sigsetsize: Len
    ) => handled(sync timeouts::epoll_pwait, VIRTUAL_RATE);
    SYS_signalfd(fd: Fd, mask: In<SigSet>, sizemask: Len) => native;
    SYS_timerfd_create(clockid: ClockId, flags: Flags) => native;
    SYS_eventfd(initval: UInt) => native;
    SYS_fallocate(fd: Fd, mode: Flags, offset: Offset, len: Offset) => native;
    SYS_timerfd_settime(fd: Fd, flags: Flags, new_value: In<Itimerspec>, old_value: Out<Itimerspec>)
        => handled(sync timeouts::timerfd_settime, VIRTUAL_RATE), except {
        flags has TFD_TIMER_ABSTIME => handled(sync timeouts::timerfd_settime, VIRTUAL_TIME),
    };
    SYS_timerfd_gettime(fd: Fd, curr_value: Out<Itimerspec>) => handled(sync timeouts::timerfd_gettime, VIRTUAL_RATE);
    SYS_accept4(sockfd: Fd, addr: Out<SockAddr>, addrlen: InOut<SockLen>, flags: SockType)
        => native;
    SYS_signalfd4(fd: Fd, mask: In<SigSet>, sizemask: Len, flags: Flags) => native;
    SYS_eventfd2(initval: UInt, flags: Flags) => native;
    SYS_epoll_create1(flags: Flags) => native;
    SYS_dup3(oldfd: Fd, newfd: Fd, flags: OpenFlags) => native;
    SYS_pipe2(pipefd: Out<FdPair>, flags: OpenFlags) => native;
    SYS_inotify_init1(flags: Flags) => native;
    SYS_preadv(fd: Fd, iov: In<Iovec>, iovcnt: ULong, pos_l: ULong, pos_h: ULong) => native;
    SYS_pwritev(fd: Fd, iov: In<Iovec>, iovcnt: ULong, pos_l: ULong, pos_h: ULong) => native;
    SYS_rt_tgsigqueueinfo(tgid: Pid, tid: Pid, sig: Signal, info: In<SigInfo>) => native;
    // EACCES is what an ordinary user gets where the host reserves it (perf_event_paranoid).
    SYS_perf_event_open(attr: In<PerfEventAttr>, pid: Pid, cpu: Int, group_fd: Fd, flags: WideFlags)
        => denied(EACCES, "measures what the host's kernel and processors do");
    SYS_recvmmsg(
        sockfd: Fd, msgvec: InOut<MMsgHdr>, vlen: UInt, flags: MsgFlags, timeout: InOut<Timespec>
    ) => handled(sync timeouts::recvmmsg, VIRTUAL_RATE);
    SYS_fanotify_init(flags: Flags, event_f_flags: OpenFlags)
        => denied(EPERM, "watches what other processes do with the host's files");
    SYS_fanotify_mark(fanotify_fd: Fd, flags: Flags, mask: ULong, dirfd: DirFd, pathname: Path)
        => native;
    SYS_prlimit64(pid: Pid, resource: Resource, new_limit: In<Rlimit>, old_limit: Out<Rlimit>)
        => native, except {
        pid differs Own::Itself => handled(sync apart::prlimit64, NO_NAMESPACES),
    };
    SYS_name_to_handle_at(
        dirfd: DirFd, pathname: Path, handle: InOut<FileHandle>, mount_id: Out<IntCell>,
        flags: AtFlags
    ) => native;
    SYS_open_by_handle_at(mount_fd: Fd, handle: In<FileHandle>, flags: OpenFlags)
        => denied(EPERM, "opens files past the walls of the file view");
    SYS_clock_adjtime(clk_id: ClockId, buf: InOut<Timex>)
        => handled(sync clocks::clock_adjtime, VIRTUAL_TIME);
    SYS_syncfs(fd: Fd) => handled(sync sync::syncfs, FAKE_SYNC);
    SYS_sendmmsg(sockfd: Fd, msgvec: InOut<MMsgHdr>, vlen: UInt, flags: MsgFlags)
        => handled(async network::sendmmsg, LEARN | NETWORK);
    SYS_setns(fd: Fd, nstype: CloneFlags) => refused(EPERM, "enters other namespaces", OUTSIDE);
    SYS_getcpu(cpu: Out<UIntCell>, node: Out<UIntCell>, tcache: Addr) => native;
    SYS_process_vm_readv(
        pid: Pid, local_iov: In<Iovec>, liovcnt: ULong, remote_iov: In<Iovec>, riovcnt: ULong,
        flags: WideFlags
    ) => native;
    SYS_process_vm_writev(
        pid: Pid, local_iov: In<Iovec>, liovcnt: ULong, remote_iov: In<Iovec>, riovcnt: ULong,
        flags: WideFlags
    ) => native;
    SYS_kcmp(pid1: Pid, pid2: Pid, type_: Operation, idx1: ULong, idx2: ULong) => native;
    SYS_finit_module(fd: Fd, param_values: Str, flags: Flags)
        => refused(EPERM, LOADS_MODULES, OUTSIDE);
    SYS_sched_setattr(pid: Pid, attr: InOut<SchedAttr>, flags: Flags) => native, except {
        pid differs Own::Itself => handled(sync apart::sched_setattr, NO_NAMESPACES),
    };
    SYS_sched_getattr(pid: Pid, attr: Out<SchedAttr>, size: UInt, flags: Flags) => native;
    SYS_renameat2(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path, flags: Flags)
        => handled(sync paths::renameat2, FILE_LOG | ROOT | PATTERNS);
    SYS_seccomp(operation: Operation, flags: Flags, args: Addr)
        => handled(sync filters::seccomp, ALWAYS);
    SYS_getrandom(buf: OutBuf, buflen: Len, flags: Flags)
        => handled(sync random::getrandom, DETERMINISTIC);
    SYS_memfd_create(name: Str, flags: Flags) => native;
    SYS_kexec_file_load(
        kernel_fd: Fd, initrd_fd: Fd, cmdline_len: ULong, cmdline: Str, flags: WideFlags
    ) => denied(EPERM, REPLACES_KERNEL);
    SYS_bpf(cmd: Operation, attr: InOut<BpfAttr>, size: UInt) => denied(EPERM, LOADS_MODULES);
    SYS_execveat(dirfd: DirFd, pathname: Path, argv: StrArray, envp: StrArray, flags: AtFlags)
        => handled(sync exec::execveat, EXEC_EVENTS | CPU_CLOCK | VIRTUAL_TIME | FILE_LOG | PATTERNS | TWINS);
    SYS_userfaultfd(flags: Flags)
        => denied(EPERM, "stops the host kernel in the middle of its work, which exploits rely on");
    SYS_membarrier(cmd: Operation, flags: Flags, cpu_id: Int) => native;
    SYS_mlock2(addr: Addr, len: Len, flags: Flags) => native;
    SYS_copy_file_range(
        fd_in: Fd, off_in: InOut<OffsetCell>, fd_out: Fd, off_out: InOut<OffsetCell>, len: Len,
        flags: Flags
    ) => native;
    SYS_preadv2(fd: Fd, iov: In<Iovec>, iovcnt: ULong, pos_l: ULong, pos_h: ULong, flags: Flags)
        => native;
    SYS_pwritev2(fd: Fd, iov: In<Iovec>, iovcnt: ULong, pos_l: ULong, pos_h: ULong, flags: Flags)
        => native;
    SYS_pkey_mprotect(addr: Addr, len: Len, prot: Prot, pkey: Int) => native;
    SYS_pkey_alloc(flags: WideFlags, access_rights: ULong) => native;
    SYS_pkey_free(pkey: Int) => native;
    SYS_statx(dirfd: DirFd, pathname: Path, flags: AtFlags, mask: Flags, statxbuf: Out<Statx>)
        => handled(sync stamps::statx, VIRTUAL_TIME | ROOT | FILE_LOG);
    SYS_io_pgetevents(
        ctx_id: IoContext, min_nr: Long, nr: Long, events: Out<IoEvent>, timeout: In<Timespec>,
        usig: In<AioSigSet>
    ) => handled(sync timeouts::io_pgetevents, VIRTUAL_RATE);
    SYS_rseq(rseq: InOut<Rseq>, rseq_len: UInt, flags: Flags, sig: UInt) => native;
    // The kernel's own trampolines make these two calls in a guest that somebody outside probes:
    // where a filter fails them, the guest dies (kernel/seccomp.c lets uretprobe pass any filter
    // only from Linux 6.14 on).
    SYS_uretprobe() => native;
    SYS_uprobe() => native;
    SYS_pidfd_send_signal(pidfd: PidFd, sig: Signal, info: In<SigInfo>, flags: Flags) => native;
    SYS_io_uring_setup(entries: UInt, params: InOut<IoUringParams>) => unimplemented(RINGS);
    SYS_io_uring_enter(
        fd: Fd, to_submit: UInt, min_complete: UInt, flags: Flags, arg: Addr, argsz: Len
    ) => unimplemented(RINGS);
    SYS_io_uring_register(fd: Fd, opcode: UInt, arg: Addr, nr_args: UInt) => unimplemented(RINGS);
    SYS_open_tree(dirfd: DirFd, path: Path, flags: Flags) => native, except {
        flags has OPEN_TREE_CLONE => refused(EPERM, FIXED_VIEW, VIEW_FLAGS),
    };
    SYS_move_mount(from_dirfd: DirFd, from_path: Path, to_dirfd: DirFd, to_path: Path, flags: Flags)
        => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_fsopen(fsname: Str, flags: Flags) => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_fsconfig(fd: Fd, cmd: Operation, key: Str, value: Addr, aux: Int)
        => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_fsmount(fsfd: Fd, flags: Flags, attr_flags: Flags)
        => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_fspick(dirfd: DirFd, path: Path, flags: Flags) => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_pidfd_open(pid: Pid, flags: Flags) => native;
    // Its flags lie behind a pointer. New user namespaces are ruled out by the sandbox's own
    // (max_user_namespaces is 0 in it), and without one the other kinds need a capability.
    SYS_clone3(cl_args: InOut<CloneArgs>, size: Len)
        => denied(ENOSYS, HIDDEN_FLAGS, when NO_NAMESPACES);
    SYS_close_range(first: UInt, last: UInt, flags: Flags) => native;
    SYS_openat2(dirfd: DirFd, pathname: Path, how: In<OpenHow>, size: Len)
        => denied(ENOSYS, BEHIND_POINTER);
    SYS_pidfd_getfd(pidfd: PidFd, targetfd: Fd, flags: Flags) => native;
    SYS_faccessat2(dirfd: DirFd, pathname: Path, mode: AccessMode, flags: AtFlags) => handled(sync watch::faccessat2, FILE_LOG), except {
        mode has W_OK => handled(sync believed::faccessat2, ROOT),
    };
    SYS_process_madvise(pidfd: PidFd, iovec: In<Iovec>, vlen: Len, advice: Advice, flags: Flags)
        => native, except {
        advice in lazy::ADVICE => handled(async lazy::process_madvise, LAZY),
    };
    SYS_epoll_pwait2(
        epfd: Fd, events: Out<EpollEvent>, maxevents: Int, timeout: In<Timespec>,
        sigmask: In<SigSet>, sigsetsize: Len
    ) => handled(sync timeouts::epoll_pwait2, VIRTUAL_RATE);
    SYS_mount_setattr(dirfd: DirFd, pathname: Path, flags: AtFlags, attr: In<MountAttr>, size: Len)
        => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_quotactl_fd(fd: Fd, cmd: UInt, id: UInt, addr: Addr) => denied(EPERM, QUOTAS);
    SYS_landlock_create_ruleset(attr: In<LandlockRulesetAttr>, size: Len, flags: Flags)
        => handled(sync paths::landlock_create_ruleset, PATTERNS | TWINS);
    SYS_landlock_add_rule(ruleset_fd: Fd, rule_type: Operation, rule_attr: In<Struct>, flags: Flags)
        => native;
    SYS_landlock_restrict_self(ruleset_fd: Fd, flags: Flags) => native;
    SYS_memfd_secret(flags: Flags) => native;
    SYS_process_mrelease(pidfd: PidFd, flags: Flags) => native;
    SYS_futex_waitv(
        waiters: In<FutexWaitv>, nr_futexes: UInt, flags: Flags, timeout: In<Timespec>,
        clockid: ClockId
    ) => handled(sync timeouts::futex_waitv, VIRTUAL_RATE), except {
        clockid is CLOCK_REALTIME => handled(sync timeouts::futex_waitv, VIRTUAL_TIME),
    };
    SYS_set_mempolicy_home_node(start: Addr, len: Len, home_node: ULong, flags: WideFlags)
        => native;
    SYS_cachestat(fd: Fd, cstat_range: In<CachestatRange>, cstat: Out<Cachestat>, flags: Flags)
        => native;
    SYS_fchmodat2(dirfd: DirFd, pathname: Path, mode: Mode, flags: AtFlags) => handled(sync kept::fchmodat2, FILE_LOG | ROOT | NO_NAMESPACES), except {
        mode has S_ISUID => refused(EPERM, SETUID, SET_OUTSIDE, unless sync modes::fchmodat2, ROOT),
    };
    SYS_map_shadow_stack(addr: Addr, size: Len, flags: Flags) => native;
    SYS_futex_wake(uaddr: In<FutexWord>, mask: ULong, nr: Int, flags: Flags) => native;
    SYS_futex_wait(
        uaddr: In<FutexWord>, val: ULong, mask: ULong, flags: Flags, timeout: In<Timespec>,
        clockid: ClockId
    ) => handled(sync timeouts::futex_wait, VIRTUAL_RATE), except {
        clockid is CLOCK_REALTIME => handled(sync timeouts::futex_wait, VIRTUAL_TIME),
    };
    SYS_futex_requeue(waiters: In<FutexWaitv>, flags: Flags, nr_wake: Int, nr_requeue: Int)
        => native;
    SYS_statmount(req: In<MntIdReq>, buf: Out<StatMount>, bufsize: Len, flags: Flags) => native;
    SYS_listmount(req: In<MntIdReq>, mnt_ids: Out<U64Cell>, nr_mnt_ids: Len, flags: Flags)
        => native;
    SYS_lsm_get_self_attr(attr: UInt, ctx: Out<LsmContext>, size: InOut<UIntCell>, flags: Flags)
        => native;
    SYS_lsm_set_self_attr(attr: UInt, ctx: In<LsmContext>, size: UInt, flags: Flags) => native;
    SYS_lsm_list_modules(ids: Out<U64Cell>, size: InOut<UIntCell>, flags: Flags) => native;
    SYS_mseal(addr: Addr, size: Len, flags: WideFlags) => handled(async lazy::mseal, LAZY);
    SYS_setxattrat(
        dirfd: DirFd, pathname: Path, at_flags: AtFlags, name: Str, args: In<XattrArgs>, size: Len
    ) => denied(ENOSYS, XATTRS_AT, when ROOT | NO_NAMESPACES);
    SYS_getxattrat(
        dirfd: DirFd, pathname: Path, at_flags: AtFlags, name: Str, args: In<XattrArgs>, size: Len
    ) => denied(ENOSYS, XATTRS_AT, when ROOT);
    SYS_listxattrat(dirfd: DirFd, pathname: Path, at_flags: AtFlags, list: OutBuf, size: Len)
        => denied(ENOSYS, XATTRS_AT, when ROOT);
    SYS_removexattrat(dirfd: DirFd, pathname: Path, at_flags: AtFlags, name: Str)
        => denied(ENOSYS, XATTRS_AT, when ROOT | NO_NAMESPACES);
    SYS_open_tree_attr(dirfd: DirFd, path: Path, flags: Flags, attr: In<MountAttr>, size: Len)
        => refused(EPERM, FIXED_VIEW, VIEW_FLAGS);
    SYS_file_getattr(
        dirfd: DirFd, pathname: Path, attr: Out<FileAttr>, size: Len, at_flags: AtFlags
    ) => native;
    SYS_file_setattr(dirfd: DirFd, pathname: Path, attr: In<FileAttr>, size: Len, at_flags: AtFlags)
        => denied(ENOSYS, NEW_ATTRIBUTES, when NO_NAMESPACES);
}
