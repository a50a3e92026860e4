//! Flags and defaults become one validated, immutable description of a run.
//!
//! Owns what a run is allowed: the rules, their order of precedence (the most specific path wins),
//! the defaults, and every refusal that can be given before anything is started. It reads the host
//! through [`Host`] only and changes nothing on it; carrying the description out is `launch`'s work.

mod asking;
mod cgroups;
mod deterministic;
mod environment;
mod error;
mod files;
mod glob;
mod host;
mod identity;
pub mod learn;
mod limits;
mod listing;
mod options;
mod paths;
pub mod profile;
mod publish;
mod root;
mod saved;
mod secrets;
mod spec;
mod sub_ids;
#[cfg(test)]
pub(crate) mod testing;
mod view;
mod walls;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use asking::add_answer;
pub use deterministic::Deterministic;
pub use error::ConfigError;
pub(crate) use files::{HOST_SOCKET, absolute};
pub use glob::Glob;
pub use host::{Account, Accounts, Host};
pub use limits::{Bound, Bytes, CgroupPlan, CpuBudget, CpuFile, LimitWishes, Limits, Means, Span};
pub use options::{Options, Rule, RuleKind};
pub(crate) use paths::{Found, Kind, quoted, walk};
pub use publish::choose as chosen_ports;
pub use root::ROOT_CAPABILITIES;
pub use saved::{SavedKind, SavedSpec, grants};
pub use spec::{
    Asks, IdRange, Identity, Mount, MountKind, Network, Root, RunSpec, Voice, Walls, Why, Withheld,
    Without,
};
pub use sub_ids::{
    LEAST_SUB_IDS, MAPPED_CAPABILITIES, free_range as free_sub_ids, ranges as sub_id_ranges,
};
pub use view::{Shown, View};

use crate::sentry::asking::About;
use crate::sentry::net::Policy;
use crate::sentry::{FIRST_CONTAINER, Features};
use crate::timekeeping::TimeSpec;
use error::refuse;

/// Bytes in a host name at most (`__NEW_UTS_LEN`, uname(2)).
const HOSTNAME_MAX: usize = 64;

/// The run that `options` describe on `host`.
///
/// # Errors
/// The first wish that cannot be granted, with what to write instead.
pub fn resolve(options: &Options, host: &Host) -> Result<RunSpec, ConfigError> {
    check_program(&options.argv)?;
    let (identity, account) = who(options, host)?;
    let homes = homes(host, account.as_ref());
    let files::Arranged { view, workdir, idle, coming } = arrange(options, host, &homes)?;
    let (mut environment, withheld) =
        environment::choose(&host.environment, options.clear_env, &options.env, |name, value| {
            unusable_directory(&view, host, name, value)
        })?;
    let changes_user = host.uid == 0 && identity.uid != host.uid;
    if let Some(account) = account.filter(|_| changes_user) {
        follow_account(&mut environment, &account, &options.env);
    }
    if options.root.is_root() {
        root::follow(&mut environment, &options.env);
    }
    follow_workdir(&mut environment, &workdir, host, &options.env);
    let (completed, chosen) = deterministic::complete(options, &environment)?.unzip();
    let options = completed.as_ref().unwrap_or(options);
    let time = TimeSpec::parse(&options.time).map_err(|error| refuse!("{error}"))?;
    let limits = limits::choose(&options.limits, host, &identity)?;
    let network = network(options)?;
    if network == Network::Host && limits.network.is_limited() {
        return Err(refuse!(
            "cannot use --net-rate or --net-total with --net host, where nothing is looked at; use --allow-net '*' in \
             place of it"
        ));
    }
    let publish = publish::choose(&options.publish, options.walls, network)?;
    let ask = asking::choose(options, network)?;
    let mut features =
        features(options, network, &limits, time.as_ref(), host) | syncs(options, &view)?;
    // What the sentry opens Landlock does not look at: there, names that are there at the start have to do.
    let coming = coming.filter(|_| options.walls == Walls::Namespaces);
    features.set(Features::PATTERNS, coming.is_some());
    features.set(Features::ASK_FILES, ask.contains(About::FILES));
    let asks = asking::asks(ask, &view, options, host);
    let spec = RunSpec {
        argv: options.argv.clone(),
        environment,
        withheld,
        workdir,
        container: match &options.container {
            Some(name) => check_container(name)?,
            None => FIRST_CONTAINER.to_owned(),
        },
        hostname: options.hostname.as_deref().map(check_hostname).transpose()?,
        identity,
        root: options.root,
        network,
        walls: options.walls,
        landlock: options.landlock,
        reach: options.reach.clone(),
        asks,
        net_log: options.net_log.as_deref().map(|log| absolute(host, log)).transpose()?,
        publish,
        features,
        mounts: view.into_mounts(),
        idle,
        coming,
        descriptors: check_descriptors(&options.descriptors, host)?,
        limits,
        time,
        deterministic: None,
        without: without(options, host),
        voice: options.voice,
    };
    let mut spec = spec.with_deterministic(chosen);
    walls::check(&spec, options, host)?;
    spec.asks.save = asking::find_file(&spec, options, host)?;
    if spec.root == Root::Mapped {
        sub_ids::check(&spec, options)?;
    }
    Ok(spec)
}

