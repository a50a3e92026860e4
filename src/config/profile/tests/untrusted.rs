//! Random profiles of a user and of a project that is not trusted: the run with the project's file never
//! allows more than the run without it.

use std::ffi::OsString;
use std::path::Path;

use proptest::prelude::*;

use super::super::super::testing::TestHost;
use super::super::super::{Limits, MountKind, Network, RunSpec, Shown, View, Why, resolve};
use super::super::*;
use super::{PROJECT, USER, gathered, host, put};
use crate::sentry::Features;

/// Places of the made-up host that rules are about.
const UNIVERSE: &[&str] = &[
    "/",
    "/etc",
    "/usr",
    "/usr/bin",
    "/srv",
    "/srv/work",
    "/data",
    "/data/in",
    "/home",
    "/home/me",
    "/home/me/project",
    "/home/me/project/part",
    "/home/me/project/part/deep",
    "/home/me/project/notes",
    "/home/me/project/link",
    "/home/me/.ssh",
    "/home/me/.ssh/id",
    "/home/other",
    "/tmp",
    "/var/tmp",
    "/run",
    "/run/user/1000",
    "/var/run",
    "/dev",
    "/dev/shm",
    "/proc",
    "/sys",
    "/root",
    "/nowhere",
];

fn rule_text() -> impl Strategy<Value = String> {
    let path = proptest::sample::select(UNIVERSE);
    let pair = (path.clone(), path.clone()).prop_map(|(from, to)| format!("{from}:{to}"));
    let written = proptest::sample::select(&[".", "part", "..", "~", "$HOME/project", "link"][..]);
    prop_oneof![6 => path.prop_map(str::to_owned), 2 => pair, 2 => written.prop_map(str::to_owned)]
}

fn pattern_text() -> impl Strategy<Value = String> {
    let all = &[
        "*",
        "i*",
        "*t*",
        "/d*",
        "/home/*/project",
        "part/*",
        "**/deep",
        "~/.s*/i?",
        "/**",
        "./*",
    ];
    proptest::sample::select(&all[..]).prop_map(str::to_owned)
}

/// A line of a profile.
fn line() -> impl Strategy<Value = (String, String)> {
    let kinds = &["ro", "rw", "hide", "tmpfs", "deny", "allow"][..];
    let rules = (proptest::sample::select(kinds), rule_text());
    let patterns = (proptest::sample::select(&kinds[2..]), pattern_text());
    let amounts = [
        "memory",
        "pids",
        "cpus",
        "open-files",
        "file-size",
        "cpu-time",
        "timeout",
        "net-rate",
        "net-total",
    ];
    let amounts = (
        proptest::sample::select(amounts.to_vec()),
        proptest::sample::select(&["2", "1", "2m", "1g", "3:4", "2:9", "100"][..]),
    );
    let others = proptest::sample::select(
        &[
            ("net", "'host'"),
            ("net", "'none'"),
            ("env", "'MY_TOKEN'"),
            ("env", "'A=1'"),
            ("clear-env", "true"),
            ("clear-env", "false"),
            ("kmsg", "true"),
            ("kmsg", "false"),
            ("user", "'root'"),
            ("root", "true"),
            ("root", "false"),
            ("workdir", "'/srv/work'"),
            ("workdir", "'part'"),
            ("fd", "7"),
            ("hostname", "'box'"),
            ("time", "'frozen'"),
            ("walls", "'landlock'"),
            ("without", "'landlock'"),
            ("id", "'x'"),
            ("detach", "true"),
            ("quiet", "true"),
            ("verbose", "true"),
            ("dry-run", "true"),
            ("container", "'c'"),
            ("inherit", "'debug'"),
            ("inherit", "'agent'"),
        ][..],
    );
    prop_oneof![
        6 => rules.prop_map(|(key, text)| (key.to_owned(), format!("'{text}'"))),
        3 => patterns.prop_map(|(key, text)| (key.to_owned(), format!("'{text}'"))),
        3 => amounts.prop_map(|(key, text)| (key.to_owned(), format!("'{text}'"))),
        3 => others.prop_map(|(key, text)| (key.to_owned(), text.to_owned())),
    ]
}

/// A profile; lists are gathered into arrays.
fn profile(lines: &[(String, String)]) -> String {
    let mut keys: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
    for (key, value) in lines {
        keys.entry(key).or_default().push(value);
    }
    let is_list = |key: &str| key == "inherit" || Key::named(key).is_some_and(Key::is_list);
    let line = |(key, values): (&str, Vec<&str>)| match is_list(key) {
        true => format!("{key} = [{}]\n", values.join(", ")),
        false => format!("{key} = {}\n", values[values.len() - 1]),
    };
    keys.into_iter().map(line).collect()
}

fn spec(host: &mut TestHost, words: &[&str]) -> Result<(RunSpec, Options), String> {
    let options = gathered(host, words)?.options;
    let options = Options { argv: vec![OsString::from("true")], ..options };
    let spec = resolve(&options, &host.host).map_err(|error| error.to_string())?;
    Ok((spec, options))
}

