//! The processes of a test: a supervisor that is nothing but a relay, and a guest's init.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio, exit};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{posix_openpt, unlockpt};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, setsid, tcsetpgrp};

use sandbox::sys::terminal::{make_controlling, open_slave};
use sandbox::terminal::{Relay, Resume, Terminal, restore_now};

pub(crate) const ROLE: &str = "TERMINAL_RELAY_ROLE";
/// The script that the guest's program, a shell, runs.
pub(crate) const GUEST: &str = "TERMINAL_RELAY_GUEST";
/// A file to which the supervisor appends one line for each event.
pub(crate) const LOG: &str = "TERMINAL_RELAY_LOG";
/// How the supervisor dies when its guest stops, if it is to.
pub(crate) const CRASH: &str = "TERMINAL_RELAY_CRASH";
const CONTROL: &str = "TERMINAL_RELAY_CONTROL";
const FOREGROUND: &str = "TERMINAL_RELAY_FOREGROUND";

/// Runs the guest as the real supervisor does and exits with its status.
pub(crate) fn supervisor() -> ! {
    let mut signals = SigSet::empty();
    signals.extend([
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGTSTP,
        Signal::SIGCONT,
        Signal::SIGWINCH,
    ]);
    let former = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap();
    let blocked = signals;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).unwrap();

    let terminal = Terminal::of_standard_streams().expect("a standard stream is a terminal");
    let foreground = terminal.starts_in_foreground();
    let streams = terminal.streams();
    log(&format!("pid {}", getpid()));
    log(&format!("start {} {streams:?}", ground(foreground)));

    let master = posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    unlockpt(&master).unwrap();
    let slave = open_slave(master.as_fd()).unwrap();
    terminal.settings().apply(slave.as_fd()).unwrap();
    let relay = terminal.relay(OwnedFd::from(master)).unwrap();

    // Beside the log: the directory goes with the test, whatever becomes of this process.
    let place =
        Path::new(&std::env::var_os(LOG).unwrap()).with_file_name(format!("control-{}", getpid()));
    let listener = UnixListener::bind(&place).unwrap();
    let stream = |index: usize| match streams[index] {
        true => Stdio::from(slave.try_clone().unwrap()),
        false => Stdio::inherit(),
    };
    let mut init = Command::new(std::env::current_exe().unwrap());
    init.env(ROLE, "init").env(CONTROL, &place);
    init.env(FOREGROUND, if foreground { "yes" } else { "no" });
    init.stdin(stream(0)).stdout(stream(1)).stderr(stream(2));
    // A child inherits the mask; the guest is to have the user's.
    former.thread_set_mask().unwrap();
    let mut child = init.spawn().unwrap();
    blocked.thread_block().unwrap();
    drop((init, slave));
    let (mut control, _) = listener.accept().unwrap();
    std::fs::remove_file(&place).unwrap();
    // Not before: until now a signal could end this process.
    tell(&mut control, b'G', Resume { foreground });

    let (relay, status) = watch(relay, &signals, &mut control);
    child.wait().unwrap();
    if let Some(relay) = relay {
        log(&format!("finish {:?}", relay.finish().map_err(|error| error.raw_os_error())));
    }
    log(&format!("exit {status}"));
    exit(status)
}

/// The supervisor's main loop: until the guest's program ended, with its status.
fn watch(relay: Relay, signals: &SignalFd, control: &mut UnixStream) -> (Option<Relay>, i32) {
    let mut relay = Some(relay);
    loop {
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(relay.as_ref().map(|relay| PollFd::new(relay.notice(), PollFlags::POLLIN)));
        poll(&mut fds, PollTimeout::NONE).unwrap();
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();

        if ready.get(2) == Some(&true) {
            log("hangup");
            relay = None;
        }
        if ready[0] {
            let signal = signals.read_signal().unwrap().unwrap().ssi_signo as i32;
            match (Signal::try_from(signal).unwrap(), &mut relay) {
                (Signal::SIGWINCH, Some(relay)) => relay.resize(),
                (Signal::SIGCONT, Some(running)) => match running.continued() {
                    Ok(resume) => tell(control, b'P', resume),
                    Err(_) => {
                        log("hangup");
                        relay = None;
                    }
                },
                (Signal::SIGWINCH | Signal::SIGCONT | Signal::SIGHUP, _) => {}
                _ => control.write_all(&[b'K', signal as u8]).unwrap(),
            }
        }
        if ready[1] {
            let mut report = [0; 2];
            control.read_exact(&mut report).unwrap();
            if report[0] == b'E' {
                return (relay, report[1].into());
            }
            let signal = Signal::try_from(i32::from(report[1])).unwrap();
            log(&format!("stopped {signal}"));
            crash();
            match relay.as_mut().map(|relay| relay.suspend(signal)) {
                Some(Ok(resume)) => {
                    log(&format!("resume {}", ground(resume.foreground)));
                    tell(control, b'C', resume);
                }
                _ => {
                    log("hangup");
                    relay = None;
                    tell(control, b'C', Resume { foreground: false });
                }
            }
        }
    }
}