/// The file view of the run that `options` describe: enough to tell what it may touch, where no
/// program is named.
///
/// # Errors
/// The first wish about users or files that cannot be granted.
pub fn file_view(options: &Options, host: &Host) -> Result<View, ConfigError> {
    let (_, account) = who(options, host)?;
    let homes = homes(host, account.as_ref());
    Ok(arrange(options, host, &homes)?.view)
}

fn arrange(
    options: &Options,
    host: &Host,
    homes: &[PathBuf],
) -> Result<files::Arranged, ConfigError> {
    let mut arranged = files::arrange(host, &options.rules, options.workdir.as_deref(), homes)?;
    if options.root.is_root() {
        root::give_proc(&mut arranged.view);
    }
    Ok(arranged)
}

/// Who the guest is, and the account that was chosen for it.
fn who(options: &Options, host: &Host) -> Result<(Identity, Option<Account>), ConfigError> {
    match options.root.is_root() {
        true => Ok((root::choose(options, host)?, None)),
        false => identity::choose(host, options.user.as_deref()),
    }
}

/// Directories that have to be made before the run can start: those that a rule opens and names with a slash at the
/// end, and that the host does not have.
pub fn places_to_make(options: &Options, host: &Host) -> Vec<PathBuf> {
    let places = options.rules.iter().filter_map(Rule::place_to_make);
    let places = places.filter_map(|place| host.walk(&absolute(host, &place).ok()?).ok());
    places.filter(|place| place.kind == Kind::Missing).map(|place| place.path).collect()
}

/// The variables that `--env` sets: name and value, the last of a name.
///
/// # Errors
/// The first one that has no name or, without a value, is not set.
pub fn variables(
    wishes: &[OsString],
    host: &Host,
) -> Result<Vec<(OsString, OsString)>, ConfigError> {
    Ok(environment::choose(&host.environment, true, wishes, |_, _| None)?.0)
}

/// Which rows trap. The only place that decides it.
fn features(
    options: &Options,
    network: Network,
    limits: &Limits,
    time: Option<&TimeSpec>,
    host: &Host,
) -> Features {
    let mut features = derived_features(limits, time);
    features.set(Features::EXEC_EVENTS, options.observed || options.voice == Voice::Verbose);
    features.set(Features::KMSG, options.kmsg);
    let apart = options.walls == Walls::Landlock;
    features.set(Features::NO_NAMESPACES, apart);
    features.set(Features::NO_LOOPBACK, apart && network == Network::None);
    features.set(Features::NETWORK, network == Network::Allow);
    // (Without a user namespace all ids are there.)
    let is_mapped = options.root == Root::Mapped;
    features.set(Features::FOREIGN_IDS, host.uid != 0 && !apart && !is_mapped);
    features.set(Features::SUB_IDS, is_mapped);
    features.set(Features::ROOT, options.root == Root::Believed);
    features.set(Features::FILE_LOG, options.record_files.is_some() || options.learn);
    if options.learn {
        features |= Features::LEARN | Features::CPU_CLOCK;
    }
    features
}

