//! What a row of the syscall table is, and the macro that writes rows.

use futures::future::BoxFuture;
use nix::errno::Errno;

use super::args::{Arg, ArgReader};
use crate::notify::Answer;
use crate::notify::filter::{Action, Condition, Rule, Test};
use crate::sentry::Features;
use crate::sentry::call::{Call, TaskCall};

/// One syscall: everything that is known of it.
#[derive(Debug)]
pub struct Row {
    /// Its number on this architecture.
    pub number: u32,
    /// Its name, without `SYS_`.
    pub name: &'static str,
    /// Its arguments, at most six.
    pub args: &'static [ArgSpec],
    /// What happens to a call to which no exception applies.
    pub class: Class,
    /// Exceptions by argument; the first whose test holds decides.
    pub except: &'static [Exception],
}

/// One argument of a row.
#[derive(Debug)]
pub struct ArgSpec {
    /// Its name in the man page.
    pub name: &'static str,
    /// Its type as the row writes it.
    pub type_name: &'static str,
    /// How many bits of the register the kernel looks at.
    pub bits: u8,
}

/// A call whose arguments pass all `tests` has this class instead of the row's.
#[derive(Debug)]
pub struct Exception {
    /// What is asked of the arguments; never empty, each argument at most once.
    pub tests: &'static [ArgTest],
    /// What happens then.
    pub class: Class,
}

/// What an exception asks of one argument.
#[derive(Debug, Clone, Copy)]
pub struct ArgTest {
    /// The argument's index.
    pub arg: u8,
    /// What is asked of it.
    pub test: Test,
    /// The same, as the row writes it (`is TIOCSTI`).
    pub text: &'static str,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy)]
pub enum Class {
    /// The host kernel runs it.
    Native,
    /// The sentry serves it while one of `when` is on; native otherwise.
    Handled {
        /// Who serves it.
        handler: Handler,
        /// The features that make it trap.
        when: Features,
    },
    /// The filter itself answers with an error, while a feature of `when` is on: programs try it in passing and go
    /// on without. Native otherwise.
    Denied {
        /// The error.
        errno: Errno,
        /// Why.
        reason: &'static str,
        /// The features that make it so.
        when: Features,
    },
    /// The sentry answers with an error, and the user is told at the end.
    Refused {
        /// The error.
        errno: Errno,
        /// Why.
        reason: &'static str,
        /// What the user can do: a flag, or another way.
        remedy: &'static str,
        /// With one of these features on, the sentry serves it instead.
        unless: Option<(Handler, Features)>,
    },
    /// ENOSYS, counted and reported as an event.
    Unimplemented {
        /// Why.
        reason: &'static str,
    },
}

/// Who serves a handled call.
#[derive(Clone, Copy)]
pub enum Handler {
    /// Answers at once: reads memory and the sentry's own state, never waits.
    Sync(fn(&Call<'_>, ArgReader) -> Answer),
    /// May wait: parked in the runtime when it is not ready at once.
    Async(fn(TaskCall, ArgReader) -> BoxFuture<'static, Answer>),
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Handler::Sync(_) => "sync",
            Handler::Async(_) => "async",
        })
    }
}

impl Row {
    /// What happens to a call with these arguments while `features` are on.
    pub fn class_of(&self, args: &[u64; 6], features: Features) -> &Class {
        self.except
            .iter()
            .find(|exception| exception.class.counts(features) && exception.holds(self, args))
            .map_or(&self.class, |exception| &exception.class)
    }

    /// What the filter does with this row when `features` are on.
    ///
    /// The filter answers whatever needs no sentry. An exception is tested by the filter too, with
    /// the argument masked to the bits that the kernel looks at; where the whole row traps, the
    /// sentry tests it.
    pub fn rule(&self, features: Features) -> Rule {
        let action = self.class.action(features);
        let exceptions = if action == Action::Notify { &[] } else { self.except };
        Rule {
            number: self.number,
            action,
            exceptions: exceptions
                .iter()
                .filter(|exception| exception.class.action(features) != action)
                .map(|exception| {
                    let conditions = exception.tests.iter().map(|ArgTest { arg, test, .. }| {
                        Condition { arg: *arg, bits: self.bits(*arg), test: *test }
                    });
                    (conditions.collect(), exception.class.action(features))
                })
                .collect(),
        }
    }

