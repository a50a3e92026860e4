//! Seccomp, its listener and what a listener can do.

use nix::errno::Errno;

use super::super::{Host, RefusalFacts, classify_listener};
use super::{Finding, Group, Subject, said, since};
use crate::sys::probe::{FilterFlag, Tried};

/// Appends this group's findings.
pub(super) fn add(host: &Host, findings: &mut Vec<Finding>) {
    findings.push(filters(host));
    findings.push(user_notify(host));
    findings.push(listener(host));
    findings.push(sizes(host));
    findings.push(
        optional(
            "wait-killable",
            "trapped calls that a signal does not cancel and repeat",
            "calls that must not run twice are guarded by the sentry, programs with many signals \
             run slower",
        )
        .tried(flag(host, FilterFlag::WaitKillable), || since(host, (5, 19))),
    );
    findings.push(
        optional(
            "sync-wake-up",
            "answering a trapped call in 6 microseconds instead of 48",
            "trapped calls cost eight times as much",
        )
        .tried(host.notify.sync_wake_up, || since(host, (6, 6))),
    );
    findings.push(
        required("addfd", "giving a guest a file that the sentry opened")
            .tried(host.notify.addfd, || since(host, (5, 9))),
    );
    findings.push(
        optional("addfd-send", "giving a file and the answer in one step", "two steps are taken")
            .tried(host.notify.addfd_send, || since(host, (5, 14))),
    );
    findings.push(hang_up(host));
}

fn required(name: &'static str, needed_for: &'static str) -> Subject {
    Subject::required(Group::Traps, name, needed_for)
}

fn optional(name: &'static str, needed_for: &'static str, fallback: &'static str) -> Subject {
    Subject::optional(Group::Traps, name, needed_for, fallback)
}

fn flag(host: &Host, wanted: FilterFlag) -> Tried {
    host.flags
        .iter()
        .find(|(flag, _)| *flag == wanted)
        .map_or(Tried::NotReached, |(_, tried)| *tried)
}

fn filters(host: &Host) -> Finding {
    let subject = required("seccomp-filter", "refusing dangerous calls");
    // TSYNC is the oldest flag: where it is unknown, so are filters by seccomp(2).
    let oldest = flag(host, FilterFlag::Tsync);
    if !oldest.works() {
        return subject.missing(said(oldest), refusal(host, oldest).1);
    }
    let known = host.flags.iter().filter(|(_, tried)| tried.works());
    let names: Vec<&str> = known.map(|(flag, _)| flag.name()).collect();
    let mut found = format!("flags {}", names.join(", "));
    if host.status.seccomp == 2 {
        found.push_str("; a filter already applies here");
    }
    if host.status.no_new_privs {
        found.push_str("; no_new_privs is already set");
    }
    subject.ok(found)
}

fn user_notify(host: &Host) -> Finding {
    required("seccomp-notify", "asking the sentry about a call").tried(host.user_notify, || {
        if host.release.version < (5, 0) || host.refusal.filtered {
            since(host, (5, 0))
        } else {
            "boot Linux 5.12 or later built with CONFIG_SECCOMP_FILTER=y".into()
        }
    })
}

fn listener(host: &Host) -> Finding {
    let subject = required("listener", "serving trapped calls");
    let (listener, served) = (host.notify.listener, host.notify.round_trip);
    if served.works() {
        return subject.ok("a trapped call was served from end to end");
    }
    if listener.works() {
        let found = match served {
            Tried::NotReached => "the process that served a trapped call was killed".to_owned(),
            Tried::Refused(Errno::ESRCH) => "the process that was to make it was killed".to_owned(),
            _ => format!("a trapped call was not served: {}", said(served)),
        };
        return subject.missing(found, since(host, (5, 12)));
    }
    let (what, remedy) = refusal(host, listener);
    let said = match listener {
        Tried::NotReached => "the process that tried it was killed".to_owned(),
        tried => said(tried),
    };
    subject.missing(format!("{said}: {what}"), remedy)
}

/// Why seccomp refused, and the remedy.
fn refusal(host: &Host, tried: Tried) -> (String, String) {
    let errno = tried.errno().unwrap_or(Errno::ENOSYS);
    let facts = RefusalFacts { errno, ..host.refusal.clone() };
    classify_listener(&facts, host.release.version)
}

fn sizes(host: &Host) -> Finding {
    let subject = required("notify-sizes", "notifications of a size that the sentry has room for");
    match host.sizes {
        Ok(sizes) => subject.ok(format!(
            "{} bytes received, {} answered, {} of the call",
            sizes.request, sizes.response, sizes.data
        )),
        Err(errno) => subject.missing(said(Tried::Refused(errno)), since(host, (5, 0))),
    }
}

fn hang_up(host: &Host) -> Finding {
    let subject = optional(
        "listener-hang-up",
        "a blocked receiver that hears of the last guest's end",
        "the end of the last guest is watched for by its pidfd",
    );
    // Decided by version: where it is missing, trying would block (seccomp_notify_recv).
    if host.release.version >= (6, 11) {
        subject.ok("this kernel is new enough")
    } else {
        subject.limited("older than Linux 6.11", "boot Linux 6.11 or later")
    }
}
