//! `sandbox syscalls`: the table as implemented, for people, for programs and for the documentation;
//! and what `sandbox why SYSCALL` says of one call.
//!
//! Everything here is read off the rows; nothing is known of any single call.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};

use serde::Serialize;

use crate::notify::filter::{Own, Test};
use crate::sentry::Features;
use crate::sentry::syscalls::row::{ArgSpec, ArgTest, Exception};
use crate::sentry::syscalls::table::{ROWS, by_name};
use crate::sentry::syscalls::{Class, Row};

/// How the table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns.
    Text,
    /// One array of objects (`--json`).
    Json,
    /// The page of the documentation (`--markdown`).
    Markdown,
}

/// Prints the table and gives the exit status. A reader that has gone away is no error.
pub fn run(format: Format) -> i32 {
    let page = match format {
        Format::Text => text(),
        Format::Json => json(),
        Format::Markdown => markdown(),
    };
    match std::io::stdout().lock().write_all(page.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!(
                "sandbox: cannot write the syscall table to the standard output: {error}; \
                 send it to a place with room"
            );
            125
        }
        _ => 0,
    }
}

/// What `sandbox why` says of a syscall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Its name.
    pub name: &'static str,
    /// Its number on this architecture.
    pub number: u32,
    /// Its class, and how it is answered.
    pub class: String,
    /// Why; `None` for a native or handled one.
    pub reason: Option<&'static str>,
    /// What the user can do.
    pub remedy: Option<&'static str>,
    /// Whether a call to which no exception applies runs.
    pub allowed: bool,
    /// The exceptions by argument, each as one phrase.
    pub exceptions: Vec<String>,
}

/// What there is to say of the syscall called `name` (with or without `SYS_`); `None` if the table
/// does not know it.
pub fn describe(name: &str) -> Option<Description> {
    let row = by_name(name)?;
    let words = Words::of(&row.class);
    let exceptions = row.except.iter().map(|exception| {
        let words = Words::of(&exception.class);
        format!("{}: {}{}", condition(row, exception), words.class(), words.because(": "))
    });
    Some(Description {
        name: row.name,
        number: row.number,
        class: words.class(),
        reason: words.reason,
        remedy: words.remedy,
        allowed: matches!(row.class, Class::Native | Class::Handled { .. }),
        exceptions: exceptions.collect(),
    })
}

/// The page docs/syscalls.md.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    for (class, meaning) in CLASSES {
        let rows = ROWS.iter().filter(|row| Words::of(&row.class).class == *class).count();
        // A string takes everything that is written to it.
        let _ = writeln!(page, "- *{class}* ({rows} calls): {meaning}");
    }
    page.push_str(
        "\n## Calls\n\n| number | call | class | why, and what to do |\n|---:|---|---|---|\n",
    );
    for row in ROWS {
        let words = Words::of(&row.class);
        let (number, name, args) = (row.number, row.name, arguments(row));
        let (class, why) = (words.class(), cell(&words.because("")));
        let more = if row.except.is_empty() { "" } else { ", with [exceptions](#exceptions)" };
        let _ = writeln!(page, "| {number} | `{name}{args}` | {class}{more} | {why} |");
    }
    page.push_str(
        "\n## Exceptions\n\nThe first one that holds decides instead of the call's class.\n\n\
         | call | where | class | why, and what to do |\n|---|---|---|---|\n",
    );
    for (row, exception) in ROWS.iter().flat_map(|row| row.except.iter().map(move |e| (row, e))) {
        let words = Words::of(&exception.class);
        let (name, holds) = (row.name, cell(&condition(row, exception)));
        let (class, why) = (words.class(), cell(&words.because("")));
        let _ = writeln!(page, "| `{name}` | {holds} | {class} | {why} |");
    }
    page
}

const HEAD: &str = "\
# Syscalls

What happens to each syscall of x86_64 that a guest makes. `cargo xtask codegen` writes this page
from the table that also decides the filter and the dispatch (`src/sentry/syscalls/table/rows.rs`);
`sandbox syscalls` prints the same, `sandbox why SYSCALL` explains one call.

Arguments have the names of the man pages. A type says what an argument means: `In`, `Out` and
`InOut` point to structures that the kernel reads, writes, or both.

";

/// Each class and what it means, in the order of the documentation.
const CLASSES: &[(&str, &str)] = &[
    ("native", "the host kernel runs it; the walls around the guest decide what it can do."),
    ("handled", "the sentry serves it where the features named beside it are on; else native."),
    ("denied", "the filter answers with the error: programs try it in passing and go on without."),
    ("refused", "answered with the error, and the user is told at the end of the run."),
    ("unimplemented", "answered with ENOSYS, counted and reported as an event."),
];

