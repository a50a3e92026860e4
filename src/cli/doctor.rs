//! `sandbox doctor`: what this host offers, what is missing and what to do about it.
//!
//! Owns the report's two forms. What is found out and what it means is `launch::host`'s business.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use serde::Serialize;

use crate::config::Without;
use crate::launch::host::{Finding, Host, State, able};

/// Looks at the host, prints the report on stdout and gives the exit status: 0 when
/// `sandbox -- prog` can work here with all default walls, 1 when not, 125 when the report cannot
/// be written. The facilities in `without` are reported as absent.
#[must_use]
pub fn run(json: bool, without: Without) -> i32 {
    let findings = Host::probe(without).findings();
    let mut stdout = std::io::stdout();
    let report =
        if json { as_json(&findings) } else { as_text(&findings, colours(stdout.is_terminal())) };
    let written = stdout.write_all(report.as_bytes()).and_then(|()| stdout.flush());
    match written {
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            // Nothing can be done if stderr is gone too.
            let _ = writeln!(
                std::io::stderr(),
                "sandbox: writing the report to stdout failed: {error}; \
                 check that its disk is not full"
            );
            125
        }
        _ => i32::from(!able(&findings)),
    }
}

/// Colours are for terminals, and for people who want them (<https://no-color.org>).
fn colours(terminal: bool) -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    terminal && !unwanted && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The report as an array of objects, one a finding; the keys are stable.
#[must_use]
pub fn as_json(findings: &[Finding]) -> String {
    #[derive(Serialize)]
    struct Row<'a> {
        name: &'a str,
        state: &'a str,
        found: &'a str,
        needed_for: &'a str,
        remedy: Option<&'a str>,
    }
    let rows: Vec<Row<'_>> = findings
        .iter()
        .map(|finding| Row {
            name: finding.name,
            state: finding.state.mark(),
            found: &finding.found,
            needed_for: finding.needed_for,
            remedy: finding.remedy.as_deref(),
        })
        .collect();
    // Strings and nothing else: there is nothing in it that could fail to become JSON.
    serde_json::to_string_pretty(&rows).map_or_else(|_| "[]\n".into(), |text| text + "\n")
}

/// The report as a table under headings, with the verdict as its last line.
#[must_use]
pub fn as_text(findings: &[Finding], coloured: bool) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut group = None;
    for finding in findings {
        if group != Some(finding.group) {
            let gap = if group.is_some() { "\n" } else { "" };
            let title = paint(finding.group.title(), "1", coloured);
            put(&mut text, format_args!("{gap}{title}\n"));
            group = Some(finding.group);
        }
        row(&mut text, finding, width, coloured);
    }
    put(&mut text, format_args!("\n{}\n", verdict(findings, coloured)));
    text
}

fn row(text: &mut String, finding: &Finding, width: usize, coloured: bool) {
    let mark = paint(&format!("{:<7}", finding.state.mark()), shade(finding.state), coloured);
    put(text, format_args!("  {mark}  {:<width$}  {}\n", finding.name, finding.found));
    // What rests on something missing has nothing of its own to say.
    let (Some(remedy), None) = (&finding.remedy, finding.rests_on) else { return };
    let without = finding.fallback.unwrap_or("no sandbox can run");
    for (label, content) in
        [("for", finding.needed_for), ("without", without), ("remedy", remedy.as_str())]
    {
        put(text, format_args!("           {label:<7}  {content}\n"));
    }
}

fn verdict(findings: &[Finding], coloured: bool) -> String {
    let lacking: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.required() && finding.state == State::Missing)
        .filter(|finding| finding.rests_on.is_none())
        .map(|finding| finding.name)
        .collect();
    if !lacking.is_empty() {
        let text = format!(
            "`sandbox -- PROG` cannot work on this host until the remedies above are applied for: {}.",
            lacking.join(", ")
        );
        return paint(&text, shade(State::Missing), coloured);
    }
    let short = findings.iter().filter(|finding| finding.state != State::Ok).count();
    let text = match short {
        0 => "`sandbox -- PROG` works on this host with all its walls.".to_owned(),
        1 => "`sandbox -- PROG` works on this host with all its default walls; 1 facility is \
              limited or missing."
            .to_owned(),
        short => format!(
            "`sandbox -- PROG` works on this host with all its default walls; {short} facilities \
             are limited or missing."
        ),
    };
    paint(&text, shade(State::Ok), coloured)
}

/// The colour of a state, as the parameter of an SGR sequence (console_codes(4)).
fn shade(state: State) -> &'static str {
    match state {
        State::Ok => "32",
        State::Limited => "33",
        State::Missing => "31",
    }
}

fn paint(text: &str, shade: &str, coloured: bool) -> String {
    if coloured { format!("\x1b[{shade}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Appends to a string, which cannot fail.
fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(what);
}
