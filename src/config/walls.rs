//! `--walls landlock`: what a run cannot have without namespaces, refused by name before anything is started.

use super::error::refuse;
use super::{
    ConfigError, HOST_SOCKET, Host, Means, Mount, MountKind, Network, Options, RuleKind, RunSpec,
    View, Walls, Why, quoted,
};

/// Refuses what needs namespaces where there are to be none.
///
/// # Errors
/// The first such wish, with what to write instead.
pub(super) fn check(spec: &RunSpec, options: &Options, host: &Host) -> Result<(), ConfigError> {
    if spec.walls == Walls::Namespaces {
        return Ok(());
    }
    if let Some((flag, why)) = first_wish(spec, options, host) {
        return Err(refuse!(
            "cannot use {flag} with --walls landlock: {why}; leave one of them out"
        ));
    }
    let view = View::of(&spec.mounts);
    spec.mounts.iter().try_for_each(|mount| check_mount(mount, &view))
}

/// A flag that is not possible, and the reason.
fn first_wish(
    spec: &RunSpec,
    options: &Options,
    host: &Host,
) -> Option<(&'static str, &'static str)> {
    let is_own = spec.identity.uid == host.uid && spec.identity.gid == host.gid;
    let counts_all = spec.limits.pids.is_some_and(|bound| bound.by == Means::Rlimit);
    let reaches = spec.network == Network::Allow;
    let by_name = reaches && !options.reach.allow.is_empty();
    let hosts = "a network with some hosts takes a network namespace";
    let names_socket = options.rules.iter().any(|rule| rule.kind == RuleKind::Socket);
    let wishes = [
        (options.root.is_root(), "--root", "to be root inside takes a user namespace"),
        (by_name, "--allow-net", hosts),
        (reaches, "--net allow", hosts),
        (
            names_socket,
            "--unix",
            "the sentry connects programs to what lies in writable places alone",
        ),
        (!is_own || options.user.is_some(), "--user", "another user takes a user namespace"),
        (
            options.deterministic.is_some(),
            "--deterministic",
            "a host name of its own takes a UTS namespace",
        ),
        (spec.hostname.is_some(), "--hostname", "a host name of its own takes a UTS namespace"),
        (
            spec.limits.cpus.is_some(),
            "--cpus",
            "files that show fewer processors take a mount namespace",
        ),
        (counts_all, "--pids", "without a control group it would count all processes of the user"),
        (
            options.learn,
            "learn",
            "what it changes is kept in an overlay, which takes a mount namespace",
        ),
    ];
    wishes.into_iter().find(|(wished, ..)| *wished).map(|(_, flag, why)| (flag, why))
}

/// Landlock only ever adds: what it grants to a directory it grants to all below.
fn check_mount(mount: &Mount, view: &View) -> Result<(), ConfigError> {
    let flag = match &mount.why {
        Why::Flag(flag) | Why::Derived(flag) => flag.clone(),
        Why::WorkingDirectory => "the working directory".to_owned(),
        Why::Default(what) => format!("{} ({what})", quoted(&mount.target)),
    };
    let refused = |why: &str| Err(refuse!("cannot use {flag} with --walls landlock: {why}"));
    match &mount.kind {
        MountKind::Overlay { .. } => {
            return refused("an overlay takes a mount namespace; use --rw, or leave it out");
        }
        MountKind::Tmpfs { .. } if matches!(mount.why, Why::Flag(_)) => {
            return refused("a directory in memory takes a mount namespace; leave it out");
        }
        MountKind::ReadOnly { source } | MountKind::Writable { source }
            if *source != mount.target =>
        {
            return refused(
                "to show a path elsewhere takes a mount namespace; name the path alone",
            );
        }
        _ => {}
    }
    // (The sentry refuses connections to sockets that lie in no writable place.)
    let is_socket = mount.why == Why::Default(HOST_SOCKET);
    if is_socket || matches!(mount.kind, MountKind::Writable { .. }) {
        return Ok(());
    }
    let above = mount.target.parent().and_then(|parent| view.covering(parent));
    match above {
        Some(above) if matches!(above.kind, MountKind::Writable { .. }) => Err(refuse!(
            "cannot keep {} from the program with --walls landlock: it lies in {}, which is writable, \
             and what Landlock allows there it allows to all below; open narrower places with --rw",
            quoted(&mount.target),
            quoted(&above.target)
        )),
        _ => Ok(()),
    }
}
