//! What was learned, as the text of a profile.
//!
//! Owns the words of a new one, and the remarks that go to the end of every one. Every line of it was influenced
//! by a program: names are quoted, and stay on their line.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::super::quoted;
use super::Lesson;
use super::carried::pair_text;
use super::fold::Learned;

/// So many names in a directory are told one by one.
const FEW: usize = 3;
/// So many names of a kind are told at most.
const MOST: usize = 12;

impl Lesson {
    /// The text of a new profile.
    pub fn text(&self) -> String {
        let mut text =
            format!("# Learned by sandbox learn (docs/learn.md) from: {}\n", self.program);
        let description = format!("Learned from {}", self.program);
        line(&mut text, &format!("description = {}", one(&description)));
        match &self.carried.inherit[..] {
            [] => {}
            [name] => line(&mut text, &format!("inherit = {name}")),
            names => line(&mut text, &format!("inherit = [{}]", names.join(", "))),
        }
        self.write_said(&mut text);
        self.write_rules(&mut text);
        self.write_bounds(&mut text);
        text.push_str(&self.remarks());
        text
    }

    /// What the user has said.
    fn write_said(&self, text: &mut String) {
        let mut before = None;
        let said = self.carried.said.iter().filter(|(key, ..)| !["rw", "ro"].contains(key));
        for (key, is_list, value) in said.clone() {
            if before == Some(key) {
                continue;
            }
            before = Some(key);
            let values: Vec<&str> =
                said.clone().filter(|it| it.0 == *key).map(|it| it.2.as_str()).collect();
            match is_list {
                true => line(text, &format!("{key} = [{}]", values.join(", "))),
                false => line(text, &format!("{key} = {value}")),
            }
        }
    }

    fn write_rules(&self, text: &mut String) {
        for (key, learned) in [("rw", self.rules_to_write()), ("ro", self.rules_to_read())] {
            let said = self.carried.said.iter().filter(|it| it.0 == key);
            let said = said.map(|it| (it.2.clone(), "you named it".to_owned()));
            let all: Vec<(String, String)> = said.chain(learned).collect();
            if all.is_empty() {
                continue;
            }
            line(text, "");
            line(text, &format!("{key} = ["));
            for (path, why) in all {
                line(text, &format!("    {path}, # {why}"));
            }
            line(text, "]");
        }
    }

    /// Rules for what was written, with what is said beside each.
    pub(super) fn rules_to_write(&self) -> Vec<(String, String)> {
        let rule = |learned: &Learned| {
            let path = with_slash(learned);
            let count = match learned.count {
                1 => "1 path was written to".to_owned(),
                n => format!("{n} paths were written to"),
            };
            let made =
                if learned.is_made { "; the program made it, and so does the sandbox" } else { "" };
            Some((pair_text(&path, self.home.as_ref())?, format!("{count}{made}")))
        };
        self.writable.iter().filter_map(rule).collect()
    }

    /// The others.
    pub(super) fn rules_to_read(&self) -> Vec<(String, String)> {
        let rule = |(path, why): &(PathBuf, &'static str)| {
            Some((pair_text(path, self.home.as_ref())?, (*why).to_owned()))
        };
        self.read_only.iter().filter_map(rule).collect()
    }

    fn write_bounds(&self, text: &mut String) {
        let mut all = self.bounds.iter().peekable();
        if all.peek().is_some() {
            line(text, "");
            line(text, "# What was used, with room above.");
        }
        for bound in all {
            let value = bound.value();
            match &bound.impossible {
                None => line(text, &format!("{} = {value} # {}", bound.key, bound.seen)),
                Some(why) => {
                    line(
                        text,
                        &format!(
                            "# {} = {value} # {}; here: {}",
                            bound.key,
                            bound.seen,
                            plain(why)
                        ),
                    );
                }
            }
        }
    }

