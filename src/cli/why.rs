//! `sandbox why`: would this be allowed, by which rule, and which flag would change it.
//!
//! Answers from the description of a run alone; it starts nothing, and asks the host only what is
//! at a path.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;
use serde::Serialize;

use super::args::WhyCommand;
use super::explain::Reason;
use super::run::{hide_stores, store};
use super::{OWN_ERROR, fail, print};
use crate::config::profile;
use crate::config::{
    self, ConfigError, Found, Host, Kind, MountKind, Network, Options, Shown, View, Why, quoted,
    walk,
};
use crate::control::state::base_path;
use crate::sentry::net;

/// What the table of system calls says of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyscallAnswer {
    /// Whether the guest may make the call.
    pub(super) allowed: bool,
    /// Who decides and why, as a sentence without its full stop.
    pub(super) rule: String,
}

/// Looks a system call up by name; `None` if no row has that name.
pub(super) type DescribeSyscall = fn(&str) -> Option<SyscallAnswer>;

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Answer {
    /// What was asked about, in full.
    subject: String,
    /// `path`, `host` or `syscall`.
    kind: &'static str,
    /// Decides the exit status: for a path, whether it can be read.
    allowed: bool,
    /// For a path: whether its content on the host can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    read: Option<bool>,
    /// For a path: whether it can be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<bool>,
    /// The verdict, in words.
    verdict: String,
    /// Which rule decides.
    rule: String,
    /// The flag that would change it.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<String>,
}

/// Answers the question and gives the exit status: 0 allowed, 1 refused, 125 no answer.
pub(super) fn why(command: WhyCommand, describe: DescribeSyscall) -> i32 {
    let WhyCommand { options, json, question } = command;
    let mut host = Host::current();
    hide_stores(&mut host);
    let options = match profile::gather(options.request, &mut host, base_path) {
        Ok(gathered) => gathered.options,
        Err(error) => return fail(error),
    };
    // One that cannot be used has nothing to be hidden.
    let _ = store(&Options { rules: Vec::new(), ..options.clone() }, &mut host);
    let answer = match answer(&options, &host, &question, describe) {
        Ok(answer) => answer,
        Err(error) => return fail(error),
    };
    let text = if json {
        match serde_json::to_string_pretty(&answer) {
            Ok(json) => json + "\n",
            Err(error) => return fail(format_args!("cannot write the answer as JSON: {error}")),
        }
    } else {
        answer.words()
    };
    match print(text) {
        Ok(()) => i32::from(!answer.allowed),
        Err(_) => OWN_ERROR,
    }
}

impl Answer {
    fn words(&self) -> String {
        let mut text = format!("{}: {}\n  rule:      {}\n", self.subject, self.verdict, self.rule);
        if let Some(change) = &self.change {
            text.push_str(&format!("  to change: {change}\n"));
        }
        text
    }
}

/// What a question is about.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    Path(PathBuf),
    Syscall(SyscallAnswer),
    Host(String),
}

pub(super) fn answer(
    options: &Options,
    host: &Host,
    question: &OsStr,
    describe: DescribeSyscall,
) -> Result<Answer, ConfigError> {
    let view = config::file_view(options, host)?;
    match classify(host, question, describe)? {
        Question::Path(path) => about_path(&view, host, &path),
        Question::Host(name) => about_host(options, &name),
        Question::Syscall(found) => Ok(Answer {
            subject: question.to_string_lossy().into_owned(),
            kind: "syscall",
            allowed: found.allowed,
            read: None,
            write: None,
            verdict: if found.allowed { "allowed" } else { "refused" }.to_owned(),
            rule: found.rule,
            change: None,
        }),
    }
}

/// A word with a slash (but no address with `://`), or that names something here, is a path; else
/// the table and then the shape of a host decide.
fn classify(
    host: &Host,
    question: &OsStr,
    describe: DescribeSyscall,
) -> Result<Question, ConfigError> {
    let word = question.to_string_lossy();
    let path = || config::absolute(host, Path::new(question)).map(Question::Path);
    if let Some((_, rest)) = word.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let name = authority.rsplit('@').next().unwrap_or_default();
        return Ok(Question::Host(name.to_owned()));
    }
    if word.contains('/') || word == "." || word == ".." {
        return path();
    }
    let here = host.cwd.as_ref().is_ok_and(|cwd| {
        !word.is_empty() && !matches!(host.look(&cwd.join(question)), Ok(Found::Missing) | Err(_))
    });
    if here {
        return path();
    }
    if let Some(answer) = describe(&word) {
        return Ok(Question::Syscall(answer));
    }
    if split_port(&word).is_some() {
        return Ok(Question::Host(word.into_owned()));
    }
    Err(ConfigError::new(format!(
        "cannot tell what {} is: no file here, no system call and no host has such a name; write \
         ./NAME for a path, or a host with its domain, its port or as an address",
        quoted(question)
    )))
}

