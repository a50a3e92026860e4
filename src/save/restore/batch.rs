//! Many calls of one process, as many at once as a table holds, each for something that has a name.

use nix::errno::Errno;

use crate::save::hand::{Hand, HandError};
use crate::sys::agent::{Data, Failed, Table};

/// Calls on their way. What is left in it when it goes is not made: [`Batch::finish`] it.
pub(super) struct Batch<'h> {
    hand: &'h mut Hand,
    pub(super) table: Table,
    /// What each call in the table is for.
    subjects: Vec<usize>,
}

/// A call that failed: what it was for, and why.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) subject: usize,
    pub(super) error: HandError,
}

impl<'h> Batch<'h> {
    pub(super) fn new(hand: &'h mut Hand) -> Self {
        let table = hand.table();
        Batch { hand, table, subjects: Vec::new() }
    }

    /// Makes room for calls that belong together, and the bytes that they need.
    pub(super) fn reserve(&mut self, calls: usize, bytes: usize) -> Result<(), Failure> {
        if self.table.has_room(calls, bytes) {
            return Ok(());
        }
        self.finish()?;
        if self.table.has_room(calls, bytes) {
            return Ok(());
        }
        Err(Failure { subject: 0, error: HandError::Own("give it so much", Errno::E2BIG) })
    }

    /// Adds a call.
    pub(super) fn call<const N: usize>(
        &mut self,
        subject: usize,
        number: libc::c_long,
        arguments: [u64; N],
    ) {
        self.table.call(number, arguments);
        self.subjects.push(subject);
    }

    /// Adds a call that may fail.
    pub(super) fn attempt<const N: usize>(
        &mut self,
        subject: usize,
        number: libc::c_long,
        arguments: [u64; N],
    ) {
        self.table.attempt(number, arguments);
        self.subjects.push(subject);
    }

    /// A string for a call.
    pub(super) fn string(&mut self, bytes: &[u8]) -> u64 {
        self.table.string(bytes).address
    }

    /// Bytes for a call.
    pub(super) fn data(&mut self, bytes: &[u8]) -> Data {
        self.table.data(bytes)
    }

    /// Has all calls made that are left.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        if !self.table.is_empty() {
            let done = self.hand.run(&self.table);
            done.map_err(|error| {
                let at = if let HandError::Call(Failed { at, .. }) = error { at } else { 0 };
                Failure { subject: self.subjects.get(at).copied().unwrap_or(0), error }
            })?;
        }
        self.table.clear();
        self.subjects.clear();
        Ok(())
    }
}
