//! Unix sockets.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use super::*;

fn text(mut from: impl Read, length: usize) -> String {
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_pair_keeps_what_waits_in_it_and_goes_on() {
    let guest = Guest::start(
        "a, b = socketpair()
a.send(b'hello '); a.send(b'world'); b.send(b'back')
b.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack('ll', 3, 0))
c, d = socketpair(); c.send(b'last'); c.close()
e, f = socketpair(); e.shutdown(SHUT_WR)
ready(a, b, d, e, f)
assert b.recv(100) == b'hello world' and a.recv(100) == b'back'
assert d.recv(9) == b'last' and d.recv(9) == b'' and f.recv(9) == b''
a.send(b'more'); assert b.recv(9) == b'more'
",
    );
    let files = guest.save().unwrap();
    guest.finish();
    restored(files, |fds| {
        let [a, b, d, e, f] = <[OwnedFd; 5]>::try_from(fds).unwrap().map(UnixStream::from);
        assert_eq!((text(&b, 11), text(&a, 4)), ("hello world".into(), "back".into()));
        assert_eq!(b.read_timeout().unwrap(), Some(std::time::Duration::from_secs(3)));
        (&a).write_all(b"more").unwrap();
        assert_eq!(text(&b, 4), "more");
        let mut rest = String::new();
        (&d).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "last");
        assert_eq!((&f).read(&mut [0]).unwrap(), 0);
        (&f).write_all(b"x").unwrap();
        assert_eq!(text(&e, 1), "x");
        assert_eq!((&e).write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn descriptors_in_a_queue_stay_with_their_bytes() {
    let guest = Guest::start(
        "a, b = socketpair()
x, y = socketpair(); y.send(b'inside')
a.send(b'plain'); pass_rights(a, b'with', x.fileno()); a.send(b'after')
pass_rights(a, b'two', x.fileno(), 0)
x.close()
ready(a, b, y)
def take(n): return b.recvmsg(n, 100)
",
    );
    let files = guest.save().unwrap();
    let queue = &unix_of(&files, 1).queue;
    let of: Vec<_> = queue.iter().map(|it| (&it.bytes[..], it.rights.clone())).collect();
    let expected: Vec<(&[u8], Vec<u32>)> =
        vec![(b"plain", vec![]), (b"with", vec![3]), (b"after", vec![]), (b"two", vec![3, 4])];
    assert_eq!(of, expected);
    guest.finish();
    restored(files, |mut fds| {
        fds.truncate(3);
        let [_a, b, y] = <[OwnedFd; 3]>::try_from(fds).unwrap();
        let piece = socket::receive(b.as_fd(), 100, 0).unwrap();
        assert_eq!((&piece.bytes[..], piece.rights.len()), (&b"plainwith"[..], 1));
        let mut x = UnixStream::from(piece.rights.into_iter().next().unwrap());
        assert_eq!(text(&x, 6), "inside");
        x.write_all(b"out").unwrap();
        assert_eq!(text(UnixStream::from(y), 3), "out");
        let piece = socket::receive(b.as_fd(), 100, 0).unwrap();
        assert_eq!((&piece.bytes[..], piece.rights.len()), (&b"aftertwo"[..], 2));
    });
}

#[test]
fn a_listening_socket_keeps_its_name_its_connections_and_its_queue() {
    let directory = std::env::temp_dir().join(format!("sockets-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("it");
    let guest = Guest::start(&format!(
        "path = {:?}
l = socket(AF_UNIX); l.bind(path); os.chmod(path, 0o640); l.listen(7)
c = socket(AF_UNIX); c.connect(path); s, _ = l.accept(); c.send(b'question'); s.send(b'answer')
p = socket(AF_UNIX); p.connect(path)
q = socket(AF_UNIX); q.bind(b'\\0client'); q.connect(path)
n = socket(AF_UNIX, SOCK_SEQPACKET); n.bind(b'\\0abstract'); n.listen()
m = socket(AF_UNIX, SOCK_SEQPACKET); m.connect(b'\\0abstract'); k, _ = n.accept(); n.close()
m.send(b'one'); m.send(b''); m.send(b'three'); m.close()
ready(l, c, s, p, q, k)
assert l.accept()[1] == '' and l.accept()[1] == b'\\0client'
assert [k.recv(9) for _ in range(4)] == [b'one', b'', b'three', b'']
assert s.recv(99) == b'question' and c.recv(99) == b'answer'
",
        path
    ));
    let files = guest.save().unwrap();
    guest.finish();
    assert_eq!(unix_of(&files, 0).file.as_ref().unwrap().mode & 0o777, 0o640);
    restored(files, |fds| {
        let mut fds = fds.into_iter();
        let l = UnixListener::from(fds.next().unwrap());
        let [c, s, p, q] = [(); 4].map(|()| UnixStream::from(fds.next().unwrap()));
        let k = fds.next().unwrap();
        assert_eq!(l.local_addr().unwrap().as_pathname(), Some(&*path));
        assert_eq!(c.peer_addr().unwrap().as_pathname(), Some(&*path));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::symlink_metadata(&path).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!((text(&s, 8), text(&c, 6)), ("question".into(), "answer".into()));
        let (first, _) = l.accept().unwrap();
        (&p).write_all(b"p").unwrap();
        assert_eq!(text(&first, 1), "p");
        let (second, _) = l.accept().unwrap();
        (&q).write_all(b"q").unwrap();
        assert_eq!(text(&second, 1), "q");
        // A new one as well.
        let fresh = UnixStream::connect(&path).unwrap();
        drop((fresh, l.accept().unwrap()));
        let next = || socket::receive(k.as_fd(), 9, 0).unwrap().bytes;
        assert_eq!([next(), next(), next(), next()], [&b"one"[..], b"", b"three", b""]);
        assert_eq!(socket::name(k.as_fd()).unwrap()[2..], b"\0abstract"[..]);
    });
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn datagrams_keep_their_senders() {
    let guest = Guest::start(
        "b = socket(AF_UNIX, SOCK_DGRAM); b.bind(b'\\0server')
a = socket(AF_UNIX, SOCK_DGRAM); a.bind(b'\\0there'); a.connect(b'\\0server'); a.send(b'from a')
g = socket(AF_UNIX, SOCK_DGRAM); g.bind(b'\\0gone'); g.sendto(b'from g', b'\\0server'); g.close()
n = socket(AF_UNIX, SOCK_DGRAM); n.sendto(b'', b'\\0server'); n.close()
b.connect(b'\\0there')
x, y = socketpair(AF_UNIX, SOCK_DGRAM); x.send(b'pair'); y.send(b'riap')
ready(a, b, x, y)
assert b.recvfrom(9) == (b'from a', b'\\0there') and b.recvfrom(9) == (b'from g', b'\\0gone')
assert b.recvfrom(9)[0] == b'' and y.recv(9) == b'pair'
",
    );
    let files = guest.save().unwrap();
    guest.finish();
    restored(files, |fds| {
        let [a, b, x, y] = <[OwnedFd; 4]>::try_from(fds).unwrap();
        let next = || {
            let message = socket::receive(b.as_fd(), 9, 0).unwrap();
            (message.bytes, message.from.get(2..).unwrap_or_default().to_vec())
        };
        assert_eq!(next(), (b"from a".to_vec(), b"\0there".to_vec()));
        assert_eq!(next(), (b"from g".to_vec(), b"\0gone".to_vec()));
        assert_eq!(next(), (b"".to_vec(), b"".to_vec()));
        let (a, b) = (UnixDatagram::from(a), UnixDatagram::from(b));
        a.send(b"again").unwrap();
        assert_eq!(b.recv(&mut [0; 9]).unwrap(), 5);
        b.send(b"and back").unwrap();
        assert_eq!(a.recv(&mut [0; 9]).unwrap(), 8);
        let (x, y) = (UnixDatagram::from(x), UnixDatagram::from(y));
        assert_eq!((x.recv(&mut [0; 9]).unwrap(), y.recv(&mut [0; 9]).unwrap()), (4, 4));
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
        "l = socket(AF_UNIX); l.bind(b'\\0l'); l.listen()
c = socket(AF_UNIX); c.connect(b'\\0l'); c.send(b'x')
ready(l, c)",
    );
    assert!(error.contains("nobody has accepted yet"), "{error}");
    let error = refused("a = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); ready(a)");
    assert!(error.contains("a raw socket"), "{error}");
    let error = refused("a, b = socketpair(); a.send(b'x', MSG_OOB); ready(a, b)");
    assert!(error.contains("urgent data"), "{error}");
}

#[test]
fn a_connection_that_was_broken_off_stays_so() {
    let guest = Guest::start(
        "a, b = socketpair(); a.send(b'x'); b.send(b'rest'); b.close()
c, d = socketpair(); d.send(b'here'); e, f = socketpair(); f.send(b'end'); f.shutdown(SHUT_WR)
ready(a, c, e)
def told(s):
    try: return s.recv(9)
    except ConnectionResetError: return 'reset'
assert [told(a) for _ in range(3)] == [b'rest', 'reset', b'']
",
    );
    let files = guest.save().unwrap();
    guest.finish();
    let states = [0, 1, 2].map(|index| unix_of(&files, index).state.clone());
    assert_eq!(states, [UnixState::Broken, UnixState::Broken, UnixState::Abandoned]);
    restored(files, |fds| {
        let [a, c, e] = <[OwnedFd; 3]>::try_from(fds).unwrap().map(UnixStream::from);
        for (mut socket, rest) in [(&a, "rest"), (&c, "here")] {
            assert_eq!(text(socket, 4), rest);
            let error = socket.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        }
        let mut rest = String::new();
        (&e).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "end");
    });
}

#[test]
fn credentials_in_a_queue_are_kept() {
    let guest = Guest::start(
        "a, b = socketpair(); b.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
a.send(b'one'); a.send(b'two')
ready(a, b)
data, extra, *_ = b.recvmsg(9, 100); assert data == b'onetwo' and extra[0][1] == SCM_CREDENTIALS
",
    );
    let pid = guest.child.id() as i32;
    let files = guest.save().unwrap();
    let queue = &unix_of(&files, 1).queue;
    assert_eq!(queue[0].credentials, Some((pid, 0, 0)));
    guest.finish();
    restored(files, |fds| {
        let message = socket::receive(fds[1].as_fd(), 9, 0).unwrap();
        assert_eq!(message.bytes, b"onetwo");
        // Not the same process: the one that sent it is gone.
        assert!(message.credentials.is_some_and(|(sender, ..)| sender != pid && sender != 0));
    });
}