fn text() -> String {
    let names = ROWS.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let classes = ROWS
        .iter()
        .flat_map(|row| std::iter::once(&row.class).chain(row.except.iter().map(|e| &e.class)))
        .map(|class| Words::of(class).class().len())
        .max()
        .unwrap_or(0);
    let mut page = String::new();
    let mut line = |number: &str, name: &str, class: &str, rest: &str| {
        // A string takes everything that is written to it.
        let _ = writeln!(page, "{number:>3}  {name:names$}  {class:classes$}  {rest}");
    };
    for row in ROWS {
        let words = Words::of(&row.class);
        line(&row.number.to_string(), row.name, &words.class(), &arguments(row));
        let why = words.because("");
        if !why.is_empty() {
            line("", "", "", &why);
        }
        for exception in row.except {
            let words = Words::of(&exception.class);
            let holds = condition(row, exception);
            line("", "", &words.class(), &format!("where {holds}{}", words.because(": ")));
        }
    }
    page
}

fn json() -> String {
    let rows: Vec<JsonRow> = ROWS.iter().map(JsonRow::of).collect();
    // Strings, numbers and lists of them always have a JSON form.
    serde_json::to_string_pretty(&rows).map(|page| page + "\n").unwrap_or_default()
}

#[derive(Serialize)]
struct JsonRow {
    number: u32,
    name: &'static str,
    arguments: Vec<JsonArgument>,
    #[serde(flatten)]
    class: Words,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exceptions: Vec<JsonException>,
}

#[derive(Serialize)]
struct JsonArgument {
    name: &'static str,
    #[serde(rename = "type")]
    type_name: &'static str,
}

#[derive(Serialize)]
struct JsonException {
    #[serde(rename = "where")]
    holds: String,
    #[serde(flatten)]
    class: Words,
}

impl JsonRow {
    fn of(row: &Row) -> JsonRow {
        let argument = |arg: &ArgSpec| JsonArgument { name: arg.name, type_name: arg.type_name };
        let exception = |exception: &Exception| JsonException {
            holds: condition(row, exception),
            class: Words::of(&exception.class),
        };
        JsonRow {
            number: row.number,
            name: row.name,
            arguments: row.args.iter().map(argument).collect(),
            class: Words::of(&row.class),
            exceptions: row.except.iter().map(exception).collect(),
        }
    }
}

/// A class in words.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
struct Words {
    class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
    /// The features that make it trap.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    when: Vec<String>,
}

impl Words {
    fn of(class: &Class) -> Words {
        let words = |class| Words { class, errno: None, reason: None, remedy: None, when: vec![] };
        match *class {
            Class::Native => words("native"),
            Class::Handled { when, .. } => Words { when: features(when), ..words("handled") },
            Class::Denied { errno, reason, when } => Words {
                errno: Some(format!("{errno:?}")),
                reason: Some(reason),
                when: if when == Features::ALWAYS { Vec::new() } else { features(when) },
                ..words("denied")
            },
            Class::Refused { errno, reason, remedy, .. } => Words {
                errno: Some(format!("{errno:?}")),
                reason: Some(reason),
                remedy: Some(remedy),
                ..words("refused")
            },
            Class::Unimplemented { reason } => Words {
                errno: Some("ENOSYS".into()),
                reason: Some(reason),
                ..words("unimplemented")
            },
        }
    }

    /// The class and how it is answered: `denied, EPERM`.
    fn class(&self) -> String {
        match (&self.errno, self.when.is_empty()) {
            (Some(errno), true) => format!("{}, {errno}", self.class),
            (Some(errno), false) => {
                format!("{}, {errno}, {}", self.class, self.when.join(" or "))
            }
            (None, false) => format!("{}, {}", self.class, self.when.join(" or ")),
            (None, true) => self.class.to_owned(),
        }
    }

    /// Reason and remedy behind `before`, or nothing.
    fn because(&self, before: &str) -> String {
        match (self.reason, self.remedy) {
            (Some(reason), Some(remedy)) => format!("{before}{reason}; {remedy}"),
            (Some(reason), None) => format!("{before}{reason}"),
            _ => String::new(),
        }
    }
}

/// Names of features, as people write them.
fn features(features: Features) -> Vec<String> {
    features.iter_names().map(|(name, _)| name.to_lowercase().replace('_', " ")).collect()
}

