//! `--ask`: what a run may ask about, which files among it, and how an answer becomes a rule of a profile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml_edit::{DocumentMut, Item};

use super::error::refuse;
use super::glob::escaped;
use super::learn::{add, pair};
use super::{
    Asks, ConfigError, MountKind, Network, Options, Root, RuleKind, Shown, View, Walls, Why,
    absolute, quoted, secrets,
};
use super::{Host, RunSpec};
use crate::sentry::asking::{About, Places, Subject};
use crate::sentry::net::{Rule, Target};

/// Which files can be asked for: those that are secrets by default, to read or change; and those of the host that can
/// only be read by default, to make or change. What somebody has named is as it was named.
#[derive(Debug)]
struct Askable {
    view: View,
    /// What somebody has hidden or denied by name, in a place that is hidden anyway maybe.
    closed: Vec<PathBuf>,
}

impl Places for Askable {
    fn of(&self, path: &Path, writes: bool) -> Option<PathBuf> {
        if self.closed.iter().any(|closed| path.starts_with(closed)) {
            return None;
        }
        match self.view.shown(path) {
            Shown::Hidden(mount) => {
                let is_secret = matches!(mount.why, Why::Default(what) if secrets::has(what));
                (is_secret && !mount.kind.denies()).then(|| path.to_owned())
            }
            Shown::Host { path, by: None } => writes.then_some(path),
            Shown::Host { path, by: Some(mount) } => {
                let is_default = matches!(mount.why, Why::Default(_));
                let is_closed = matches!(mount.kind, MountKind::ReadOnly { .. });
                (writes && is_default && is_closed).then_some(path)
            }
            Shown::Private(_) => None,
        }
    }
}

/// What a run asks about, whose file view this is.
pub(super) fn asks(about: About, view: &View, options: &Options, host: &Host) -> Asks {
    let askable = || {
        let closed = options.rules.iter().filter(|rule| rule.kind.closes());
        let closed = closed.filter_map(|rule| {
            let path = absolute(host, Path::new(&rule.text)).ok()?;
            Some(host.walk(&path).map_or(path, |place| place.path))
        });
        Arc::new(Askable { view: view.clone(), closed: closed.collect() }) as Arc<dyn Places>
    };
    let places = about.contains(About::FILES).then(askable);
    Asks { about, places, save: None, awaited: options.observed }
}

/// What is asked about, as far as it goes together with what else is wished.
pub(super) fn choose(options: &Options, network: Network) -> Result<About, ConfigError> {
    let about = options.ask;
    if about.contains(About::NET) && network != Network::Allow {
        return Err(refuse!(
            "cannot use --ask net with --net host, which reaches everything; leave one of them out"
        ));
    }
    if about.contains(About::FILES) {
        let with = |flag: &str, why: &str| {
            Err(refuse!("cannot use --ask files with {flag}: {why}; leave one of them out"))
        };
        if options.walls == Walls::Landlock {
            return with("--walls landlock", "what is refused there the sentry does not see");
        }
        if options.root == Root::Mapped {
            return with(
                "--root=sub-ids",
                "the sentry, which opens what is allowed, is you alone, and programs there may be others",
            );
        }
        if options.root.is_root() {
            return with("--root", "owners that are only believed in are noted on files");
        }
        if options.learn {
            return with("learn", "everything can be changed there, and is told at the end");
        }
        let pattern = options.rules.iter().find(|rule| {
            let closes = [RuleKind::Hide, RuleKind::Deny, RuleKind::ReadOnly].contains(&rule.kind);
            closes && super::glob::is_pattern(&rule.text)
        });
        if let Some(rule) = pattern {
            let why = "what a pattern closes would have to be told from what is closed anyway";
            return with(&rule.flag(), why);
        }
    }
    if let Some(path) = &options.ask_save
        && about.is_empty()
    {
        return Err(refuse!(
            "cannot use --ask-save {}: nothing is asked; add --ask net or --ask files",
            quoted(path)
        ));
    }
    Ok(about)
}

/// The file for answers, by a path over no link. One that the program could change is refused, or put another in the place
/// of: it would widen its next run.
pub(super) fn find_file(
    spec: &RunSpec,
    options: &Options,
    host: &Host,
) -> Result<Option<PathBuf>, ConfigError> {
    let Some(path) = &options.ask_save else { return Ok(None) };
    let written = absolute(host, path)?;
    let found = host.walk(&written);
    let place = found.map_err(|trouble| refuse!("cannot use --ask-save: {}", trouble.words()))?;
    let view = View::of(&spec.mounts);
    let changes = |path: &Path| {
        view.covering(path).is_some_and(|mount| {
            matches!(mount.kind, MountKind::Writable { .. } | MountKind::Overlay { .. })
        })
    };
    match changes(&place.path) || changes(&written) {
        true => Err(refuse!(
            "cannot use --ask-save {}: the program can change what lies there, and would answer for you; name a \
             profile elsewhere, as ~/.config/sandbox/NAME.toml",
            quoted(path)
        )),
        false => Ok(Some(place.path)),
    }
}

