//! What a handful of samples says: order statistics, and ratios of samples taken in pairs.
//!
//! Order statistics alone: the times of a shared machine have a long tail, and a mean or a
//! standard deviation would describe the neighbours.

use serde::Serialize;

/// The order statistics of one contender's samples, in the unit of its row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    /// The smallest sample: the cost without disturbance.
    pub(super) min: f64,
    /// A quarter of the samples lie below.
    pub(super) q1: f64,
    /// Half of the samples lie below.
    pub(super) median: f64,
    /// Three quarters of the samples lie below.
    pub(super) q3: f64,
    /// Nineteen in twenty samples lie below.
    pub(super) p95: f64,
    /// How many samples there were.
    pub(super) samples: usize,
}

impl Summary {
    /// Summarises samples in any order; `None` where there is none.
    pub(super) fn of(samples: &[f64]) -> Option<Summary> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Summary {
            min: *sorted.first()?,
            q1: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            q3: quantile(&sorted, 0.75),
            p95: quantile(&sorted, 0.95),
            samples: sorted.len(),
        })
    }

    /// Half the width of the interval in which the true median lies with 95 % confidence, as a
    /// notched box plot draws it (McGill, Tukey and Larsen 1978): 1.57 x IQR / sqrt(n).
    pub(super) fn median_error(&self) -> f64 {
        1.57 * (self.q3 - self.q1) / (self.samples as f64).sqrt()
    }
}

/// The value below which `share` of the sorted, non-empty samples lie, interpolated linearly.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn one_sample_is_every_statistic() {
        let summary = Summary::of(&[7.0]).expect("one sample");
        assert_eq!((summary.min, summary.median, summary.p95), (7.0, 7.0, 7.0));
        assert_eq!(summary.median_error(), 0.0);
    }

    #[test]
    fn quantiles_are_interpolated_in_any_order() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0, 5.0]).expect("five samples");
        assert_eq!((summary.min, summary.q1, summary.median, summary.q3), (1.0, 2.0, 3.0, 4.0));
        assert!((summary.p95 - 4.8).abs() < 1e-9);
        let even = Summary::of(&[1.0, 2.0]).expect("two samples");
        assert_eq!(even.median, 1.5);
    }
}
