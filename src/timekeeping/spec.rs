//! What the words of `--time` mean.
//!
//! Owns their grammar and every complaint about them. It looks at no clock: an offset becomes a
//! moment only when the sandbox starts.

use super::SECOND;
use super::clock::{Pace, Rate};

/// A clock of the sandbox's own, as the user described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeSpec {
    /// Where it starts.
    pub start: Start,
    /// How it goes on.
    pub pace: Pace,
}

/// Where a clock starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// So many nanoseconds from the host's.
    Offset(i64),
    /// At a moment: nanoseconds since 1970.
    At(i64),
}

/// What is wrong with the words: one sentence with the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeError(String);

impl std::fmt::Display for TimeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TimeError {}

/// The last moment that a clock may start at. The kernel lets no clock be set later than about 2232
/// (TIME_SETTOD_SEC_MAX in include/linux/time64.h).
const LATEST: i64 = 8_210_266_876 * SECOND;
const FASTEST: f64 = 1000.0;

const FORMS: &str = "write a date such as 2038-01-19T03:14:07Z, an offset such as +3d or -2h30m, \
    rate=10 or frozen, joined by commas";

impl TimeSpec {
    /// Reads the words of every `--time` of a run. `None`: there were none.
    ///
    /// # Errors
    /// The first word that means nothing, or that says again what another one has said.
    pub fn parse<T: AsRef<str>>(flags: &[T]) -> Result<Option<TimeSpec>, TimeError> {
        let mut start = None;
        let mut pace = None;
        for flag in flags {
            for word in flag.as_ref().split(',').map(str::trim) {
                let fail =
                    |cause: &str| Err(TimeError(format!("cannot use --time {word:?}: {cause}")));
                let again = match Word::parse(word) {
                    Ok(Word::Start(new)) => start.replace(new).is_some(),
                    Ok(Word::Pace(new)) => pace.replace(new).is_some(),
                    Err(cause) => return fail(&cause),
                };
                if again {
                    return fail(
                        "the sandbox has one clock, with one start (a date or an offset) and one \
                         pace (rate=N or frozen); leave one out",
                    );
                }
            }
        }
        if flags.is_empty() {
            return Ok(None);
        }
        Ok(Some(TimeSpec {
            start: start.unwrap_or(Start::Offset(0)),
            pace: pace.unwrap_or(Pace::Runs(Rate::ONE)),
        }))
    }

    /// Itself, if words could have said it.
    ///
    /// # Errors
    /// Start or pace are out of bounds.
    pub fn checked(self) -> Result<TimeSpec, TimeError> {
        let fail = |cause: &str| Err(TimeError(cause.to_owned()));
        match self.start {
            Start::At(moment) if !(0..=LATEST).contains(&moment) => {
                return fail("a clock can start from 1970 to 2230");
            }
            Start::Offset(offset) if !(-LATEST..=LATEST).contains(&offset) => {
                return fail("the offset is longer than 260 years");
            }
            _ => {}
        }
        if let Pace::Runs(rate) = self.pace {
            let (guest, host) = rate.terms();
            if !(1.0 / FASTEST..=FASTEST).contains(&(f64::from(guest) / f64::from(host))) {
                return fail("its rate is out of bounds");
            }
        }
        Ok(self)
    }

    /// The clock runs at another rate than the host's.
    pub fn changes_rate(&self) -> bool {
        matches!(self.pace, Pace::Runs(rate) if rate != Rate::ONE)
    }
}

impl std::fmt::Display for TimeSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.start {
            Start::Offset(0) => f.write_str("a clock of its own that starts as the host's")?,
            Start::Offset(offset) => {
                let sign = if offset < 0 { "behind" } else { "ahead of" };
                let offset = Span(offset.unsigned_abs());
                write!(f, "starts {offset} {sign} the host's clock")?;
            }
            Start::At(moment) => {
                let moment = jiff::Timestamp::from_nanosecond(i128::from(moment));
                let text = moment.map_or_else(|_| "?".to_owned(), |moment| moment.to_string());
                write!(f, "starts at {text}")?;
            }
        }
        match self.pace {
            Pace::Runs(Rate::ONE) => Ok(()),
            Pace::Runs(rate) => write!(f, ", runs {rate} times as fast"),
            Pace::Frozen => f.write_str(", stands still"),
        }
    }
}

