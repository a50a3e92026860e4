//! Namespaces, mounts and rights.

use nix::errno::Errno;

use super::super::{Container, Host, classify};
use super::{Finding, Group, Subject, said, since};
use crate::sys::probe::{Kind, Tried};

/// Appends this group's findings.
pub(super) fn add(host: &Host, findings: &mut Vec<Finding>) {
    findings.push(user_namespaces(host));
    findings.push(id_maps(host));
    findings.extend(host.kinds.iter().map(|(kind, tried)| namespace(host, *kind, *tried)));
    findings.push(
        required("loopback", "servers and clients inside the sandbox")
            .tried(host.walls.loopback, || cause(host)),
    );
    mounts(host, findings);
    findings.push(
        required("no-new-privs", "setuid programs that stay powerless, the filter of a user")
            .tried(host.notify.no_new_privs, || {
                "start it without the filter that refuses prctl(PR_SET_NO_NEW_PRIVS)".into()
            }),
    );
    findings.push(landlock(host));
}

fn required(name: &'static str, needed_for: &'static str) -> Subject {
    Subject::required(Group::Walls, name, needed_for)
}

fn optional(name: &'static str, needed_for: &'static str, fallback: &'static str) -> Subject {
    Subject::optional(Group::Walls, name, needed_for, fallback)
}

/// Remedy for what is refused inside the namespaces.
fn cause(host: &Host) -> String {
    classify(&host.refusal).remedy()
}

fn user_namespaces(host: &Host) -> Finding {
    let subject =
        required("user-namespaces", "every other wall, for an ordinary user and for root");
    if host.walls.user.works() {
        return match host.refusal.max_user_namespaces {
            Some(limit) => subject.ok(format!("works, at most {limit}")),
            None => subject.ok("works"),
        };
    }
    let cause = classify(&host.refusal);
    let said = match host.walls.user {
        Tried::NotReached => "the process that tried it was killed".to_owned(),
        tried => said(tried),
    };
    subject.missing(format!("{said}: {}", cause.what()), cause.remedy())
}

fn id_maps(host: &Host) -> Finding {
    let subject = required("id-maps", "the guest's user and group ids");
    let walls = &host.walls;
    let steps = [walls.setgroups, walls.uid_map, walls.gid_map];
    let Some(worst) = steps.into_iter().find(|tried| !tried.works()) else {
        return subject.ok("the caller's ids can be mapped");
    };
    let cause = classify(&host.refusal);
    let found = match worst {
        Tried::Refused(_) => format!("{}: {}", said(worst), cause.what()),
        _ => said(worst),
    };
    subject.missing(found, cause.remedy())
}

fn namespace(host: &Host, kind: Kind, tried: Tried) -> Finding {
    let (name, needed_for, option) = match kind {
        Kind::Pid => ("pid-namespace", "guests that see and signal only each other", "PID_NS"),
        Kind::Mount => ("mount-namespace", "the guest's own view of files", "NAMESPACES"),
        Kind::Net => ("net-namespace", "a guest without the host's network", "NET_NS"),
        Kind::Ipc => ("ipc-namespace", "shared memory and queues of the guest's own", "IPC_NS"),
        Kind::Uts => ("uts-namespace", "a host name of the guest's own", "UTS_NS"),
        Kind::Cgroup => ("cgroup-namespace", "hiding the host's control groups", "CGROUPS"),
        Kind::Time => ("time-namespace", "clocks that a restored guest continues", "TIME_NS"),
    };
    let subject = match (kind, tried.errno()) {
        // A kernel without them is done without; what something else refuses is not (launch::init).
        (Kind::Time, None | Some(Errno::EINVAL)) => optional(
            name,
            needed_for,
            "guests share the host's monotonic clock, which they can read and not set",
        ),
        _ => required(name, needed_for),
    };
    subject.tried(tried, || match tried.errno() {
        // Unknown flags are EINVAL (unshare(2)).
        Some(Errno::EINVAL) => format!("boot a kernel built with CONFIG_{option}=y"),
        _ => cause(host),
    })
}

