//! What can be asked for, and in which words.

use serde::{Deserialize, Serialize};

use crate::sentry::net::Transport;
use crate::sentry::stat::Stat;
use crate::sentry::task::{Status, comm};

/// Something that no rule names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Subject {
    /// To look a name up, and to reach what it stands for.
    Name {
        /// In lower case, without a dot at its end.
        name: String,
    },
    /// To reach a host at a port.
    Host {
        /// The name that it was looked up by, or its address.
        host: String,
        /// Which port.
        port: u16,
        /// By which protocol.
        transport: Transport,
    },
    /// To read a file that is hidden.
    Read {
        /// As the host knows it.
        path: String,
    },
    /// To make or change a file that is hidden, or can only be read.
    Write {
        /// As the host knows it.
        path: String,
    },
}

/// Bytes of a path that is asked about: a longer one could not be shown whole.
const LONGEST_PATH: usize = 512;

impl Subject {
    /// A file; `None`: its path cannot be shown as it is.
    pub fn file(path: &[u8], writes: bool) -> Option<Subject> {
        let path = std::str::from_utf8(path).ok().filter(|it| it.len() <= LONGEST_PATH)?.to_owned();
        Some(if writes { Subject::Write { path } } else { Subject::Read { path } })
    }

    /// The rule that says it for good: a key of a profile and its value. `allowed`: or that it may not be.
    pub fn rule(&self, allowed: bool) -> (&'static str, String) {
        match self {
            Subject::Name { name } => (net_key(allowed), name.clone()),
            Subject::Host { host, port, transport } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                (net_key(allowed), format!("{host}:{port}/{transport}"))
            }
            Subject::Read { path } => (if allowed { "allow" } else { "deny" }, path.clone()),
            Subject::Write { path } => (if allowed { "rw" } else { "ro" }, path.clone()),
        }
    }
}

fn net_key(allowed: bool) -> &'static str {
    if allowed { "allow-net" } else { "deny-net" }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Name { name } => write!(f, "look up and reach {}", plain(name)),
            Subject::Host { host, port, transport } if host.contains(':') => {
                write!(f, "reach [{}]:{port}/{transport}", plain(host))
            }
            Subject::Host { host, port, transport } => {
                write!(f, "reach {}:{port}/{transport}", plain(host))
            }
            Subject::Read { path } => write!(f, "read the hidden file {}", plain(path)),
            Subject::Write { path } => write!(f, "make or change the file {}", plain(path)),
        }
    }
}

/// Words that a guest chose, for people: nothing in them moves a cursor, or the text around it (escape_debug takes
/// what is not printed, as the marks of direction are not).
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' | '"' => plain.push(c),
            c => plain.extend(c.escape_debug()),
        }
    }
    plain
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Asker {
    /// The thread, as the host numbers it; 0: nobody knows.
    pub tid: i32,
    /// Its process.
    pub pid: i32,
    /// The process, as the guest numbers it.
    pub guest_pid: i32,
    /// When the process was started, in ticks since boot: numbers are given away again.
    pub(super) start: u64,
}

impl Asker {
    /// This thread, which waits for an answer.
    pub fn thread(tid: i32) -> Asker {
        let Ok(status) = Status::read(tid) else { return Asker::unknown() };
        let start = Stat::read(status.tgid).map_or(0, |stat| stat.start);
        Asker { tid, pid: status.tgid, guest_pid: status.guest_tgid, start }
    }

    /// Somebody.
    pub fn unknown() -> Asker {
        Asker { tid: 0, pid: 0, guest_pid: 0, start: 0 }
    }

    /// The name of the thread.
    pub(super) fn comm(&self) -> String {
        if self.tid == 0 { String::new() } else { comm(self.tid).unwrap_or_default() }
    }

    /// What stays the same as long as the process lives.
    pub(super) fn process(&self) -> (i32, u64) {
        (self.pid, self.start)
    }
}

/// A question that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// By which it is answered.
    pub number: u64,
    /// Microseconds since 1970, by the host's clock.
    pub since: u64,
    /// What is asked for.
    #[serde(flatten)]
    pub subject: Subject,
    /// The address that the host has, where that is not its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
    /// The process that was the first to ask, as the guest numbers it; 0: nobody knows.
    pub guest_pid: i32,
    /// Its name. Chosen by the guest.
    pub comm: String,
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.guest_pid, self.comm.as_str()) {
            (0, _) => f.write_str("a program")?,
            (pid, comm) => write!(f, "{} ({pid})", plain(comm))?,
        }
        write!(f, " wants to {}", self.subject)?;
        match &self.address {
            Some(address) => write!(f, " ({})", plain(address)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_writes_moves_nothing_on_a_terminal() {
        let path = "/a\x1b[2J\r\n\u{202e}\u{9b}b\u{301}'";
        let subject = Subject::file(path.as_bytes(), false).unwrap();
        let question = Question {
            number: 1,
            since: 0,
            subject,
            address: None,
            guest_pid: 2,
            comm: "x\x07".into(),
        };
        let words = question.to_string();
        assert!(
            words.chars().all(|c| c == ' ' || c.is_ascii_graphic() || c == '\u{301}'),
            "{words:?}"
        );
        assert!(
            words.starts_with(
                "x\\u{7} (2) wants to read the hidden file /a\\u{1b}[2J\\r\\n\\u{202e}"
            )
        );
        assert!(Subject::file(&[b'/'; LONGEST_PATH + 1], true).is_none());
        assert!(Subject::file(b"/\xff", true).is_none());
    }

    #[test]
    fn rules_are_those_that_flags_say() {
        let host =
            |host: &str| Subject::Host { host: host.into(), port: 443, transport: Transport::Tcp };
        assert_eq!(host("a.org").rule(true), ("allow-net", "a.org:443/tcp".to_owned()));
        assert_eq!(host("::1").rule(false), ("deny-net", "[::1]:443/tcp".to_owned()));
        assert_eq!(Subject::Name { name: "a".into() }.rule(true), ("allow-net", "a".to_owned()));
        for text in ["a.org:443/tcp", "[::1]:443/tcp"] {
            assert!(crate::sentry::net::Rule::parse(text).is_ok());
        }
    }
}