/// `HOST[:PORT]` where it looks like one: an address, a name with a dot, `localhost`, or anything
/// with a port.
fn split_port(word: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = word.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        return match port.strip_prefix(':') {
            Some(port) => Some((address, Some(port.parse().ok()?))),
            None => port.is_empty().then_some((address, None)),
        };
    }
    if word.parse::<IpAddr>().is_ok() {
        return Some((word, None));
    }
    let (name, port) = match word.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (word, None),
    };
    let label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
    };
    let dotted = name.trim_end_matches('.');
    let fits = dotted.split('.').all(label)
        && (port.is_some() || dotted.contains('.') || name == "localhost");
    fits.then_some((name, port))
}

/// Whether some address that is known by this name, or this address, may be reached at the port that is named, or at
/// any.
fn is_reached(policy: &net::Policy, word: &str) -> bool {
    let (name, port) = split_port(word).unwrap_or((word, None));
    let names = [name.trim_end_matches('.').to_ascii_lowercase()];
    // (One that is nowhere stands for what a name may mean.)
    let address = name.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    let ports: Vec<u16> = match port {
        Some(port) => vec![port],
        None => {
            policy.allow.iter().map(|rule| rule.ports.map_or(443, |(first, _)| first)).collect()
        }
    };
    ports.iter().any(|port| {
        [net::Transport::Tcp, net::Transport::Udp].into_iter().any(|transport| {
            let verdict = policy.judge((address, *port).into(), transport, &names, false);
            verdict == net::Verdict::Outside
        })
    })
}

fn about_host(options: &Options, word: &str) -> Result<Answer, ConfigError> {
    let network = config::network(options)?;
    let policy = &options.reach;
    let (name, _) = split_port(word).unwrap_or((word, None));
    let address = name.parse::<IpAddr>();
    let local = name == "localhost" || address.is_ok_and(|address| address.is_loopback());
    let (allowed, verdict) = match network {
        Network::Host => (true, "can be reached, as outside"),
        Network::Allow if is_reached(policy, word) => (true, "can be reached"),
        Network::None | Network::Allow if local => {
            (true, "is the sandbox's own loopback; what listens on the host's cannot be reached")
        }
        Network::None => (false, "cannot be reached, and names are not resolved"),
        Network::Allow => (false, "cannot be reached: no rule allows it, or one denies it"),
    };
    Ok(Answer {
        subject: word.to_owned(),
        kind: "host",
        allowed,
        read: None,
        write: None,
        verdict: verdict.to_owned(),
        rule: match network {
            Network::Host => "--net host".to_owned(),
            Network::None => "default: no network (--net none)".to_owned(),
            Network::Allow => "--allow-net, --deny-net".to_owned(),
        },
        change: (!allowed && !local).then(|| format!("--allow-net {word}")),
    })
}

/// What a path shows, judged without the words.
struct Verdict {
    read: bool,
    write: bool,
    words: String,
    /// The flag without its path.
    change: Option<&'static str>,
}

