//! One row of the table: what each contender took, and how that relates to a target.
//!
//! Owns the arithmetic of ratios and verdicts; knows nothing of how samples are taken or printed.

use serde::Serialize;

use super::stats::Summary;

/// What the samples of a row count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Unit {
    /// Nanoseconds, printed in the unit that suits them.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// KiB of memory.
    #[serde(rename = "KiB")]
    Kibibytes,
    /// Hundredths.
    #[serde(rename = "%")]
    Percent,
    /// Plain numbers.
    #[serde(rename = "count")]
    Count,
}

/// What a row is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    /// Ours may take at most so many times what the reference takes.
    Ratio(f64),
    /// Ours may take at most so much, in the unit of the row.
    AtMost(f64),
    /// Ours may take at most so much longer than the reference, in the unit of the row.
    Added(f64),
    /// Ours may take at most so much of what each of these takes longer than the reference.
    Overhead(f64, &'static [&'static str]),
    /// Published, without a target.
    None,
}

/// Whether ours meets the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// It does.
    Met,
    /// It does not, but by less than the error of the measurement.
    Unclear,
    /// It does not.
    Missed,
    /// There is no target, or ours or the reference was not measured.
    None,
}

/// The samples of one contender.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// The contender's name.
    pub(super) contender: &'static str,
    /// The samples of each round in which it took part, by the number of the round.
    pub(super) rounds: Vec<(usize, Vec<f64>)>,
    /// Samples of the same contender from a second run in each round, which tell the noise;
    /// empty but for the reference.
    pub(super) again: Vec<(usize, Vec<f64>)>,
}

impl Column {
    /// Statistics of all samples of all rounds.
    pub(super) fn summary(&self) -> Option<Summary> {
        let all: Vec<f64> = self.rounds.iter().flat_map(|(_, samples)| samples).copied().collect();
        Summary::of(&all)
    }
}

/// How one contender relates to another, measured in pairs: both numbers of a pair come from the
/// same round, so what slows the machine down for longer than a round cancels out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Ratio {
    /// The median of the rounds' ratios.
    pub(super) median: f64,
    /// How far off the median may be, with 95 % confidence.
    pub(super) error: f64,
    /// A quarter of the ratios lie below.
    pub(super) q1: f64,
    /// Three quarters of the ratios lie below.
    pub(super) q3: f64,
    /// The ratio of the two smallest samples.
    pub(super) of_minima: f64,
}

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// The group and the name, `trap/1 thread`.
    pub(super) name: String,
    /// What the samples count.
    pub(super) unit: Unit,
    /// The contender that the target compares ours with.
    pub(super) reference: &'static str,
    /// The figure.
    pub(super) target: Target,
    /// In the order in which they took turns.
    pub(super) columns: Vec<Column>,
    /// What a reader must know to judge the row.
    pub(super) notes: Vec<String>,
}

impl Row {
    /// The column of a contender, if it took part.
    pub(super) fn column(&self, contender: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.contender == contender)
    }

    /// How `contender` relates to `reference`; `None` where the two shared no round or the
    /// reference took nothing.
    pub(super) fn ratio(&self, contender: &str, reference: &str) -> Option<Ratio> {
        let (mine, theirs) = (self.column(contender)?, self.column(reference)?);
        ratio(&mine.rounds, &theirs.rounds)
    }

    /// The reference against itself: what a ratio of this row means nothing below.
    pub(super) fn noise(&self) -> Option<Ratio> {
        let reference = self.column(self.reference)?;
        ratio(&reference.again, &reference.rounds)
    }

    /// What ours takes longer than the reference, in parts of what each of `others` does: the largest, and how far off
    /// it may be. `None` where none of them took part.
    fn overhead(&self, others: &[&str]) -> Option<(f64, f64)> {
        let reference = self.reference;
        let ours = self.ratio("ours", reference)?;
        let error = ours.error.max(self.noise().map_or(0.0, |noise| noise.error));
        let share = |other: &&str| {
            let theirs = self.ratio(other, reference)?.median - 1.0;
            // Who takes no longer leaves nothing to take a part of.
            let of = |mine: f64| if theirs > 0.0 { mine / theirs } else { f64::INFINITY };
            let mine = ours.median - 1.0;
            Some(if mine <= 0.0 { (0.0, 0.0) } else { (of(mine), of(error)) })
        };
        others.iter().filter_map(share).max_by(|one, other| one.0.total_cmp(&other.0))
    }

    /// What ours takes longer than the reference, round by round.
    fn added(&self) -> Option<Summary> {
        let pairs = pairs(&self.column("ours")?.rounds, &self.column(self.reference)?.rounds);
        Summary::of(&pairs.iter().map(|(ours, theirs)| ours - theirs).collect::<Vec<_>>())
    }

    /// Whether ours meets the target.
    pub(super) fn verdict(&self) -> Verdict {
        let (value, error, limit) = match self.target {
            Target::None => return Verdict::None,
            Target::Ratio(limit) => match self.ratio("ours", self.reference) {
                // A few rounds can agree by luck; the reference against itself tells then.
                Some(ratio) => {
                    let noise = self.noise().map_or(0.0, |noise| noise.error);
                    (ratio.median, ratio.error.max(noise), limit)
                }
                None => return Verdict::None,
            },
            Target::AtMost(limit) => match self.column("ours").and_then(Column::summary) {
                Some(summary) => (summary.median, summary.median_error(), limit),
                None => return Verdict::None,
            },
            Target::Added(limit) => match self.added() {
                Some(added) => (added.median, added.median_error(), limit),
                None => return Verdict::None,
            },
            Target::Overhead(limit, others) => match self.overhead(others) {
                Some((value, error)) => (value, error, limit),
                None => return Verdict::None,
            },
        };
        if value <= limit {
            Verdict::Met
        } else if value - error <= limit {
            Verdict::Unclear
        } else {
            Verdict::Missed
        }
    }
}

