//! Clocks of the sandbox's own, as an image carries them.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use nix::time::ClockId;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::super::clock::{Clock, Pace};
use super::super::spec::TimeSpec;
use super::{MOST_CLOCKS, Namespace, Realtime, Timekeeper, read};

/// [`Timekeeper`], saved; nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClocks {
    /// When it was saved, by the host's clock.
    pub host: i64,
    /// What the guest's time of day was then.
    pub realtime: i64,
    /// What MONOTONIC of the guest's kernel once showed, and what the guest's did then.
    pub monotonic: [i64; 2],
    /// The same of BOOTTIME.
    pub boottime: [i64; 2],
    /// What was there before the run is shown as no newer than this (`--deterministic`).
    pub newest: Option<i64>,
    /// What files were stamped by: a moment of the host, and from then on, as above, the host's and the guest's
    /// time of one moment; nothing: the sandbox lay in an image.
    pub stamps: Vec<(i64, Option<[i64; 2]>)>,
    /// What tells apart the code that programs read these clocks by ([`Patch::code`](super::super::Patch::code)).
    pub code: ByteBuf,
}

/// What becomes of the time between a save and the restore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Passed {
    /// The guest's time goes on from where it was.
    #[default]
    Nothing,
    /// It has gone on meanwhile.
    All,
}

/// No clock of a kernel shows more, nor one of a guest's (clock_settime(2) refuses it), by far.
const LATEST: i64 = i64::MAX / 4;

impl Timekeeper {
    /// What an image keeps of these clocks. `host`: the moment of the save, by the host's time of day.
    pub fn saved(&self, host: i64) -> SavedClocks {
        let realtime = self.lock();
        let stamps =
            realtime.clocks.iter().map(|(from, clock)| (*from, clock.map(|clock| clock.bases())));
        SavedClocks {
            host,
            realtime: realtime.current.at(host),
            monotonic: self.monotonic.bases(),
            boottime: self.boottime.bases(),
            newest: self.newest,
            stamps: stamps.collect(),
            code: ByteBuf::new(),
        }
    }

    /// Clocks that go on from an image, in a time namespace whose clocks go on as `passed` says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn resumed(
        spec: &TimeSpec,
        namespace: Namespace,
        saved: &SavedClocks,
        passed: Passed,
    ) -> Result<Timekeeper, &'static str> {
        saved.check()?;
        let host = read(ClockId::CLOCK_REALTIME_COARSE);
        let current = match passed {
            Passed::Nothing => Clock::new(host, saved.realtime, spec.pace),
            // (A clock of the host's that was set back since does not take the guest's with it.)
            Passed::All => {
                let then = Clock::new(saved.host, saved.realtime, spec.pace);
                Clock::new(host, then.at(host.max(saved.host)), spec.pace)
            }
        };
        let clock = |bases: [i64; 2], pace| Clock::new(bases[0], bases[1], pace);
        let fresh = Timekeeper::new(Some(spec), namespace);
        let steady = Pace::Runs(fresh.rate());
        let before = saved.stamps.iter().filter(|(from, _)| *from < host);
        let mut clocks: Vec<_> =
            before.map(|(from, bases)| (*from, bases.map(|it| clock(it, spec.pace)))).collect();
        let gap = clocks.last().map_or(i64::MIN, |(from, _)| *from).max(saved.host.min(host));
        clocks.extend([(gap, None), (host, Some(current))]);
        let too_many = clocks.len().saturating_sub(MOST_CLOCKS);
        clocks.drain(1..=too_many);
        Ok(Timekeeper {
            monotonic: clock(saved.monotonic, steady),
            boottime: clock(saved.boottime, steady),
            newest: saved.newest,
            realtime: Mutex::new(Realtime { current, clocks, held: None }),
            generation: AtomicU64::new(0),
            ..fresh
        })
    }
}