/// A span for people: `3d2h`.
struct Span(u64);

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0;
        for (unit, length) in UNITS.iter().filter(|(unit, _)| *unit != "w") {
            let count = rest / *length as u64;
            rest %= *length as u64;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

/// Longest first.
const UNITS: [(&str, i64); 6] = [
    ("w", 7 * 86_400 * SECOND),
    ("d", 86_400 * SECOND),
    ("h", 3_600 * SECOND),
    ("m", 60 * SECOND),
    ("s", SECOND),
    ("ms", SECOND / 1000),
];

enum Word {
    Start(Start),
    Pace(Pace),
}

impl Word {
    fn parse(word: &str) -> Result<Word, String> {
        if word == "frozen" {
            return Ok(Word::Pace(Pace::Frozen));
        }
        if let Some(rate) = word.strip_prefix("rate=") {
            return Ok(Word::Pace(Pace::Runs(parse_rate(rate)?)));
        }
        if let Some(span) = word.strip_prefix('+') {
            return Ok(Word::Start(Start::Offset(parse_span(span)?)));
        }
        if let Some(span) = word.strip_prefix('-') {
            return Ok(Word::Start(Start::Offset(-parse_span(span)?)));
        }
        let moment = match word.strip_prefix('@') {
            Some(seconds) => seconds
                .parse()
                .ok()
                .and_then(|seconds: i64| seconds.checked_mul(SECOND))
                .ok_or("after @ come the seconds since 1970, as for date(1)")?,
            None => parse_date(word)?,
        };
        if !(0..=LATEST).contains(&moment) {
            return Err("a clock can start from 1970 to 2230".to_owned());
        }
        Ok(Word::Start(Start::At(moment)))
    }
}

fn parse_date(word: &str) -> Result<i64, String> {
    if !word.starts_with(|first: char| first.is_ascii_digit()) || !word.contains('-') {
        return Err(FORMS.to_owned());
    }
    match word.parse::<jiff::Timestamp>() {
        Ok(moment) => i64::try_from(moment.as_nanosecond())
            .map_err(|_| "a clock can start from 1970 to 2230".to_owned()),
        Err(_) if format!("{word}Z").parse::<jiff::Timestamp>().is_ok() => {
            Err(format!("it names no time zone; write {word}Z, or the offset from UTC as +02:00"))
        }
        Err(_) => Err("it is no date with a time; write one as 2038-01-19T03:14:07Z".to_owned()),
    }
}

/// `3d`, `2h30m`, `1.5h`; a number without a unit is none.
fn parse_span(text: &str) -> Result<i64, String> {
    let wrong =
        || "an offset is a sign and numbers with w, d, h, m, s or ms: +3d, -2h30m".to_owned();
    let mut total: i128 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let (count, scale) = decimal(number).ok_or_else(wrong)?;
        total += i128::from(count) * i128::from(*length) / i128::from(scale);
        rest = behind;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    // Any host's clock and this much of an offset stay within what a clock can show.
    let limit = i128::from(LATEST);
    if total > limit { Err("the offset is longer than 260 years".into()) } else { Ok(total as i64) }
}

/// A decimal number as (digits, power of ten): at most six places behind the point.
fn decimal(text: &str) -> Option<(u64, u64)> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && places.is_empty()
        || !plain(whole)
        || !plain(places)
        || places.len() > 6
        || whole.len() > 12
    {
        return None;
    }
    let digits = format!("{whole}{places}").parse().ok()?;
    Some((digits, 10u64.pow(places.len() as u32)))
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("a rate is a number above 0 and up to {FASTEST}, such as 10 or 0.5");
    let (guest, host) = decimal(text).ok_or_else(wrong)?;
    if guest == 0 {
        return Err("a clock with rate 0 stands still; write frozen".to_owned());
    }
    let value = guest as f64 / host as f64;
    if !(1.0 / FASTEST..=FASTEST).contains(&value) {
        return Err(format!("a rate lies between 1/{FASTEST} and {FASTEST}"));
    }
    let narrow = |number| u32::try_from(number).ok();
    narrow(guest)
        .zip(narrow(host))
        .and_then(|(guest, host)| Rate::new(guest, host))
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> TimeSpec {
        TimeSpec::parse(flags).unwrap().unwrap()
    }

    fn complaint(flags: &[&str]) -> String {
        let text = TimeSpec::parse(flags).unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    #[test]
    fn dates_offsets_rates_and_frozen() {
        let one = Pace::Runs(Rate::ONE);
        assert_eq!(TimeSpec::parse::<&str>(&[]), Ok(None));
        let y2038 = Start::At(2_147_483_647 * SECOND);
        assert_eq!(parse(&["2038-01-19T03:14:07Z"]), TimeSpec { start: y2038, pace: one });
        assert_eq!(parse(&["2038-01-19T05:14:07+02:00"]).start, y2038);
        assert_eq!(parse(&["@2147483647"]).start, y2038);
        assert_eq!(parse(&["+3d"]).start, Start::Offset(3 * 86_400 * SECOND));
        assert_eq!(parse(&["-2h30m"]).start, Start::Offset(-9_000 * SECOND));
        assert_eq!(parse(&["+1.5s"]).start, Start::Offset(SECOND * 3 / 2));
        assert_eq!(parse(&["+250ms"]).start, Start::Offset(SECOND / 4));
        assert_eq!(parse(&["+0s"]), TimeSpec { start: Start::Offset(0), pace: one });
        assert_eq!(parse(&["rate=10"]).pace, Pace::Runs(Rate::new(10, 1).unwrap()));
        assert_eq!(parse(&["rate=0.5"]).pace, Pace::Runs(Rate::new(1, 2).unwrap()));
        assert!(parse(&["rate=0.5"]).changes_rate() && !parse(&["rate=1"]).changes_rate());
        let frozen = TimeSpec { start: Start::At(0), pace: Pace::Frozen };
        assert_eq!(parse(&["1970-01-01T00:00:00Z,frozen"]), frozen);
        assert_eq!(parse(&["frozen", "1970-01-01T00:00:00Z"]), frozen);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (flags, wanted) in [
            (&["tomorrow"][..], "write a date such as"),
            (&[""], "write a date such as"),
            (&["2038-01-19T03:14:07"], "names no time zone; write 2038-01-19T03:14:07Z"),
            (&["2038-13-19T03:14:07Z"], "is no date"),
            (&["1969-01-01T00:00:00Z"], "from 1970"),
            (&["2300-01-01T00:00:00Z"], "from 1970"),
            (&["9999-01-01T00:00:00Z"], "from 1970"),
            (&["@x"], "seconds since 1970"),
            (&["+3"], "numbers with w, d, h"),
            (&["+"], "numbers with w, d, h"),
            (&["+3y"], "numbers with w, d, h"),
            (&["+999999999999w"], "260 years"),
            (&["rate=0"], "write frozen"),
            (&["rate=x"], "a rate is a number"),
            (&["rate=-1"], "a rate is a number"),
            (&["rate=1e3"], "a rate is a number"),
            (&["rate=5000"], "a rate lies between"),
            (&["rate=2,frozen"], "leave one out"),
            (&["+1d", "-1d"], "leave one out"),
            (&["+1d,2038-01-19T03:14:07Z"], "leave one out"),
        ] {
            let text = complaint(flags);
            assert!(text.contains(wanted), "{flags:?}: {text}");
        }
    }

    #[test]
    fn is_described_for_people() {
        assert_eq!(parse(&["-2h30m"]).to_string(), "starts 2h30m behind the host's clock");
        assert_eq!(
            parse(&["2020-01-01T00:00:00Z,frozen"]).to_string(),
            "starts at 2020-01-01T00:00:00Z, stands still"
        );
        assert_eq!(
            parse(&["+3d,rate=10"]).to_string(),
            "starts 3d ahead of the host's clock, runs 10 times as fast"
        );
    }

    proptest::proptest! {
        #[test]
        fn any_words_are_a_time_or_an_error(words in "[-+@0-9a-z=.,:TZ ]{0,24}") {
            let _ = TimeSpec::parse(&[words]);
        }
    }
}
