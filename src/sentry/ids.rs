//! Generators of identifiers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Numbers that are never given twice; never zero.
#[derive(Debug, Default)]
pub struct UniqueIds {
    last: AtomicU64,
}

impl UniqueIds {
    /// The next number. 2^64 of them outlast any sandbox: at one a nanosecond, for 580 years.
    pub fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Numbers that wrap around and skip zero, as the kernel's inotify cookies do
/// (fsnotify_get_cookie).
#[derive(Debug, Default)]
pub struct Cookies {
    last: AtomicU32,
}

impl Cookies {
    /// A generator that has just given `last`.
    pub fn after(last: u32) -> Self {
        Cookies { last: AtomicU32::new(last) }
    }

    /// The next number.
    pub fn next(&self) -> u32 {
        loop {
            let cookie = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if cookie != 0 {
                return cookie;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unique_ids_begin_at_one_and_are_unique_across_threads() {
        let ids = UniqueIds::default();
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).map(|_| ids.next()).collect::<Vec<_>>()))
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        all.sort_unstable();
        assert_eq!(all, (1..=4000).collect::<Vec<u64>>());
    }

    #[test]
    fn cookies_wrap_past_zero() {
        let cookies = Cookies::after(u32::MAX - 1);
        assert_eq!([cookies.next(), cookies.next(), cookies.next()], [u32::MAX, 1, 2]);
    }
}
