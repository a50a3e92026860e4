//! What the supervisor does to guests: memory, descriptors, ends.

use super::super::Host;
use super::{Finding, Group, Subject, said, since};
use crate::sys::probe::Tried;

/// Appends this group's findings.
pub(super) fn add(host: &Host, findings: &mut Vec<Finding>) {
    findings.push(memory(host));
    findings.push(
        optional(
            "pidfd-open",
            "remembering the filters that guests load themselves",
            "they hold and are forgotten: saving such a guest is refused",
        )
        .tried(host.pidfd_open, || since(host, (5, 3))),
    );
    findings.push(
        optional(
            "pidfd-getfd",
            "acting on a guest's own socket or file",
            "features that need it (network rules, saving) are refused",
        )
        .tried(host.notify.pidfd_getfd, || pidfd_getfd_remedy(host)),
    );
    findings.push(
        optional(
            "pidfd-thread",
            "hearing of the end of a single thread",
            "ends of threads are found in /proc when it matters",
        )
        .tried(host.pidfd_thread, || since(host, (6, 9))),
    );
    findings.push(
        optional(
            "clone3",
            "restoring processes under their old ids",
            "clone is used; restoring is refused",
        )
        .tried(host.clone3, || since(host, (5, 5))),
    );
    findings.push(
        optional(
            "close-range",
            "closing inherited descriptors in one call",
            "they are closed one by one",
        )
        .tried(host.close_range, || since(host, (5, 11))),
    );
    findings.push(ptrace_scope(host));
    findings.push(core_pattern(host));
}

fn optional(name: &'static str, needed_for: &'static str, fallback: &'static str) -> Subject {
    Subject::optional(Group::Processes, name, needed_for, fallback)
}

fn memory(host: &Host) -> Finding {
    let notify = &host.notify;
    let direct = [notify.vm_read, notify.vm_write].into_iter().find(|tried| !tried.works());
    let Some(worst) = direct else {
        return memory_subject(true).ok("process_vm_readv and process_vm_writev work");
    };
    if notify.proc_mem.works() {
        return memory_subject(true).limited(
            format!("process_vm_readv is {}, /proc/PID/mem works", said(worst)),
            memory_remedy(host, worst),
        );
    }
    memory_subject(false).missing(said(worst), memory_remedy(host, worst))
}

fn memory_subject(readable: bool) -> Subject {
    let needed_for = "reading paths and addresses that a trapped call points to";
    if readable {
        optional("guest-memory", needed_for, "/proc/PID/mem is read, at a higher cost per trap")
    } else {
        Subject::required(Group::Processes, "guest-memory", needed_for)
    }
}

fn memory_remedy(host: &Host, tried: Tried) -> String {
    use nix::errno::Errno;
    match (tried.errno(), &host.refusal.container) {
        (Some(Errno::ENOSYS), None) => {
            "boot a kernel built with CONFIG_CROSS_MEMORY_ATTACH=y".into()
        }
        (_, Some(container)) => container.remedy(),
        _ => "start it without the filter or security module that forbids it \
              (kernel.yama.ptrace_scope must be below 3)"
            .into(),
    }
}

fn pidfd_getfd_remedy(host: &Host) -> String {
    use super::super::Container;
    match &host.refusal.container {
        Some(Container::Docker) => {
            "start the container with `docker run --cap-add SYS_PTRACE ...`, which its seccomp \
             profile takes for a permission"
                .into()
        }
        _ => since(host, (5, 6)),
    }
}

fn ptrace_scope(host: &Host) -> Finding {
    let subject = optional(
        "ptrace-scope",
        "pausing, inspecting and saving guests",
        "nothing can look into a guest: trapped calls with paths and addresses are refused",
    );
    match host.ptrace_scope {
        None => subject.ok("no restriction (Yama is not active)"),
        // The supervisor is its guests' ancestor, which satisfies 1, and owns their user namespace
        // and so has CAP_SYS_PTRACE in it, which satisfies 2 (yama_ptrace_access_check).
        Some(scope @ 0..=2) => {
            subject.ok(format!("kernel.yama.ptrace_scope is {scope}, which allows it"))
        }
        Some(scope) => subject.missing(
            format!("kernel.yama.ptrace_scope is {scope}: nobody may trace anybody"),
            "set kernel.yama.ptrace_scope to 1 in /etc/sysctl.d/ and reboot (3 cannot be lowered)",
        ),
    }
}

fn core_pattern(host: &Host) -> Finding {
    let subject = optional(
        "core-pattern",
        "crashing guests whose memory stays inside the sandbox",
        "the host's handler is given the memory of crashing guests",
    );
    let pattern = host.core_pattern.as_deref().unwrap_or("").trim();
    // A pipe's program runs outside, in the first namespaces (core(5)).
    match pattern.strip_prefix('|') {
        Some(handler) => subject.limited(
            format!("cores are piped to {}", handler.split(' ').next().unwrap_or(handler)),
            "run `sudo sysctl -w kernel.core_pattern=core`, unless the handler is wanted",
        ),
        None => subject.ok(format!("cores are files ({pattern:?})")),
    }
}
