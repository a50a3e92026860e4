//! `sandbox profile`: which profiles there are, and what a run would be told by which of them.
//!
//! Owns what is printed. It starts nothing; whether a run can be what it is told is for `--dry-run`.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::args::CommandProfile;
use super::run::hide_stores;
use super::table::{columns, plain};
use super::{fail, print};
use crate::config::profile::{self, Gathered, KEYS, Key, Listed, Origin, Place, Setting, Value};
use crate::config::{Host, quoted};
use crate::control;

/// `sandbox profile`
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print what a run would be told, and who says so
    #[command(
        override_usage = "sandbox profile show [RUN OPTIONS] [NAME|FILE]",
        after_help = "With the options of a run it tells what that run would be told."
    )]
    Show(CommandProfile),
    /// Name the profiles that there are, and tell what they are for
    List(List),
}

/// `sandbox profile list`
#[derive(Debug, Args)]
pub(super) struct List {
    /// For programs to read
    #[arg(long)]
    json: bool,
}

/// Runs the verb. Returns the exit status.
pub(super) fn run(command: Command) -> i32 {
    let text = match command {
        Command::Show(command) => show(command),
        Command::List(List { json }) => {
            let rows: Vec<Row> = profile::list(&Host::current()).iter().map(Row::of).collect();
            if json { as_json(&rows) } else { Ok(list(&rows)) }
        }
    };
    match text {
        Ok(text) => print(text).err().unwrap_or(0),
        Err(sentence) => fail(sentence),
    }
}

fn as_json(what: &impl Serialize) -> Result<String, String> {
    let text = serde_json::to_string_pretty(what);
    text.map(|text| text + "\n").map_err(|error| format!("cannot write this as JSON: {error}"))
}

fn show(command: CommandProfile) -> Result<String, String> {
    let CommandProfile { options, json, name } = command;
    let mut request = options.request;
    if let Some(name) = name {
        request.profiles.insert(0, name);
    }
    let mut host = Host::current();
    hide_stores(&mut host);
    let gathered = profile::gather(request, &mut host, control::state::base_path)
        .map_err(|error| error.to_string())?;
    if json { as_json(&Shown::of(&gathered)) } else { Ok(shown(&gathered)) }
}

/// For people.
fn shown(gathered: &Gathered) -> String {
    let mut text = String::from("from the weakest to the strongest:\n");
    for place in &gathered.places {
        text.push_str(&format!("  {}\n", name(place, gathered)));
    }
    text.push_str("  command line\n\n");
    let mut rows: Vec<[String; 3]> = Vec::new();
    for key in KEYS.iter().filter(|key| !key.hidden || settings(gathered, key).next().is_some()) {
        let before = rows.len();
        rows.extend(settings(gathered, key).map(row));
        if rows.len() == before {
            let default = if key.default.is_empty() { "none" } else { key.default };
            rows.push([key.name.to_owned(), default.to_owned(), "default".to_owned()]);
        }
    }
    text.push_str(&columns(["KEY", "VALUE", "FROM"], &rows));
    if !gathered.left_out.is_empty() {
        let rows: Vec<[String; 3]> = gathered.left_out.iter().map(row).collect();
        text.push_str("\nleft out, since the project's own file would allow more by it:\n");
        text.push_str(&columns(["KEY", "VALUE", "FROM"], &rows));
    }
    text
}

fn row(setting: &Setting) -> [String; 3] {
    let Setting { key, value, origin, .. } = setting;
    [key.name.to_owned(), plain(&value.to_string()), plain(&origin.to_string())]
}

fn settings<'g>(gathered: &'g Gathered, key: &'g Key) -> impl Iterator<Item = &'g Setting> {
    gathered.settings.iter().filter(move |setting| setting.key == key)
}

/// A source, and that it is the project's.
fn name(place: &Place, gathered: &Gathered) -> String {
    let project = gathered.project.as_deref();
    match place {
        Place::File(path) if project == Some(&**path) => {
            format!("{} (the project's)", plain(&place.to_string()))
        }
        place => plain(&place.to_string()),
    }
}

