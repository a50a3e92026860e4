//! Sockets of a native child in namespaces of its own, taken, and made again in others.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::*;
use crate::save::hand::{Borrowed, Hand, find_instruction};
use crate::save::restore::courier::{self, Courier};
use crate::save::restore::maker::Maker;
use crate::save::restore::{seed, sockets as restore};
use crate::save::sockets::{TcpState, Unix};
use crate::save::state::{OpenFile, Sandbox};
use crate::sys::ptrace::{self, Stop, Stopped};

#[cfg(test)]
mod inet;
#[cfg(test)]
mod local;

const PRELUDE: &str = "
import array, fcntl, os, select, socket, struct, sys
from socket import *
s = socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 0x49)); s.close()
def ready(*all):
    print(*[it.fileno() for it in all], flush=True)
    sys.stdin.readline()
def pass_rights(s, data, *fds):
    s.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, array.array('i', fds))])
";

/// A python program in new user and network namespaces.
struct Guest {
    child: Child,
    output: BufReader<ChildStdout>,
    fds: Vec<i32>,
}

impl Guest {
    /// Starts it and waits until it is ready.
    fn start(program: &str) -> Guest {
        let mut command = Command::new("unshare");
        command.args(["-Urn", "/usr/bin/python3", "-c", &format!("{PRELUDE}{program}")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let fds = line.split_whitespace().map(|fd| fd.parse().unwrap()).collect();
        Guest { child, output, fds }
    }

    /// Stops it and takes its sockets, in the order in which it named them, then those passed.
    fn save(&self) -> Result<Vec<OpenFile>, SaveError> {
        let pid = self.child.id() as i32;
        let (stopped, instruction) = stop(pid);
        let (mut borrowed, _) = Borrowed::begin(stopped, instruction).unwrap();
        let mut collector = Collector::default();
        let result = self.gather(&mut borrowed.hand, &mut collector);
        borrowed.end().unwrap().detach().unwrap();
        result.map(|()| collector.files)
    }

    fn gather(&self, hand: &mut Hand, collector: &mut Collector) -> Result<(), SaveError> {
        let pid = self.child.id() as i32;
        let mut subject = Subject::new(pid, pid, hand);
        for fd in &self.fds {
            let copy = socket::copy_descriptor(pid, *fd).unwrap();
            let socket = capture(&mut subject, "the guest".into(), copy, collector)?;
            collector.files.push(open(socket));
        }
        let mut next = 0;
        while next < collector.passed.len() {
            let fd = collector.passed[next].fd.try_clone().unwrap();
            let known = collector.files.iter().position(|file| is(file, fd.as_fd()));
            let index = match (known, File::from(fd.try_clone().unwrap()).metadata().unwrap()) {
                (Some(index), _) => index,
                (None, about) if is_socket(&about) => {
                    let socket = capture(&mut subject, "a message".into(), fd, collector)?;
                    collector.files.push(open(socket));
                    collector.files.len() - 1
                }
                _ => {
                    collector
                        .files
                        .push(OpenFile { kind: FileKind::Event(0, false), ..open(nothing()) });
                    collector.files.len() - 1
                }
            };
            collector.passed[next].file = Some(index as u32);
            next += 1;
        }
        settle(collector)
    }

    /// Lets it go on; it must end well.
    fn finish(mut self) {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.output, &mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn is_socket(about: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    about.file_type().is_socket()
}

fn is(file: &OpenFile, fd: BorrowedFd<'_>) -> bool {
    let FileKind::Socket(socket) = &file.kind else { return false };
    files::identity(fd).unwrap().1 == socket.id
}

fn nothing() -> Socket {
    Socket {
        id: 0,
        family: 0,
        kind: 0,
        protocol: 0,
        options: Vec::new(),
        filter: ByteBuf::new(),
        shutdown: 0,
        detail: Detail::Netlink(netlink::none()),
    }
}

fn open(socket: Socket) -> OpenFile {
    let kind = FileKind::Socket(Box::new(socket));
    OpenFile { flags: 2, position: 0, owner: None, locks: Vec::new(), kind }
}

/// Stops a process; a `syscall` instruction of it.
fn stop(pid: i32) -> (Stopped, u64) {
    let mut running = ptrace::seize(pid).unwrap();
    let stopped = loop {
        running.interrupt().unwrap();
        let stopped = ptrace::wait_for(pid).unwrap();
        if stopped.why() == Stop::Asked {
            break stopped;
        }
        running = stopped.go_on().unwrap();
    };
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let range = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let address = |it| u64::from_str_radix(it, 16).ok();
        rest.contains('x').then_some((address(start)?, address(end)?, line.contains("[vdso]")))
    };
    let executable: Vec<_> = maps.lines().filter_map(range).collect();
    (stopped, find_instruction(pid, &executable).unwrap())
}

/// A maker in new user and network namespaces.
struct Planted {
    child: Child,
    hand: Hand,
    courier: Courier,
}

fn plant() -> Planted {
    use std::os::unix::fs::PermissionsExt;
    let (courier, theirs) = courier::pair(0).unwrap();
    let area = seed::place(&[]).unwrap();
    let path = std::env::temp_dir().join(format!(
        "seed-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, seed::file(area)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    // What this process had open for writing, a child that another test starts just then has open, too, until it
    // executes its own program (ETXTBSY in execve(2)).
    let program = format!(
        "{PRELUDE}
while True:
    try: os.execv(sys.argv[1], sys.argv[1:])
    except OSError as error:
        if error.errno != 26: raise
"
    );
    let mut command = Command::new("unshare");
    command.args(["-Urn", "/usr/bin/python3", "-c", &program]).arg(&path);
    let child = command.stdin(theirs).spawn().unwrap();
    let pid = child.id() as i32;
    let exe = format!("/proc/{pid}/exe");
    while std::fs::read_link(&exe).unwrap() != path {
        std::thread::yield_now();
    }
    std::fs::remove_file(&path).unwrap();
    ptrace::seize(pid).unwrap().interrupt().unwrap();
    let stopped = ptrace::wait_for(pid).unwrap();
    Planted { child, hand: Hand::new(stopped, area), courier }
}

fn sandbox(files: Vec<OpenFile>) -> Sandbox {
    Sandbox { files, ..crate::save::testing::empty() }
}

/// Makes the sockets again and gives them to `check`. The maker is there until the end: so are its
/// namespaces.
fn restored(files: Vec<OpenFile>, check: impl FnOnce(Vec<OwnedFd>)) {
    let mut planted = plant();
    let pid = planted.child.id();
    let count = |pid| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = count(pid);
    let sandbox = sandbox(files);
    let gate = crate::notify::Gate::default();
    let mut maker = Maker {
        hand: &mut planted.hand,
        courier: &planted.courier,
        sandbox: &sandbox,
        files: sandbox.files.iter().map(|_| None).collect(),
        shared: Vec::new(),
        sinks: std::collections::HashMap::new(),
        finishes: Vec::new(),
        hands: Default::default(),
        gate: &gate,
        devices: Vec::new(),
        kernel: None,
    };
    for (index, file) in sandbox.files.iter().enumerate() {
        if matches!(file.kind, FileKind::Event(..)) {
            maker.files[index] = Some(File::open("/dev/null").unwrap().into());
        }
    }
    let made = restore::make_sockets(&mut maker);
    made.unwrap();
    for finish in std::mem::take(&mut maker.finishes) {
        finish(&mut maker).unwrap();
    }
    assert_eq!(count(pid), before, "descriptors are left open in the maker");
    check(maker.files.into_iter().map(|fd| fd.unwrap()).collect());
    planted.child.kill().unwrap();
    planted.child.wait().unwrap();
}

/// The state of the `index`th unix socket.
fn unix_of(files: &[OpenFile], index: usize) -> &Unix {
    match &files[index].kind {
        FileKind::Socket(socket) => match &socket.detail {
            Detail::Unix(unix) => unix,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn tcp_of(files: &[OpenFile], index: usize) -> &TcpState {
    match &files[index].kind {
        FileKind::Socket(socket) => match &socket.detail {
            Detail::Tcp(tcp) => &tcp.state,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}
