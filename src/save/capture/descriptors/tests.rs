//! Tables are captured from a native program, made again in a seed, and captured from that: both must be
//! the same.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command};

use super::*;
use crate::save::capture::collector::Content;
use crate::save::error::RestoreError;
use crate::save::hand::{Borrowed, Hand, find_instruction};
use crate::save::restore::courier::Courier;
use crate::save::restore::descriptors::FilesPolicy;
use crate::save::restore::descriptors::{
    RestoreStreams, close_courier, hard_limit, install_table, make_files, make_late_files,
    take_locks,
};
use crate::save::restore::maker::{Maker, Sink};
use crate::save::restore::seed::tests::plant;
use crate::save::state::{Clocks, Sandbox};
use crate::sys::ptrace;

/// A program that has set its descriptors up and stands still.
pub(crate) struct Guest {
    child: Child,
    borrowed: Option<Borrowed>,
    streams: Streams,
    /// The other ends of its streams.
    _input: std::io::PipeWriter,
    _output: BufReader<std::io::PipeReader>,
    /// A directory of its own, which is its working directory.
    directory: std::path::PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

const BEGIN: &str = "
import os, sys, fcntl, socket, select, signal, ctypes, struct, time
libc = ctypes.CDLL(None, use_errno=True)
os.closerange(3, 1000)
def stay():
    libc.prctl(1, 9)
    time.sleep(100)
def ready():
    print('ready', flush=True)
    sys.stdin.read()
";

fn executable(pid: i32) -> Vec<(u64, u64, bool)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let parse = |it| u64::from_str_radix(it, 16).ok();
        words.next()?.contains('x').then_some(())?;
        Some((parse(start)?, parse(end)?, line.ends_with("[vdso]")))
    };
    maps.lines().filter_map(line).collect()
}

