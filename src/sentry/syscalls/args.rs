//! The types of syscall arguments, as rows of the table name them.
//!
//! A type says how the six raw registers become values (its width: the kernel itself looks only at
//! the low half of an `int` argument, so a test of it has to mask the rest away) and what the
//! argument means. It does not read guest memory: a pointer type only carries the address, and a
//! handler reads through [`crate::notify::GuestMemory`].

use std::marker::PhantomData;

/// A type that a syscall argument can have.
pub trait Arg: Sized {
    /// Its name in the documentation.
    const NAME: &'static str;
    /// How many bits of the register the kernel looks at: 32 or 64.
    const BITS: u8;
    /// The value in a register.
    fn decode(raw: u64) -> Self;
}

/// The six registers of a trapped call, taken one after another as the row's types ask for them.
#[derive(Debug, Clone, Copy)]
pub struct ArgReader {
    raw: [u64; 6],
    next: usize,
}

impl ArgReader {
    /// Starts at the first argument.
    pub fn new(raw: [u64; 6]) -> Self {
        ArgReader { raw, next: 0 }
    }

    /// The next argument. A row has at most six (a seventh would be 0; a test holds the rows to it).
    pub fn take<T: Arg>(&mut self) -> T {
        let raw = self.raw.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        T::decode(raw)
    }
}

macro_rules! values {
    ($($(#[$doc:meta])* $name:ident = $inner:ty, $bits:literal;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub struct $name(pub $inner);

            impl Arg for $name {
                const NAME: &'static str = stringify!($name);
                const BITS: u8 = $bits;
                fn decode(raw: u64) -> Self {
                    $name(raw as $inner)
                }
            }
        )*
    };
}

values! {
    /// A file descriptor.
    Fd = i32, 32;
    /// A directory descriptor or AT_FDCWD, of the `*at` calls.
    DirFd = i32, 32;
    /// A C `int` without a closer meaning.
    Int = i32, 32;
    /// A C `unsigned int` without a closer meaning.
    UInt = u32, 32;
    /// A C `long`.
    Long = i64, 64;
    /// A C `unsigned long`.
    ULong = u64, 64;
    /// A size or count in bytes or elements (`size_t`).
    Len = u64, 64;
    /// An offset in a file (`off_t`).
    Offset = i64, 64;
    /// An address in the guest that the kernel does not read as a known structure.
    Addr = u64, 64;
    /// A process, thread or process-group id.
    Pid = i32, 32;
    /// A user id; all ones means "leave as it is".
    Uid = u32, 32;
    /// A group id; all ones means "leave as it is".
    Gid = u32, 32;
    /// Permission bits (`mode_t`).
    Mode = u32, 32;
    /// A signal number.
    Signal = i32, 32;
    /// A clock (`clockid_t`).
    ClockId = i32, 32;
    /// A POSIX timer id.
    TimerId = i32, 32;
    /// A device number, as stat(2) of the kernel encodes it (not makedev(3)).
    Dev = u32, 32;
    /// A process descriptor (pidfd_open(2)).
    PidFd = i32, 32;
    /// Where an offset counts from (SEEK_*).
    Whence = u32, 32;
    /// What access(2) asks for (R_OK, W_OK, X_OK, F_OK).
    AccessMode = i32, 32;
    /// A type of socket with flags (SOCK_*).
    SockType = i32, 32;
    /// A resource with a limit (RLIMIT_*).
    Resource = u32, 32;
    /// An fcntl command (F_*).
    FcntlCommand = u32, 32;
    /// A futex operation with flags (FUTEX_*).
    FutexOperation = i32, 32;
    /// A ptrace request (PTRACE_*).
    PtraceRequest = i64, 64;
    /// A scheduling policy (SCHED_*).
    SchedPolicy = i32, 32;
    /// Advice about memory (MADV_*).
    Advice = i32, 32;
    /// Advice about a file (POSIX_FADV_*).
    FileAdvice = i32, 32;
    /// What wait4(2) waits for (W*).
    WaitOptions = i32, 32;
    /// A context of asynchronous input and output (io_setup(2)).
    IoContext = u64, 64;
    /// Seconds since 1970 passed in a register.
    Seconds = i64, 64;
    /// An address family (AF_*).
    Family = i32, 32;
    /// An ioctl request: the kernel takes an `unsigned int`, whatever the upper half holds.
    IoctlRequest = u32, 32;
    /// A prctl option.
    PrctlOption = i32, 32;
    /// An `operation` or `cmd` that selects what a call does.
    Operation = i32, 32;
    /// A System V IPC key.
    Key = i32, 32;
    /// A System V IPC id.
    IpcId = i32, 32;
    /// A key serial number of keyctl(2).
    KeySerial = i32, 32;
    /// Flags: O_*.
    OpenFlags = u32, 32;
    /// Flags: AT_*.
    AtFlags = u32, 32;
    /// Flags: CLONE_*; the kernel takes the low half of clone's register only.
    CloneFlags = u32, 32;
    /// Flags: MS_*.
    MountFlags = u64, 64;
    /// Flags: MAP_*.
    MapFlags = u64, 64;
    /// Flags: PROT_*.
    Prot = u64, 64;
    /// Flags: MSG_*.
    MsgFlags = u32, 32;
    /// Flags of one call, described in its man page.
    Flags = u32, 32;
    /// The same where the kernel takes the whole register.
    WideFlags = u64, 64;
}

/// A structure or element that a pointer argument points to: a name for people, no layout.
pub trait Pointee {
    /// Its name in the documentation.
    const NAME: &'static str;
}

macro_rules! pointees {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name;
            impl Pointee for $name {
                const NAME: &'static str = stringify!($name);
            }
        )*
    };
}

