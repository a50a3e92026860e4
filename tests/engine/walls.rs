//! Facts about filters: guests' own, entry points of other architectures, what must not pass by.

use std::sync::Arc;

use nix::errno::Errno;
use sandbox::notify::{Dispatch, Outcome, Received, Trapped};
use sandbox::sentry::{Features, Kernel, RecordedFilter};

use crate::common::{Workspace, attack::raw, guest, have};
use crate::stage::{FULL, OWN, Stage, now};
use crate::storms::kernel;

/// The kernel, but calls from OWN on are the test's.
struct Beside<F> {
    kernel: Arc<Kernel>,
    own: F,
}

impl<F: Fn(&Kernel, &Trapped) -> Outcome + Send + Sync + 'static> Dispatch for Beside<F> {
    fn dispatch(self: &Arc<Self>, trapped: &Trapped) -> Outcome {
        match trapped.received().number {
            OWN.. => (self.own)(&self.kernel, trapped),
            _ => self.kernel.dispatch(trapped),
        }
    }

    fn undelivered(&self, received: &Received, result: Result<i64, Errno>) {
        self.kernel.undelivered(received, result);
    }
}

fn run(mode: &[&str], own: fn(&Kernel, &Trapped) -> Outcome) -> Arc<Kernel> {
    let kernel = kernel();
    let dispatch = Arc::new(Beside { kernel: Arc::clone(&kernel), own });
    let rules = Kernel::rules(Features::ALWAYS);
    let argv = [&["filters"], mode].concat();
    assert_eq!(Stage::with_rules(rules, FULL, &argv, dispatch).finish(), 0);
    kernel
}

/// BPF_RET | BPF_K of SECCOMP_RET_ALLOW and, before it, a load of the number.
const PROGRAM: [u8; 16] = [0x20, 0, 0, 0, 0, 0, 0, 0, 0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];

#[test]
fn plain_filters_of_guests_are_loaded_and_recorded_in_order() {
    run(&["plain"], |kernel, trapped| {
        let task = kernel.tasks().get(trapped.received().tid).unwrap();
        let log = 2;
        let recorded = |flags| RecordedFilter { flags, program: PROGRAM.to_vec() };
        assert_eq!(task.filters(), [recorded(0), recorded(log), recorded(0)]);
        let ended: Vec<_> = kernel.tasks().alive().iter().map(|task| task.filters()).collect();
        assert_eq!(ended, [task.filters()]);
        now(0)
    });
}

#[test]
fn a_second_listener_is_refused_and_the_refusal_explained() {
    let kernel = run(&["listener"], |_, _| now(0));
    let refusals = kernel.refusals().all();
    let listener = refusals.iter().find(|refusal| refusal.what.contains("listener")).unwrap();
    assert_eq!((listener.count, listener.comm.as_deref()), (1, Some("filters")));
    assert!(listener.to_string().contains("outside the sandbox"), "{listener}");
}

#[test]
fn tasks_that_ended_are_forgotten() {
    let kernel = run(&["forks", "1000"], |_, _| now(0));
    assert!(kernel.tasks().kept() <= 128, "{} tasks are kept", kernel.tasks().kept());
    assert_eq!(kernel.tasks().alive().len(), 0);
}

#[test]
fn io_uring_is_absent_and_said_to_be() {
    let workspace = Workspace::new("io-uring");
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    for call in calls {
        workspace.inside(&raw(&format!("{call} 8 z:256"))).success().expect_out("ENOSYS\n");
    }
    if have("dmesg") {
        let program = guest("raw");
        let call = format!("{} {} 8 z:256", program.display(), libc::SYS_io_uring_setup);
        let outcome = workspace.inside_sh(&format!("{call}; dmesg --syslog"));
        outcome.success().out_has("unimplemented: io_uring_setup by raw");
    }
}

#[test]
fn entry_points_of_other_architectures_end_the_thread() {
    let workspace = Workspace::new("foreign");
    let program = guest("filters");
    let program = program.to_str().unwrap();
    for entry in ["int80", "x32"] {
        let outcome = workspace.inside(&[program, entry]);
        // SIGSYS, as the kernel ends who makes a bad system call.
        outcome.expect_status(128 + 31).err_has("only 64-bit programs run inside");
    }
}

#[test]
fn high_bits_do_not_carry_a_refused_request_past_the_filter() {
    let workspace = Workspace::new("high-bits");
    for request in ["0x5412", "0x100005412", "0xffffffff00005412", "0x541c", "0xdead0000541c"] {
        let outcome = workspace.inside(&raw(&format!("{} 0 {request} z:8", libc::SYS_ioctl)));
        outcome.success().expect_out("EPERM\n");
    }
}