/// The medians of the rounds in which both took part.
fn pairs(mine: &[(usize, Vec<f64>)], theirs: &[(usize, Vec<f64>)]) -> Vec<(f64, f64)> {
    let median = |samples: &[f64]| Summary::of(samples).map(|it| it.median);
    let pair = |(round, samples): &(usize, Vec<f64>)| {
        let (_, others) = theirs.iter().find(|(number, _)| number == round)?;
        Some((median(samples)?, median(others)?))
    };
    mine.iter().filter_map(pair).collect()
}

fn ratio(mine: &[(usize, Vec<f64>)], theirs: &[(usize, Vec<f64>)]) -> Option<Ratio> {
    let mut pairs = Vec::new();
    let (mut my_samples, mut their_samples) = (Vec::new(), Vec::new());
    for (round, samples) in mine {
        let Some((_, others)) = theirs.iter().find(|(number, _)| number == round) else {
            continue;
        };
        let (my_median, their_median) = (Summary::of(samples)?.median, Summary::of(others)?.median);
        if their_median > 0.0 {
            pairs.push(my_median / their_median);
            my_samples.extend(samples);
            their_samples.extend(others);
        }
    }
    let summary = Summary::of(&pairs)?;
    Some(Ratio {
        median: summary.median,
        error: summary.median_error(),
        q1: summary.q1,
        q3: summary.q3,
        of_minima: Summary::of(&my_samples)?.min / Summary::of(&their_samples)?.min,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(contender: &'static str, samples: &[f64]) -> Column {
        let rounds = samples.iter().enumerate().map(|(round, &sample)| (round, vec![sample]));
        Column { contender, rounds: rounds.collect(), again: Vec::new() }
    }

    fn row(target: Target, ours: &[f64], native: &[f64]) -> Row {
        Row {
            name: "group/row".to_owned(),
            unit: Unit::Nanoseconds,
            reference: "native",
            target,
            columns: vec![column("native", native), column("ours", ours)],
            notes: Vec::new(),
        }
    }

    #[test]
    fn drift_cancels_out_of_pairs() {
        let drifting = row(Target::Ratio(1.25), &[11.0, 22.0, 110.0], &[10.0, 20.0, 100.0]);
        let ratio = drifting.ratio("ours", "native").expect("three pairs");
        assert!((ratio.median - 1.1).abs() < 1e-9 && ratio.error < 1e-9);
        assert!((ratio.of_minima - 1.1).abs() < 1e-9);
        assert_eq!(drifting.verdict(), Verdict::Met);
    }

    #[test]
    fn only_shared_rounds_count() {
        let short = row(Target::None, &[30.0], &[10.0, 1000.0]);
        assert_eq!(short.ratio("ours", "native").map(|ratio| ratio.median), Some(3.0));
        assert_eq!(short.ratio("runsc", "native"), None);
        assert_eq!(short.noise(), None);
    }

    #[test]
    fn a_verdict_knows_the_error_of_its_measurement() {
        let native = [10.0; 4];
        assert_eq!(row(Target::Ratio(1.02), &[12.0; 4], &native).verdict(), Verdict::Missed);
        let wide = [9.0, 10.0, 11.0, 12.0];
        assert_eq!(row(Target::Ratio(1.02), &wide, &native).verdict(), Verdict::Unclear);
        assert_eq!(row(Target::AtMost(12.0), &[12.0; 4], &native).verdict(), Verdict::Met);
        assert_eq!(row(Target::AtMost(0.0), &[1.0], &native).verdict(), Verdict::Missed);
        assert_eq!(row(Target::Ratio(1.02), &[], &native).verdict(), Verdict::None);
        assert_eq!(row(Target::Added(2.0), &[12.0; 4], &native).verdict(), Verdict::Met);
        assert_eq!(row(Target::Added(1.0), &[12.0; 4], &native).verdict(), Verdict::Missed);
        assert_eq!(row(Target::Added(1.0), &[], &native).verdict(), Verdict::None);
    }

    #[test]
    fn a_verdict_knows_how_far_the_reference_strays_from_itself() {
        let mut noisy = row(Target::Ratio(1.02), &[12.0; 4], &[10.0; 4]);
        let again = [8.0, 9.0, 12.0, 14.0];
        noisy.columns[0].again = again.iter().map(|&sample| vec![sample]).enumerate().collect();
        assert_eq!(noisy.verdict(), Verdict::Unclear);
    }

    #[test]
    fn an_overhead_is_a_part_of_each_others() {
        let target = Target::Overhead(0.5, &["proot", "fakeroot"]);
        let mut all = row(target, &[14.0; 4], &[10.0; 4]);
        assert_eq!(all.verdict(), Verdict::None);
        all.columns.push(column("proot", &[30.0; 4]));
        assert_eq!(all.verdict(), Verdict::Met);
        all.columns.push(column("fakeroot", &[16.0; 4]));
        assert_eq!(all.verdict(), Verdict::Missed);
        let faster = Row {
            columns: vec![
                column("native", &[10.0; 4]),
                column("ours", &[9.0; 4]),
                column("proot", &[8.0; 4]),
            ],
            ..all
        };
        assert_eq!(faster.verdict(), Verdict::Met);
    }

    #[test]
    fn a_reference_that_takes_nothing_gives_no_ratio() {
        assert_eq!(row(Target::None, &[1.0], &[0.0]).ratio("ours", "native"), None);
    }
}