/// The text of a profile with an answer in it: that something is allowed, or is not.
///
/// # Errors
/// It is no profile that can be added to: the end of a sentence.
pub fn add_answer(old: &str, subject: &Subject, allowed: bool) -> Result<String, String> {
    check_rule(subject)?;
    let mut document: DocumentMut =
        old.parse().map_err(|error: toml_edit::TomlError| error.message().to_owned())?;
    let value = |key: &str, value: String| match key {
        "rw" | "ro" => pair(Path::new(&value)).to_string_lossy().into_owned(),
        "allow" | "deny" => escaped(Path::new(&value)).to_string_lossy().into_owned(),
        _ => value,
    };
    let (key, text) = subject.rule(!allowed);
    remove(&mut document, key, &value(key, text));
    let (key, text) = subject.rule(allowed);
    let text = toml_edit::Value::from(value(key, text)).to_string();
    add(&mut document, key, &text, "asked and answered")?;
    Ok(document.to_string())
}

/// Refuses what a profile would read as a rule about something else.
fn check_rule(subject: &Subject) -> Result<(), String> {
    let (Subject::Name { name: host } | Subject::Host { host, .. }) = subject else {
        return Ok(());
    };
    let (_, text) = subject.rule(true);
    let is_meant = match Rule::parse(&text).map(|rule| rule.target) {
        Ok(Target::Name(name)) => name == *host,
        Ok(Target::Net(_)) => {
            matches!(subject, Subject::Host { .. }) && host.parse::<std::net::IpAddr>().is_ok()
        }
        _ => false,
    };
    if is_meant { Ok(()) } else { Err(format!("no rule can name {}", quoted(Path::new(host)))) }
}

/// Takes the opposite of an answer away: in one profile the two would contradict each other.
fn remove(document: &mut DocumentMut, key: &str, value: &str) {
    let Some(item) = document.get_mut(key) else { return };
    let is_left = match item {
        Item::Value(toml_edit::Value::Array(all)) => {
            all.retain(|it| it.as_str() != Some(value));
            !all.is_empty()
        }
        item => item.as_str() != Some(value),
    };
    if !is_left {
        document.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestHost, options};
    use super::*;
    use crate::sentry::net::Transport;

    #[test]
    fn answers_are_added_to_a_profile_and_the_last_one_counts() {
        let host = |port| Subject::Host { host: "a.org".into(), port, transport: Transport::Tcp };
        let old = "# mine\nmemory = \"1g\"\nallow-net = \"b.org\"\n";
        let one = add_answer(old, &host(443), true).unwrap();
        let two = add_answer(&one, &host(80), false).unwrap();
        let three = add_answer(&two, &host(443), false).unwrap();
        assert!(one.starts_with("# mine\nmemory = \"1g\"\n") && one.contains("\"b.org\""), "{one}");
        assert!(one.contains("\"a.org:443/tcp\", # asked and answered\n"), "{one}");
        assert!(two.contains("deny-net = [\n    \"a.org:80/tcp\""), "{two}");
        let read: toml_edit::DocumentMut = three.parse().unwrap();
        let list = |key: &str| -> Vec<String> {
            let all = read[key].as_array().unwrap().iter();
            all.map(|it| it.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(list("allow-net"), ["b.org"]);
        assert_eq!(list("deny-net"), ["a.org:80/tcp", "a.org:443/tcp"]);
        let odd = Subject::Write { path: "/a:b/*\"c".into() };
        let text = add_answer("", &odd, true).unwrap();
        let read: toml_edit::DocumentMut = text.parse().unwrap();
        let rule = read["rw"].as_array().unwrap().get(0).unwrap().as_str().unwrap().to_owned();
        assert!(rule.contains("\\:b") && rule.contains("\\*"), "{rule}");
        assert!(add_answer("a = = b", &odd, true).is_err());
        for name in ["*", "*.org", "a.org:443", "a.org/udp", "1.2.3.4", "a b"] {
            let odd = Subject::Name { name: name.into() };
            assert!(add_answer("", &odd, true).is_err(), "{name}");
        }
    }

    #[test]
    fn what_nobody_has_named_can_be_asked_for() {
        let host = TestHost::ordinary();
        host.directory("/home/me/.ssh");
        host.file("/home/me/.ssh/id");
        let places = |rules: &[&str]| {
            let mut options = options(rules);
            options.ask = About::FILES;
            host.resolve(&options).unwrap().asks.places.unwrap()
        };
        let of =
            |places: &dyn Places, path: &str, writes| places.of(Path::new(path), writes).is_some();
        let it = places(&[]);
        assert!(of(&*it, "/home/me/.ssh/id", false) && of(&*it, "/home/me/.ssh/id", true));
        assert!(!of(&*it, "/etc/passwd", false) && of(&*it, "/etc/passwd", true));
        assert!(!of(&*it, "/proc/1/mem", true) && !of(&*it, "/tmp/x", true));
        assert!(!of(&*it, "/home/me/project/x", true));
        let it = places(&["--hide /home/me/.ssh", "--ro /etc"]);
        assert!(!of(&*it, "/home/me/.ssh/id", false) && !of(&*it, "/etc/passwd", true));
        let it = places(&["--hide /home/me/.ssh/id"]);
        assert!(!of(&*it, "/home/me/.ssh/id", false) && of(&*it, "/home/me/.ssh/other", false));
    }
}