fn tell(control: &mut UnixStream, verb: u8, resume: Resume) {
    control.write_all(&[verb, resume.foreground.into()]).unwrap();
}

fn crash() {
    match std::env::var(CRASH).as_deref() {
        Ok("panic") => panic!("as ordered"),
        Ok("fatal") => {
            restore_now();
            exit(1)
        }
        _ => {}
    }
}

fn ground(foreground: bool) -> &'static str {
    if foreground { "foreground" } else { "background" }
}

fn log(line: &str) {
    let path = std::env::var_os(LOG).unwrap();
    let mut file: File = OpenOptions::new().append(true).create(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

/// The guest's init: leads the session of the guest's pty and runs the script as its program.
pub(crate) fn init() -> ! {
    let mut control = UnixStream::connect(std::env::var_os(CONTROL).unwrap()).unwrap();
    let streams =
        [io::stdin().as_fd().try_clone_to_owned(), io::stdout().as_fd().try_clone_to_owned()];
    let mut streams = streams.into_iter().chain([io::stderr().as_fd().try_clone_to_owned()]);
    let pty = streams.find_map(|fd| fd.ok().filter(|fd| fd.is_terminal())).unwrap();
    setsid().unwrap();
    make_controlling(pty.as_fd()).unwrap();

    control.read_exact(&mut [0; 2]).unwrap();
    // It waits, stopped, until it was put in its place.
    let script = std::env::var(GUEST).unwrap();
    let mut program = Command::new("sh");
    program.args(["-c", "kill -STOP $$; exec sh -c \"$0\"", &script]).process_group(0);
    let program = Pid::from_raw(program.spawn().unwrap().id() as i32);
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGCHLD, Signal::SIGTTOU, Signal::SIGHUP]);
    signals.thread_block().unwrap();
    let children = SignalFd::new(&signals).unwrap();
    waitpid(program, Some(WaitPidFlag::WUNTRACED)).unwrap();
    let place = |foreground: bool| {
        let group = if foreground { program } else { getpid() };
        match tcsetpgrp(&pty, group) {
            Ok(()) | Err(Errno::ENOTTY | Errno::EIO) => {}
            Err(error) => panic!("{error}"),
        }
    };
    place(std::env::var(FOREGROUND).unwrap() == "yes");
    killpg(program, Signal::SIGCONT).unwrap();

    loop {
        let mut fds = [
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        let ready = [0, 1].map(|index: usize| fds[index].any() == Some(true));
        if ready[0] {
            let signal = children.read_signal().unwrap().unwrap();
            if signal.ssi_signo == Signal::SIGHUP as u32 {
                // A terminal that hangs up tells its session leader, who has to tell the others
                // (`tty_signal_session_leader` in the kernel's tty_jobctrl.c).
                let _ = killpg(program, Signal::SIGHUP);
                let _ = killpg(program, Signal::SIGCONT);
            }
            report_ends_and_stops(program, &mut control);
        }
        if ready[1] {
            let mut order = [0; 2];
            if control.read_exact(&mut order).is_err() {
                let _ = killpg(program, Signal::SIGKILL);
                exit(0);
            }
            match order {
                [b'K', signal] => {
                    let _ = killpg(program, Signal::try_from(i32::from(signal)).unwrap());
                }
                [verb, foreground] => {
                    place(foreground == 1);
                    if verb == b'C' {
                        let _ = killpg(program, Signal::SIGCONT);
                    }
                }
            }
        }
    }
}

fn report_ends_and_stops(program: Pid, control: &mut UnixStream) {
    let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG;
    while let Ok(status) = waitpid(None, Some(flags)) {
        match status {
            WaitStatus::Stopped(pid, signal) if pid == program => {
                let _ = control.write_all(&[b'S', signal as u8]);
            }
            WaitStatus::Exited(pid, code) if pid == program => end(control, code),
            WaitStatus::Signaled(pid, signal, _) if pid == program => {
                end(control, 128 + signal as i32)
            }
            WaitStatus::StillAlive => return,
            _ => {}
        }
    }
}

fn end(control: &mut UnixStream, code: i32) -> ! {
    let _ = control.write_all(&[b'E', code as u8]);
    exit(0)
}