/// Which network the run lives in: to name hosts is to ask for one from which they can be reached.
pub(crate) fn network(options: &Options) -> Result<Network, ConfigError> {
    let Policy { allow, deny } = &options.reach;
    match (options.network, allow.first(), deny.first(), &options.net_log) {
        (Network::Host, Some(rule), ..) => Err(refuse!(
            "cannot use --allow-net {rule} with --net host, which reaches everything; leave one of them out"
        )),
        (Network::Host, None, Some(rule), _) => Err(refuse!(
            "cannot use --deny-net {rule} with --net host, where nothing is looked at; use --allow-net '*' in \
             place of it"
        )),
        (Network::None, Some(_), ..) => Ok(Network::Allow),
        (Network::None, ..) if options.ask.contains(About::NET) => Ok(Network::Allow),
        (network @ (Network::None | Network::Host), _, _, Some(path)) => {
            let what = if network == Network::Host { "host" } else { "none" };
            Err(refuse!(
                "cannot use --net-log {} with --net {what}, where nothing is looked at; add --net allow",
                quoted(path)
            ))
        }
        (network, ..) => Ok(network),
    }
}

/// Which calls that wait for the disk trap (`--fake-fsync`).
fn syncs(options: &Options, view: &View) -> Result<Features, ConfigError> {
    if !options.fake_fsync {
        return Ok(Features::empty());
    }
    if !view.mounts().any(|mount| matches!(mount.kind, MountKind::Overlay { .. })) {
        return Err(refuse!(
            "cannot use --fake-fsync: it is about files in overlays, and the run has none; add --overlay DIR"
        ));
    }
    let is_of_host = |mount: &Mount| matches!(mount.kind, MountKind::Writable { .. });
    let changes_host = view.mounts().any(is_of_host) || !options.descriptors.is_empty();
    Ok(Features::FAKE_SYNC | if changes_host { Features::empty() } else { Features::FAKE_SYNC_ALL })
}

/// Those that follow from what else a run is.
fn derived_features(limits: &Limits, time: Option<&TimeSpec>) -> Features {
    let mut features = Features::ALWAYS;
    features.set(Features::CPU_CLOCK, limits.need_ticker());
    features.set(Features::CPU_SET, limits.cpus.is_some());
    features.set(Features::MACHINE_VIEW, limits.show_machine());
    features.set(Features::VIRTUAL_TIME, time.is_some());
    features.set(Features::VIRTUAL_RATE, time.is_some_and(TimeSpec::changes_rate));
    features
}

/// What the user wants to do without, and what this host lacks that is no wall.
fn without(options: &Options, host: &Host) -> Without {
    match host.time_namespaces && options.walls == Walls::Namespaces {
        true => options.without,
        false => options.without | Without::TIME_NAMESPACES,
    }
}

/// The home directories whose secrets matter: the caller's, and that of the user that the guest
/// becomes.
fn homes(host: &Host, guest: Option<&Account>) -> Vec<PathBuf> {
    let mut homes = host.homes();
    homes.extend(guest.map(|account| account.home.clone()));
    homes.retain(|home| home != Path::new("/"));
    homes
}

fn check_program(argv: &[OsString]) -> Result<(), ConfigError> {
    let Some(program) = argv.first() else {
        return Err(refuse!("no program to run: write sandbox [OPTIONS] -- PROG ARGS..."));
    };
    if program.is_empty() {
        return Err(refuse!("cannot run '': the program's name is empty; name a program after --"));
    }
    match argv.iter().find(|word| word.as_bytes().contains(&0)) {
        Some(word) => Err(refuse!(
            "cannot pass the argument {}: it contains a NUL byte, which execve(2) cannot carry; \
             remove it",
            quoted(word)
        )),
        None => Ok(()),
    }
}

/// A container's name.
///
/// # Errors
/// It has other characters than letters, digits, dashes, dots and underscores, or too many.
pub fn check_container(name: &str) -> Result<String, ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let sound = (1..=HOSTNAME_MAX).contains(&name.len())
        && name.chars().all(allowed)
        && !name.starts_with(['-', '.']);
    if sound {
        return Ok(name.to_owned());
    }
    Err(refuse!(
        "cannot use --container {}: choose at most {HOSTNAME_MAX} letters, digits, dashes, dots and \
         underscores, the first of them no dash and no dot",
        quoted(OsStr::new(name))
    ))
}

