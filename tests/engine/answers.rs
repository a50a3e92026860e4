//! Answering: values, errors, continuing, and what happens when a handler does not answer.

use std::io::Write;
use std::sync::{Mutex, OnceLock};

use nix::errno::Errno;
use sandbox::notify::{Answer, Outcome, Trapped};

use crate::common::wait_for;
use crate::stage::{FULL, OWN, Served, Stage, now, unexpected};

fn serve(trapped: &Trapped) -> Outcome {
    let received = trapped.received();
    match received.number - OWN {
        0 => now(received.args[0] as i64),
        1 => Outcome::Now(Answer::Fail(Errno::from_raw(received.args[0] as i32))),
        2 => Outcome::Now(Answer::Continue),
        3 => panic!("a handler's bug"),
        4 => Outcome::Later(Box::pin(async {
            tokio::task::yield_now().await;
            panic!("a parked handler's bug")
        })),
        _ => unexpected(trapped),
    }
}

#[test]
fn values_errors_and_continue_arrive_and_a_panic_of_a_handler_fails_one_call_only() {
    let log = Log::install();
    let stage = Stage::start(FULL, &["traps", "answers"], Served::by(serve));
    let tid = format!("tid: {}", stage.pid());
    assert_eq!(stage.finish(), 0);
    let dropped = || {
        let text = log.lock().unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().filter(|line| line.contains("unanswered") && line.contains(&tid)).count()
    };
    wait_for("both calls without an answer in the log", || dropped() == 2);
}

#[test]
fn a_call_whose_runtime_has_ended_fails_and_does_not_hang() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    runtime.shutdown_background();
    let serve = |_: &Trapped| Outcome::Later(Box::pin(std::future::pending()));
    let stage = Stage::start_in(handle, FULL, &["traps", "own", "0", "1"], Served::by(serve));
    // own(0) returned -1.
    assert_eq!(stage.finish(), 255);
}

/// What the library logs, for this test binary.
struct Log;

impl Log {
    fn install() -> &'static Mutex<Vec<u8>> {
        static TEXT: OnceLock<Mutex<Vec<u8>>> = OnceLock::new();
        TEXT.get_or_init(|| {
            let subscriber =
                tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).finish();
            tracing::subscriber::set_global_default(subscriber).expect("the only subscriber");
            Mutex::default()
        })
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Log::install().lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
