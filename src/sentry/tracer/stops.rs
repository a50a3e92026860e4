//! Asking tracees to stop, and hearing that they have.

use nix::errno::Errno;

use super::{State, Tracee, Tracees};
use crate::sys::ptrace::{self, Change, Running};

impl Tracees {
    /// Asks all to stop that have not, in their order. Gives whether all were still there: those that
    /// are not are forgotten.
    pub(in crate::sentry) fn ask_all(&mut self) -> bool {
        self.ask_those(|state| state.running().is_some())
    }

    /// The same of those that were not asked before.
    ///
    /// Who is asked again although it has stopped, which its tracer has only not seen yet, stops once more
    /// when it is first made to go on.
    pub(in crate::sentry) fn ask_new(&mut self) -> bool {
        self.ask_those(|state| matches!(state, State::Running(_)))
    }

    fn ask_those(&mut self, of: impl Fn(&State) -> bool) -> bool {
        let mut all_there = true;
        for tid in self.in_order(|it| of(&it.state)) {
            all_there &= self.ask(tid);
        }
        self.publish();
        all_there
    }

    /// Asks `tid` to stop, if it is traced, has not and was not asked before. Gives whether it was there, as
    /// above.
    pub(in crate::sentry) fn ask_if_new(&mut self, tid: i32) -> bool {
        let is_asked = |it: &Tracee| matches!(it.state, State::Stopping(_));
        self.all.get(&tid).is_some_and(is_asked) || self.ask(tid)
    }

    /// Asks `tid` to stop, if it is traced and has not. Gives whether it was there, as above.
    pub(in crate::sentry) fn ask(&mut self, tid: i32) -> bool {
        let Some(tracee) = self.all.get_mut(&tid) else { return true };
        let Some(running) = tracee.state.running() else { return true };
        // It is about to be told that it has ended, or nothing will tell: its number went with a
        // thread that executed and was killed before it stopped.
        let is_there = running.interrupt().is_ok();
        if is_there {
            if matches!(tracee.state, State::Running(_)) {
                self.asked.push_back(tid);
            }
            tracee.state = State::Stopping(Running::made(tid));
        } else {
            self.remove(tid);
        }
        is_there
    }

    /// The next change of a tracee, if there is one now. Most stop in the order in which they were asked to, and to look
    /// at one takes less time than to look for one: the kernel goes through all (do_wait in kernel/exit.c).
    pub(super) fn next_change(&mut self) -> Result<Option<Change>, Errno> {
        while let Some(tid) = self.asked.front() {
            match self.all.get(tid).map(|it| &it.state) {
                Some(State::Stopping(running)) => match running.change()? {
                    Some(change) => return Ok(Some(change)),
                    None => break,
                },
                _ => self.asked.pop_front(),
            };
        }
        ptrace::wait()
    }
}