    fn bits(&self, arg: u8) -> u8 {
        self.args.get(usize::from(arg)).map_or(64, |arg| arg.bits)
    }
}

impl Exception {
    fn holds(&self, row: &Row, args: &[u64; 6]) -> bool {
        self.tests.iter().all(|ArgTest { arg, test, .. }| {
            let value = args[usize::from(*arg)];
            // (The filter cannot compare a part of an argument for being another.)
            let is_part = row.bits(*arg) == 32 && !matches!(test, Test::IsNot(_));
            test.holds(if is_part { value & 0xffff_ffff } else { value })
        })
    }
}

impl Class {
    /// Whether an exception of this class is one while `features` are on.
    fn counts(&self, features: Features) -> bool {
        match self {
            Class::Handled { when, .. } | Class::Denied { when, .. } => features.intersects(*when),
            _ => true,
        }
    }

    /// What the filter does with a call of this class when `features` are on.
    pub fn action(&self, features: Features) -> Action {
        match self {
            Class::Native => Action::Allow,
            Class::Handled { when, .. } | Class::Denied { when, .. }
                if !features.intersects(*when) =>
            {
                Action::Allow
            }
            Class::Handled { .. } | Class::Refused { .. } | Class::Unimplemented { .. } => {
                Action::Notify
            }
            Class::Denied { errno, .. } => Action::Errno(*errno),
        }
    }
}

/// The index of the argument called `name`; a row that names another one does not compile.
pub const fn arg_index(names: &[&str], name: &str) -> u8 {
    let mut i = 0;
    while i < names.len() {
        if same(names[i].as_bytes(), name.as_bytes()) {
            return i as u8;
        }
        i += 1;
    }
    panic!("an exception names an argument that the row does not have")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// An argument's name without the `_` that sets it apart from a keyword of Rust (`type_`).
pub const fn plain_name(name: &'static str) -> &'static str {
    let bytes = name.as_bytes();
    if bytes[bytes.len() - 1] == b'_' { name.split_at(bytes.len() - 1).0 } else { name }
}

/// How many bits of the register an argument of type `T` takes.
pub const fn bits_of<T: Arg>() -> u8 {
    T::BITS
}

/// Writes the rows of the table.
///
/// ```text
/// SYS_read(fd: Fd, buf: OutBuf, count: Len) => native;
/// SYS_syslog(type_: Operation, bufp: OutBuf, len: Int) => handled(sync klog::syslog, ALWAYS);
/// SYS_bpf(cmd: Operation, attr: In<BpfAttr>, size: UInt) => denied(EPERM, "loads code into the host kernel");
/// SYS_settimeofday(...) => refused(EPERM, "sets the clock", "--time +0s", unless sync clocks::set, VIRTUAL_TIME);
/// SYS_mq_unlink(name: Str) => denied(ENOSYS, "the host's own queues", when NO_NAMESPACES);
/// SYS_mount(...) => refused(EPERM, "the file view is fixed", "--rw, --ro or --tmpfs add to it");
/// SYS_io_uring_setup(entries: UInt, params: InOut<Struct>) => unimplemented("submission queues bypass seccomp");
/// SYS_ioctl(fd: Fd, request: IoctlRequest, arg: Addr) => native, except {
///     request is libc::TIOCSTI => denied(EPERM, "types into the terminal"),
/// };
/// SYS_clone(flags: CloneFlags, ...) => native, except {
///     flags has libc::CLONE_NEWUSER | libc::CLONE_NEWNS => refused(EPERM, "...", "..."),
/// };
/// SYS_open(pathname: Path, flags: OpenFlags, mode: Mode) => native, except {
///     flags has libc::O_CREAT, mode has libc::S_ISUID => denied(EPERM, "..."),
/// };
/// ```
///
/// `is` compares the whole argument, `in` compares it with each element of an array, `has` is true
/// when any bit of the mask is set, `of` looks at the type of an ioctl request, `differs` compares it with an id of the
/// caller's own; tests of several arguments, separated by commas, must all hold.
/// A row whose types disagree with its handler's parameters does not compile.
macro_rules! syscalls {
    ($(
        $name:ident ( $($arg:ident : $ty:ty),* $(,)? )
            => $class:ident $( ( $($body:tt)* ) )? $( , except { $($except:tt)* } )? ;
    )*) => {
        /// Every row, in the order of the numbers.
        pub static ROWS: &[$crate::sentry::syscalls::row::Row] = &[$(
            $crate::sentry::syscalls::row::Row {
                number: $name as u32,
                name: stringify!($name).split_at(4).1,
                args: &[$(
                    $crate::sentry::syscalls::row::ArgSpec {
                        name: $crate::sentry::syscalls::row::plain_name(stringify!($arg)),
                        type_name: stringify!($ty),
                        bits: $crate::sentry::syscalls::row::bits_of::<$ty>(),
                    },
                )*],
                class: $crate::sentry::syscalls::row::class!(
                    [$($ty),*] $class $( ( $($body)* ) )?
                ),
                except: $crate::sentry::syscalls::row::exceptions!(
                    [$($arg),*] [$($ty),*] $( $($except)* )?
                ),
            },
        )*];
    };
}

/// One class, as a row writes it.
macro_rules! class {
    ([$($ty:ty),*] native) => { $crate::sentry::syscalls::row::Class::Native };
    ([$($ty:ty),*] denied($errno:ident, $reason:expr $(,)?)) => {
        $crate::sentry::syscalls::row::Class::Denied {
            errno: nix::errno::Errno::$errno,
            reason: $reason,
            when: $crate::sentry::Features::ALWAYS,
        }
    };
    ([$($ty:ty),*] denied($errno:ident, $reason:expr, when $($when:ident)|+)) => {
        $crate::sentry::syscalls::row::Class::Denied {
            errno: nix::errno::Errno::$errno,
            reason: $reason,
            when: $crate::sentry::Features::empty()
                $(.union($crate::sentry::Features::$when))+,
        }
    };
    ([$($ty:ty),*] refused($errno:ident, $reason:expr, $remedy:expr $(,)?)) => {
        $crate::sentry::syscalls::row::Class::Refused {
            errno: nix::errno::Errno::$errno,
            reason: $reason,
            remedy: $remedy,
            unless: None,
        }
    };
    ([$($ty:ty),*] refused(
        $errno:ident, $reason:expr, $remedy:expr, unless sync $($handler:ident)::+, $($when:ident)|+
    )) => {
        $crate::sentry::syscalls::row::Class::Refused {
            errno: nix::errno::Errno::$errno,
            reason: $reason,
            remedy: $remedy,
            unless: Some((
                $crate::sentry::syscalls::row::Handler::Sync(|call, mut args| {
                    $($handler)::+(call, $(args.take::<$ty>()),*)
                }),
                $crate::sentry::Features::empty()
                    $(.union($crate::sentry::Features::$when))+,
            )),
        }
    };
    ([$($ty:ty),*] unimplemented($reason:expr $(,)?)) => {
        $crate::sentry::syscalls::row::Class::Unimplemented { reason: $reason }
    };
    ([$($ty:ty),*] handled(sync $($handler:ident)::+, $($when:ident)|+)) => {
        $crate::sentry::syscalls::row::Class::Handled {
            handler: $crate::sentry::syscalls::row::Handler::Sync(|call, #[allow(unused_mut, unused_variables)] mut args| {
                $($handler)::+(call, $(args.take::<$ty>()),*)
            }),
            when: $crate::sentry::Features::empty()
                $(.union($crate::sentry::Features::$when))+,
        }
    };
    ([$($ty:ty),*] handled(async $($handler:ident)::+, $($when:ident)|+)) => {
        $crate::sentry::syscalls::row::Class::Handled {
            handler: $crate::sentry::syscalls::row::Handler::Async(|call, mut args| {
                Box::pin($($handler)::+(call, $(args.take::<$ty>()),*))
            }),
            when: $crate::sentry::Features::empty()
                $(.union($crate::sentry::Features::$when))+,
        }
    };
}

/// The exceptions of a row.
macro_rules! exceptions {
    ($names:tt $types:tt $(
        $( $arg:ident $test:ident $value:expr ),+ => $class:ident $( ( $($body:tt)* ) )?
    ),* $(,)?) => {
        &[$(
            $crate::sentry::syscalls::row::Exception {
                tests: $crate::sentry::syscalls::row::tests!($names $( $arg $test ($value) )+),
                class: $crate::sentry::syscalls::row::class!($types $class $( ( $($body)* ) )?),
            },
        )*]
    };
}

/// The tests of an exception.
macro_rules! tests {
    ($names:tt $( $arg:ident $test:ident ($value:expr) )+) => {
        &[$(
            $crate::sentry::syscalls::row::ArgTest {
                arg: $crate::sentry::syscalls::row::arg_index(
                    $crate::sentry::syscalls::row::names!($names),
                    stringify!($arg),
                ),
                test: $crate::sentry::syscalls::row::test!($test $value),
                text: concat!(stringify!($test), " ", stringify!($value)),
            },
        )+]
    };
}

/// The names of a row's arguments.
macro_rules! names {
    ([$($name:ident),*]) => { &[$(stringify!($name)),*] };
}

/// One test of one argument.
macro_rules! test {
    (is $value:expr) => {
        $crate::notify::filter::Test::Is($value as u64)
    };
    (in $values:expr) => {
        $crate::notify::filter::Test::In($values)
    };
    (has $mask:expr) => {
        $crate::notify::filter::Test::Has($mask as u64)
    };
    (of $type:expr) => {
        $crate::notify::filter::Test::Type($type)
    };
    (differs $own:expr) => {
        $crate::notify::filter::Test::IsNot($own)
    };
}

pub(crate) use {class, exceptions, names, syscalls, test, tests};
