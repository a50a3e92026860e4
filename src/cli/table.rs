//! Columns and quantities for people, and words of guests for a terminal.

use std::fmt::Write;
use std::time::Duration;

/// Lines of columns, each as wide as its widest cell; the last one is as long as it is.
pub(super) fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head = head.map(str::to_owned);
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Text that somebody else chose, without what would steer a terminal or break the line.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

/// Bytes, with a unit.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count}B") } else { format!("{value:.1}{}", UNITS[unit]) }
}

/// A span of time in its two largest units.
pub(super) fn span(microseconds: u64) -> String {
    let seconds = Duration::from_micros(microseconds).as_secs();
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m{s:02}s"),
        (0, h, m, _) => format!("{h}h{m:02}m"),
        (d, h, ..) => format!("{d}d{h:02}h"),
    }
}

/// CPU time: minutes, seconds, hundredths.
pub(super) fn cpu(microseconds: u64) -> String {
    let hundredths = microseconds / 10_000;
    format!("{}:{:02}.{:02}", hundredths / 6000, hundredths / 100 % 60, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1536), "1.5K");
        assert_eq!(bytes(u64::MAX), "16777216.0T");
        assert_eq!(span(59_999_999), "59s");
        assert_eq!(span(3_600_000_000), "1h00m");
        assert_eq!(cpu(61_230_000), "1:01.23");
    }

    #[test]
    fn columns_are_aligned_and_words_of_guests_stay_in_them() {
        let rows = [["1".to_owned(), plain("a\nb\x1b[2J")], ["22".to_owned(), "c".to_owned()]];
        let text = columns(["PID", "COMMAND"], &rows);
        assert_eq!(text, "PID  COMMAND\n1    a\\nb\\u{1b}[2J\n22   c\n");
    }
}
