//! Descriptors, carried between the sentry and the processes that it puts together.
//!
//! One socket, whose other end every process has at the same number until it is whole: the sentry works
//! on one process at a time, so what is sent is for the one that is told to receive.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

use crate::save::hand::{Hand, HandError};
use crate::sys::agent::{Data, Done, Table};

/// Descriptors in one message (SCM_MAX_FD in include/net/scm.h is 253).
const AT_ONCE: usize = 128;

/// struct msghdr of a 64-bit kernel, and of struct cmsghdr.
const MESSAGE: usize = 56;
const HEADER: usize = 16;

/// The sentry's end.
#[derive(Debug)]
pub struct Courier {
    socket: OwnedFd,
    /// The number of the other end in the processes.
    theirs: i32,
}

/// Both ends: the sentry's, and the one that is to have number `theirs` in the first process.
pub fn pair(theirs: i32) -> Result<(Courier, OwnedFd), Errno> {
    let (socket, other) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((Courier { socket, theirs }, other))
}

fn own(errno: Errno) -> HandError {
    HandError::Own("pass descriptors to it", errno)
}

impl Courier {
    /// The number of the other end in the processes.
    pub fn theirs(&self) -> i32 {
        self.theirs
    }

    /// Gives the process descriptors; gives their numbers there (close-on-exec is not set).
    pub fn send(
        &self,
        hand: &mut Hand,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<i32>, HandError> {
        self.send_to(hand, self.theirs, descriptors)
    }

    /// Likewise, where the other end has been moved to another number.
    pub fn send_to(
        &self,
        hand: &mut Hand,
        theirs: i32,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<i32>, HandError> {
        let mut numbers = Vec::with_capacity(descriptors.len());
        for some in descriptors.chunks(AT_ONCE) {
            self.put(some)?;
            let mut table = hand.table();
            let receipt = self.receipt(&mut table, theirs, some.len());
            let done = hand.run(&table)?;
            numbers.extend(receipt.numbers(&done));
        }
        Ok(numbers)
    }

    /// Sends descriptors, no more than fit in one message. Whoever receives next has them.
    pub fn put(&self, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandError> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let byte = [IoSlice::new(&[0])];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &byte, &rights, flags, None).map_err(own).map(drop)
    }

    /// Adds the call that receives so many of them, by the other end of this number.
    pub fn receipt(&self, table: &mut Table, theirs: i32, count: usize) -> Receipt {
        let length = HEADER + 4 * count;
        let byte = table.room(1);
        let control = table.room(length.next_multiple_of(8));
        let vector = table.data(&words(&[byte.address, 1]));
        let message = table.data(&header(vector.address, control.address, length));
        table.call(libc::SYS_recvmsg, [theirs as u64, message.address, 0]);
        Receipt { control, length }
    }

    /// Takes a copy of one of the process's descriptors, which stays as it is.
    pub fn take(&self, hand: &mut Hand, fd: i32) -> Result<OwnedFd, HandError> {
        let mut taken = self.take_all(hand, &[fd])?;
        taken.pop().ok_or(own(Errno::EBADF))
    }

    /// Takes copies of several.
    pub fn take_all(&self, hand: &mut Hand, fds: &[i32]) -> Result<Vec<OwnedFd>, HandError> {
        let mut taken = Vec::with_capacity(fds.len());
        for some in fds.chunks(AT_ONCE) {
            let length = HEADER + 4 * some.len();
            let mut bytes = words(&[length as u64, 0x1_0000_0001]);
            bytes.extend(some.iter().flat_map(|fd| fd.to_ne_bytes()));
            bytes.resize(length.next_multiple_of(8), 0);
            let mut table = hand.table();
            let byte = table.data(&[0]);
            let control = table.data(&bytes);
            let vector = table.data(&words(&[byte.address, 1]));
            let message = table.data(&header(vector.address, control.address, length));
            table.call(libc::SYS_sendmsg, [self.theirs as u64, message.address, 0]);
            hand.run(&table)?;
            taken.extend(self.receive().map_err(own)?);
        }
        if taken.len() == fds.len() { Ok(taken) } else { Err(own(Errno::EBADMSG)) }
    }

    fn receive(&self) -> Result<Vec<OwnedFd>, Errno> {
        let mut byte = [0];
        let mut into = [IoSliceMut::new(&mut byte)];
        let mut room = cmsg_space!([RawFd; AT_ONCE]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let socket = self.socket.as_fd().as_raw_fd();
        let message = recvmsg::<()>(socket, &mut into, Some(&mut room), flags)?;
        let mut all = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                all.extend(fds.into_iter().map(crate::sys::files::adopt));
            }
        }
        Ok(all)
    }
}

/// What a process has received.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    control: Data,
    length: usize,
}

impl Receipt {
    /// The numbers, in the order in which they were sent.
    pub fn numbers(&self, done: &Done) -> Vec<i32> {
        let received = done.bytes(self.control).get(HEADER..self.length).unwrap_or_default();
        let number = |it: &[u8]| i32::from_ne_bytes([it[0], it[1], it[2], it[3]]);
        received.chunks_exact(4).map(number).collect()
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// struct msghdr with one vector of one element and `length` bytes of control messages.
fn header(vector: u64, control: u64, length: usize) -> Vec<u8> {
    let bytes = words(&[0, 0, vector, 1, control, length as u64, 0]);
    debug_assert_eq!(bytes.len(), MESSAGE);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::save::restore::seed::tests::plant;

    #[test]
    fn descriptors_go_there_and_come_back() {
        let (mut child, mut hand, courier) = plant();
        let (mut read, write) = std::io::pipe().unwrap();
        let there = courier.send(&mut hand, &[read.as_fd(), write.as_fd()]).unwrap();
        drop(write);
        hand.call_with(libc::SYS_write, b"hello", |at| [there[1] as u64, at, 5]).unwrap();
        let mut back = std::fs::File::from(courier.take(&mut hand, there[1]).unwrap());
        back.write_all(b" again").unwrap();
        drop(back);
        hand.call(libc::SYS_close, [there[1] as u64]).unwrap();
        let mut all = String::new();
        read.read_to_string(&mut all).unwrap();
        assert_eq!(all, "hello again");
        assert!(courier.take(&mut hand, 999).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
