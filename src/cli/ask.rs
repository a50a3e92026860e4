//! `sandbox ask`: what a sandbox asks (`--ask`), and answers to it. And the file that answers are written to.

use std::io::{BufRead, ErrorKind, Write};
use std::path::PathBuf;

use clap::Args;

use super::record::Destination;
use super::{fail, print};
use crate::config;
use crate::control::ClientError;
use crate::control::client::Sandbox;
use crate::control::protocol::{Reply, Request};
use crate::sentry::asking::{Choice, Outcome, Question, Scribe};

/// The words of `sandbox ask`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Which sandbox
    #[arg(value_name = "ID")]
    id: String,
    /// Answer a question, by its number: once, always, no or never
    #[arg(long, num_args = 2, value_names = ["N", "ANSWER"], conflicts_with_all = ["follow", "json"])]
    answer: Option<Vec<String>>,
    /// With --answer: write it to the profile of --ask-save, too
    #[arg(long, requires = "answer")]
    save: bool,
    /// Be there to answer until the sandbox ends: `N ANSWER [save]` on the standard input
    #[arg(short, long)]
    follow: bool,
    /// For programs to read: one object a line
    #[arg(long)]
    json: bool,
}

/// Lists, answers, or follows. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let done = match (&command.answer, command.follow) {
        (Some(words), _) => answer(command, words),
        (None, false) => list(command),
        (None, true) => follow(command),
    };
    done.unwrap_or_else(fail)
}

fn list(command: &Command) -> Result<i32, ClientError> {
    match Sandbox::find(&command.id)?.ask(&Request::Questions { follow: false })? {
        Reply::Questions(questions) => {
            let text: String = questions.iter().map(|it| line(it, command.json)).collect();
            Ok(print(text).err().unwrap_or(0))
        }
        other => Err(ClientError::unexpected(&command.id, &other)),
    }
}

fn answer(command: &Command, words: &[String]) -> Result<i32, ClientError> {
    let save = if command.save { " save" } else { "" };
    match request(&format!("{}{save}", words.join(" "))) {
        Ok(request) => {
            Sandbox::find(&command.id)?.ask(&request)?;
            Ok(0)
        }
        Err(sentence) => Ok(fail(sentence)),
    }
}

fn follow(command: &Command) -> Result<i32, ClientError> {
    let mut call = Sandbox::find(&command.id)?.call(&Request::Questions { follow: true }, &[])?;
    let id = command.id.clone();
    // It ends with this process.
    let answers = std::thread::Builder::new().name("answers".into()).spawn(move || take(&id));
    if let Err(error) = answers {
        return Ok(fail(format_args!("cannot read answers: {error}")));
    }
    loop {
        let text = match call.reply()? {
            Reply::Question(question) => line(&question, command.json),
            Reply::Settled { number, outcome } => {
                let outcome = outcome.map_or("gone", Outcome::word);
                match command.json {
                    true => {
                        format!("{}\n", serde_json::json!({"number": number, "settled": outcome}))
                    }
                    false => format!("{number}  {outcome}\n"),
                }
            }
            Reply::Done => return Ok(0),
            other => return Err(ClientError::unexpected(&command.id, &other)),
        };
        if let Err(status) = print(text) {
            return Ok(status);
        }
    }
}

/// Takes answers from the standard input, until that ends.
fn take(id: &str) {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        if line.trim().is_empty() {
            continue;
        }
        let done = request(&line).and_then(|request| {
            let sandbox = Sandbox::find(id).map_err(|error| error.to_string())?;
            sandbox.ask(&request).map_err(|error| error.to_string())
        });
        if let Err(sentence) = done {
            let _ = writeln!(std::io::stderr(), "sandbox: {sentence}");
        }
    }
}

/// `N ANSWER [save]`
fn request(text: &str) -> Result<Request, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (number, word, written) = match words[..] {
        [number, word] => (number, word, false),
        [number, word, "save"] => (number, word, true),
        _ => return Err("cannot use this answer: write N once, always, no or never".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| {
        format!("cannot use {number:?}: it is no number of a question; sandbox ask ID lists them")
    })?;
    let choice = Choice::named(word)
        .ok_or_else(|| format!("cannot use {word:?}: answer once, always, no or never"))?;
    Ok(Request::Answer { number, choice, written })
}

fn line(question: &Question, json: bool) -> String {
    match serde_json::to_value(question) {
        Ok(serde_json::Value::Object(mut fields)) if json => {
            fields.insert("text".to_owned(), question.to_string().into());
            format!("{}\n", serde_json::Value::Object(fields))
        }
        _ => format!("{}  {question}\n", question.number),
    }
}

/// What writes answers to the profile of `--ask-save`.
pub(super) fn scribe(path: PathBuf) -> Result<Scribe, String> {
    const FLAG: &str = "--ask-save";
    let failed = |error: &dyn std::fmt::Display| {
        format!("cannot write {FLAG} {}: {error}", config::quoted(&path))
    };
    let place = std::path::absolute(&path).map_err(|error| failed(&error))?;
    // (One that is no profile is better known now.)
    read(&place).map_err(|error| failed(&error))?;
    let destination = Destination::find(FLAG, place.clone())?;
    Ok(Box::new(move |subject, allowed| {
        let failed = |error: &dyn std::fmt::Display| {
            format!("cannot write {FLAG} {}: {error}", config::quoted(&place))
        };
        let old = read(&place).map_err(|error| failed(&error))?;
        let new = config::add_answer(&old, subject, allowed).map_err(|error| failed(&error))?;
        destination.write_with(0o600, true, |mut file| file.write_all(new.as_bytes()))
    }))
}

fn read(place: &std::path::Path) -> std::io::Result<String> {
    match std::fs::read_to_string(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let of = |number, choice, written| Ok(Request::Answer { number, choice, written });
        assert_eq!(request(" 3  once "), of(3, Choice::Once, false));
        assert_eq!(request("3 never save"), of(3, Choice::Never, true));
        for bad in ["", "3", "once 3", "3 yes", "3 once twice", "-1 no"] {
            assert!(request(bad).is_err(), "{bad}");
        }
    }
}
