"""CPU times across a save: each clock goes on from where it was, for itself, threads and children.

Makes `up`, and goes on once there is `go`; writes what is wrong, or "all go on", into `out`.
"""

import os
import resource
import threading
import time

SPIN = 0.5
"""Seconds; and what a clock may go on by while the program only waits and is restored."""
SLACK = 0.4


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def usage(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def clocks(ident):
    ticks = os.times()
    return {
        "getrusage of the process": usage(resource.RUSAGE_SELF),
        "getrusage of its children": usage(resource.RUSAGE_CHILDREN),
        "getrusage of the thread": usage(resource.RUSAGE_THREAD),
        "clock of the process": time.process_time(),
        "clock of the process by number": time.clock_gettime(~os.getpid() << 3 | 2),
        "clock of the thread": time.thread_time(),
        "clock of another thread": time.clock_gettime(time.pthread_getcpuclockid(ident)),
        "times of the process": ticks.user + ticks.system,
        "times of its children": ticks.children_user + ticks.children_system,
    }


def wait_for_go():
    while not os.path.exists("go"):
        time.sleep(0.01)


def compare(before, after, more, wrong):
    for name in before:
        grown = after[name] - before[name]
        least, most = more.get(name, (-0.02, SLACK))
        if not least <= grown <= most:
            wrong.append(f"{name}: {before[name]} to {after[name]}")


def main():
    wrong = []
    spun, compared = threading.Event(), threading.Event()

    def other():
        spin(SPIN)
        spun.set()
        compared.wait()

    thread = threading.Thread(target=other)
    spin(SPIN)
    ended = os.fork()
    if ended == 0:
        spin(SPIN)
        os._exit(0)
    os.waitpid(ended, 0)
    told, tell = os.pipe()
    living = os.fork()
    if living == 0:
        spin(SPIN)
        os.write(tell, b"x")
        wait_for_go()
        # What it has used itself before the save.
        os._exit(0 if time.process_time() >= SPIN else 1)
    os.read(told, 1)
    thread.start()
    spun.wait()

    before = clocks(thread.ident)
    if before["clock of the process"] < 2 * SPIN or before["getrusage of its children"] < SPIN - 0.02:
        wrong.append(f"at the begin: {before}")
    open("up", "w").close()
    wait_for_go()
    compare(before, clocks(thread.ident), {}, wrong)
    compared.set()
    middle = clocks(threading.get_ident())
    if os.waitpid(living, 0)[1] != 0:
        wrong.append("the child has lost its time")
    # It comes to its parent with what it had used before.
    inherited = (SPIN - 0.02, SPIN + SLACK)
    more = {"getrusage of its children": inherited, "times of its children": inherited}
    compare(middle, clocks(threading.get_ident()), more, wrong)
    thread.join()
    with open("out", "w") as out:
        out.write("\n".join(wrong) or "all go on")


main()