fn mounts(host: &Host, findings: &mut Vec<Finding>) {
    let walls = &host.walls;
    findings.push(
        required("private-mounts", "mounts that the host never sees")
            .tried(walls.private, || cause(host)),
    );
    findings.push(
        required("open-tree", "showing the host's files inside")
            .tried(either(walls.open_tree, host.open_tree), || since(host, (5, 2))),
    );
    findings.push(
        required("mount-setattr", "making whole trees of files read-only at once")
            .tried(either(walls.mount_setattr, host.mount_setattr), || since(host, (5, 12))),
    );
    findings.push(procfs(host));
    let sysfs = "a /sys that shows the guest's network and nobody else's";
    findings.push(
        optional("sysfs", sysfs, "guests see the host's /sys, read-only")
            .tried(walls.sysfs, || unmask(host, "/sys")),
    );
    findings.push(
        required("devpts", "terminals of the guest's own").tried(walls.devpts, || cause(host)),
    );
    findings.push(
        required("tmpfs", "a private /tmp, hidden directories").tried(walls.tmpfs, || cause(host)),
    );
    findings.push(
        optional(
            "mqueue",
            "POSIX message queues as files in /dev/mqueue",
            "guests have no /dev/mqueue; mq_open works without it",
        )
        .tried(walls.mqueue, || "boot a kernel built with CONFIG_POSIX_MQUEUE=y".into()),
    );
    findings.push(
        optional(
            "overlayfs",
            "writing into a layer that can be inspected, kept or thrown away",
            "runs with --overlay copy what they use, start later, and --overlay / is refused",
        )
        .tried(walls.overlay, || match walls.overlay.errno() {
            Some(Errno::ENODEV) => "load it with `sudo modprobe overlay`".into(),
            Some(Errno::EPERM) => since(host, (5, 11)),
            _ => cause(host),
        }),
    );
}

/// What was really done if it came to that, otherwise whether the call is known.
fn either(done: Tried, known: Tried) -> Tried {
    if done == Tried::NotReached { known } else { done }
}

fn procfs(host: &Host) -> Finding {
    let subject = required("procfs", "a /proc that shows only guests");
    let tried = host.walls.proc;
    if tried == Tried::Refused(Errno::EPERM) && !host.masked_proc.is_empty() {
        let found = format!(
            "{}: parts of /proc are covered ({})",
            said(tried),
            host.masked_proc.join(", ")
        );
        return subject.missing(found, unmask(host, "/proc"));
    }
    subject.tried(tried, || cause(host))
}

/// How to have a new proc or sysfs where a part of the present one is covered or read-only.
fn unmask(host: &Host, place: &str) -> String {
    match (&host.refusal.container, host.walls.private.works()) {
        (_, false) => cause(host),
        (Some(Container::Docker), true) => {
            "start the container with `docker run --security-opt systempaths=unconfined ...`".into()
        }
        (Some(Container::Podman), true) => {
            "start the container with `podman run --security-opt unmask=ALL ...`".into()
        }
        (Some(Container::Kubernetes), true) => {
            "give the pod `hostUsers: false` and the container's securityContext \
             `procMount: Unmasked`"
                .into()
        }
        (Some(container), true) => container.remedy(),
        (None, true) if !host.refusal.initial_namespace => {
            format!("run it outside of the sandbox (bwrap, unshare) that covers parts of {place}")
        }
        (None, true) => format!("unmount what covers parts of {place}"),
    }
}

fn landlock(host: &Host) -> Finding {
    let subject = optional(
        "landlock",
        "a second wall around files, behind the mounts",
        "the mounts alone decide, as they do anyway",
    );
    match host.landlock {
        Ok(abi @ ..6) => subject
            .ok(format!("ABI {abi}; --walls landlock, for runs without namespaces, takes ABI 6")),
        Ok(abi) => subject.ok(format!(
            "ABI {abi}; --walls landlock runs without namespaces, behind weaker walls"
        )),
        Err(Errno::EOPNOTSUPP) => subject.missing(
            "built in, but switched off at boot",
            "add landlock to the list `lsm=` on the kernel's command line",
        ),
        Err(errno) => {
            let remedy = if host.release.version < (5, 13) {
                "boot Linux 5.13 or later".to_owned()
            } else {
                "boot a kernel built with CONFIG_SECURITY_LANDLOCK=y".to_owned()
            };
            subject.missing(said(Tried::Refused(errno)), remedy)
        }
    }
}
