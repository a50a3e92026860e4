# What programs inside serve, for the tests of published ports: streams and datagrams at one port. The first line of a
# stream says what becomes of it. Writes its port to a file when it serves. Arguments: address, port, that file.
import hashlib
import os
import socket
import struct
import sys
import threading

address, port, ready = sys.argv[1], int(sys.argv[2]), sys.argv[3]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
seen = ["nothing"]


def watch(stream):
    try:
        while stream.recv(1 << 16):
            pass
        return "end"
    except OSError as error:
        return type(error).__name__


def serve(stream):
    words = b""
    while not words.endswith(b"\n"):
        more = stream.recv(1)
        if not more:
            return
        words += more
    words = words.split()
    if words[0] == b"echo":
        while more := stream.recv(1 << 16):
            stream.sendall(more)
        stream.sendall(b"end")
    elif words[0] == b"hash":
        digest = hashlib.sha256()
        while more := stream.recv(1 << 16):
            digest.update(more)
        stream.sendall(digest.hexdigest().encode())
    elif words[0] == b"send":
        block = bytes(range(256)) * 256
        for _ in range(int(words[1])):
            stream.sendall(block)
    elif words[0] == b"reset":
        stream.recv(1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif words[0] == b"watch":
        stream.sendall(b"w")
        seen[0] = watch(stream)
    elif words[0] == b"seen":
        stream.sendall(seen[0].encode())


def guard(stream):
    with stream:
        try:
            serve(stream)
        except OSError:
            pass


def datagrams(end):
    while True:
        data, peer = end.recvfrom(65536)
        end.sendto(b"echo " + data, peer)


streams = socket.socket(family)
streams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
streams.bind((address, port))
streams.listen(256)
port = streams.getsockname()[1]
end = socket.socket(family, socket.SOCK_DGRAM)
end.bind((address, port))
threading.Thread(target=datagrams, args=(end,), daemon=True).start()
with open(ready + ".new", "w") as file:
    file.write(str(port))
os.rename(ready + ".new", ready)
while True:
    threading.Thread(target=guard, args=(streams.accept()[0],), daemon=True).start()