fn about_path(view: &View, host: &Host, asked: &Path) -> Result<Answer, ConfigError> {
    let look = |at: &Path| match view.shown(at) {
        Shown::Host { path, .. } => host.look(&path),
        // What is hidden or made by the sandbox has no symlinks to follow.
        Shown::Private(_) | Shown::Hidden(_) => Ok(Found::Directory),
    };
    let place = walk(asked, look).map_err(|trouble| {
        ConfigError::new(format!("cannot follow {}: {}", quoted(asked), trouble.words()))
    })?;
    let Verdict { read, write, words, change } = match view.shown(&place.path) {
        Shown::Hidden(mount) => Verdict {
            read: false,
            write: false,
            words: {
                let word = if mount.kind.denies() { "denied" } else { "hidden" };
                match mount.target == place.path {
                    true => word.to_owned(),
                    false => format!("{word} with all of {}", quoted(&mount.target)),
                }
            },
            // At a place that a rule of its own hides, only that rule can be changed.
            change: match (&mount.why, mount.target == place.path) {
                (Why::Default(_), _) => Some("--ro"),
                (Why::Flag(_), true) => None,
                _ => Some("--allow"),
            },
        },
        Shown::Private(mount) => private(&mount.kind, &mount.target, &place.path, host),
        Shown::Host { path, by } => {
            let writable = by.is_some_and(|mount| mount.kind.is_writable());
            let mut verdict = of_host(host, &path, place.kind, writable);
            if by.is_some_and(|mount| matches!(mount.kind, MountKind::Overlay { .. }))
                && verdict.write
            {
                verdict.words.push_str(", in the sandbox's overlay; the host's stays as it is");
                verdict.change = Some("--rw");
            }
            verdict
        }
    };
    let rule = view.covering(&place.path);
    let subject = match place.path == asked {
        true => quoted(asked),
        false => format!("{} ({})", quoted(asked), quoted(&place.path)),
    };
    Ok(Answer {
        subject,
        kind: "path",
        allowed: read,
        read: Some(read),
        write: Some(write),
        verdict: words,
        rule: match rule {
            Some(mount) => format!("{} (at {})", Reason(&mount.why), quoted(&mount.target)),
            None => "default: the host's files are read-only".to_owned(),
        },
        change: change.map(|flag| format!("{flag} {}", quoted(&place.path))),
    })
}

/// A path that shows this path of the host.
fn of_host(host: &Host, path: &Path, kind: Kind, writable: bool) -> Verdict {
    let verdict =
        |read, write, words: &str, change| Verdict { read, write, words: words.to_owned(), change };
    if kind == Kind::Missing {
        return match writable {
            true => verdict(true, true, "does not exist, and can be created", None),
            false => verdict(false, false, "does not exist, and cannot be created", None),
        };
    }
    if host.access(path, AccessFlags::R_OK).is_err() {
        return verdict(false, false, "cannot be read: the file's own permissions say so", None);
    }
    match (writable, host.access(path, AccessFlags::W_OK)) {
        (false, _) => verdict(true, false, "can be read, not changed", Some("--rw")),
        (true, Ok(())) => verdict(true, true, "can be read and changed", Some("--ro")),
        (true, Err(_)) => {
            let words =
                "can be read; to change it is left to the file's own permissions, which refuse";
            verdict(true, false, words, None)
        }
    }
}

/// A path in something that the sandbox makes for itself.
fn private(kind: &MountKind, target: &Path, path: &Path, host: &Host) -> Verdict {
    let exact = target == path;
    let verdict = |read, write, words: String, change| Verdict { read, write, words, change };
    let own = |write| {
        verdict(
            true,
            write,
            format!("the sandbox's own{}", if write { "" } else { ", read-only" }),
            None,
        )
    };
    match kind {
        MountKind::Proc if path.starts_with(target.join("sys")) => own(false),
        MountKind::Proc => own(true),
        MountKind::Sys => own(false),
        MountKind::Dev if exact || is_minimal_device(path) => own(true),
        MountKind::Dev => {
            verdict(false, false, "not in the sandbox's minimal /dev".to_owned(), Some("--rw"))
        }
        MountKind::Tmpfs { mode } if mode & 0o222 == 0 => {
            verdict(false, false, "denied, but for exceptions".to_owned(), Some("--allow"))
        }
        _ if !exact && !matches!(host.look(path), Ok(Found::Missing) | Err(_)) => {
            let words = format!("not visible: {} is empty and the sandbox's own", quoted(target));
            verdict(false, true, words, Some("--ro"))
        }
        _ => own(true),
    }
}

