//! From a notification to its answer, by the table.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::call::Call;
use super::events::Event;
use super::kernel::Kernel;
use super::syscalls::args::ArgReader;
use super::syscalls::{Class, Handler, Row, table};
use super::task::comm;
use crate::notify::filter::native_arch;
use crate::notify::{Answer, Dispatch, Outcome, Received, Trapped};
use crate::sys::{disguise, process};

/// Set in the numbers of the x32 entry points (arch/x86/include/uapi/asm/unistd.h).
const X32_BIT: u32 = 0x4000_0000;

impl Dispatch for Kernel {
    fn dispatch(self: &Arc<Self>, trapped: &Trapped) -> Outcome {
        let received = trapped.received();
        disguise::take_off_unless(received.number);
        if received.arch != native_arch() || received.number & X32_BIT != 0 {
            return Outcome::Now(self.refuse_foreign(trapped));
        }
        let Some(row) = table::row(received.number) else {
            return Outcome::Now(self.refuse_unknown(received));
        };
        self.traps.count(row);
        if !trapped.listener().wait_killable()
            && let Some(result) = self.undelivered.take(received)
        {
            return Outcome::Now(result.into());
        }
        self.serve(row, trapped)
    }

    fn undelivered(&self, received: &Received, result: Result<i64, Errno>) {
        self.undelivered.keep(received, result);
    }
}

impl Kernel {
    fn serve(self: &Arc<Self>, row: &'static Row, trapped: &Trapped) -> Outcome {
        let received = trapped.received();
        let call = Call::new(self, row, trapped);
        let by = |handler: &Handler| match handler {
            Handler::Sync(serve) => Outcome::Now(serve(&call, ArgReader::new(received.args))),
            Handler::Async(serve) => {
                Outcome::Later(serve(call.to_owned(), ArgReader::new(received.args)))
            }
        };
        match row.class_of(&received.args, self.features()) {
            Class::Native => Outcome::Now(Answer::Continue),
            Class::Handled { handler, .. } => by(handler),
            Class::Refused { unless: Some((handler, when)), .. }
                if self.features().intersects(*when) =>
            {
                by(handler)
            }
            Class::Denied { when, .. } if !self.features().intersects(*when) => {
                Outcome::Now(Answer::Continue)
            }
            Class::Denied { errno, .. } => Outcome::Now(Answer::Fail(*errno)),
            Class::Refused { errno, reason, remedy, .. } => {
                self.refuse(received.tid, row.name, reason, remedy);
                Outcome::Now(Answer::Fail(*errno))
            }
            Class::Unimplemented { .. } => {
                self.report_unimplemented(received.tid, row.name);
                Outcome::Now(Answer::Fail(Errno::ENOSYS))
            }
        }
    }

    /// Notes a refusal for the explanation at the end; the first of its kind is an event too.
    pub(super) fn refuse(&self, tid: i32, call: &str, reason: &'static str, remedy: &'static str) {
        let name = || comm(tid);
        if self.refusals().note(call, reason, remedy, 1, name) {
            self.tell_of_refusal(tid, call, reason);
        }
    }

    fn tell_of_refusal(&self, tid: i32, call: &str, reason: &str) {
        let comm = comm(tid).unwrap_or_default();
        let (call, reason) = (call.to_owned(), reason.to_owned());
        self.emit(&Event::Refused { tid, comm, call, reason });
    }

    /// As [`Kernel::refuse`], where the guest chooses what it asks for.
    pub(super) fn refuse_one_of_many(
        &self,
        tid: i32,
        what: &str,
        reason: &'static str,
        remedy: &'static str,
    ) {
        if self.refusals().note_one_of_many(what, reason, remedy, || comm(tid)) {
            self.tell_of_refusal(tid, what, reason);
        }
    }

    fn refuse_unknown(&self, received: &Received) -> Answer {
        self.report_unimplemented(received.tid, &format!("syscall {}", received.number));
        Answer::Fail(Errno::ENOSYS)
    }

    fn report_unimplemented(&self, tid: i32, call: &str) {
        let comm = comm(tid).unwrap_or_default();
        self.emit(&Event::Unimplemented { tid, comm, call: call.to_owned() });
    }

    /// A 32-bit or x32 entry point: the table knows nothing of its numbers, so the call fails and
    /// the thread gets the signal that the kernel itself gives for a bad system call.
    fn refuse_foreign(&self, trapped: &Trapped) -> Answer {
        let tid = trapped.received().tid;
        self.refuse(
            tid,
            "a 32-bit system call",
            "only 64-bit programs run inside",
            "use a 64-bit build of the program",
        );
        let thread = process::pidfd_open(tid, true).or_else(|_| process::pidfd_open(tid, false));
        if let Ok(task) = thread
            && trapped.is_valid()
        {
            let _ = process::pidfd_send_signal(task.as_fd(), libc::SIGSYS);
        }
        Answer::Fail(Errno::ENOSYS)
    }
}