impl SavedClocks {
    fn check(&self) -> Result<(), &'static str> {
        let any = |time: i64| (-LATEST..LATEST).contains(&time);
        let shown = |time: i64| (0..LATEST).contains(&time);
        let pair = |[host, guest]: [i64; 2]| any(host) && any(guest);
        let stamps = || self.stamps.iter().all(|(from, it)| any(*from) && it.is_none_or(pair));
        let sound = shown(self.host)
            && shown(self.realtime)
            && pair(self.monotonic)
            && pair(self.boottime)
            && self.newest.is_none_or(shown);
        let is_history = self.stamps.len() <= MOST_CLOCKS
            && self.stamps.is_sorted_by_key(|(from, _)| *from)
            && stamps();
        match sound && is_history {
            true => Ok(()),
            false => Err("its clocks show what no clock can"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::SECOND;
    use super::super::ClockKind;
    use super::*;

    const HOUR: i64 = 3600 * SECOND;
    const DAY: i64 = 24 * HOUR;

    fn host() -> i64 {
        read(ClockId::CLOCK_REALTIME)
    }

    fn spec(words: &str) -> TimeSpec {
        TimeSpec::parse(&[words]).unwrap().unwrap()
    }

    /// What was saved a day ago, and how it goes on.
    fn resumed(words: &str, passed: Passed) -> (Timekeeper, SavedClocks) {
        let before = Timekeeper::new(Some(&spec(words)), Namespace::starting_now());
        let mut saved = before.saved(host());
        saved.host -= DAY;
        for (from, bases) in &mut saved.stamps {
            *from -= DAY;
            bases.iter_mut().for_each(|[host, _]| *host -= DAY);
        }
        let keeper = Timekeeper::resumed(&spec(words), before.namespace(), &saved, passed);
        (keeper.unwrap(), saved)
    }

    #[track_caller]
    fn shows(keeper: &Timekeeper, wanted: i64) {
        let now = keeper.now(ClockKind::Realtime);
        assert!((wanted..wanted + HOUR).contains(&now), "{now} instead of {wanted}");
    }

    #[test]
    fn the_time_of_day_goes_on_where_it_was_or_by_what_has_passed() {
        for (words, rate) in [("@1000000", 1), ("@1000000,rate=10", 10), ("@1000000,frozen", 0)] {
            let begun = 1_000_000 * SECOND;
            shows(&resumed(words, Passed::Nothing).0, begun);
            shows(&resumed(words, Passed::All).0, begun + rate * DAY);
        }
        // It was saved by a host whose clock is ahead.
        let saved = SavedClocks { host: host() + DAY, realtime: 5, ..SavedClocks::default() };
        let keeper = Timekeeper::resumed(&spec("+0s"), Namespace::default(), &saved, Passed::All);
        shows(&keeper.unwrap(), 5);
    }

    #[test]
    fn steady_clocks_go_on_with_those_of_the_namespace() {
        let (keeper, saved) = resumed("rate=10", Passed::Nothing);
        let [kernel, guest] = saved.monotonic;
        let now = keeper.kernel_now(ClockKind::Monotonic);
        let wanted = guest + 10 * (now - kernel);
        let shown = keeper.now(ClockKind::Monotonic);
        assert!((wanted..wanted + HOUR).contains(&shown), "{shown} {wanted}");
    }

    #[test]
    fn files_show_what_the_clock_did_when_they_were_stamped_and_others_what_they_are() {
        let (keeper, saved) = resumed("@1000000,frozen", Passed::Nothing);
        assert_eq!(keeper.file_time(saved.stamps[0].0), Some(1_000_000 * SECOND));
        assert_eq!(keeper.file_time(host()), Some(1_000_000 * SECOND));
        // Between the two the sandbox was not there.
        assert_eq!(keeper.file_time(host() - HOUR), None);
        assert!(!keeper.is_of_run(host() - HOUR) && keeper.is_of_run(host()));
        // What is saved again still knows all of it.
        assert_eq!(keeper.saved(host()).stamps.len(), 3);
    }

    #[test]
    fn a_clock_that_was_set_goes_on_and_is_read_by_programs_again() {
        let before = Timekeeper::new(Some(&spec("+0s")), Namespace::default());
        before.set(7 * DAY);
        let mut saved = before.saved(host());
        let resumed = |saved: &SavedClocks| {
            let namespace = Namespace::default();
            Timekeeper::resumed(&spec("+0s"), namespace, saved, Passed::Nothing).unwrap()
        };
        let keeper = resumed(&saved);
        shows(&keeper, 7 * DAY);
        assert_eq!(keeper.numbers(0).trapped & 1 << libc::CLOCK_REALTIME, 0);
        assert_eq!(keeper.numbers(0).clocks[0].guest, saved.realtime);
        // However often that is done, the first is remembered, and not all that came later.
        saved.stamps = (0..MOST_CLOCKS as i64).map(|from| (from, None)).collect();
        let stamps = resumed(&saved).saved(host()).stamps;
        assert_eq!((stamps.len(), stamps[0].0), (MOST_CLOCKS, 0));
    }

    #[test]
    fn what_no_clock_shows_is_refused() {
        let (_, sound) = resumed("+0s", Passed::Nothing);
        let bad = [
            SavedClocks { realtime: -1, ..sound.clone() },
            SavedClocks { host: i64::MAX, ..sound.clone() },
            SavedClocks { monotonic: [0, i64::MIN], ..sound.clone() },
            SavedClocks { newest: Some(-1), ..sound.clone() },
            SavedClocks { stamps: vec![(2, None), (1, None)], ..sound.clone() },
            SavedClocks { stamps: vec![(1, Some([i64::MAX, 0]))], ..sound.clone() },
            SavedClocks { stamps: vec![(1, None); 2 * MOST_CLOCKS], ..sound },
        ];
        for saved in bad {
            let resumed =
                Timekeeper::resumed(&spec("+0s"), Namespace::default(), &saved, Passed::Nothing);
            assert!(resumed.is_err(), "{saved:?}");
        }
    }
}
