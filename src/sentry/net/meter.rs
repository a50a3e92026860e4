//! How fast the guests' network may be, and how much it may carry (`--net-rate`, `--net-total`).
//!
//! Whoever carries something for a guest takes a *turn* first, carries as much as that says, and pays for what it was.
//! Where there is a rate, turns of one direction come one after the other, in the order in which they were asked for, so
//! that no connection is kept from its share.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;

/// What a run's network may carry. Headers do not count, nor do lookups of names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes a second that come in; `None`: as many as there are.
    pub rate_in: Option<NonZeroU64>,
    /// Bytes a second that go out.
    pub rate_out: Option<NonZeroU64>,
    /// Bytes of the whole run, both ways together.
    pub total: Option<NonZeroU64>,
}

impl Allowance {
    /// Whether it limits anything.
    pub fn is_limited(&self) -> bool {
        *self != Allowance::default()
    }
}

/// Which way bytes go, as guests see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

/// After a silence as much may go at once as the rate allows in this time; and a turn is at most half of that.
const BURST: Duration = Duration::from_millis(100);
/// A turn is never for less than this: one packet or two.
const LEAST: u64 = 2 << 10;
/// Where nothing bounds the rate: as much as is ever carried at once.
const MOST: u64 = 1 << 20;

/// What has been carried in a run.
#[derive(Debug)]
pub struct Meter {
    inward: Option<Rate>,
    outward: Option<Rate>,
    /// Bytes that may be carried in all.
    total: Option<NonZeroU64>,
    /// Bytes that may still be carried.
    left: AtomicU64,
    /// Held by whose turn it is, for no longer than it takes to carry something at once; and by who has all stand still.
    moves: RwLock<()>,
    /// Something was asked for that may not be carried any more.
    used_up: Notify,
}

#[derive(Debug)]
struct Rate {
    /// Bytes a second.
    limit: NonZeroU64,
    /// When what was carried so far is paid for. Held by whose turn it is.
    paid: Mutex<Instant>,
}

/// When what was carried so far this way is paid for, and bytes a second.
type Paid<'m> = (MutexGuard<'m, Instant>, NonZeroU64);

/// The right to carry something now. Not kept over an await: who has all stand still waits for it.
pub(super) struct Turn<'m> {
    meter: &'m Meter,
    rate: Option<Paid<'m>>,
    _moves: RwLockReadGuard<'m, ()>,
    /// As much was taken from what is left.
    reserved: u64,
}

impl Meter {
    pub(super) fn new(allowance: Allowance) -> Meter {
        let rate = |limit: Option<NonZeroU64>| {
            limit.map(|limit| Rate { limit, paid: Mutex::new(Instant::now()) })
        };
        Meter {
            inward: rate(allowance.rate_in),
            outward: rate(allowance.rate_out),
            total: allowance.total,
            moves: RwLock::new(()),
            left: AtomicU64::new(allowance.total.map_or(u64::MAX, NonZeroU64::get)),
            used_up: Notify::new(),
        }
    }

    /// Waits for a turn.
    pub(super) async fn turn(&self, way: Way) -> Turn<'_> {
        let paid = self.wait(way).await;
        let most = paid.as_ref().map_or(MOST, |(_, limit)| {
            let share = limit.get().saturating_mul(BURST.as_millis() as u64) / 1000 / 2;
            share.clamp(LEAST, MOST)
        });
        let moves = self.moves.read().await;
        self.take(most, paid, moves)
    }

    /// Waits for a turn of a datagram, whose length need not be known yet: nothing is taken from what is left
    /// before that is ([`Turn::pay_whole`]).
    pub(super) async fn turn_of_datagram(&self, way: Way) -> Turn<'_> {
        let rate = self.wait(way).await;
        Turn { meter: self, rate, _moves: self.moves.read().await, reserved: 0 }
    }

    /// Waits until what was carried this way is paid for; `None`: it has no rate.
    async fn wait(&self, way: Way) -> Option<Paid<'_>> {
        let rate = match way {
            Way::In => self.inward.as_ref(),
            Way::Out => self.outward.as_ref(),
        }?;
        let mut paid = rate.paid.lock().await;
        let now = Instant::now();
        *paid = (*paid).max(now.checked_sub(BURST).unwrap_or(now));
        tokio::time::sleep_until(*paid).await;
        Some((paid, rate.limit))
    }

    /// Whether nothing may be carried any more. (A moment in which somebody else's turn holds the rest counts as that.)
    pub(super) fn is_used_up(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    /// Has nothing carried until what is returned is dropped. Blocks until what is being carried just now has been; not
    /// for asynchronous code.
    pub fn stand_still(&self) -> RwLockWriteGuard<'_, ()> {
        self.moves.blocking_write()
    }

    /// Bytes that were carried, if anything bounds how many may be: of one that stands still.
    pub fn used(&self) -> Option<u64> {
        self.total.map(|total| total.get() - self.left.load(Ordering::Relaxed).min(total.get()))
    }

    /// So many were carried before. Before anything is.
    pub fn go_on_from(&self, used: u64) {
        if let Some(total) = self.total {
            self.left.store(total.get().saturating_sub(used), Ordering::Relaxed);
        }
    }

    /// Something was asked for that may not be carried any more.
    pub(super) fn tell_of_end(&self) {
        self.used_up.notify_one();
    }

    /// Returns when something was asked for that may not be carried any more.
    pub async fn used_up(&self) {
        self.used_up.notified().await;
    }

    fn take<'m>(
        &'m self,
        most: u64,
        rate: Option<Paid<'m>>,
        moves: RwLockReadGuard<'m, ()>,
    ) -> Turn<'m> {
        let reserved = self.reserve(1, most);
        if reserved == 0 {
            self.tell_of_end();
        }
        Turn { meter: self, rate, _moves: moves, reserved }
    }

    /// Takes as much as there is, `most` at most; 0: there is less than `least`.
    fn reserve(&self, least: u64, most: u64) -> u64 {
        let mut got = 0;
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            got = if left < least { 0 } else { left.min(most) };
            // (Without a limit none of it is ever used.)
            (left != u64::MAX && got > 0).then(|| left - got)
        });
        got
    }

    fn give_back(&self, count: u64) {
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left != u64::MAX && count > 0).then(|| left.saturating_add(count))
        });
    }
}

