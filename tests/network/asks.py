# What programs try that reach what no rule names.
import errno
import socket

ADDRESS, OTHER = "203.0.113.2", "203.0.113.3"


def show(*words):
    print(*words, flush=True)


def connect(host, port=80):
    try:
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except socket.gaierror:
        return "no such name"
    with socket.socket() as s:
        return errno.errorcode.get(s.connect_ex(address), "connected")


def datagram(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.sendto(b"hello", (address, 7))
            return s.recv(100).decode()
        except OSError as error:
            return errno.errorcode[error.errno]


show("address", connect(ADDRESS), connect(ADDRESS), connect(OTHER), connect(OTHER))
show("datagram", datagram(ADDRESS), datagram(ADDRESS))
with socket.socket() as s:
    s.setblocking(False)
    code = s.connect_ex((ADDRESS, 82))
    show("later", errno.errorcode[code])
show("name", connect("ok.example"), connect("ok.example", 9))
show("once", connect("sub.ok.example"), connect("sub.ok.example"))
show("no", connect("other.example"))
show("near", connect("10.9.9.9"), connect("near.example"))