macro_rules! pointers {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name<T> {
                /// The address in the guest; 0 is a null pointer.
                pub address: u64,
                pointee: PhantomData<T>,
            }
            impl<T: Pointee> Arg for $name<T> {
                // The documentation joins the two names, see `ArgSpec::type_name`.
                const NAME: &'static str = T::NAME;
                const BITS: u8 = 64;
                fn decode(raw: u64) -> Self {
                    $name { address: raw, pointee: PhantomData }
                }
            }
        )*
    };
}

pointers! {
    /// A structure that the kernel reads.
    In;
    /// A structure that the kernel writes.
    Out;
    /// A structure that the kernel reads and writes.
    InOut;
}

values! {
    /// A NUL-terminated path.
    Path = u64, 64;
    /// A NUL-terminated string that is no path.
    Str = u64, 64;
    /// A NULL-terminated array of strings (argv, envp).
    StrArray = u64, 64;
    /// Bytes that the kernel reads; their count is another argument.
    InBuf = u64, 64;
    /// Bytes that the kernel writes; their count is another argument.
    OutBuf = u64, 64;
}

pointees! {
    /// `struct timespec`.
    Timespec;
    /// `struct timeval`.
    Timeval;
    /// `struct timezone`.
    Timezone;
    /// `struct timex`.
    Timex;
    /// `struct itimerspec`.
    Itimerspec;
    /// `struct itimerval`.
    Itimerval;
    /// `time_t`.
    Time;
    /// `struct tms`.
    Tms;
    /// `struct utimbuf`.
    Utimbuf;
    /// `struct stat`.
    Stat;
    /// `struct statx`.
    Statx;
    /// `struct statfs`.
    Statfs;
    /// `struct sockaddr`.
    SockAddr;
    /// `socklen_t`.
    SockLen;
    /// `struct msghdr`.
    MsgHdr;
    /// `struct mmsghdr`.
    MMsgHdr;
    /// `struct iovec`.
    Iovec;
    /// `struct pollfd`.
    PollFd;
    /// `fd_set`.
    FdSet;
    /// `struct epoll_event`.
    EpollEvent;
    /// `sigset_t`.
    SigSet;
    /// `struct sigaction`.
    SigAction;
    /// `siginfo_t`.
    SigInfo;
    /// `stack_t`.
    SigStack;
    /// `struct sigevent`.
    SigEvent;
    /// `struct rlimit`.
    Rlimit;
    /// `struct rusage`.
    Rusage;
    /// `struct sysinfo`.
    SysInfo;
    /// `struct utsname`.
    UtsName;
    /// `struct clone_args`.
    CloneArgs;
    /// `struct open_how`.
    OpenHow;
    /// `struct mount_attr`.
    MountAttr;
    /// `struct mnt_id_req`.
    MntIdReq;
    /// `struct xattr_args`.
    XattrArgs;
    /// `struct file_attr`.
    FileAttr;
    /// `struct file_handle`.
    FileHandle;
    /// `struct sched_param`.
    SchedParam;
    /// `struct sched_attr`.
    SchedAttr;
    /// A CPU mask.
    CpuMask;
    /// A NUMA node mask.
    NodeMask;
    /// `struct __user_cap_header_struct`.
    CapHeader;
    /// `struct __user_cap_data_struct`.
    CapData;
    /// `struct msqid_ds`.
    MsqidDs;
    /// `struct shmid_ds`.
    ShmidDs;
    /// `struct sembuf`.
    SemBuf;
    /// `struct msgbuf`.
    MsgBuf;
    /// `struct mq_attr`.
    MqAttr;
    /// `struct perf_event_attr`.
    PerfEventAttr;
    /// `struct landlock_ruleset_attr`.
    LandlockRulesetAttr;
    /// `union bpf_attr`.
    BpfAttr;
    /// `struct user_desc`.
    UserDesc;
    /// `struct io_event`.
    IoEvent;
    /// `struct iocb`.
    Iocb;
    /// `struct robust_list_head`.
    RobustList;
    /// `struct rseq`.
    Rseq;
    /// A futex word.
    FutexWord;
    /// `struct futex_waitv`.
    FutexWaitv;
    /// `struct kexec_segment`.
    KexecSegment;
    /// An `int`.
    IntCell;
    /// An `unsigned int`.
    UIntCell;
    /// A `long` or `unsigned long`.
    LongCell;
    /// A `uid_t`.
    UidCell;
    /// A `gid_t`.
    GidCell;
    /// A `loff_t`.
    OffsetCell;
    /// A `pid_t`.
    PidCell;
    /// A timer id.
    TimerIdCell;
    /// A `size_t`.
    SizeCell;
    /// A 64-bit number.
    U64Cell;
    /// An address.
    AddrCell;
    /// Two descriptors (pipe(2), socketpair(2)).
    FdPair;
    /// Two `struct timespec`: access and modification (utimensat(2)).
    TimespecPair;
    /// Two `struct timeval`: access and modification (utimes(2)).
    TimevalPair;
    /// `struct linux_dirent`, one behind another.
    Dirent;
    /// `struct linux_dirent64`, one behind another.
    Dirent64;
    /// `struct ustat`.
    Ustat;
    /// Address and size of a `sigset_t`: the sixth argument of pselect6.
    SigMaskArg;
    /// `struct __aio_sigset`: the same of io_pgetevents.
    AioSigSet;
    /// `aio_context_t`.
    IoContextCell;
    /// An array of addresses of `struct iocb`.
    IocbArray;
    /// `struct io_uring_params`.
    IoUringParams;
    /// `struct cachestat_range`.
    CachestatRange;
    /// `struct cachestat`.
    Cachestat;
    /// `struct statmount`.
    StatMount;
    /// `struct lsm_ctx`.
    LsmContext;
    /// A structure described in the call's man page.
    Struct;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_looks_only_at_the_bits_that_the_kernel_looks_at() {
        assert_eq!(Fd::decode(0xffff_ffff_0000_0003), Fd(3));
        assert_eq!(IoctlRequest::decode(0x1_0000_5412), IoctlRequest(0x5412));
        assert_eq!(Int::decode(u64::MAX), Int(-1));
        assert_eq!(Len::decode(u64::MAX), Len(u64::MAX));
    }

    #[test]
    fn reader_gives_the_arguments_in_order_and_zero_behind_the_last() {
        let mut reader = ArgReader::new([1, 2, 3, 4, 5, 6]);
        for expected in 1..=6 {
            assert_eq!(reader.take::<ULong>(), ULong(expected));
        }
        assert_eq!(reader.take::<ULong>(), ULong(0));
    }
}
