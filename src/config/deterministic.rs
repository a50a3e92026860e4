//! `--deterministic`: what a run is given so that it does the same whenever it is done.
//!
//! Owns which wishes it stands for. What the user has said himself stays as he said it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::environment::Variables;
use super::error::refuse;
use super::{ConfigError, Options, RunSpec, quoted};
use crate::sentry::Features;
use crate::timekeeping::TimeSpec;

/// Where the clock stands unless SOURCE_DATE_EPOCH says so: 2026-01-01T00:00:00Z. Not older, so that few of
/// a machine's own files are newer; not in the future, where certificates have expired.
const START: &str = "1767225600";

const HOSTNAME: &str = "sandbox";

/// The variable by which builds are told what time it is (reproducible-builds.org).
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What was chosen for a run that repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deterministic {
    /// What random bytes are made of.
    pub seed: Vec<u8>,
    /// What was decided, a line each.
    pub decisions: Vec<String>,
}

/// The wishes of such a run, with those that the user has left to it. `None`: it is none.
///
/// # Errors
/// SOURCE_DATE_EPOCH is no time.
pub(super) fn complete(
    options: &Options,
    environment: &Variables,
) -> Result<Option<(Options, Deterministic)>, ConfigError> {
    let Some(seed) = &options.deterministic else { return Ok(None) };
    let mut options = options.clone();
    let seeded = match seed.is_empty() {
        true => "random bytes always the same ones".to_owned(),
        false => format!("random bytes by the seed {}", quoted(seed)),
    };
    let mut decisions =
        vec![format!("{seeded}; directories sorted by name; addresses not randomised")];
    if options.time.is_empty() {
        let (seconds, whence) = start(environment)?;
        options.time = vec![format!("@{seconds},frozen")];
        decisions.push(format!(
            "the clock begins {whence} and moves only when a program sleeps (--time)"
        ));
    }
    if options.hostname.is_none() {
        options.hostname = Some(HOSTNAME.into());
        decisions.push(format!("host name {HOSTNAME} (--hostname)"));
    }
    if options.limits.cpus.is_none() {
        options.limits.cpus = Some("1".to_owned());
        decisions.push("one processor (--cpus)".to_owned());
    }
    let seed = seed.as_bytes().to_vec();
    Ok(Some((options, Deterministic { seed, decisions })))
}

/// When the clock starts, in seconds since 1970, and who says so.
fn start(environment: &Variables) -> Result<(String, &'static str), ConfigError> {
    let Some((_, value)) = environment.iter().find(|(name, _)| name == EPOCH) else {
        return Ok((START.to_owned(), "at a moment that never changes"));
    };
    let text = value.to_str().filter(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
    match text {
        Some(text) if TimeSpec::parse(&[format!("@{text}")]).is_ok() => {
            Ok((text.to_owned(), "at SOURCE_DATE_EPOCH"))
        }
        _ => Err(refuse!(
            "cannot start the clock of --deterministic at {EPOCH}={}: it is no number of seconds since \
             1970 that a clock can show; set it to one, unset it, or choose with --time",
            quoted(value)
        )),
    }
}

/// The word behind `--deterministic=`: `true` and `false` are no seeds.
pub(super) fn seed(word: OsString) -> Option<OsString> {
    match word.as_bytes() {
        b"false" => None,
        b"true" => Some(OsString::from_vec(Vec::new())),
        _ => Some(word),
    }
}

impl Deterministic {
    /// What goes on from an image.
    pub(super) fn resumed(seed: Vec<u8>) -> Deterministic {
        let decision = "random bytes, order of directories and the clock go on as they were saved";
        Deterministic { seed, decisions: vec![decision.to_owned()] }
    }
}

impl RunSpec {
    /// The features that such a run needs.
    pub(super) fn with_deterministic(self, chosen: Option<Deterministic>) -> RunSpec {
        let mut features = self.features;
        features.set(Features::DETERMINISTIC, chosen.is_some());
        RunSpec { features, deterministic: chosen, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestHost, options};
    use super::*;
    use crate::timekeeping::{Pace, SECOND, Start};

    fn with(change: impl FnOnce(&mut Options)) -> Options {
        let mut options = Options { deterministic: Some("".into()), ..options(&[]) };
        change(&mut options);
        options
    }

    #[test]
    fn it_chooses_what_the_user_has_not() {
        let host = TestHost::ordinary();
        let spec = host.resolve(&with(|_| ())).unwrap();
        assert!(spec.features.contains(Features::DETERMINISTIC | Features::VIRTUAL_TIME));
        let time = spec.time.unwrap();
        assert_eq!((time.start, time.pace), (Start::At(1_767_225_600 * SECOND), Pace::Frozen));
        assert_eq!((spec.hostname, spec.limits.cpus), (Some("sandbox".into()), Some(vec![0])));
        assert_eq!(spec.deterministic.unwrap().decisions.len(), 4);
        let spec = host.resolve(&with(|o| {
            o.time = vec!["+3d".to_owned()];
            o.hostname = Some("mine".into());
            o.limits.cpus = Some("2".to_owned());
            o.deterministic = Some("seed".into());
        }));
        let spec = spec.unwrap();
        assert_eq!(spec.time.unwrap().start, Start::Offset(3 * 86_400 * SECOND));
        assert_eq!((spec.hostname, spec.limits.cpus), (Some("mine".into()), Some(vec![0, 1])));
        let chosen = spec.deterministic.unwrap();
        assert_eq!((&chosen.seed[..], chosen.decisions.len()), (&b"seed"[..], 1));
        let plain = host.resolve(&options(&[])).unwrap();
        assert!(plain.deterministic.is_none() && plain.time.is_none());
    }

    #[test]
    fn the_clock_starts_where_builds_are_told() {
        let mut host = TestHost::ordinary();
        host.set("SOURCE_DATE_EPOCH", "1000000000");
        let start = |options: &Options| host.resolve(options).map(|spec| spec.time.unwrap().start);
        assert_eq!(start(&with(|_| ())), Ok(Start::At(1_000_000_000 * SECOND)));
        let flag =
            |value: &str| with(|o| o.env = vec![format!("SOURCE_DATE_EPOCH={value}").into()]);
        assert_eq!(start(&flag("7")), Ok(Start::At(7 * SECOND)));
        for bad in ["", "now", "-1", "1.5", "99999999999999999999"] {
            let error = start(&flag(bad)).unwrap_err();
            assert!(error.contains("SOURCE_DATE_EPOCH"), "{error}");
        }
        let chosen = with(|o| {
            o.env = vec!["SOURCE_DATE_EPOCH=now".into()];
            o.time = vec!["@5".to_owned()];
        });
        assert_eq!(start(&chosen), Ok(Start::At(5 * SECOND)));
    }

    #[test]
    fn a_word_is_a_seed_unless_it_is_a_switch() {
        assert_eq!(seed("false".into()), None);
        assert_eq!(seed("true".into()), Some("".into()));
        assert_eq!(seed("7".into()), Some("7".into()));
    }
}
