//! TCP connections whose other side is not in the image: those that are over, and those that were begun outside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{AF_INET, AF_INET6, IPPROTO_TCP, SO_LINGER, SO_RCVLOWAT, SOCK_STREAM, SOL_SOCKET};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{failed, finish, make as make_one, plain, unix};
use crate::save::error::RestoreError;
use crate::save::restore::maker::Maker;
use crate::save::sockets::options::{self, When};
use crate::save::sockets::{Socket, Tcp};
use crate::sys::socket::{self, Sent};

/// A connection that is over: what can be read of it, and whether it was broken off. Its addresses are
/// those of a connection of the loopback, which was made for it.
pub(super) fn make(
    maker: &mut Maker<'_>,
    socket: &Socket,
    received: &[u8],
    broken: bool,
) -> Result<OwnedFd, RestoreError> {
    let error = failed(socket, "make an ended connection of");
    let listener = plain(maker, socket.family, SOCK_STREAM, IPPROTO_TCP)?;
    socket::bind(listener.as_fd(), &loopback(socket.family)).map_err(&error)?;
    socket::listen(listener.as_fd(), 1).map_err(&error)?;
    let address = socket::name(listener.as_fd()).map_err(&error)?;
    let fd = plain(maker, socket.family, SOCK_STREAM, IPPROTO_TCP)?;
    options::apply(fd.as_fd(), &socket.options, When::Early).map_err(|(_, errno)| error(errno))?;
    socket::connect(fd.as_fd(), &address).map_err(&error)?;
    let other = socket::accept(listener.as_fd()).map_err(&error)?;
    let all = deliver(&other, fd.as_fd(), received).map_err(&error)?;
    // (What was cut short must not look as if it were whole.)
    if broken || !all {
        // struct linger: closing breaks the connection off. What was delivered stays (tcp_reset in net/ipv4/tcp_input.c).
        let at_once = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
        socket::set_option(other.as_fd(), SOL_SOCKET, SO_LINGER, &at_once).map_err(&error)?;
    } else {
        socket::shut_down(other.as_fd(), libc::SHUT_WR).map_err(&error)?;
        socket::shut_down(fd.as_fd(), libc::SHUT_WR).map_err(&error)?;
    }
    drop(other);
    Ok(fd)
}

/// Sends `bytes` and waits until they are there: what is still on its way when a connection is broken off is lost. Of more
/// than the kernel lets a queue hold (net.ipv4.tcp_rmem in tcp(7)) it is the beginning that comes. Whether all of it has.
fn deliver(from: &OwnedFd, to: BorrowedFd<'_>, bytes: &[u8]) -> Result<bool, Errno> {
    if bytes.is_empty() {
        return Ok(true);
    }
    unix::raise(from);
    // Makes room for as much, which poll(2) waits for then (tcp_set_rcvlowat in net/ipv4/tcp.c).
    let most = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    options::put(to, SOL_SOCKET, SO_RCVLOWAT, most)?;
    let most = options::get(to, SOL_SOCKET, SO_RCVLOWAT)?;
    let mut rest = &bytes[..bytes.len().min(most.max(1) as usize)];
    while !rest.is_empty() {
        match socket::send(from.as_fd(), &Sent { bytes: rest, ..Sent::default() }) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::EAGAIN) if is_ready(from.as_fd(), PollFlags::POLLOUT)? => {}
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    let is_there = is_ready(to, PollFlags::POLLIN)?;
    // (The socket's own is set with its other options.)
    options::put(to, SOL_SOCKET, SO_RCVLOWAT, 1)?;
    Ok(is_there && rest.is_empty() && bytes.len() <= most.max(1) as usize)
}

fn is_ready(fd: BorrowedFd<'_>, what: PollFlags) -> Result<bool, Errno> {
    /// Milliseconds: how long the loopback may take to carry some of it.
    const PATIENCE: u16 = 2000;
    let mut waited = [PollFd::new(fd, what)];
    loop {
        match poll(&mut waited, PollTimeout::from(PATIENCE)) {
            Err(Errno::EINTR) => {}
            done => return done.map(|count| count > 0),
        }
    }
}

/// A connection of the host's network that was under way: it is begun once more, as far as it is still allowed. If not, it
/// is found broken off. All is set of it.
pub(super) fn begin_again(
    maker: &mut Maker<'_>,
    socket: &Socket,
    tcp: &Tcp,
) -> Result<OwnedFd, RestoreError> {
    let network = maker.kernel.and_then(|kernel| Some((kernel, kernel.network()?)));
    let begun = match (network, &tcp.remote) {
        (Some((kernel, network)), Some(remote)) => {
            // An image may ask for options that no guest has of the host's network: what a new connection takes over from
            // the guest's socket is chosen there.
            let own = make_one(maker, socket)?;
            // (Where the sentry carries it, that itself goes on, with its address.)
            if let Some(local) = tcp.local.as_ref().filter(|_| network.is_limited()) {
                super::tcp::bind(own.as_fd(), local, socket)?;
            }
            finish(own.as_fd(), socket)?;
            network.begin_again(kernel, own, socket.family, remote)
        }
        _ => Err(Errno::EACCES),
    };
    match begun {
        Ok(fd) => Ok(fd),
        Err(_) => {
            let fd = make(maker, socket, &[], true)?;
            finish(fd.as_fd(), socket)?;
            Ok(fd)
        }
    }
}

/// The loopback's address, any port.
fn loopback(family: i32) -> Vec<u8> {
    let mut address = (family as u16).to_ne_bytes().to_vec();
    address.extend([0, 0]);
    match family {
        AF_INET => {
            address.extend([127, 0, 0, 1]);
            address.resize(16, 0);
        }
        _ => {
            debug_assert_eq!(family, AF_INET6);
            address.resize(28, 0);
            address[23] = 1;
        }
    }
    address
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_is_cut_short_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let from = listener.accept().unwrap().0;
        from.set_nonblocking(true).unwrap();
        let from = OwnedFd::from(from);
        // From here on half of it may be asked for (tcp_set_rcvlowat).
        options::put(to.as_fd(), SOL_SOCKET, libc::SO_RCVBUF, 32 << 10).unwrap();
        assert_eq!(deliver(&from, to.as_fd(), &[]), Ok(true));
        assert_eq!(deliver(&from, to.as_fd(), &[1; 1000]), Ok(true));
        assert_eq!(deliver(&from, to.as_fd(), &[1; 1 << 20]), Ok(false));
    }
}