impl Turn<'_> {
    /// How many bytes may be carried; 0: none any more, ever.
    pub(super) fn most(&self) -> usize {
        self.reserved as usize
    }

    /// Ends the turn: so many were carried.
    pub(super) fn pay(mut self, count: usize) {
        let count = (count as u64).min(self.reserved);
        self.reserved -= count;
        if let Some((paid, limit)) = &mut self.rate {
            let nanos = u128::from(count) * 1_000_000_000 / u128::from(limit.get());
            **paid += Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX));
        }
    }

    /// Ends the turn with a datagram, which goes whole or not at all. `false`: it is not to go, since too little is left;
    /// of an empty one, since nothing is.
    pub(super) fn pay_whole(mut self, length: usize) -> bool {
        let whole = length as u64;
        self.put_back();
        self.reserved = self.meter.reserve(whole, whole);
        let is_there = self.reserved == whole && (whole > 0 || !self.meter.is_used_up());
        if !is_there {
            self.meter.tell_of_end();
        }
        self.pay(length);
        is_there
    }

    fn put_back(&mut self) {
        self.meter.give_back(std::mem::take(&mut self.reserved));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.put_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(rate: Option<u64>, total: Option<u64>) -> Meter {
        let rate = rate.and_then(NonZeroU64::new);
        Meter::new(Allowance {
            rate_in: rate,
            rate_out: None,
            total: total.and_then(NonZeroU64::new),
        })
    }

    #[tokio::test]
    async fn a_rate_is_kept_by_all_connections_together() {
        const EACH: usize = 256 << 10;
        let meter = meter(Some(1 << 20), None);
        let begun = Instant::now();
        let one = || async {
            let mut carried = 0;
            while carried < EACH {
                let turn = meter.turn(Way::In).await;
                let most = turn.most();
                carried += most;
                turn.pay(most);
            }
        };
        tokio::join!(one(), one(), one(), one());
        // A second's worth, without the last turn, which nobody waits for, and a burst.
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(800), "{took:?}");
    }

    #[tokio::test]
    async fn who_has_it_stand_still_sees_what_was_carried_and_no_more() {
        let meter = std::sync::Arc::new(meter(None, Some(1000)));
        let turn = meter.turn(Way::In).await;
        let other = std::sync::Arc::clone(&meter);
        let still = std::thread::spawn(move || {
            let _still = other.stand_still();
            let used = other.used();
            // (Nobody has a turn.)
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let turn = std::pin::pin!(other.turn(Way::Out));
            assert!(turn.poll(&mut context).is_pending());
            used
        });
        turn.pay(400);
        let used = tokio::task::spawn_blocking(|| still.join().unwrap()).await.unwrap();
        assert_eq!(used, Some(400));
        assert_eq!(meter.turn(Way::Out).await.most(), 600);
        meter.go_on_from(999);
        assert_eq!(meter.turn(Way::Out).await.most(), 1);
        meter.go_on_from(u64::MAX);
        assert!(meter.is_used_up());
        assert_eq!(super::Meter::new(Allowance::default()).used(), None);
    }

    #[tokio::test]
    async fn a_silence_saves_no_more_than_a_moments_worth() {
        let meter = meter(Some(1_000_000), None);
        let rate = meter.inward.as_ref().unwrap();
        *rate.paid.lock().await = Instant::now() - Duration::from_secs(60);
        let begun = Instant::now();
        let mut carried = 0;
        while carried < 500_000 {
            let turn = meter.turn(Way::In).await;
            let most = turn.most();
            carried += most;
            turn.pay(most);
        }
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(300), "{took:?}");
    }

    #[tokio::test]
    async fn a_total_is_never_exceeded_and_what_was_not_carried_is_left() {
        let meter = meter(None, Some(1000));
        let turn = meter.turn(Way::In).await;
        assert_eq!(turn.most(), 1000);
        turn.pay(400);
        drop(meter.turn(Way::Out).await);
        assert!(!meter.turn_of_datagram(Way::Out).await.pay_whole(601));
        let waits = meter.turn_of_datagram(Way::Out).await;
        // Who waits with a datagram holds nothing back from others.
        assert!(meter.turn_of_datagram(Way::Out).await.pay_whole(500));
        assert!(waits.pay_whole(0));
        assert!(!meter.is_used_up());
        meter.turn(Way::In).await.pay(100);
        assert!(meter.is_used_up());
        assert_eq!(meter.turn(Way::In).await.most(), 0);
        assert!(!meter.turn_of_datagram(Way::In).await.pay_whole(0));
        meter.used_up().await;
    }
}
