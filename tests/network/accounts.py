# Reaches some of what it may and some of what it may not, tells that it has, and waits. For the test of what is counted.
import errno
import select
import socket

ADDRESS, OTHER = "203.0.113.2", "203.0.113.3"


def lookup(name):
    try:
        return socket.getaddrinfo(name, 80, socket.AF_INET)[0][4]
    except socket.gaierror:
        return None


assert lookup("other.example") is None
page = lookup("ok.example")
for _ in range(2):
    assert socket.socket().connect_ex((OTHER, 80)) == errno.EACCES
with socket.socket() as s:
    s.connect(page)
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    while s.recv(100):
        pass
assert socket.socket().connect_ex((ADDRESS, 81)) == errno.ECONNREFUSED
# What has failed, and goes elsewhere then, is another connection.
moved = socket.socket()
moved.setblocking(False)
assert moved.connect_ex((ADDRESS, 81)) == errno.EINPROGRESS
select.select([], [moved], [])
assert moved.connect_ex((ADDRESS, 80)) == errno.ECONNREFUSED
moved.setblocking(True)
moved.connect((ADDRESS, 80))
assert moved.connect_ex((ADDRESS, 81)) == errno.EISCONN
moved.send(b"moved")
moved.close()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.sendto(b"abc", (ADDRESS, 7))
assert datagrams.recv(100) == b"echo abc"
kept = socket.socket()
kept.connect((ADDRESS, 80))
kept.send(b"0123456789")
open("ready", "w").write("x")
open("go").read()