/// The names of [`MountKind::Dev`], and what is below those that are directories.
fn is_minimal_device(path: &Path) -> bool {
    let names = [
        "null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "mqueue", "fd",
        "stdin", "stdout", "stderr",
    ];
    names.iter().any(|name| path.starts_with(Path::new("/dev").join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{TestHost, options};

    fn table(name: &str) -> Option<SyscallAnswer> {
        let allowed = match name {
            "read" => true,
            "mount" => false,
            _ => return None,
        };
        Some(SyscallAnswer { allowed, rule: format!("the row of {name}") })
    }

    fn ask(host: &TestHost, rules: &[&str], question: &str) -> Answer {
        answer(&options(rules), &host.host, OsStr::new(question), table).unwrap()
    }

    #[test]
    fn a_path_is_judged_by_the_most_specific_rule() {
        let host = TestHost::ordinary();
        host.file("/etc/passwd");
        host.file("/home/me/.ssh/id_rsa");
        host.file("/data/in/x");
        let passwd = ask(&host, &[], "/etc/passwd");
        assert_eq!((passwd.read, passwd.write, passwd.allowed), (Some(true), Some(false), true));
        assert_eq!(passwd.change.as_deref(), Some("--rw /etc/passwd"));
        assert!(passwd.rule.contains("read-only"), "{}", passwd.rule);
        let key = ask(&host, &[], "/home/me/.ssh/id_rsa");
        assert!(!key.allowed && key.rule.contains("ssh keys"), "{key:?}");
        assert_eq!(key.change.as_deref(), Some("--ro /home/me/.ssh/id_rsa"));
        let key = ask(&host, &["--ro /home/me/.ssh/id_rsa"], "/home/me/.ssh/id_rsa");
        assert!(key.allowed && key.rule.contains("--ro /home/me/.ssh/id_rsa"), "{key:?}");
        let data = ask(&host, &["--rw /data"], "/data/in/x");
        assert_eq!((data.read, data.write), (Some(true), Some(true)));
        let moved = ask(&host, &["--ro /data:/srv/work"], "/srv/work/in/x");
        assert!(moved.allowed && moved.rule.contains("/data:/srv/work"), "{moved:?}");
        let here = ask(&host, &[], "./new-file");
        assert_eq!((here.kind, here.write), ("path", Some(true)), "{here:?}");
    }

    #[test]
    fn what_is_private_is_not_the_hosts() {
        let host = TestHost::ordinary();
        host.file("/tmp/mine");
        let tmp = ask(&host, &[], "/tmp/mine");
        assert!(!tmp.allowed && tmp.verdict.contains("not visible"), "{tmp:?}");
        assert_eq!(tmp.change.as_deref(), Some("--ro /tmp/mine"));
        assert!(ask(&host, &[], "/tmp/other").allowed);
        assert!(ask(&host, &[], "/dev/null").allowed);
        assert!(!ask(&host, &[], "/dev/kvm").allowed);
        assert_eq!(ask(&host, &[], "/proc/sys/kernel/hostname").write, Some(false));
    }

    #[test]
    fn symlinks_are_followed_as_the_guest_would() {
        let host = TestHost::ordinary();
        host.file("/etc/shadow");
        host.link("/home/me/project/innocent", "../../../etc/shadow");
        let answer = ask(&host, &[], "innocent");
        assert!(!answer.allowed && answer.subject.contains("/etc/shadow"), "{answer:?}");
    }

    #[test]
    fn a_host_is_judged_by_the_network() {
        let host = TestHost::ordinary();
        for name in ["pypi.org", "10.0.0.1:443", "https://pypi.org/simple", "[2001:db8::1]:80"] {
            let answer = ask(&host, &[], name);
            assert!(!answer.allowed && answer.kind == "host", "{answer:?}");
            let rule = answer.change.as_deref().and_then(|it| it.strip_prefix("--allow-net "));
            assert!(rule.is_some_and(|rule| net::Rule::parse(rule).is_ok()), "{answer:?}");
        }
        for name in ["localhost", "127.0.0.1:80", "::1"] {
            assert!(ask(&host, &[], name).allowed, "{name}");
        }
        let open = Options { network: Network::Host, ..options(&[]) };
        assert!(answer(&open, &host.host, OsStr::new("pypi.org"), table).unwrap().allowed);
    }

    #[test]
    fn a_word_is_a_path_if_it_exists_and_else_a_syscall() {
        let host = TestHost::ordinary();
        let refused = ask(&host, &[], "mount");
        assert_eq!((refused.kind, refused.allowed), ("syscall", false));
        assert!(ask(&host, &[], "read").allowed);
        let host = TestHost::ordinary();
        host.file("/home/me/project/mount");
        assert_eq!(ask(&host, &[], "mount").kind, "path");
        let other = answer(&options(&[]), &host.host, OsStr::new("nonsense"), table).unwrap_err();
        assert!(other.to_string().contains("cannot tell what nonsense is"), "{other}");
    }

    #[test]
    fn ports_and_names_are_told_apart() {
        assert_eq!(split_port("a.b:80"), Some(("a.b", Some(80))));
        assert_eq!(split_port("host:80"), Some(("host", Some(80))));
        assert_eq!(split_port("::1"), Some(("::1", None)));
        assert_eq!(split_port("[::1]:8"), Some(("::1", Some(8))));
        for bad in ["mount", "a.b:x", "a..b", "", "a b.c", "[x]:1", "a.b:99999"] {
            assert_eq!(split_port(bad), None, "{bad}");
        }
    }
}
