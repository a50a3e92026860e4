"""Threads, subprocesses, multiprocessing, signals, sockets, asyncio."""
import asyncio
import ctypes
import fcntl
import mmap
import multiprocessing as mp
import os
import queue
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory


def square(number):
    return number * number


def add_in_shared_memory(name, lock, times):
    memory = shared_memory.SharedMemory(name=name)
    for _ in range(times):
        with lock:
            memory.buf[0] = (memory.buf[0] + 1) % 251
    memory.close()


def threads():
    counter, lock, jobs = 0, threading.Lock(), queue.Queue()

    def work():
        nonlocal counter
        while jobs.get() is not None:
            with lock:
                counter += 1

    workers = [threading.Thread(target=work) for _ in range(50)]
    for worker in workers:
        worker.start()
    for number in range(5000):
        jobs.put(number)
    for _ in workers:
        jobs.put(None)
    for worker in workers:
        worker.join()
    print("threads:", counter)
    with ThreadPoolExecutor(20) as pool:
        print("pool:", sum(pool.map(square, range(1000))))


def subprocesses():
    print("output:", subprocess.check_output(["echo", "hello"], text=True).strip())
    done = subprocess.run(["tr", "a-z", "A-Z"], input="loud", capture_output=True, text=True)
    print("filter:", done.stdout, done.returncode)
    try:
        subprocess.run(["sleep", "1000"], timeout=0.2)
    except subprocess.TimeoutExpired:
        print("timeout")
    sleeper = subprocess.Popen(["sleep", "1000"])
    sleeper.send_signal(signal.SIGKILL)
    print("killed:", sleeper.wait())
    try:
        subprocess.run(["./no-such-program"])
    except FileNotFoundError as error:
        print("missing:", error.errno)
    with ThreadPoolExecutor(8) as pool:
        runs = pool.map(lambda n: subprocess.run(["sh", "-c", f"exit {n}"]).returncode, range(60))
        print("many:", sum(runs))
    new = subprocess.run(["sh", "-c", "echo $$; ps -o pgid= -p $$ 2>/dev/null || true"],
                         start_new_session=True, capture_output=True, text=True)
    print("session:", new.returncode)


def multiprocessing():
    for method in ["fork", "spawn", "forkserver"]:
        context = mp.get_context(method)
        with context.Pool(3) as pool:
            print(method, sum(pool.map(square, range(200))))
    with ProcessPoolExecutor(2) as pool:
        print("executor:", list(pool.map(square, range(5))))
    memory, lock = shared_memory.SharedMemory(create=True, size=64), mp.Lock()
    processes = [mp.Process(target=add_in_shared_memory, args=(memory.name, lock, 100))
                 for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print("shared memory:", memory.buf[0], [process.exitcode for process in processes])
    memory.close()
    memory.unlink()
    with mp.Manager() as manager:
        shared = manager.dict()
        process = mp.Process(target=shared.update, args=({"key": "value"},))
        process.start()
        process.join()
        print("manager:", dict(shared))


def signals():
    ticks = []
    signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    while len(ticks) < 20:
        time.sleep(1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("ticks: 20")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
    os.kill(child, signal.SIGTERM)
    print("signalled:", os.WTERMSIG(os.waitpid(child, 0)[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)
    print("waited:", signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1)


def sockets():
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        for _ in range(20):
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(100).upper())

    server_thread = threading.Thread(target=serve)
    server_thread.start()
    answers = []
    for number in range(20):
        with socket.create_connection(server.getsockname()) as client:
            client.sendall(b"word %d" % number)
            answers.append(client.recv(100))
    server_thread.join()
    print("tcp:", answers[-1])
    left, right = socket.socketpair()
    socket.send_fds(left, [b"x"], [os.open("/dev/null", os.O_RDONLY)])
    _, fds, _, _ = socket.recv_fds(right, 1, 1)
    print("descriptor:", os.read(fds[0], 1))
    print("peer:", right.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4]
          == os.getpid().to_bytes(4, sys.byteorder))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    udp.sendto(b"datagram", udp.getsockname())
    print("udp:", udp.recv(100))
    named = socket.socket(socket.AF_UNIX)
    named.bind("\0abstract-" + str(os.getpid()))
    named.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(named.getsockname())
    print("abstract:", client.getpeername()[:10])
    epoll = select.epoll()
    epoll.register(udp.fileno(), select.EPOLLIN)
    print("epoll:", epoll.poll(0.01))


def files():
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 20)
        memory = mmap.mmap(file.fileno(), 0)
        memory[1000:1005] = b"hello"
        memory.flush()
        file.seek(1000)
        print("mapped:", file.read(5))
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX, 10)
    descriptor = os.memfd_create("name")
    os.write(descriptor, b"in memory")
    print("memfd:", os.pread(descriptor, 100, 3))
    database = sqlite3.connect("database")
    database.execute("create table t (x integer)")
    database.executemany("insert into t values (?)", [(n,) for n in range(1000)])
    database.commit()
    print("sqlite:", database.execute("select sum(x) from t").fetchone())
    libc = ctypes.CDLL(None)
    print("ctypes:", libc.getppid() == os.getppid())
    print("cpus:", len(os.sched_getaffinity(0)))


async def asynchronous():
    async def one(number):
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f"echo {number}", stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return int(output)

    print("asyncio:", sum(await asyncio.gather(*(one(n) for n in range(30)))))
    await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(1000)))


if __name__ == "__main__":
    for part in [threads, subprocesses, multiprocessing, signals, sockets, files]:
        part()
        sys.stdout.flush()
    asyncio.run(asynchronous())
    print("all done")
