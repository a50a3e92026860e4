//! The table on stdout and the figures in a file.
//!
//! Both say the same; the file says all of it. The table's widths are fixed, so that two runs can
//! be compared line by line.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::Bench;
use super::machine::Machine;
use super::row::{Column, Ratio, Row, Target, Unit, Verdict};
use super::stats::Summary;

/// The columns of the table in order, each with its head; a contender's variant goes where its peer
/// does, and `peer` is whoever does a single row's work by other means.
const COLUMNS: [(&str, &[&str]); 9] = [
    ("native", &["native"]),
    ("floor", &["floor", "overlayfs"]),
    ("+session", &["floor+session"]),
    ("bwrap", &["bwrap", "bwrap+time"]),
    ("ours", &["ours"]),
    ("peer", &["libfaketime", "kill", "nsenter", "criu", "rsync", "proot", "slirp4netns"]),
    ("peer 2", &["fakeroot", "tinyproxy"]),
    ("strace", &["strace"]),
    ("runsc", &["runsc"]),
];

/// All figures of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    /// The program under test.
    sandbox: String,
    quick: bool,
    /// What stands before a command, by contender.
    contenders: BTreeMap<&'static str, String>,
    skipped: Vec<String>,
    rows: Vec<ReportRow>,
}

#[derive(Debug, Serialize)]
struct ReportRow {
    name: String,
    unit: Unit,
    contenders: BTreeMap<&'static str, ReportColumn>,
    /// `A/B`: how many times as much as B A takes.
    ratios: BTreeMap<String, Ratio>,
    reference: &'static str,
    /// The reference against itself.
    noise: Option<Ratio>,
    target: Target,
    verdict: Verdict,
    /// Whether ours meets the target; `null` where there is nothing to say.
    met: Option<bool>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ReportColumn {
    rounds: usize,
    #[serde(flatten)]
    summary: Summary,
}

impl Report {
    /// Collects what was measured.
    pub(super) fn new(bench: &Bench, ours: &Path, rows: Vec<Row>) -> Report {
        Report {
            machine: Machine::describe(),
            sandbox: ours.display().to_string(),
            quick: bench.quick,
            contenders: bench.contenders.prefixes().collect(),
            skipped: bench.contenders.skipped.clone(),
            rows: rows.iter().map(ReportRow::new).collect(),
        }
    }

    /// Writes the figures as JSON.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| format!("cannot put the figures into words: {error}"))?;
        text.push('\n');
        std::fs::write(path, text).map_err(|error| {
            format!("cannot write {}: {error}; name another file with --json", path.display())
        })
    }

    /// The table, with what its reader must know below it.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{}\n\n{:<36}", self.machine.line(), "median of each");
        for (head, _) in COLUMNS {
            let _ = write!(text, "{head:>10}");
        }
        let _ = writeln!(
            text,
            "{:>10}  {:>13} {:>7} {:>7}  {:<12} {:<10} verdict",
            "ours p95", "ours/ref", "± ", "minima", "ref ± itself", "target"
        );
        for row in &self.rows {
            let _ = writeln!(text, "{}", row.line());
        }
        text.push('\n');
        for note in self.skipped.iter().chain(self.rows.iter().flat_map(|row| &row.notes)) {
            let _ = writeln!(text, "{note}");
        }
        text
    }
}

impl ReportRow {
    fn new(row: &Row) -> ReportRow {
        let column = |column: &Column| {
            let summary = column.summary()?;
            Some((column.contender, ReportColumn { rounds: column.rounds.len(), summary }))
        };
        let mut ratios = BTreeMap::new();
        for mine in &row.columns {
            for other in ["native", row.reference, "ours"] {
                if other != mine.contender
                    && let Some(ratio) = row.ratio(mine.contender, other)
                {
                    ratios.insert(format!("{}/{other}", mine.contender), ratio);
                }
            }
        }
        let verdict = row.verdict();
        ReportRow {
            name: row.name.clone(),
            unit: row.unit,
            contenders: row.columns.iter().filter_map(column).collect(),
            ratios,
            reference: row.reference,
            noise: row.noise(),
            target: row.target,
            verdict,
            met: match verdict {
                Verdict::Met => Some(true),
                Verdict::Missed | Verdict::Unclear => Some(false),
                Verdict::None => None,
            },
            notes: row.notes.clone(),
        }
    }

