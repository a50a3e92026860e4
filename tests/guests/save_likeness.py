# A program that looks at all that it can see of itself, waits for `go`, and looks again.
import ctypes, mmap, os, re, resource, select, signal, socket, subprocess, sys, threading, time

def status():
    text = open('/proc/self/status', errors='replace').read()
    fields = dict(re.findall(r'^(\w+):[ \t]*(.*)$', text, re.M))
    names = ('Umask State Tgid Ngid Pid PPid TracerPid Uid Gid NStgid NSpid NSpgid NSsid '
             'SigPnd ShdPnd SigBlk SigIgn SigCgt CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp '
             'Seccomp_filters').split()
    return [(name, fields.get(name)) for name in names]

def look():
    return dict(
        status=status(),
        limits=[resource.getrlimit(it) for it in range(16)],
        descriptors=sorted((fd, os.readlink('/proc/self/fd/' + fd))
                           for fd in os.listdir('/proc/self/fd') if not fd_is_listing(fd)),
        directory=os.getcwd(), exe=os.readlink('/proc/self/exe'),
        command=open('/proc/self/cmdline').read(), auxv=open('/proc/self/auxv', 'rb').read(),
        # (Other sandboxes' sockets are covered as they come and go.)
        mounts=[line.split()[4:] for line in open('/proc/self/mountinfo') if 'sandbox' not in line],
        affinity=os.sched_getaffinity(0), nice=os.nice(0), names=os.uname(),
        children=sorted(open('/proc/self/task/%d/children' % os.getpid()).read().split()),
        environment=dict(os.environ))

def fd_is_listing(fd):
    # Descriptors of the listing itself, and numbers of anonymous inodes, which are the host's.
    try:
        link = os.readlink('/proc/self/fd/' + fd)
    except OSError:
        return True
    return link.startswith('/proc/') or link.startswith(('pipe:', 'socket:', 'anon_inode:', '/memfd:'))

# A name that is no text.
NAME = b'\xff\xfe name'
ctypes.CDLL(None).prctl(15, NAME)

failures = []
def check(what, right):
    if not right:
        failures.append(what)

# Things of every kind that are to be there afterwards.
read, write = os.pipe(); os.write(write, b'in the pipe')
gone = open('gone', 'w+'); gone.write('gone, not lost'); gone.flush(); os.unlink('gone')
place = '/tmp/likeness-%d' % time.time_ns(); os.mkdir(place)
private = open(place + '/private', 'w'); private.write('private'); private.flush()
log = open('log', 'a'); log.write('begin\n'); log.flush()
shared = mmap.mmap(-1, 8192); shared[:5] = b'early'
event = os.eventfd(7); memory = os.memfd_create('likeness'); os.write(memory, b'in memory')
poll = select.epoll(); poll.register(read, select.EPOLLIN)
left, right = socket.socketpair(); left.sendall(b'over there')
server = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen()
client = socket.create_connection(server.getsockname()); served, _ = server.accept()
client.sendall(b'from the client'); served.sendall(b'from the server')
named = socket.socket(socket.AF_UNIX); named.bind(place + '/socket'); named.listen()
alarms = []; signal.signal(signal.SIGALRM, lambda *_: alarms.append(time.monotonic()))
numbers = list(range(100000))
child = os.fork()
if child == 0:
    while not os.path.exists('go'):
        time.sleep(0.05)
    shared[:5] = b'child'
    os._exit(9)
ended = os.fork()
if ended == 0:
    os._exit(5)
os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
other = subprocess.Popen(['sh', '-c', 'while ! [ -e go ]; do sleep 0.05; done; echo other'], stdout=subprocess.PIPE)
counted = []
def count():
    while not os.path.exists('go'):
        counted.append(len(counted)); time.sleep(0.01)
    nice.append(os.nice(0))
nice = []
threads = [threading.Thread(target=count) for _ in range(4)]
for thread in threads:
    thread.start()
# The first alone: who is made by one that is nice cannot take that back.
as_begun = os.nice(0); os.nice(5)

before = look(); monotonic = time.monotonic()
open('up', 'w').close()
while not os.path.exists('go'):
    time.sleep(0.05)
after = look()

for key in before:
    if before[key] != after[key]:
        failures.append('%s: %r then, %r now' % (key, before[key], after[key]))
check('the clock went back', time.monotonic() >= monotonic)
check('the clock jumped', time.monotonic() - monotonic < 60)
for thread in threads:
    thread.join()
check('threads lost count', len(counted) > 0)
check('nice threads: %r' % nice, nice == 4 * [as_begun])
check('pipe', os.read(read, 100) == b'in the pipe' and poll.poll(0) == [])
gone.seek(0); check('removed file', gone.read() == 'gone, not lost')
check('private file', open(place + '/private').read() == 'private')
log.write('end\n'); log.close(); check('log', open('log').read() == 'begin\nend\n')
check('name', open('/proc/self/comm', 'rb').read() == NAME + b'\n')
check('eventfd', os.eventfd_read(event) == 7)
os.lseek(memory, 0, 0); check('memfd', os.read(memory, 100) == b'in memory')
check('socket pair', right.recv(100) == b'over there'); right.sendall(b'back'); check('pair back', left.recv(9) == b'back')
check('server', served.recv(100) == b'from the client'); check('client', client.recv(100) == b'from the server')
client.sendall(b'more'); check('connection', served.recv(100) == b'more')
again = socket.create_connection(server.getsockname()); third, _ = server.accept()
again.sendall(b'x'); check('a new connection', third.recv(1) == b'x')
caller = socket.socket(socket.AF_UNIX); caller.connect(place + '/socket'); check('named socket', named.accept() is not None)
check('memory', sum(numbers) == 4999950000)
check('child', os.waitpid(child, 0)[1] >> 8 == 9 and shared[:5] == b'child')
check('zombie', os.waitpid(ended, 0)[1] >> 8 == 5)
check('other', other.communicate()[0] == b'other\n' and other.returncode == 0)
signal.setitimer(signal.ITIMER_REAL, 0.05); time.sleep(0.3); check('alarm', len(alarms) == 1)
os.unlink(place + '/private'); os.unlink(place + '/socket'); os.rmdir(place)
print('\n'.join(failures + ['different'] if failures else ['all alike']))
sys.exit(1 if failures else 0)
