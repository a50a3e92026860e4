# What programs do with a network of which they may reach ok.example alone. Each line of the output is what one of them
# found; natively every line is what follows it here in brackets.
import array
import asyncio
import errno
import fcntl
import os
import select
import socket
import struct
import sys

ADDRESS, OTHER = "203.0.113.2", "203.0.113.3"


def show(*words):
    print(*words, flush=True)


def connect(address, family=socket.AF_INET, made=None):
    with made or socket.socket(family) as s:
        s.settimeout(20) if made is None else None
        code = s.connect_ex(address)
        return errno.errorcode.get(code, "connected")


def datagram(send):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        try:
            send(s)
            return s.recv(100).decode()
        except OSError as error:
            return errno.errorcode[error.errno]


def lookup(name):
    try:
        return sorted({it[4][0] for it in socket.getaddrinfo(name, 80, socket.AF_INET)})
    except socket.gaierror as error:
        return "no such name"


def allowed():
    show("name", lookup("ok.example"), lookup("static.example"), lookup("alias.example"))
    show("long answer", len(lookup("many.example")))
    show("stream", connect((ADDRESS, 80)))
    show("mapped", connect(("::ffff:" + ADDRESS, 80), socket.AF_INET6))
    show("nobody listens", connect((ADDRESS, 81)))
    show("sendto", datagram(lambda s: s.sendto(b"a", (ADDRESS, 7))))
    show("connected", datagram(lambda s: (s.connect((ADDRESS, 7)), s.send(b"b"))))
    show("sendmsg", datagram(lambda s: s.sendmsg([b"c"], [], 0, (ADDRESS, 7))))
    with socket.socket() as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30000)
        s.bind(("", 0))
        port = s.getsockname()[1]
        s.connect((ADDRESS, 79))
        kept = (socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        show("options", *(s.getsockopt(*it) for it in kept), s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        show("peer", s.getpeername(), s.recv(100).decode().split()[1] == str(port), s.getsockname()[1] == port)
        show("again", errno.errorcode[s.connect_ex((ADDRESS, 80))], os.get_inheritable(s.fileno()), s.getblocking())
    watched()
    forked()
    asyncio.run(many())


def watched():
    """Registered before it is connected, as Go does, under two numbers, and changed afterwards."""
    with socket.socket() as s:
        other = os.dup(s.fileno())
        watch = select.epoll()
        watch.register(s.fileno(), select.EPOLLIN | select.EPOLLET)
        s.setblocking(False)
        show("at once", errno.errorcode.get(s.connect_ex((ADDRESS, 80))))
        select.select([], [s], [], 20)
        show("error", s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        os.write(other, b"GET / HTTP/1.0\r\n\r\n")
        while not [it for it in watch.poll(20) if it[1] & select.EPOLLIN]:
            pass
        show("read", os.read(other, 8))
        watch.modify(s.fileno(), select.EPOLLOUT)
        show("changed", watch.poll(20)[0][1] & select.EPOLLOUT)
        watch.unregister(s.fileno())
        os.close(other)


def forked():
    """A child that was made before connects its own copy; one that is made after has the connection."""
    s = socket.socket()
    s.connect((ADDRESS, 80))
    if os.fork() == 0:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        os._exit(0 if s.recv(8) == b"HTTP/1.1" else 1)
    show("inherited", os.wait()[1])
    s.close()


async def many():
    async def one():
        reader, writer = await asyncio.open_connection("ok.example", 80)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        whole = await reader.read()
        writer.close()
        return whole.endswith(b"page\n")

    show("many", sum(await asyncio.gather(*(one() for _ in range(200)))))


def loopback():
    for family, address in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"):
        with socket.socket(family) as listening, socket.socket(family) as s:
            listening.bind((address, 0))
            listening.listen()
            s.connect(listening.getsockname())
            accepted, _ = listening.accept()
            s.send(b"x")
            show("loopback", accepted.recv(5), connect((address, 1), family))
            with socket.socket(family, socket.SOCK_DGRAM) as d:
                d.bind((address, 0))
                d.sendto(b"y", d.getsockname())
                show("datagram", d.recv(5))
    path = "socket"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as s:
        listening.bind(path)
        listening.listen()
        s.connect(path)
        show("unix", s.getpeername())
    os.unlink(path)


def refused():
    lookup("other.example")
    show("name", lookup("other.example"), lookup("near.example"), lookup("sub.ok.example"), lookup("both.example"))
    show("stream", connect((OTHER, 80)), connect(("10.9.9.9", 80)), connect(("169.254.169.254", 80)))
    show("own", connect(("203.0.113.1", 22)))
    show("mapped", connect(("::ffff:" + OTHER, 80), socket.AF_INET6))
    show("sendto", datagram(lambda s: s.sendto(b"a", (OTHER, 7))))
    show("its own dns", datagram(lambda s: s.sendto(b"a", ("203.0.113.3", 53))))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((ADDRESS, 7))
        show("elsewhere", datagram(lambda _: s.sendto(b"a", (OTHER, 7))))
    for spelled in "203.0.113.03", "3405803779", "0xcb007103", "0313.0.0161.03":
        show("spelled", spelled, connect_by_name(spelled))


def interfaces():
    """The names of all interfaces, and one by its number, as a socket tells of them: before it is connected, and after."""
    with socket.socket() as s:
        show("interfaces", *names_of_interfaces(s))
        s.connect((ADDRESS, 80))
        show("connected", *names_of_interfaces(s))
        # SIOCGIFHWADDR, SIOCETHTOOL
        for request in 0x8927, 0x8946:
            try:
                show("client", len(fcntl.ioctl(s, request, struct.pack("16s24x", b"client"))))
            except OSError as error:
                show("client", errno.errorcode[error.errno])


def names_of_interfaces(s):
    room = array.array("B", bytes(4096))
    # SIOCGIFCONF, SIOCGIFNAME
    found = fcntl.ioctl(s, 0x8912, struct.pack("iP", len(room), room.buffer_info()[0]))
    (length,) = struct.unpack("i12x", found)
    names = {room[at : at + 16].tobytes().rstrip(b"\0").decode() for at in range(0, length, 40)}
    first = fcntl.ioctl(s, 0x8910, struct.pack("16si20x", b"", 1))
    return sorted(names), first[:16].rstrip(b"\0").decode()


def connect_by_name(name):
    try:
        return connect((name, 80))
    except socket.gaierror:
        return "no such name"


for part in sys.argv[1:]:
    globals()[part]()
