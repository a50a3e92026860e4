# Who is seen. Arguments: "serve", a word of addresses of inside to listen at, a port, a file to be made when it does: says to
# each who comes, by streams and datagrams, what its address is. "ask", an address of the host's to come from, one to go
# to, a port: says whether what is seen is that, port and all, by each way; else what it is.
import os
import select
import socket
import sys


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def words(name):
    return f"{name[0]} {name[1]}".encode()


if sys.argv[1] == "serve":
    addresses, port, ready = sys.argv[2].split(","), int(sys.argv[3]), sys.argv[4]
    streams, datagrams = [], []
    for address in addresses:
        streams.append(socket.create_server((address, port), family=family(address)))
        datagrams.append(socket.socket(family(address), socket.SOCK_DGRAM))
        datagrams[-1].bind((address, port))
    open(ready, "w").close()
    while True:
        for readable in select.select(streams + datagrams, [], [])[0]:
            if readable in datagrams:
                peer = readable.recvfrom(100)[1]
                readable.sendto(words(peer), peer)
                continue
            stream, peer = readable.accept()
            # It has said all, and what it reads more slowly than it comes is still to reach it.
            stream.sendall(words(peer))
            stream.shutdown(socket.SHUT_WR)
            if os.fork() == 0:
                select.select([], [], [], 0.2)
                count = 0
                while more := stream.recv(4096):
                    count += len(more)
                open("read", "w").write(str(count))
                os._exit(0)
            stream.close()
else:
    own, to, port = sys.argv[2], sys.argv[3], int(sys.argv[4])
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
        end = socket.socket(family(to), kind)
        end.bind((own, 0))
        end.connect((to, port))
        if kind == socket.SOCK_STREAM:
            # More than the queues of the program itself hold.
            end.sendall(bytes(1 << 20))
            end.shutdown(socket.SHUT_WR)
        else:
            end.send(b"x")
        seen = end.recv(100)
        print("itself" if seen == words(end.getsockname()) else seen.decode().split()[0])
