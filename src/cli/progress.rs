//! A bar for long work, on a terminal; nothing elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far something is, in bytes. Gone without a trace when it is dropped.
#[derive(Clone)]
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    /// A bar in front of which `what` stands; `total` is 0 where it is not known.
    pub(super) fn new(what: &'static str, total: u64) -> Bar {
        if !std::io::stderr().is_terminal() {
            return Bar(None);
        }
        let bar = ProgressBar::with_draw_target(
            (total > 0).then_some(total),
            // Only what is told is drawn: no thread of the bar's own.
            ProgressDrawTarget::stderr_with_hz(10),
        );
        let form = match total {
            0 => "{prefix} {bytes} ({binary_bytes_per_sec})",
            _ => "{prefix} [{bar:30}] {bytes} of {total_bytes} ({binary_bytes_per_sec}, {eta})",
        };
        let style =
            ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(what);
        Bar(Some(bar))
    }

    /// So much is done, of so much.
    pub(super) fn at(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total.max(done));
            bar.set_position(done);
        }
    }

    /// So much more is done.
    pub(super) fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    /// Takes it off the terminal, and says something in its place.
    pub(super) fn say(&self, words: &str) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
            eprintln!("{words}");
        }
    }

    /// Takes it off the terminal.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A span for people, as exact as it matters.
pub(super) fn short(span: Duration) -> String {
    let micros = span.as_micros();
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..10_000 => format!("{:.1} ms", micros as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}
