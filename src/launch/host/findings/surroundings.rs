//! Resources, terminal, state and libraries.

use super::super::{Host, StateDirectory};
use super::{Finding, Group, Subject};
use crate::config::LEAST_SUB_IDS;

/// Appends this group's findings.
pub(super) fn add(host: &Host, findings: &mut Vec<Finding>) {
    findings.push(cgroup(host));
    findings.push(freezer(host));
    findings.push(sub_ids(host));
    findings.push(
        optional("cpus", "guest threads and the sentry side by side", "they take turns")
            .ok(format!("{} usable", host.cpus)),
    );
    findings.push(
        optional("terminal", "an interactive guest", "streams are handed through untouched")
            .ok(host.streams.clone()),
    );
    findings.push(tiocsti(host));
    findings.push(libseccomp(host));
    findings.push(state_directory(host));
    findings.push(overlay_directory(host));
}

fn optional(name: &'static str, needed_for: &'static str, fallback: &'static str) -> Subject {
    Subject::optional(Group::Surroundings, name, needed_for, fallback)
}

fn cgroup(host: &Host) -> Finding {
    let subject = optional(
        "cgroup",
        "limits on memory, processes and CPU time of a whole sandbox",
        "limits hold for each process (setrlimit), not for the sandbox",
    );
    let cgroups = &host.cgroups;
    let Some(directory) = &cgroups.unified else {
        return subject.missing(
            "no unified hierarchy (version 2) is mounted",
            "boot with `systemd.unified_cgroup_hierarchy=1` on the kernel's command line",
        );
    };
    let place = directory.display();
    if !cgroups.delegated {
        return subject.limited(
            format!("{place} belongs to somebody else"),
            "start it with `systemd-run --user --scope -p Delegate=yes sandbox -- PROG`",
        );
    }
    let lacking: Vec<&str> = ["memory", "pids", "cpu"]
        .into_iter()
        .filter(|wanted| !cgroups.controllers.iter().any(|offered| offered == wanted))
        .collect();
    if !lacking.is_empty() {
        let holder = if cgroups.legacy.is_empty() { "not delegated" } else { "with version 1" };
        return subject.limited(
            format!("{place} is ours, without {} ({holder})", lacking.join(", ")),
            if cgroups.legacy.is_empty() {
                "delegate them with `sudo systemctl edit user@.service` (Delegate=memory pids cpu), or \
                 start it with `systemd-run --user --scope -p Delegate=yes sandbox -- PROG`"
            } else {
                "boot with `systemd.unified_cgroup_hierarchy=1` on the kernel's command line"
            },
        );
    }
    subject.ok(format!("{place} is ours, with {}", cgroups.controllers.join(", ")))
}

fn freezer(host: &Host) -> Finding {
    let subject =
        optional("freezer", "pausing a whole sandbox at once", "each task is stopped by ptrace");
    let cgroups = &host.cgroups;
    if cgroups.freezer && cgroups.delegated {
        subject.ok("groups of version 2 can be frozen")
    } else if cgroups.freezer {
        subject.limited(
            "the kernel has it, but our control group is not ours to divide",
            "start it with `systemd-run --user --scope -p Delegate=yes sandbox -- PROG`",
        )
    } else {
        subject.missing(
            "no unified hierarchy that can freeze",
            "boot Linux 5.2 or later with `systemd.unified_cgroup_hierarchy=1`",
        )
    }
}

fn sub_ids(host: &Host) -> Finding {
    let subject = optional(
        "sub-ids",
        "users and owners inside that are the kernel's (--root=sub-ids)",
        "root inside believes in other users and owners (--root)",
    );
    let ids = &host.sub_ids;
    if host.refusal.privileged && host.refusal.initial_namespace {
        return subject.ok("root may map any id; --root=sub-ids is for ordinary users");
    }
    let (user, free) = (&ids.user, &ids.free);
    let give = format!("run `sudo usermod --add-subuids {free} --add-subgids {free} {user}`");
    if ids.uids == 0 || ids.gids == 0 {
        return subject.missing(format!("/etc/subuid and /etc/subgid give {user} nothing"), give);
    }
    let fewest = ids.uids.min(ids.gids);
    if fewest < LEAST_SUB_IDS {
        return subject.missing(
            format!(
                "/etc/subuid and /etc/subgid give {user} {fewest} ids, fewer than {LEAST_SUB_IDS}"
            ),
            give,
        );
    }
    match &ids.newuidmap {
        Some(program) => subject.ok(format!(
            "{} user and {} group ids, mapped by {}",
            ids.uids,
            ids.gids,
            program.display()
        )),
        None => subject.missing(
            format!("{} ids, but newuidmap or newgidmap is not installed", ids.uids),
            "install it: `sudo apt install uidmap` (Debian, Ubuntu), `sudo dnf install \
             shadow-utils` (Fedora)",
        ),
    }
}

fn tiocsti(host: &Host) -> Finding {
    let subject = optional(
        "tiocsti",
        "a host that lets nobody type into another's terminal",
        "the filter refuses it to guests, and they have a terminal of their own",
    );
    // The sysctl came with Linux 6.2; before, it was always allowed.
    match host.legacy_tiocsti {
        Some(0) => subject.ok("the host refuses it (dev.tty.legacy_tiocsti is 0)"),
        Some(_) => subject.limited(
            "the host allows it (dev.tty.legacy_tiocsti is 1)",
            "run `sudo sysctl -w dev.tty.legacy_tiocsti=0`",
        ),
        None if host.release.version < (6, 2) => {
            subject.limited("the host allows it", "boot Linux 6.2 or later")
        }
        None => subject.limited(
            "dev.tty.legacy_tiocsti cannot be read here",
            "run `sudo sysctl -w dev.tty.legacy_tiocsti=0` on the host",
        ),
    }
}

fn libseccomp(host: &Host) -> Finding {
    let subject = Subject::required(
        Group::Surroundings,
        "libseccomp",
        "making the filter's program from the table of calls",
    );
    match host.libseccomp {
        Some((major, minor, micro)) if (major, minor) >= (2, 5) => {
            subject.ok(format!("version {major}.{minor}.{micro}"))
        }
        Some((major, minor, micro)) => subject
            .missing(format!("version {major}.{minor}.{micro}"), "install libseccomp 2.5 or later"),
        None => subject.missing("it does not tell its version", "install libseccomp 2.5 or later"),
    }
}

fn state_directory(host: &Host) -> Finding {
    let subject = optional(
        "state-directory",
        "commands that reach a running sandbox (ps, exec, save)",
        "a sandbox runs, but nothing can reach it from outside",
    );
    match &host.state {
        StateDirectory::Runtime(directory) => subject.ok(directory.display().to_string()),
        StateDirectory::Temporary(why) => {
            subject.ok(format!("a private directory in /tmp, because {why}"))
        }
        StateDirectory::None(why) => {
            subject.missing(why.clone(), "set XDG_RUNTIME_DIR to a directory of yours, mode 0700")
        }
    }
}

fn overlay_directory(host: &Host) -> Finding {
    let subject = optional(
        "overlay-directory",
        "keeping what runs with --overlay change",
        "such runs are refused, unless --overlay-dir names another place",
    );
    match &host.overlays {
        Ok(place) => subject.ok(place.display().to_string()),
        Err(why) => subject.missing(why.clone(), "name a directory of yours with --overlay-dir"),
    }
}
