# The outside, for the tests of the network: names, pages, an echo of datagrams and of streams. Says "ready" when it
# serves. Arguments: the address that it is at, and another one, which has the same; a directory to work in, and what else is
# to be served (`services.py`).
import asyncio
import signal
import socket
import struct
import sys

ADDRESS, OTHER, WORK = sys.argv[1:4]
NAMES = {
    "ok.example": [ADDRESS],
    "sub.ok.example": [ADDRESS],
    "other.example": [OTHER],
    "near.example": ["10.9.9.9"],
    "both.example": ["10.9.9.9", ADDRESS],
    "many.example": ["198.51.100.%d" % n for n in range(1, 120)] + [ADDRESS],
    "alias.example": "ok.example",
    "_http._tcp.ok.example": [OTHER],
}


def name_of(query):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += query[at] + 1
    return ".".join(labels).lower(), at + 1


def encode(name):
    return b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0"


def answer(query, room):
    name, at = name_of(query)
    (kind,) = struct.unpack(">H", query[at : at + 2])
    found, records, count = NAMES.get(name), b"", 0
    if isinstance(found, str):
        target = encode(found)
        records += b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 60, len(target)) + target
        name, found, count = found, NAMES[found], 1
    if found and kind == 1:
        for address in found:
            records += encode(name) + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(address)
            count += 1
    if found and kind == 33:
        target = encode("ok.example")
        records += encode(name) + struct.pack(">HHIHHHH", 33, 1, 60, 6 + len(target), 0, 0, 8001) + target
        count += 1
    if found and kind == 16:
        records += encode(name) + struct.pack(">HHIH", 16, 1, 60, 6) + b"\5words"
        count += 1
    flags = 0x8180 | (0 if found else 3)
    if 12 + len(records) > room:
        flags, records, count = flags | 0x200, b"", 0
    return query[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 0) + query[12 : at + 4] + records


class Names(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.transport.sendto(answer(data, 512), peer)


class Echo(Names):
    def datagram_received(self, data, peer):
        self.transport.sendto(b"echo " + data, peer)


async def names(reader, writer):
    (length,) = struct.unpack(">H", await reader.readexactly(2))
    whole = answer(await reader.readexactly(length), 65535)
    writer.write(struct.pack(">H", len(whole)) + whole)
    writer.close()


async def pages(reader, writer):
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\npage\n")
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def peer(reader, writer):
    writer.write(("%s %d\n" % writer.get_extra_info("peername")[:2]).encode())
    writer.close()


async def bulk(reader, writer):
    """"down COUNT": sends so many bytes; "up": says how many came."""
    try:
        word, *count = (await reader.readline()).split()
        if word == b"down":
            left = int(count[0])
            while left:
                writer.write(b"x" * min(left, 65536))
                left -= min(left, 65536)
                await writer.drain()
        else:
            came = 0
            while some := await reader.read(65536):
                came += len(some)
            writer.write(b"%d" % came)
            await writer.drain()
        writer.close()
    except ConnectionError:
        pass


async def main():
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(Names, (ADDRESS, 53))
    await asyncio.start_server(names, ADDRESS, 53)
    for address in ADDRESS, OTHER, "10.9.9.9":
        await loop.create_datagram_endpoint(Echo, (address, 7))
        await asyncio.start_server(pages, address, 80, backlog=512)
        await asyncio.start_server(peer, address, 79)
        await asyncio.start_server(bulk, address, 82)
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    more = sys.argv[4:]
    if more:
        import services

        for name in more:
            services.start(name, ADDRESS, WORK)
    print("ready", flush=True)
    await ended.wait()
    if more:
        services.stop()


asyncio.run(main())
