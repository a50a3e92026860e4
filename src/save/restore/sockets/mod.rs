//! Making sockets again.
//!
//! The maker makes them, in the guest's network namespace, and gives paths to them, in the guest's view.
//! All else the sentry does itself by its copies: a socket belongs to its own network namespace, whoever
//! uses it. What a connection cannot be made with, because it needs descriptors of other kinds or the
//! processes of the sandbox (queues of unix sockets), is left for the end ([`Maker::finishes`]).

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::save::error::RestoreError;
use crate::save::hand::HandError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::options::{self, When};
use crate::save::sockets::{Detail, Socket};
use crate::save::state::FileKind;
use crate::sys::socket;

mod bygone;
mod ended;
mod names;
mod netlink;
mod queue;
mod tcp;
mod tcp_connections;
mod udp;
mod unix;

/// Makes all sockets of the image, into [`Maker::files`].
pub fn make_sockets(maker: &mut Maker<'_>) -> Result<(), RestoreError> {
    let all = list(maker);
    unix::make(maker, &all)?;
    netlink::make(maker, &all)?;
    udp::make(maker, &all)?;
    tcp::make(maker, &all)
}

/// A socket of the image: its index in [`crate::save::state::Sandbox::files`], and itself.
type Entry<'m> = (usize, &'m Socket);

/// All of them.
fn list<'m>(maker: &Maker<'m>) -> Vec<Entry<'m>> {
    let files = maker.sandbox.files.iter().enumerate();
    files
        .filter_map(|(index, file)| match &file.kind {
            FileKind::Socket(socket) => Some((index, &**socket)),
            _ => None,
        })
        .collect()
}

/// Where the sockets of an image are, by their ids.
fn by_id(all: &[Entry<'_>]) -> HashMap<u64, usize> {
    all.iter().map(|(index, socket)| (socket.id, *index)).collect()
}

/// What cannot be made again.
fn failed(socket: &Socket, what: impl fmt::Display) -> impl Fn(Errno) -> RestoreError {
    let what = format!("cannot {what} {}", name(socket));
    move |errno| RestoreError::failed(&what, errno.desc())
}

fn name(socket: &Socket) -> String {
    let kind = match &socket.detail {
        Detail::Unix(unix) => match &unix.name {
            Some(name) => format!("the unix socket {}", String::from_utf8_lossy(name)),
            None => "a unix socket".into(),
        },
        Detail::Tcp(_) => "a TCP socket".into(),
        Detail::Udp(_) => "a UDP socket".into(),
        Detail::Netlink(_) => "a netlink socket".into(),
    };
    kind.replace('\0', "@")
}

fn of_maker(what: &'static str) -> impl Fn(HandError) -> RestoreError {
    move |error| RestoreError::failed(what, error)
}

/// A new socket in the guest's network namespace, with what is to be set at first.
fn make(maker: &mut Maker<'_>, socket: &Socket) -> Result<OwnedFd, RestoreError> {
    let made = plain(maker, socket.family, socket.kind, socket.protocol)?;
    options::apply(made.as_fd(), &socket.options, When::Early)
        .map_err(|(option, errno)| option_failed(socket, option.level, option.name, errno))?;
    Ok(made)
}

/// A new socket that no option is set of.
fn plain(
    maker: &mut Maker<'_>,
    family: i32,
    kind: i32,
    protocol: i32,
) -> Result<OwnedFd, RestoreError> {
    let kind = kind & 0xf | libc::SOCK_CLOEXEC;
    let arguments = [family as u64, kind as u64, protocol as u64];
    let fd =
        maker.hand.call(libc::SYS_socket, arguments).map_err(of_maker("cannot make a socket"))?;
    maker.take_and_close(fd as i32).map_err(of_maker("cannot take a socket"))
}

/// What is set last: closed directions, the filter, options.
fn finish(fd: BorrowedFd<'_>, socket: &Socket) -> Result<(), RestoreError> {
    for (bit, how) in [(1, libc::SHUT_RD), (2, libc::SHUT_WR)] {
        // ENOTCONN: it is closed that far already.
        if socket.shutdown & bit != 0 {
            match socket::shut_down(fd, how) {
                Ok(()) | Err(Errno::ENOTCONN) => {}
                Err(errno) => return Err(failed(socket, "close a direction of")(errno)),
            }
        }
    }
    if !socket.filter.is_empty() {
        socket::set_filter(fd, &socket.filter).map_err(failed(socket, "attach the filter of"))?;
    }
    options::apply(fd, &socket.options, When::Late)
        .map_err(|(option, errno)| option_failed(socket, option.level, option.name, errno))
}

fn option_failed(socket: &Socket, level: i32, name: i32, errno: Errno) -> RestoreError {
    failed(socket, format_args!("set option {level}/{name} of"))(errno)
}

/// Puts a socket where it belongs.
fn put(maker: &mut Maker<'_>, index: usize, fd: OwnedFd) {
    if let Some(place) = maker.files.get_mut(index) {
        *place = Some(fd);
    }
}

/// A socket that has been made; the image may name one that was not.
fn made<'a>(maker: &'a Maker<'_>, index: usize) -> Result<BorrowedFd<'a>, RestoreError> {
    let place = maker.files.get(index).and_then(|it| it.as_ref());
    place.map(AsFd::as_fd).ok_or_else(|| {
        RestoreError::refused("the image names a socket that it does not describe; save it again")
    })
}