    fn line(&self) -> String {
        let mut text = format!("{:<36}", self.name);
        let cell =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| figure(value, self.unit));
        for (_, names) in COLUMNS {
            let column = names.iter().find_map(|name| self.contenders.get(name));
            let _ = write!(text, "{:>10}", cell(column.map(|column| column.summary.median)));
        }
        let ours = self.contenders.get("ours").map(|column| column.summary.p95);
        let _ = write!(text, "{:>10}  ", cell(ours));
        match self.ratios.get(&format!("ours/{}", self.reference)) {
            Some(ratio) => {
                let against = format!("{:.3} {}", ratio.median, self.reference);
                let _ = write!(text, "{against:>13} {:>7.3} {:>7.3}", ratio.error, ratio.of_minima);
            }
            None => {
                let _ = write!(text, "{:>13} {:>7} {:>7}", "-", "-", "-");
            }
        }
        let noise =
            self.noise.map_or("-".to_owned(), |noise| format!("{:.3}..{:.3}", noise.q1, noise.q3));
        let target = match self.target {
            Target::Ratio(limit) => format!("{limit:.2} x"),
            Target::AtMost(limit) => figure(limit, self.unit),
            Target::Added(limit) => format!("+{}", figure(limit, self.unit)),
            Target::Overhead(limit, _) => format!("{limit:.2} over"),
            Target::None => "-".to_owned(),
        };
        let verdict = match self.verdict {
            Verdict::Met => "met",
            Verdict::Unclear => "unclear: within the error",
            Verdict::Missed => "MISSED",
            Verdict::None => "-",
        };
        let _ = write!(text, "  {noise:<12} {target:<10} {verdict}");
        text
    }
}

/// A value with three significant digits in the unit that suits it; at most ten columns wide.
pub(super) fn figure(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => format!("{value:.0}"),
        Unit::Percent => format!("{value:.2} %"),
        Unit::Kibibytes => format!("{value:.0} KiB"),
        Unit::Nanoseconds => {
            let (scaled, name) = match value {
                value if value < 1e3 => (value, "ns"),
                value if value < 1e6 => (value / 1e3, "µs"),
                value if value < 1e9 => (value / 1e6, "ms"),
                value => (value / 1e9, "s"),
            };
            let digits = if scaled < 10.0 {
                2
            } else if scaled < 100.0 {
                1
            } else {
                0
            };
            format!("{scaled:.digits$} {name}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_the_unit_that_suits_them() {
        let time = |nanoseconds| figure(nanoseconds, Unit::Nanoseconds);
        assert_eq!(time(35.64), "35.6 ns");
        assert_eq!(time(5912.0), "5.91 µs");
        assert_eq!(time(121_900.0), "122 µs");
        assert_eq!(time(2_410_000_000.0), "2.41 s");
        assert_eq!(figure(8192.0, Unit::Kibibytes), "8192 KiB");
        assert_eq!(figure(0.0, Unit::Count), "0");
        assert_eq!(figure(0.254, Unit::Percent), "0.25 %");
    }

    #[test]
    fn lines_are_aligned_whatever_is_missing() {
        let column = |contender, sample| Column {
            contender,
            rounds: vec![(0, vec![sample])],
            again: vec![(0, vec![sample])],
        };
        let row = |columns, target| Row {
            name: "trap/1 thread".to_owned(),
            unit: Unit::Nanoseconds,
            reference: "floor",
            target,
            columns,
            notes: Vec::new(),
        };
        let full = row(vec![column("floor", 5900.0), column("ours", 7000.0)], Target::Ratio(1.25));
        let full = ReportRow::new(&full).line();
        let empty = ReportRow::new(&row(Vec::new(), Target::None)).line();
        let start_of_verdict =
            |line: &str| line.chars().count() - line.rsplit(' ').next().map_or(0, str::len);
        assert!(full.ends_with(" met") && full.contains("1.186 floor"), "{full}");
        assert_eq!(start_of_verdict(&full), start_of_verdict(&empty));
    }
}
