# A program with connections to the host, and the host's side of it. Arguments: `host` and a file to write its ports to, or
# `guest` and these ports: that says what has become of each connection once there is a file `go`.
import errno
import os
import select
import socket
import struct
import sys
import threading
import time

MANY = 100_000


def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)


def host(place):
    server, datagrams = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    # Of connections to these nobody takes more than one, which is there already, until there is a file `take`.
    slow = [socket.create_server(("127.0.0.1", 0), backlog=0) for _ in range(2)]
    fillers = [socket.create_connection(it.getsockname()) for it in slow]
    kept = []
    for work, about in (echo, datagrams), (finish, kept), (take, slow[0]), (take, slow[1]):
        threading.Thread(target=work, args=(about,), daemon=True).start()
    with open(place + ".new", "w") as file:
        print(*(it.getsockname()[1] for it in (server, datagrams, *slow)), file=file)
    os.rename(place + ".new", place)
    while True:
        connection, _ = server.accept()
        word = connection.makefile("rb").readline()
        if word in (b"many\n", b"end\n"):
            connection.sendall(bytes(range(200)) * (MANY // 200))
        if word == b"end\n":
            connection.shutdown(socket.SHUT_WR)
        kept.append(connection)


def finish(kept):
    wait_for("finish")
    for connection in kept:
        connection.shutdown(socket.SHUT_RDWR)


def echo(datagrams):
    while True:
        data, peer = datagrams.recvfrom(100)
        datagrams.sendto(b"echo " + data, peer)


def take(slow):
    wait_for("take")
    taken = []
    while True:
        taken.append(slow.accept()[0])
        taken[-1].sendall(b"taken")


def name(error):
    return errno.errorcode[error.errno]


def rest(connection):
    got = b""
    try:
        while True:
            more = connection.recv(1 << 16)
            if not more:
                return len(got), got == bytes(range(200)) * (len(got) // 200), "end"
            got += more
    except OSError as error:
        return len(got), got == bytes(range(200)) * (len(got) // 200), name(error)


def readable(connection):
    # All that there is to be read has come.
    held = bytearray(MANY + 1)
    while connection.recv_into(held, MANY + 1, socket.MSG_PEEK) < MANY:
        time.sleep(0.01)


def has_ended(connection):
    # The end of the other side has come.
    watch = select.poll()
    watch.register(connection, select.POLLRDHUP)
    watch.poll()


def guest(port, echoing, *slow):
    def connect(word):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(word)
        return connection

    quiet, many, end = connect(b"quiet\n"), connect(b"many\n"), connect(b"end\n")
    quiet.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for it in (many, end):
        readable(it)
    has_ended(end)
    shared = os.dup(quiet.fileno())
    watching = select.epoll()
    watching.register(quiet.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
    written = connect(b"quiet\n")
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.connect(("127.0.0.1", echoing))
    for word in (b"before", b"unread"):
        datagrams.send(word)
        datagrams.recv(100, socket.MSG_PEEK)
    told = []

    def wait_long():
        connection = socket.socket()
        try:
            connection.connect(("127.0.0.1", slow[0]))
            told.append(connection.recv(100).decode())
        except OSError as error:
            told.append(name(error))

    waiting = threading.Thread(target=wait_long)
    waiting.start()
    under_way = socket.socket()
    under_way.setblocking(False)
    code = under_way.connect_ex(("127.0.0.1", slow[1]))
    print("begun", errno.errorcode[code], flush=True)
    # (A thread that is asleep in the kernel.)
    while all(
        open(f"/proc/self/task/{it}/stat").read().rsplit(")", 1)[1].split()[0] not in "SD"
        for it in os.listdir("/proc/self/task")
        if int(it) != os.getpid()
    ):
        time.sleep(0.01)
    open("up", "w").close()
    wait_for("go")
    open("take", "w").close()
    print("epoll", [hex(events) for _, events in watching.poll(0)])
    os.set_blocking(shared, False)
    print("shared", quiet.getblocking(), quiet.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    code = quiet.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    quiet.setblocking(True)
    try:
        print("written", written.send(b"x"))
    except OSError as error:
        print("written", name(error))
    open("finish", "w").close()
    print("error", errno.errorcode.get(code), rest(quiet))
    print("many", *rest(many))
    print("end", *rest(end))
    print("datagrams", datagrams.getpeername()[1] == echoing, datagrams.recv(100), datagrams.recv(100))
    datagrams.send(b"after")
    print("datagrams", datagrams.recv(100))
    loose = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    loose.settimeout(20)
    loose.sendto(b"more", ("127.0.0.1", echoing))
    print("datagrams", loose.recv(100))
    waiting.join()
    print("waited", *told)
    ready = select.poll()
    ready.register(under_way, select.POLLOUT)
    print("under way", [events for _, events in ready.poll(20000)], under_way.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    under_way.setblocking(True)
    print("under way", under_way.getpeername()[1] == slow[1], under_way.recv(100))
    again = connect(b"many\n")
    readable(again)
    print("again", flush=True)


if sys.argv[1] == "host":
    host(sys.argv[2])
else:
    guest(*map(int, sys.argv[2:]))
