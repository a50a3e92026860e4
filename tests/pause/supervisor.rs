//! A supervisor whose kernel does what it is told over a socket, one line a command.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use sandbox::config::{self, Host, Options, Without};
use sandbox::launch::{Event, Launch, Plan};
use sandbox::notify::{self, Engine, Listener};
use sandbox::sentry::{Kernel, KernelArgs, KernelError, Time};
use sandbox::sys::process;
use sandbox::timekeeping::Namespace;

/// Set: this process is a supervisor, and here its orders come from.
pub(crate) const CONTROL: &str = "PAUSE_TEST_CONTROL";
/// Set: without WAIT_KILLABLE_RECV.
pub(crate) const INTERRUPTIBLE: &str = "PAUSE_TEST_INTERRUPTIBLE";

/// Set: with a clock that runs twice as fast.
pub(crate) const OWN_CLOCK: &str = "PAUSE_TEST_OWN_CLOCK";

/// Runs the program that the arguments name and exits with its status.
pub(crate) fn main() -> ! {
    let blocked = SigSet::from_iter([Signal::SIGCHLD]);
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).expect("block SIGCHLD");
    let socket = UnixStream::connect(std::env::var_os(CONTROL).unwrap()).expect("connect");
    let mut options = Options { argv: std::env::args_os().skip(1).collect(), ..Options::default() };
    if std::env::var_os(INTERRUPTIBLE).is_some() {
        options.without = Without::WAIT_KILLABLE;
    }
    if std::env::var_os(OWN_CLOCK).is_some() {
        options.time = vec!["rate=2".into()];
    }
    let spec = config::resolve(&options, &Host::current()).unwrap_or_else(|it| panic!("{it}"));
    let time = Time::new(spec.time, Namespace::starting_now(), false);
    let plan = Plan::new(&spec, &[], None, before, &time, None).unwrap_or_else(|it| panic!("{it}"));
    let launch = Launch::begin(&spec, &plan).unwrap_or_else(|it| panic!("{it}"));
    let filter = notify::filter::generate(&Kernel::rules(spec.features)).expect("a filter");
    launch.pass_filter(&filter).unwrap_or_else(|it| panic!("{it}"));
    let mut behind = launch.finish().unwrap_or_else(|it| panic!("{it}"));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kernel = Kernel::new(KernelArgs {
        features: spec.features,
        init: behind.take_init(),
        init_pid: behind.init_pid(),
        container: spec.container.clone(),
        banner: String::from("test"),
        announce: false,
        time,
    })
    .unwrap();
    let options = notify::Options {
        wait_killable: plan.wait_killable(),
        sync_wake_up: true,
        process_vm: true,
    };
    let listener = Listener::new(behind.take_listener().expect("a listener"), options);
    let engine =
        Engine::start(listener, Arc::clone(&kernel), runtime.handle().clone()).expect("an engine");
    kernel.set_gate(engine.gate());
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    behind.start(false).expect("start");
    loop {
        let mut fds = [PollFd::new(behind.socket(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).expect("poll");
        match behind.event() {
            Ok((Event::Started, program)) => {
                let [program, ..] = program;
                kernel.start(program).expect("start once");
                let (kernel, socket) = (Arc::clone(&kernel), socket.try_clone().unwrap());
                std::thread::spawn(move || obey(&kernel, socket));
            }
            Ok((Event::Ended(end), _)) => {
                behind.wait();
                std::process::exit(process::exit_status(end.status));
            }
            Ok((Event::Stopped(_), _)) => {}
            Ok((event, _)) => eprintln!("unexpected: {event:?}"),
            // Init was killed, and with it every guest.
            Err(_) => {
                behind.wait();
                std::process::exit(128 + libc::SIGKILL);
            }
        }
    }
}

fn obey(kernel: &Arc<Kernel>, mut socket: UnixStream) {
    let lines = BufReader::new(socket.try_clone().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<i32>().expect("a number");
        let done: Result<String, KernelError> = match words[0] {
            "pause" => kernel.pause().map(|tasks| tasks.to_string()),
            "resume" => kernel.unpause().map(|()| String::new()),
            "paused" => Ok(kernel.is_paused().to_string()),
            "census" => kernel.census().map(|all| serde_json::to_string(&all).unwrap()),
            "signal" => kernel.signal_task(number(1), number(2)).map(|()| String::new()),
            "signal-all" => kernel.signal_all(number(1)).map(|()| String::new()),
            "signal-container" => {
                kernel.signal_container(words[1], number(2)).map(|()| String::new())
            }
            "kill" => kernel.kill(libc::SIGKILL).map(|()| String::new()),
            other => panic!("unknown command {other}"),
        };
        let text = match done {
            Ok(text) => format!("ok {text}\n"),
            Err(error) => format!("error {error}\n"),
        };
        if socket.write_all(text.as_bytes()).is_err() {
            break;
        }
    }
}
