# What programs find where the traffic is limited. Arguments: what to do, and numbers.
import errno
import select
import socket
import sys
import time

ADDRESS = "203.0.113.2"


def call(word):
    s = socket.socket()
    s.settimeout(60)
    s.connect((ADDRESS, 82))
    s.sendall(word.encode() + b"\n")
    return s


def down(count, s=None):
    s = s or call("down %d" % count)
    came = 0
    try:
        while some := s.recv(65536):
            came += len(some)
        return came, "end"
    except OSError as error:
        return came, errno.errorcode[error.errno]


def up(count):
    s = call("up")
    s.sendall(b"x" * count)
    s.shutdown(socket.SHUT_WR)
    return int(s.recv(100))


def carry(count):
    print(*down(count), up(count))


def timed(count):
    """Four at a time, down; then up."""
    begun = time.monotonic()
    all = [call("down %d" % count) for _ in range(4)]
    print([down(count, s) for s in all] == [(count, "end")] * 4)
    middle = time.monotonic()
    print(up(count) == count)
    print("down", middle - begun, "up", time.monotonic() - middle, file=sys.stderr)


def total(count):
    came, how = down(count)
    print("came", came, how)
    with socket.socket() as s:
        told = errno.errorcode.get(s.connect_ex((ADDRESS, 80)), "connected")
        print("then", told)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        # (As long as the connection that has ended is not all gone, its address is there, and nobody at it.)
        tries = 1 if told == "connected" else 1000
        for _ in range(tries):
            try:
                s.sendto(b"a", (ADDRESS, 7))
            except OSError as error:
                print("datagram", errno.errorcode[error.errno])
                return
            time.sleep(0.01)
        print("sent")


def fails(port):
    """How a connection fails, and that the same socket can be connected afterwards."""
    for target in (ADDRESS, port), ("203.0.113.77", 80):
        s = socket.socket()
        s.setblocking(False)
        code = s.connect_ex(target)
        poll = select.poll()
        poll.register(s, select.POLLIN | select.POLLOUT)
        if code == errno.EINPROGRESS:
            poll.poll(20_000)
            # (The first look may fall between the parts of an error's arrival: tcp_poll reads the state before the error.)
            events = poll.poll(0)[0][1]
            print(target, events, errno.errorcode.get(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
        else:
            print(target, errno.errorcode[code])
        s.setblocking(True)
        print(errno.errorcode.get(s.connect_ex(target)), errno.errorcode.get(s.connect_ex((ADDRESS, 80)), "connected"))


def leave():
    """Sockets that are closed before their connections stand; the first segments of what goes on after them."""
    for _ in range(50):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex((ADDRESS, 80))
        s.close()
    carry(1000)


globals()[sys.argv[1]](*map(int, sys.argv[2:]))