/// What `wider` shows or lets write, and `narrow` does not.
fn wider_view(wider: &RunSpec, narrow: &RunSpec) -> Option<String> {
    let (with, without) = (View::of(&wider.mounts), View::of(&narrow.mounts));
    let targets = wider.mounts.iter().chain(&narrow.mounts).map(|mount| mount.target.as_path());
    let known = UNIVERSE.iter().map(Path::new).chain(targets);
    let asked = known.flat_map(|path| [path.to_owned(), path.join("some-name")]);
    for path in asked {
        let writable = |shown: &Shown<'_>| match shown {
            Shown::Host { by, .. } => {
                by.is_some_and(|by| matches!(by.kind, MountKind::Writable { .. }))
            }
            _ => false,
        };
        let (a, b) = (with.shown(&path), without.shown(&path));
        let fine = match (&a, &b) {
            (Shown::Host { path: a_path, .. }, Shown::Host { path: b_path, .. }) => {
                a_path == b_path && (!writable(&a) || writable(&b))
            }
            // What a pattern hid because a link in the project led there: the project can do without the link.
            (Shown::Host { path, .. }, Shown::Hidden(mount))
                if matches!(mount.why, Why::Derived(_)) && path.starts_with("/srv/work") =>
            {
                true
            }
            (Shown::Host { .. }, _) => false,
            (Shown::Private(a), b) if format!("{:?}", a.why).contains("--tmpfs") => {
                // What was hidden below what it covers shows nothing of the host now either.
                writable(b) || matches!(b, Shown::Private(_) | Shown::Hidden(_))
            }
            // A place that is hidden, perhaps opened as an empty one where a rule shows something below.
            _ => true,
        };
        if !fine {
            return Some(format!("{}: {a:?} instead of {b:?}", path.display()));
        }
    }
    None
}

fn wider_limits(with: &Limits, without: &Limits) -> bool {
    let above = |with: Option<u64>, without: Option<u64>| match (with, without) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(with), Some(without)) => with > without,
    };
    let of = |limits: &Limits| {
        let time =
            limits.cpu_time.map(|time| [time.soft, time.hard].map(|it| it.as_micros() as u64));
        [
            limits.memory.map(|it| it.limit),
            limits.pids.map(|it| it.limit),
            limits.cpus.as_ref().map(|cpus| cpus.len() as u64),
            limits.open_files,
            limits.file_size,
            limits.timeout.map(|it| it.as_micros() as u64),
            time.map(|time| time[0]),
            time.map(|time| time[1]),
        ]
    };
    of(with).into_iter().zip(of(without)).any(|(with, without)| above(with, without))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_project_that_is_not_trusted_never_allows_more(
        user in proptest::collection::vec(line(), 0..4),
        project in proptest::collection::vec(line(), 0..8),
        flags in proptest::collection::vec(
            proptest::sample::select(&["hide=/srv", "rw=/srv", "ro=.", "memory=1m", "rw=/tmp",
                "ro=/srv/work:/data", "net=host", "hide=part",
                "deny=/data", "allow=/data/in", "hide=*t*", "allow=not*", "clear-env=true", "tmpfs=part"][..]),
            0..2,
        ),
    ) {
        let mut host = host();
        host.directory("/home/me/project/part/deep");
        host.file("/home/me/project/notes");
        host.file("/home/me/.ssh/id");
        host.link("/home/me/project/link", "/srv/work");
        host.set("MY_TOKEN", "t");
        host.set("B", "b");
        put(&host, USER, &profile(&user));
        let without = spec(&mut host, &flags);
        put(&host, PROJECT, &profile(&project));
        if let (Ok((without, _)), Ok((with, options))) = (without, spec(&mut host, &flags)) {
            prop_assert_eq!(wider_view(&with, &without), None);
            prop_assert!(!wider_limits(&with.limits, &without.limits));
            prop_assert!(with.network == without.network || with.network == Network::None);
            let missing = |it: &&(OsString, OsString)| !without.environment.contains(it);
            prop_assert_eq!(with.environment.iter().find(missing), None);
            prop_assert!(with.descriptors.iter().all(|fd| without.descriptors.contains(fd)));
            prop_assert_eq!(&with.workdir, &without.workdir);
            prop_assert_eq!((&with.identity, with.root), (&without.identity, without.root));
            prop_assert_eq!(with.without, without.without);
            let log = |spec: &RunSpec| spec.features.contains(Features::KMSG);
            prop_assert!(!log(&with) || log(&without));
            let user_asked = |key: &str| user.iter().any(|(name, _)| name == key || name == "inherit");
            prop_assert!(!options.detach || user_asked("detach"));
            prop_assert!(!options.dry_run || user_asked("dry-run"));
        }
    }

    #[test]
    fn no_text_panics_and_every_refusal_is_one_line(text in "(?s).{0,60}") {
        let mut host = host();
        put(&host, PROJECT, &text);
        let _ = gathered(&mut host, &[]);
        put(&host, PROJECT, &format!("ro = '{}'", text.replace('\'', "")));
        let _ = gathered(&mut host, &[]);
    }
}
