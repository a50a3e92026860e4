//! Sockets of the loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use super::*;

fn text(mut from: impl Read, length: usize) -> String {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_connection_goes_on_with_what_was_on_its_way() {
    for family in ["AF_INET, '127.0.0.1'", "AF_INET6, '::1'"] {
        let guest = Guest::start(&format!(
            "family, host = {family}
l = socket(family); l.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1); l.bind((host, 0)); l.listen(5)
c = socket(family); c.connect(l.getsockname()); s, _ = l.accept()
c.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1); c.setsockopt(SOL_SOCKET, SO_KEEPALIVE, 1)
c.send(b'question'); s.send(b'ans'); s.send(b'wer')
ready(l, c, s)
assert s.recv(99) == b'question' and c.recv(99) == b'answer'
c.send(b'more'); assert s.recv(99) == b'more'
assert c.getsockopt(IPPROTO_TCP, TCP_NODELAY) == 1 and l.getsockopt(SOL_SOCKET, SO_REUSEADDR) == 1
s.close(); assert c.recv(9) == b''
"
        ));
        let files = guest.save().unwrap();
        guest.finish();
        restored(files, |fds| {
            let mut fds = fds.into_iter();
            let l = TcpListener::from(fds.next().unwrap());
            let [c, s] = [(); 2].map(|()| TcpStream::from(fds.next().unwrap()));
            assert_eq!(c.peer_addr().unwrap(), l.local_addr().unwrap());
            assert_eq!(c.local_addr().unwrap(), s.peer_addr().unwrap());
            assert!(c.nodelay().unwrap());
            assert_eq!((text(&s, 8), text(&c, 6)), ("question".into(), "answer".into()));
            (&c).write_all(b"more").unwrap();
            (&s).write_all(b"MORE").unwrap();
            assert_eq!((text(&s, 4), text(&c, 4)), ("more".into(), "MORE".into()));
            drop(s);
            assert_eq!((&c).read(&mut [0]).unwrap(), 0);
        });
    }
}