fn check_hostname(name: &OsStr) -> Result<OsString, ConfigError> {
    let bytes = name.as_bytes();
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let bad = bytes.iter().find(|byte| !allowed(byte));
    let cause = if bytes.is_empty() {
        "it is empty".to_owned()
    } else if let Some(&bad) = bad {
        format!("it contains {}", quoted(OsStr::from_bytes(&[bad])))
    } else if bytes.len() > HOSTNAME_MAX {
        format!("it has {} bytes", bytes.len())
    } else if b"-.".contains(&bytes[0]) {
        "it begins with a dash or a dot".to_owned()
    } else {
        return Ok(name.to_owned());
    };
    Err(refuse!(
        "cannot use --hostname {}: {cause}; choose at most {HOSTNAME_MAX} letters, digits, dashes, \
         dots and underscores",
        quoted(name)
    ))
}

/// The descriptors besides the standard ones, in ascending order; each must be open.
fn check_descriptors(wished: &[RawFd], host: &Host) -> Result<Vec<RawFd>, ConfigError> {
    let wished: BTreeSet<RawFd> =
        wished.iter().copied().filter(|fd| !(0..=2).contains(fd)).collect();
    if let Some(closed) = wished.iter().find(|fd| !host.descriptors.contains(fd)) {
        return Err(refuse!(
            "cannot inherit --fd {closed}: no such descriptor is open; open it in the calling \
             shell, for example with {closed}<FILE"
        ));
    }
    Ok(wished.into_iter().collect())
}

/// Withholds the directory for temporary files if the guest could not write into it: programs then
/// take /tmp.
fn unusable_directory(
    view: &View,
    host: &Host,
    name: &OsStr,
    value: &OsStr,
) -> Option<&'static str> {
    if !["TMPDIR", "TMP", "TEMP", "TEMPDIR"].iter().any(|known| name == *known) {
        return None;
    }
    let place = host.walk(Path::new(value)).ok()?;
    let usable = match view.shown(&place.path) {
        Shown::Host { by: Some(mount), .. } => mount.kind.is_writable(),
        Shown::Private(mount) => mount.target == place.path || view.has_below(&place.path),
        Shown::Host { by: None, .. } | Shown::Hidden(_) => false,
    };
    (!usable).then_some("names a directory that cannot be written in the sandbox")
}

/// A guest that runs as another user finds that user's home, as under su(1).
fn follow_account(environment: &mut environment::Variables, account: &Account, flags: &[OsString]) {
    let Account { name, home, shell, .. } = account;
    for (variable, value) in [
        ("HOME", home.as_os_str()),
        ("USER", OsStr::new(name)),
        ("LOGNAME", OsStr::new(name)),
        ("SHELL", shell.as_os_str()),
    ] {
        replace(environment, variable, value.to_owned(), flags);
    }
}

/// `PWD` names the directory in which the guest starts.
fn follow_workdir(
    environment: &mut environment::Variables,
    workdir: &Path,
    host: &Host,
    flags: &[OsString],
) {
    let logical = host.variable("PWD").map(Path::new);
    // A shell's PWD may name the directory through a symlink: that is still true inside.
    let leads_here = |path: &Path| host.walk(path).is_ok_and(|place| place.path == workdir);
    if !logical.is_some_and(|path| path.is_absolute() && leads_here(path)) {
        replace(environment, "PWD", workdir.into(), flags);
    }
}

/// Gives a variable that is passed another value, unless a flag set it.
fn replace(
    environment: &mut environment::Variables,
    name: &str,
    value: OsString,
    flags: &[OsString],
) {
    let flagged = flags.iter().any(|flag| {
        let bytes = flag.as_bytes();
        bytes.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'=')
    });
    let passed = environment.iter_mut().find(|(known, _)| known == name);
    if let Some((_, old)) = passed.filter(|_| !flagged) {
        *old = value;
    }
}

#[cfg(test)]
mod tests;