fn arguments(row: &Row) -> String {
    let args: Vec<String> =
        row.args.iter().map(|arg| format!("{}: {}", arg.name, arg.type_name)).collect();
    format!("({})", args.join(", "))
}

/// When an exception applies: `request is TIOCSTI (0x5412)`.
fn condition(row: &Row, exception: &Exception) -> String {
    let tests = exception.tests.iter().map(|ArgTest { arg, test, text }| {
        let name = row.args.get(usize::from(*arg)).map_or("?", |arg| arg.name);
        let value = match test {
            Test::Is(value) | Test::Has(value) => format!("{value:#x}"),
            Test::In(values) => ranges(values),
            Test::IsNot(Own::User) => return format!("{name} is not the caller's uid"),
            Test::IsNot(Own::Number(number)) => return format!("{name} is not {number:#x}"),
            Test::IsNot(Own::Group) => return format!("{name} is not the caller's gid"),
            Test::IsNot(Own::Itself) => return format!("{name} is not 0, the caller itself"),
            Test::Type(byte) => return format!("{name} is of the type {byte:#x}"),
        };
        format!("{name} {text} ({value})")
    });
    tests.collect::<Vec<_>>().join(" and ")
}

/// Ascending numbers with neighbours drawn together: `3-9, 11`.
fn ranges(values: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &value in values {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == value => *last = value,
            _ => runs.push((value, value)),
        }
    }
    let run = |(first, last): (u64, u64)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.into_iter().map(run).collect::<Vec<_>>().join(", ")
}

/// Text for a cell of a table in Markdown.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_says_what_happens_and_what_to_do() {
        let mount = describe("mount").unwrap();
        assert_eq!((mount.class.as_str(), mount.allowed), ("refused, EPERM", false));
        assert!(mount.reason.unwrap().contains("file view"));
        assert!(mount.remedy.unwrap().contains("--tmpfs"));
        let read = describe("SYS_read").unwrap();
        assert_eq!((read.class.as_str(), read.allowed, read.number), ("native", true, 0));
        assert!(read.reason.is_none() && read.exceptions.is_empty());
        assert_eq!(describe("no_such_call"), None);
        assert_eq!(describe(""), None);
    }

    #[test]
    fn description_names_the_exceptions() {
        let ioctl = describe("ioctl").unwrap();
        assert!(ioctl.allowed);
        assert!(ioctl.exceptions[0].starts_with("request is TIOCSTI (0x5412): denied, EPERM: "));
        let open = describe("open").unwrap();
        assert!(open.exceptions[0].contains(" and mode has S_ISUID (0x800): "), "{open:?}");
    }

    #[test]
    fn handled_calls_name_their_features() {
        assert_eq!(
            describe("execve").unwrap().class,
            "handled, exec events or cpu clock or file log or virtual time or patterns or twins"
        );
        assert_eq!(describe("syslog").unwrap().class, "handled, always");
    }

    #[test]
    fn json_has_every_row_and_its_parts() {
        let rows: serde_json::Value = serde_json::from_str(&json()).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), ROWS.len());
        let openat = rows.as_array().unwrap().iter().find(|row| row["name"] == "openat").unwrap();
        assert_eq!(openat["number"], 257);
        assert_eq!(openat["arguments"][0]["name"], "dirfd");
        assert_eq!(openat["arguments"][1]["type"], "Path");
        assert_eq!(openat["class"], "handled");
        assert_eq!(openat["exceptions"][0]["errno"], "EPERM");
    }

    #[test]
    fn text_is_aligned_and_complete() {
        let text = text();
        for row in ROWS {
            let start = format!("{:>3}  {} ", row.number, row.name);
            assert!(text.lines().any(|line| line.starts_with(&start)), "{start}");
        }
        let column = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap();
            line.find('(').unwrap()
        };
        assert_eq!(column("  0  read "), column("165  mount "));
        assert_eq!(column("  0  read "), column("450  set_mempolicy_home_node "));
    }

    #[test]
    fn markdown_has_a_line_for_each_row_with_the_columns_of_its_head() {
        let page = markdown();
        for row in ROWS {
            let start = format!("| {} | `{}(", row.number, row.name);
            let line = page.lines().find(|line| line.starts_with(&start)).expect(row.name);
            assert_eq!(line.replace("\\|", "").matches('|').count(), 5, "{line}");
        }
        assert!(page.contains("NAMESPACES \\| CLONE_NEWTIME"));
    }

    #[test]
    fn neighbours_are_drawn_together() {
        assert_eq!(ranges(&[3, 4, 5, 7, 9, 10]), "3-5, 7, 9-10");
        assert_eq!(ranges(&[]), "");
    }
}