/// What was read for a run, on a line; none if that is nothing but the defaults.
pub(super) fn sources(gathered: &Gathered) -> Option<String> {
    let default = gathered.places == [Place::BuiltIn("default")];
    let names: Vec<String> = gathered.places.iter().map(|place| name(place, gathered)).collect();
    (!default).then(|| names.join(", "))
}

/// What is said of things that the project's own file asked for in vain.
pub(super) fn left_out(gathered: &Gathered) -> Option<String> {
    const NAMED: usize = 5;
    let file = gathered.project.as_ref().filter(|_| !gathered.left_out.is_empty())?;
    let word = |setting: &Setting| {
        let line = match &setting.origin {
            Origin::File { path, line } if **path == **file => format!(" (line {line})"),
            origin => format!(" ({origin})"),
        };
        format!("{} = {}{line}", setting.key.name, setting.value)
    };
    let mut words: Vec<String> = gathered.left_out.iter().take(NAMED).map(word).collect();
    if gathered.left_out.len() > NAMED {
        words.push(format!("and {} more", gathered.left_out.len() - NAMED));
    }
    Some(plain(&format!(
        "left out of {}, since it would allow more than you do: {}; --trust-project-profile takes all \
         of it",
        quoted(file),
        words.join(", ")
    )))
}

/// `show --json`
#[derive(Serialize)]
struct Shown {
    sources: Vec<Source>,
    project: Option<String>,
    settings: Vec<Said>,
    left_out: Vec<Said>,
}

#[derive(Serialize)]
struct Source {
    kind: &'static str,
    name: String,
}

#[derive(Serialize)]
struct Said {
    key: &'static str,
    value: serde_json::Value,
    from: From,
}

#[derive(Serialize)]
struct From {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
}

impl Shown {
    fn of(gathered: &Gathered) -> Shown {
        let named = KEYS.iter().flat_map(|key| settings(gathered, key)).map(Said::of);
        let unnamed = KEYS.iter().filter(|key| !key.hidden);
        let unnamed = unnamed.filter(|key| settings(gathered, key).next().is_none());
        let default = |key: &'static Key| Said {
            key: key.name,
            value: serde_json::Value::Null,
            from: From { kind: "default", name: None, line: None },
        };
        Shown {
            sources: gathered.places.iter().map(Source::of).collect(),
            project: gathered.project.as_ref().map(|path| path.to_string_lossy().into_owned()),
            settings: named.chain(unnamed.map(default)).collect(),
            left_out: gathered.left_out.iter().map(Said::of).collect(),
        }
    }
}

impl Source {
    fn of(place: &Place) -> Source {
        match place {
            Place::BuiltIn(name) => Source { kind: "built-in", name: (*name).to_owned() },
            Place::File(path) => Source { kind: "file", name: path.to_string_lossy().into_owned() },
        }
    }
}

impl Said {
    fn of(setting: &Setting) -> Said {
        let value = match &setting.value {
            Value::Switch(on) => (*on).into(),
            Value::Word(word) => word.to_string_lossy().into_owned().into(),
        };
        let (kind, name, line) = match &setting.origin {
            Origin::BuiltIn(name) => ("built-in", Some((*name).to_owned()), None),
            Origin::File { path, line } => {
                ("file", Some(path.to_string_lossy().into_owned()), Some(*line))
            }
            Origin::CommandLine => ("command line", None, None),
        };
        Said { key: setting.key.name, value, from: From { kind, name, line } }
    }
}

/// A line of `list`.
#[derive(Serialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    place: Source,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    from: String,
}

impl Row {
    fn of(listed: &Listed) -> Row {
        let (description, error) = match &listed.description {
            Ok(description) => (description.clone(), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let from = match &listed.place {
            Place::BuiltIn(_) => "built in".to_owned(),
            place => place.to_string(),
        };
        Row {
            name: listed.name.clone(),
            place: Source::of(&listed.place),
            description,
            error,
            from,
        }
    }
}

fn list(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let words = row.description.clone().or_else(|| row.error.clone()).unwrap_or_default();
        [row.name.clone(), plain(&row.from), plain(&words)]
    };
    let rows: Vec<[String; 3]> = rows.iter().map(cells).collect();
    columns(["NAME", "FROM", "WHAT FOR"], &rows)
}
