# A program with unix sockets whose other ends are the host's, and the host's side of it. Arguments: `host` or `guest`, and a
# directory for the host's sockets: the guest says what has become of each connection once there is a file `go`.
import errno
import os
import select
import socket
import struct
import sys
import threading
import time


def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)


def host(place):
    stream, packets = (socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET))
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for it, name in (stream, "stream"), (packets, "packets"), (datagrams, "datagrams"):
        it.bind(os.path.join(place, name))
    stream.listen()
    # (Nobody accepts these.)
    packets.listen()
    kept = []
    for work, about in (echo, datagrams), (visit, kept), (finish, kept):
        threading.Thread(target=work, args=(about,), daemon=True).start()
    open("there", "w").close()
    while True:
        connection, _ = stream.accept()
        word = connection.makefile("rb").readline()
        connection.sendall(b"hello")
        if word == b"end\n":
            connection.shutdown(socket.SHUT_WR)
        kept.append(connection)


def echo(datagrams):
    while True:
        data, peer = datagrams.recvfrom(100)
        datagrams.sendto(b"echo " + data, peer)


def visit(kept):
    wait_for("serves")
    for word in b"taken", b"":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect("served")
        if word:
            connection.sendall(word)
            wait_for("took")
        kept.append(connection)
    open("visited", "w").close()


def finish(kept):
    wait_for("finish")
    for connection in kept:
        connection.shutdown(socket.SHUT_RDWR)


def name(error):
    return errno.errorcode[error.errno]


def rest(connection):
    got = b""
    for _ in range(10):
        try:
            more = connection.recv(100)
            if not more:
                return got
            got += more
        except OSError as error:
            got += b" " + name(error).encode()


def who(connection):
    return struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


def readable(connection):
    connection.recv(1, socket.MSG_PEEK)


def guest(place):
    def connect(word, path="stream", kind=socket.SOCK_STREAM):
        connection = socket.socket(socket.AF_UNIX, kind)
        connection.connect(os.path.join(place, path))
        if word:
            connection.sendall(word)
            readable(connection)
        return connection

    quiet, silent, end = connect(b"quiet\n"), connect(b"quiet\n"), connect(b"end\n")
    ending = select.poll()
    ending.register(end, select.POLLRDHUP)
    ending.poll()
    waiting = connect(b"", "packets", socket.SOCK_SEQPACKET)
    watching = select.epoll()
    watching.register(quiet.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind("answers")
    datagrams.connect(os.path.join(place, "datagrams"))
    datagrams.send(b"before")
    readable(datagrams)
    server = socket.socket(socket.AF_UNIX)
    server.bind("served")
    server.listen()
    open("serves", "w").close()
    taken, _ = server.accept()
    readable(taken)
    open("took", "w").close()
    wait_for("visited")
    before = [who(it) for it in (quiet, silent, end, taken)]
    open("up", "w").close()
    wait_for("go")
    print("who", [who(it) for it in (quiet, silent, end, taken)] == before)
    print("names", *(os.path.basename(it.getpeername()) for it in (quiet, silent, end, waiting, datagrams)), taken.getsockname())
    print("epoll", [hex(events) for _, events in watching.poll(0)])
    try:
        print("written", quiet.send(b"x"))
    except OSError as error:
        print("written", name(error))
    print("error", errno.errorcode.get(silent.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
    server.setblocking(False)
    try:
        server.accept()
        print("another")
    except OSError as error:
        print("another", name(error))
    waiting.setblocking(False)
    try:
        print("waiting", waiting.recv(100))
    except OSError as error:
        print("waiting", name(error))
    open("finish", "w").close()
    print("rest", *(rest(it) for it in (quiet, silent, end, taken)))
    print("datagrams", datagrams.recv(100))
    datagrams.send(b"after")
    print("datagrams", datagrams.recv(100))
    again = connect(b"again\n")
    print("again", again.recv(100), flush=True)


if sys.argv[1] == "host":
    host(sys.argv[2])
else:
    guest(sys.argv[2])