impl Guest {
    /// Runs a Python program to where it says that it is ready. None: there is no Python.
    pub(crate) fn run(program: &str) -> Option<Guest> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("descriptors-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (theirs_in, input) = std::io::pipe().unwrap();
        let (output, theirs_out) = std::io::pipe().unwrap();
        let streams = Streams::new(&[(0, theirs_in.as_fd()), (1, theirs_out.as_fd())]).unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", &format!("{BEGIN}{program}\nready()\n")]);
        command.current_dir(&directory).stdin(theirs_in).stdout(theirs_out);
        let Ok(child) = command.stderr(std::fs::File::open("/dev/null").unwrap()).spawn() else {
            println!("skipped: no python3");
            return None;
        };
        drop(command);
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let tid = child.id() as i32;
        ptrace::seize(tid).unwrap().interrupt().unwrap();
        let stopped = ptrace::wait_for(tid).unwrap();
        let instruction = find_instruction(tid, &executable(tid)).unwrap();
        let borrowed = Some(Borrowed::begin(stopped, instruction).unwrap().0);
        Some(Guest { child, borrowed, streams, _input: input, _output: output, directory })
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Its table and what that stands for.
    pub(crate) fn capture(&mut self) -> Result<(Table, Collector), SaveError> {
        let pid = self.pid();
        capture(pid, &mut self.borrowed.as_mut().unwrap().hand, &self.streams)
    }
}

fn capture(pid: i32, hand: &mut Hand, streams: &Streams) -> Result<(Table, Collector), SaveError> {
    let mut collector = Collector::default();
    let mut subject = Subject::new(pid, pid, hand);
    let table = capture_table(&mut subject, streams, &mut collector)?;
    finish(&mut collector)?;
    Ok((table, collector))
}

fn clocks() -> Clocks {
    let now = |clock| {
        let time = nix::time::clock_gettime(clock).unwrap();
        time.tv_sec() * 1_000_000_000 + time.tv_nsec()
    };
    Clocks {
        monotonic: now(nix::time::ClockId::CLOCK_MONOTONIC),
        boottime: now(nix::time::ClockId::CLOCK_BOOTTIME),
        realtime: now(nix::time::ClockId::CLOCK_REALTIME),
    }
}

fn sandbox(table: &Table, collector: &Collector) -> Sandbox {
    let mut sandbox = crate::save::testing::empty();
    sandbox.run.program = 2;
    Sandbox {
        clocks: clocks(),
        files: collector.files.clone(),
        tables: vec![table.clone()],
        shared: collector.shared.clone(),
        pipes: collector.pipes.clone(),
        ..sandbox
    }
}

/// Ends with its holder.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A seed that has been given the guest's table.
struct Restored {
    child: Ended,
    hand: Hand,
    _courier: Courier,
    streams: Streams,
}

fn pour(contents: Vec<Content>, sinks: &mut std::collections::HashMap<u32, Sink>) {
    use std::os::unix::fs::FileExt;
    for content in contents {
        let Content::File { object, file, size } = content else { continue };
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        match sinks.get(&object) {
            Some(Sink::File(sink)) => sink.write_all_at(&bytes, 0).unwrap(),
            other => panic!("no sink for {object}: {other:?}"),
        }
    }
}

fn restore(
    table: &Table,
    mut collector: Collector,
) -> Result<Restored, crate::save::error::RestoreError> {
    let (maker_child, mut maker_hand, maker_courier) = plant();
    let contents = std::mem::take(&mut collector.contents);
    let sandbox = sandbox(table, &collector);
    let ((input, _in), (_out, output)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    let streams = Streams::new(&[(0, input.as_fd()), (1, output.as_fd())]).unwrap();
    let own = [input.into(), output.into(), std::fs::File::open("/dev/null").unwrap().into()];
    let restore_streams = RestoreStreams { own, terminal: None };
    let gate = crate::notify::Gate::default();
    let mut maker = Maker {
        hand: &mut maker_hand,
        courier: &maker_courier,
        sandbox: &sandbox,
        files: Vec::new(),
        shared: Vec::new(),
        sinks: Default::default(),
        finishes: Vec::new(),
        hands: Default::default(),
        gate: &gate,
        devices: Vec::new(),
        kernel: None,
    };
    let _ended = Ended(maker_child);
    make_files(&mut maker, &restore_streams, FilesPolicy::Strict)?;
    make_late_files(&mut maker, FilesPolicy::Strict)?;
    pour(contents, &mut maker.sinks);
    let finishes = std::mem::take(&mut maker.finishes);
    finishes.into_iter().try_for_each(|finish| finish(&mut maker))?;
    let files = std::mem::take(&mut maker.files);
    drop(maker);
    let (child, mut hand, courier) = plant();
    let hard = hard_limit(&mut hand)?;
    let number = install_table(&mut hand, &courier, table, (&files, hard), "it")?;
    let mut last = hand.table();
    close_courier(&mut last, number);
    hand.run(&last).map_err(RestoreError::of("the courier"))?;
    drop(files);
    let pid = sandbox.files.iter().flat_map(|it| &it.locks).map(|it| it.pid).max().unwrap_or(0);
    take_locks(&mut hand, &sandbox, pid, table)?;
    Ok(Restored { child: Ended(child), hand, _courier: courier, streams })
}

impl Restored {
    fn capture(&mut self) -> (Table, Collector) {
        capture(self.child.0.id() as i32, &mut self.hand, &self.streams).unwrap()
    }
}

/// What differs in any case.
fn alike(mut files: Vec<OpenFile>) -> Vec<OpenFile> {
    for file in &mut files {
        match &mut file.kind {
            FileKind::Timer { remaining, .. } => *remaining /= 10_000_000_000,
            FileKind::Deleted { identity, object, path, directory, .. } => {
                identity.size *= u64::from(!*directory);
                (identity.inode, *object) = ((0, 0), 0);
                // (The number is part of the name of one that never had one.)
                if path.windows(2).any(|it| it == b"/#") {
                    (*path, file.flags) = (Default::default(), file.flags & 3);
                }
            }
            FileKind::Stream { .. } => file.flags = 0,
            FileKind::Epoll(targets) => targets.sort_unstable(),
            _ => {}
        }
        file.locks.iter_mut().filter(|it| it.pid != 0).for_each(|it| it.pid = 1);
    }
    files
}

/// Makes a program's descriptors again and compares; gives both to look into.
fn round_trip(program: &str) -> Option<(Guest, Restored)> {
    let mut guest = Guest::run(program)?;
    let (table, collector) = guest.capture().unwrap();
    let (files, pipes, shared) =
        (collector.files.clone(), collector.pipes.clone(), collector.shared.clone());
    // Of two that lock a file one goes first.
    if files.iter().any(|it| !it.locks.is_empty()) {
        guest.borrowed = None;
        guest.child.kill().unwrap();
        guest.child.wait().unwrap();
    }
    let mut restored = restore(&table, collector).unwrap();
    let (again, collector) = restored.capture();
    assert_eq!(again, table);
    assert_eq!(alike(collector.files), alike(files));
    assert_eq!(collector.pipes, pipes);
    assert_eq!(
        collector.shared.iter().map(|it| (it.size, &it.kind)).collect::<Vec<_>>(),
        shared.iter().map(|it| (it.size, &it.kind)).collect::<Vec<_>>()
    );
    Some((guest, restored))
}

#[test]
fn files_keep_their_offsets_flags_and_sharing() {
    let trip = round_trip(
        "
open('a', 'w').write('0123456789')
one = os.open('a', os.O_RDWR | os.O_APPEND)
os.lseek(one, 3, 0)
os.dup2(one, 70, inheritable=False)
other = os.open('a', os.O_RDONLY | os.O_NONBLOCK)
null = os.open('/dev/null', os.O_WRONLY)
path = os.open('a', os.O_PATH)
directory = os.open('.', os.O_RDONLY | os.O_DIRECTORY)
os.dup2(other, 1000)
",
    );
    let Some((mut guest, mut restored)) = trip else { return };
    let (table, collector) = guest.capture().unwrap();
    assert_eq!(table.descriptors.last().unwrap().fd, 1000);
    assert!(collector.files.iter().any(|it| it.position == 3));
    // The sharing is real: what one descriptor moves the other has moved.
    let moved = restored.hand.call(libc::SYS_lseek, [70, 5, 0]).unwrap();
    assert_eq!(moved, 5);
    let one = table.descriptors.iter().find(|it| it.fd == 70).unwrap().file;
    let first = table.descriptors.iter().find(|it| it.file == one).unwrap().fd;
    assert_ne!(first, 70);
    let now = restored.hand.call(libc::SYS_lseek, [first as u64, 0, 1]).unwrap();
    assert_eq!(now, 5);
}

#[test]
fn pipes_keep_what_waits_in_them() {
    let trip = round_trip(
        "
r, w = os.pipe()
fcntl.fcntl(w, 1031, 1 << 17)
os.write(w, b'x' * 70000)
pr, pw = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
for part in (b'one', b'second', b'3'): os.write(pw, part)
sr, sw = os.pipe2(os.O_DIRECT)
os.write(sw, b'alone')
hr, hw = os.pipe()
os.write(hw, b'left behind')
os.close(hw)
er, ew = os.pipe()
os.close(er)
again = os.open('/proc/self/fd/%d' % r, os.O_RDONLY | os.O_NONBLOCK)
os.mkfifo('fifo')
both = os.open('fifo', os.O_RDWR)
os.write(both, b'through a name')
reader = os.open('fifo', os.O_RDONLY)
",
    );
    let Some((mut guest, _)) = trip else { return };
    let (_, collector) = guest.capture().unwrap();
    let find =
        |content: &[u8]| collector.pipes.iter().find(|it| *it.content == *content).unwrap().clone();
    assert_eq!(find(&[b'x'; 70000]).capacity, 1 << 17);
    assert_eq!(find(b"onesecond3").packets, Some(vec![3, 6, 1]));
    assert_eq!(find(b"alone").packets, Some(vec![5]));
    assert_eq!(find(b"left behind").packets, None);
    find(b"through a name");
}

#[test]
fn a_pipe_that_leads_outside_is_refused() {
    let Some(mut guest) = Guest::run(
        "
r, w = os.pipe()
os.write(w, b'x')
global_end, own_end = os.pipe()
if os.fork() == 0:
    os.close(w)
    os.close(own_end)
    os.read(global_end, 1)
    os._exit(0)
os.close(r)
",
    ) else {
        return;
    };
    let said = guest.capture().unwrap_err().to_string();
    assert!(said.contains("somebody outside the sandbox reads"), "{said}");
}

#[test]
fn files_without_a_name_keep_their_content() {
    let trip = round_trip(
        "
f = os.open('gone', os.O_RDWR | os.O_CREAT, 0o640)
os.write(f, b'content of the removed')
g = os.open('gone', os.O_RDONLY)
os.unlink('gone')
t = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(t, b'never named')
os.mkdir('d'); os.mkdir('d/e')
h = os.open('d/e/f', os.O_RDWR | os.O_CREAT, 0o600)
os.write(h, b'deep')
os.unlink('d/e/f')
i = os.open('d/e', os.O_RDONLY)
os.rmdir('d/e'); os.rmdir('d')
m = libc.memfd_create(b'a name', 2)
os.write(m, b'in memory')
fcntl.fcntl(m, 1033, 0x2 | 0x8)
n = os.open('/proc/self/fd/%d' % m, os.O_RDONLY)
",
    );
    let Some((mut guest, mut restored)) = trip else { return };
    let (table, _) = guest.capture().unwrap();
    let mut texts = Vec::new();
    for descriptor in table.descriptors.iter().filter(|it| it.fd > 2) {
        let (count, bytes) = restored
            .hand
            .call_with(libc::SYS_pread64, &[0; 64], |at| [descriptor.fd as u64, at, 64, 0])
            .map_or((0, Vec::new()), |it| it);
        texts.push(String::from_utf8_lossy(&bytes[..count as usize]).into_owned());
    }
    for text in ["content of the removed", "never named", "deep", "in memory"] {
        assert!(texts.iter().any(|it| it == text), "{texts:?}");
    }
    assert_eq!(std::fs::read_dir(&guest.directory).unwrap().count(), 0);
}

#[test]
fn objects_keep_their_state() {
    let trip = round_trip(
        "
e = libc.eventfd(5, 0)
s = libc.eventfd(3, 1 | 0x800)
mask = struct.pack('Q', 0x200)
signals = libc.signalfd(-1, mask, 0)
t = libc.timerfd_create(1, 0)
libc.timerfd_settime(t, 0, struct.pack('qqqq', 0, 0, 1000, 0), None)
once = libc.timerfd_create(0, 0x800)
libc.timerfd_settime(once, 1, struct.pack('qqqq', 0, 0, 1, 0), None)
repeats = libc.timerfd_create(7, 0)
libc.timerfd_settime(repeats, 0, struct.pack('qqqq', 500, 0, 0, 1), None)
select.select([once, repeats], [], [])
absolute = libc.timerfd_create(0, 0)
libc.timerfd_settime(absolute, 1, struct.pack('qqqq', 0, 0, int(time.time()) + 5000, 0), None)
unused = libc.timerfd_create(1, 0)
own = os.pidfd_open(os.getpid())
child = os.fork()
if child == 0: os._exit(0)
dead = os.pidfd_open(child)
os.waitpid(child, 0)
net = os.open('/proc/self/ns/net', os.O_RDONLY)
",
    );
    let Some((mut guest, mut restored)) = trip else { return };
    let (table, collector) = guest.capture().unwrap();
    let dead = collector.files.iter().position(|it| it.kind == FileKind::Pid(0, false)).unwrap();
    let fd = table.descriptors.iter().find(|it| it.file == dead as u32).unwrap().fd;
    let signal = restored.hand.call(libc::SYS_pidfd_send_signal, [fd as u64, 0, 0, 0]);
    assert_eq!(signal.unwrap_err().errno(), Some(Errno::ESRCH));
}

#[test]
fn epoll_keeps_what_it_watches() {
    let trip = round_trip(
        "
r, w = os.pipe()
e = libc.eventfd(1, 0)
outer, inner = select.epoll(), select.epoll()
inner.register(r, select.EPOLLIN | select.EPOLLET)
copy = os.dup(e)
inner.register(copy, select.EPOLLIN | select.EPOLLONESHOT)
inner.poll(0)
os.close(copy)
again = os.dup(r)
outer.register(inner.fileno(), select.EPOLLIN)
outer.register(0, select.EPOLLIN)
os.dup2(r, 300)
outer.register(300, select.EPOLLIN | select.EPOLLEXCLUSIVE)
",
    );
    let Some((mut guest, _)) = trip else { return };
    let (_, collector) = guest.capture().unwrap();
    let count = |it: &OpenFile| match &it.kind {
        FileKind::Epoll(targets) => targets.len(),
        _ => 0,
    };
    assert_eq!(collector.files.iter().map(count).sum::<usize>(), 5);
}

#[test]
fn what_is_watched_and_open_nowhere_is_refused() {
    let guest = Guest::run(
        "
r, w = os.pipe()
e = select.epoll()
e.register(r, select.EPOLLIN)
if os.fork() == 0:
    stay()
os.close(r)
",
    );
    let Some(mut guest) = guest else { return };
    let said = guest.capture().unwrap_err().to_string();
    let status = std::fs::read_dir(format!("/proc/{}/task/{0}", guest.pid())).is_ok();
    assert!(status && (said.contains("outside") || said.contains("no process has open")), "{said}");
}

#[test]
fn inotify_finds_its_files_again() {
    let trip = round_trip(
        "
i = libc.inotify_init1(0x800)
os.mkdir('sub'); open('sub/file', 'w').close()
for name in (b'.', b'sub', b'sub/file', b'/etc/passwd'):
    assert libc.inotify_add_watch(i, name, 0x2 | 0x100) > 0
libc.inotify_rm_watch(i, 2)
os.read(i, 100)
",
    );
    let Some((mut guest, mut restored)) = trip else { return };
    let (table, collector) = guest.capture().unwrap();
    let place =
        |it: &OpenFile| matches!(&it.kind, FileKind::Inotify(watches, _) if watches.len() == 3);
    let file = collector.files.iter().position(place).unwrap();
    let fd = table.descriptors.iter().find(|it| it.file == file as u32).unwrap().fd;
    // It tells of what is done now, under the old number, and of nothing that was done for it.
    std::fs::write(guest.directory.join("sub/file"), "x").unwrap();
    let (count, bytes) =
        restored.hand.call_with(libc::SYS_read, &[0; 256], |at| [fd as u64, at, 256]).unwrap();
    assert_eq!((bytes[0], bytes[4]), (3, 2), "{:?}", &bytes[..count as usize]);
    let said = guest.capture().unwrap_err().to_string();
    assert!(said.contains("try again in a moment"), "{said}");
}

#[test]
fn locks_are_taken_again() {
    let trip = round_trip(
        "
a = os.open('a', os.O_RDWR | os.O_CREAT)
b = os.open('a', os.O_RDWR)
fcntl.flock(a, fcntl.LOCK_EX)
c = os.open('c', os.O_RDWR | os.O_CREAT)
fcntl.lockf(c, fcntl.LOCK_EX, 10, 5)
d = os.open('d', os.O_RDWR | os.O_CREAT)
fcntl.fcntl(d, 37, struct.pack('hhiqqii', 0, 0, 0, 1, 2, 0, 0))
",
    );
    let Some((_, mut restored)) = trip else { return };
    let locks = restored.capture().1.files.into_iter().flat_map(|it| it.locks).count();
    assert_eq!(locks, 3);
}

#[test]
fn what_cannot_be_saved_is_named() {
    let refused = [
        ("u = libc.syscall(323, 1)", "userfaultfd"),
        (
            "p = os.open('/proc/self/status', 0)\nchild = os.fork()\nif child == 0: stay()\n\
          f = os.open('/proc/%d/status' % child, 0)\nos.kill(child, 9)\nos.waitpid(child, 0)",
            "gone with its process",
        ),
        ("f = os.open('l', os.O_RDWR | os.O_CREAT)\nfcntl.fcntl(f, 1024, 1)", "a lease on a file"),
        ("f = os.open('/dev/ptmx', os.O_RDWR)", "a terminal of the host"),
    ];
    for (program, what) in refused {
        let Some(mut guest) = Guest::run(program) else { return };
        match guest.capture() {
            Ok(_) if what == "userfaultfd" => println!("skipped: no userfaultfd"),
            Ok(_) => panic!("{what} was saved"),
            Err(error) => assert!(error.to_string().contains(what), "{error}"),
        }
    }
}

#[test]
fn streams_of_the_caller_are_known_again() {
    let Some(mut guest) = Guest::run("os.dup2(1, 40)\nx = os.open('/proc/self/fd/1', os.O_WRONLY)")
    else {
        return;
    };
    let (table, collector) = guest.capture().unwrap();
    let kind = |fd| {
        let descriptor = table.descriptors.iter().find(|it| it.fd == fd).unwrap();
        collector.files[descriptor.file as usize].kind.clone()
    };
    let stream = |stream, reopened| FileKind::Stream { stream, file: None, reopened };
    assert_eq!(
        (kind(0), kind(1), kind(40)),
        (stream(0, false), stream(1, false), stream(1, false))
    );
    assert_eq!(kind(3), stream(1, true));
    assert!(matches!(kind(2), FileKind::Path { path, .. } if *path == *b"/dev/null"));
    let mut rest = String::new();
    drop(collector);
    guest.child.kill().unwrap();
    guest.child.wait().unwrap();
    guest.streams = Streams::default();
    guest._output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn what_many_tables_share_is_kept_once() {
    let program = "
many = [libc.eventfd(0, 0) for _ in range(300)]
same = [os.open('/dev/null', os.O_RDONLY) for _ in range(300)]
";
    let Some(mut guest) = Guest::run(program) else { return };
    let pid = guest.pid();
    let mut collector = Collector::default();
    let mut subject = Subject::new(pid, pid, &mut guest.borrowed.as_mut().unwrap().hand);
    let first = capture_table(&mut subject, &guest.streams, &mut collector).unwrap();
    let count = collector.files.len();
    assert!(count > 600);
    for _ in 0..10 {
        assert_eq!(capture_table(&mut subject, &guest.streams, &mut collector).unwrap(), first);
    }
    assert_eq!(collector.files.len(), count);
}
