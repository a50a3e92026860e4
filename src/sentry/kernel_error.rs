//! Why there is no kernel, or why it does not do what it was asked, in words.

use nix::errno::Errno;

/// Why there is no kernel, or why it does not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelError {
    /// `features` lacks ALWAYS: the refused and handled rows would run natively.
    FeaturesWithoutAlways,
    /// No init was given.
    NoInit,
    /// `start` was called a second time.
    AlreadyStarted,
    /// There is no program to signal: not started, or ended.
    NoTasks,
    /// The host refused a signal.
    Signal(Errno),
    /// The guest has no process of this number.
    NoSuchTask(i32),
    /// The processes could not be listed.
    Census(Errno),
    /// There is no pause to undo.
    NotPaused,
    /// A pause is in effect: no program can be started.
    Paused,
    /// A program is just being started and does not come to run: no pause can begin.
    Starting,
    /// This thread (as the host numbers it) cannot be stopped, since another one traces it.
    Traced {
        /// The thread.
        task: i32,
        /// The one that traces it.
        tracer: i32,
    },
    /// The host does not let this thread be traced.
    NotStoppable(i32, Errno),
    /// This thread was asked to stop and does not.
    NotStopping {
        /// The thread.
        task: i32,
        /// Its state, one letter, as in ps(1).
        state: char,
        /// The number of the system call that it is in, if any and if the host tells.
        call: Option<i64>,
    },
    /// Processes are made faster than they can be found.
    Storm,
    /// There is no thread that could trace.
    Tracer(Errno),
    /// The sockets could not be listed.
    Sockets(Errno),
}

impl std::fmt::Display for KernelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KernelError::FeaturesWithoutAlways => {
                f.write_str("the kernel's features lack ALWAYS, without which nothing is refused")
            }
            KernelError::NoInit => f.write_str("the kernel was given no init process"),
            KernelError::AlreadyStarted => f.write_str("kernel already started"),
            KernelError::NoTasks => f.write_str("kernel contains no tasks"),
            KernelError::Signal(errno) => write!(f, "cannot signal the program: {}", errno.desc()),
            KernelError::NoSuchTask(pid) => {
                write!(f, "the sandbox has no process {pid}; `sandbox ps ID` shows those it has")
            }
            KernelError::Paused => {
                f.write_str("it is paused, and no program can be started; resume it first")
            }
            KernelError::Starting => f.write_str(
                "a program is just being started and does not come to run; try again in a moment",
            ),
            KernelError::NotPaused => f.write_str("the sandbox is not paused"),
            KernelError::Traced { task, tracer } => write!(
                f,
                "cannot pause the sandbox: thread {} is traced by {}; end that one first",
                named(*task),
                named(*tracer)
            ),
            KernelError::NotStoppable(task, errno) => write!(
                f,
                "cannot pause the sandbox: the host does not let thread {} be traced: {}",
                named(*task),
                errno.desc()
            ),
            KernelError::NotStopping { task, state, call } => {
                write!(f, "cannot pause the sandbox: thread {} does not stop", named(*task))?;
                write!(f, " (state {state}")?;
                if let Some(number) = call {
                    write!(f, ", in system call {number}")?;
                }
                write!(f, "); it waits in the host's kernel, see /proc/{task}/wchan")
            }
            KernelError::Storm => f.write_str(
                "cannot pause the sandbox: it makes processes faster than they can be found; \
                 try again when the host has more time for it, or end it with `sandbox kill`",
            ),
            KernelError::Tracer(errno) => {
                write!(f, "cannot trace the sandbox's threads: {}", errno.desc())
            }
            KernelError::Sockets(errno) => write!(
                f,
                "cannot ask the host's kernel for the sandbox's sockets: {}; it takes one with sock_diag (CONFIG_INET_DIAG)",
                errno.desc()
            ),
            KernelError::Census(errno) => write!(
                f,
                "cannot list the sandbox's processes in /proc: {}; mount a proc of this pid namespace there",
                errno.desc()
            ),
        }
    }
}

impl std::error::Error for KernelError {}

/// A thread in words, with its name without what would move a terminal's cursor.
fn named(tid: i32) -> String {
    let name = super::task::comm(tid).unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { tid.to_string() } else { format!("{tid} ({name})") }
}