    /// What the profile does not grant, and what else was seen.
    pub(super) fn remarks(&self) -> String {
        let mut text = String::new();
        let needs = &self.needs;
        let mut list = |head: &str, lines: Vec<String>| {
            if lines.is_empty() {
                return;
            }
            line(&mut text, "");
            line(&mut text, &format!("# {head}"));
            for words in lines.iter().take(MOST) {
                line(&mut text, &format!("#   {}", plain(words)));
            }
            if lines.len() > MOST {
                line(&mut text, &format!("#   and {} more", lines.len() - MOST));
            }
        };
        let hidden = needs.hidden.iter().map(|(path, why)| format!("{} ({why})", quoted(path)));
        list(
            "Not granted, since it is hidden: the program looked for these. To show one: ro = [...]",
            hidden.collect(),
        );
        let covered = needs.covered.iter().map(|(path, why)| format!("{} ({why})", quoted(path)));
        list(
            "Not granted: the host has these where the sandbox has a place of its own. To show one: ro = [...]",
            covered.collect(),
        );
        let wide = needs.too_wide.iter().flat_map(|(directory, names)| {
            let rule = pair_text(directory, self.home.as_ref()).unwrap_or_default();
            names.iter().map(move |name| format!("{} (rw = [{rule}])", quoted(name)))
        });
        list(
            "Not granted, since the directory is too wide (a home, or the system's): these were made or removed in it",
            wide.collect(),
        );
        let kept = needs.kept.iter().map(|(path, flag)| format!("{} ({flag})", quoted(path)));
        list(
            "Not granted, since you want it to stay as it is: these were to be changed",
            kept.collect(),
        );
        let impossible = self.impossible.iter().map(|it| quoted(&it.path)).collect();
        list("Not granted, since no profile can name them: these were written to", impossible);
        list("Not granted: the network (net = \"host\")", self.network_words());
        let absent = needs.absent.iter().flat_map(|(directory, names)| match names.len() {
            0..=FEW => names.iter().map(quoted).collect::<Vec<_>>(),
            many => vec![format!("{many} names in {}", quoted(directory))],
        });
        list("Looked for in vain, and not there on the host either", absent.collect());
        let executed = needs.executed.iter().map(quoted).collect();
        list("Executed", executed);
        let mut counts = vec![format!(
            "{} files were read, {} written to or made; exit status {}",
            needs.read, needs.written, self.status
        )];
        if needs.untold > 0 {
            counts.push(format!(
                "of {} calls it could not be told what they were about",
                needs.untold
            ));
        }
        list("Seen", counts);
        text
    }

    /// What was tried over the network, unless it is granted.
    fn network_words(&self) -> Vec<String> {
        if !self.lacks_network() {
            return Vec::new();
        }
        let addresses: Vec<String> =
            self.measured.addresses.iter().map(ToString::to_string).collect();
        match addresses.is_empty() {
            true => vec![format!("{} packets had no way to go", self.measured.refused)],
            false => addresses,
        }
    }
}

/// A path with the slash that lets a directory be made.
fn with_slash(learned: &Learned) -> PathBuf {
    let mut text = OsString::from(&learned.path);
    if learned.is_made {
        text.push("/");
    }
    text.into()
}

/// A line.
fn line(text: &mut String, words: &str) {
    // A String takes every word.
    let _ = writeln!(text, "{words}");
}

/// Words of the command line, for people.
pub(super) fn words(argv: &[OsString]) -> String {
    const LONGEST: usize = 120;
    let words: Vec<String> = argv.iter().map(quoted).collect();
    let words = words.join(" ");
    match words.char_indices().nth(LONGEST) {
        None => words,
        Some((end, _)) => format!("{}...", &words[..end]),
    }
}

/// Text that stays on its line, whatever is in it.
fn plain(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A string of TOML.
pub(super) fn one(words: &str) -> String {
    let mut text = String::from("\"");
    for c in words.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04X}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// A path as a string of TOML, which a profile reads back (`profile::expand`); in `home` it begins with a tilde.
/// None where it is no text.
pub(super) fn path_text(path: &Path, home: Option<&Path>) -> Option<String> {
    let text = path.to_str()?;
    let below = home.and_then(|home| text.strip_prefix(home.to_str()?));
    let text = match below {
        Some("") => "~".to_owned(),
        Some(rest) if rest.starts_with('/') => format!("~{}", rest.replace('$', "$$")),
        _ => text.replace('$', "$$"),
    };
    Some(one(&text))
}