#[test]
fn queues_arrive_once_and_in_order() {
    let guest = Guest::start(
        "l = socket(); l.bind(('127.0.0.1', 0)); l.listen(5)
c = socket(); c.connect(l.getsockname()); s, _ = l.accept(); l.close()
c.setblocking(False)
n = 0
try:
    while n < 600000: n += c.send(b''.join(struct.pack('>I', n // 4 + i) for i in range(1024)))
except BlockingIOError: pass
c.setblocking(True); s.send(b'other way')
ready(c, s)
c.shutdown(SHUT_WR); data = b''
while True:
    some = s.recv(1 << 20)
    if not some: break
    data += some
assert data == b''.join(struct.pack('>I', i) for i in range(n // 4)) and c.recv(99) == b'other way'
",
    );
    let files = guest.save().unwrap();
    guest.finish();
    let total: usize = [0, 1]
        .map(|index| match tcp_of(&files, index) {
            TcpState::Connected(it) => {
                if index == 0 {
                    it.sent.len()
                } else {
                    it.received.len()
                }
            }
            other => panic!("{other:?}"),
        })
        .iter()
        .sum();
    assert!(total > 200_000, "{total}");
    restored(files, |fds| {
        let [c, s] = <[OwnedFd; 2]>::try_from(fds).unwrap().map(TcpStream::from);
        c.shutdown(std::net::Shutdown::Write).unwrap();
        let mut all = Vec::new();
        (&s).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), total);
        let expected: Vec<u8> = (0..total as u32 / 4).flat_map(u32::to_be_bytes).collect();
        assert!(all == expected);
        assert_eq!(text(&c, 9), "other way");
    });
}

#[test]
fn half_closed_ended_and_not_accepted_connections_stay_so() {
    let guest = Guest::start(
        "l = socket(); l.bind(('127.0.0.1', 0)); l.listen(5)
def pair():
    c = socket(); c.connect(l.getsockname()); return c, l.accept()[0]
a, b = pair(); a.send(b'end'); a.shutdown(SHUT_WR); b.send(b'still')
c, d = pair(); d.send(b'bye'); d.close()
e, f = pair(); f.send(b'lost'); f.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack('ii', 1, 0)); f.close()
g, h = pair(); h.close(); g.shutdown(SHUT_WR)
p = socket(); p.connect(l.getsockname())
n = socket(); n.bind(('127.0.0.1', 0))
ready(a, b, c, e, g, l, p, n)
assert b.recv(9) == b'end' and b.recv(9) == b'' and a.recv(9) == b'still'
assert c.recv(9) == b'bye' and c.recv(9) == b'' and g.recv(9) == b''
assert e.recv(9) == b'lost'
try: e.recv(9); assert False
except ConnectionResetError: pass
q = l.accept()[0]; p.send(b'p'); assert q.recv(9) == b'p'
",
    );
    let files = guest.save().unwrap();
    guest.finish();
    assert_eq!(tcp_of(&files, 6), &TcpState::Pending(false));
    restored(files, |fds| {
        let mut fds = fds.into_iter();
        let [a, b, c, e, g] = [(); 5].map(|()| TcpStream::from(fds.next().unwrap()));
        let l = TcpListener::from(fds.next().unwrap());
        let p = TcpStream::from(fds.next().unwrap());
        let rest = |mut it: &TcpStream| {
            let mut all = String::new();
            it.read_to_string(&mut all).map(|_| all)
        };
        assert_eq!((rest(&b).unwrap(), text(&a, 5)), ("end".into(), "still".into()));
        (&b).write_all(b"x").unwrap();
        assert_eq!(text(&a, 1), "x");
        assert_eq!((rest(&c).unwrap(), rest(&g).unwrap()), ("bye".into(), "".into()));
        assert_eq!(text(&e, 4), "lost");
        assert_eq!(rest(&e).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        let (accepted, from) = l.accept().unwrap();
        assert_eq!(from, p.local_addr().unwrap());
        (&p).write_all(b"p").unwrap();
        assert_eq!(text(&accepted, 1), "p");
    });
}

#[test]
fn datagrams_and_options_are_kept() {
    let guest = Guest::start(
        "b = socket(AF_INET, SOCK_DGRAM); b.bind(('0.0.0.0', 0)); port = b.getsockname()[1]
a = socket(AF_INET, SOCK_DGRAM); a.connect(('127.0.0.1', port)); a.send(b'from a'); a.send(b'')
g = socket(AF_INET, SOCK_DGRAM); g.bind(('127.0.0.1', 4567)); g.sendto(b'gone', ('127.0.0.1', port)); g.close()
b.setsockopt(SOL_SOCKET, SO_BROADCAST, 1); b.setsockopt(IPPROTO_IP, IP_TTL, 9)
# ldh [0]; ret what it says but 1: datagrams of any length pass.
insns = struct.pack('HBBI', 6, 0, 0, 0xffff)
buffer = array.array('B', insns)
b.setsockopt(SOL_SOCKET, 26, struct.pack('HxxxxxxQ', 1, buffer.buffer_info()[0]))
n = socket(AF_NETLINK, SOCK_RAW, 0); n.bind((0, 1))
ready(a, b, n)
assert b.recvfrom(9) == (b'from a', a.getsockname()) and b.recvfrom(9)[0] == b''
assert b.recvfrom(9) == (b'gone', ('127.0.0.1', 4567))
",
    );
    let files = guest.save().unwrap();
    guest.finish();
    restored(files, |fds| {
        let [a, b, n] = <[OwnedFd; 3]>::try_from(fds).unwrap();
        let filter = socket::filter(b.as_fd()).unwrap();
        assert_eq!(filter.len(), 8);
        assert_eq!(options::get(b.as_fd(), libc::IPPROTO_IP, libc::IP_TTL), Ok(9));
        let (a, b) = (UdpSocket::from(a), UdpSocket::from(b));
        assert!(b.broadcast().unwrap());
        let mut bytes = [0; 9];
        let from = a.local_addr().unwrap();
        assert_eq!(b.recv_from(&mut bytes).unwrap(), (6, from));
        assert_eq!(b.recv_from(&mut bytes).unwrap(), (0, from));
        assert_eq!(b.recv_from(&mut bytes).unwrap(), (4, "127.0.0.1:4567".parse().unwrap()));
        a.send(b"again").unwrap();
        assert_eq!(b.recv(&mut bytes).unwrap(), 5);
        let groups =
            socket::option(n.as_fd(), libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, 64);
        assert_eq!(groups.unwrap()[0] & 1, 1);
    });
}

#[test]
fn what_cannot_be_taken_is_refused_by_name() {
    let refused = |program: &str| {
        let guest = Guest::start(program);
        let error = guest.save().unwrap_err().to_string();
        guest.kill();
        error
    };
    let error = refused(
        "l = socket(); l.bind(('127.0.0.1', 0)); l.listen()
c = socket(); c.connect(l.getsockname()); c.send(b'x')
ready(l, c)",
    );
    assert!(error.contains("nobody has accepted yet"), "{error}");
    let error = refused(
        "a = socket(AF_INET, SOCK_DGRAM); a.connect(('127.0.0.1', 9))
a.setsockopt(IPPROTO_UDP, 1, 1); a.send(b'x'); ready(a)",
    );
    assert!(error.contains("UDP_CORK"), "{error}");
    let error = refused(
        "l = socket(); l.bind(('127.0.0.1', 0)); l.listen()
c = socket(); c.connect(l.getsockname()); s, _ = l.accept(); c.send(b'x', MSG_OOB)
ready(l, c, s)",
    );
    assert!(error.contains("urgent data"), "{error}");
}
