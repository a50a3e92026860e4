//! The guest's own kernel log: what dmesg(1) and syslog(2) show inside.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, Semaphore};

/// How much text is kept; older lines are dropped (the kernel's default, CONFIG_LOG_BUF_SHIFT 17).
pub(super) const CAPACITY: usize = 128 << 10;

/// Severities of kernel messages (syslog(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something did not work.
    Warning = 4,
    /// Something is as it is.
    Info = 6,
}

/// A ring of lines in the kernel's format, `<6>[    0.012345] text`.
#[derive(Debug)]
pub struct KernelLog {
    started: Instant,
    /// A leaf of the lock order: nothing else is locked while it is held.
    ring: Mutex<Ring>,
    /// Wakes readers that wait for a new line.
    grown: Notify,
    /// One for each reader that there may be of records.
    pub(super) readers: Arc<Semaphore>,
}

/// Protected by `KernelLog::ring`.
#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<String>,
    /// Bytes in `lines`.
    size: usize,
    /// Lines ever dropped from the front.
    dropped: u64,
    /// The next line that syslog(2) READ gives, counted from the first ever, and how many of its
    /// bytes have been given.
    unread: (u64, usize),
    /// The first line that READ_ALL gives (moved by CLEAR).
    cleared: u64,
}

impl KernelLog {
    /// An empty log whose times count from now.
    pub fn new() -> Self {
        KernelLog {
            started: Instant::now(),
            ring: Mutex::default(),
            grown: Notify::new(),
            readers: Arc::new(Semaphore::new(super::kmsg::MOST_READERS)),
        }
    }

    /// Adds a line. Control characters are shown as escapes: the text may come from a guest.
    pub fn write(&self, level: Level, text: &str) {
        let elapsed = self.started.elapsed();
        let mut line =
            format!("<{}>[{:>5}.{:06}] ", level as u8, elapsed.as_secs(), elapsed.subsec_micros());
        for c in text.chars() {
            if c.is_control() {
                let _ = write!(line, "\\x{:02x}", c as u32);
            } else {
                line.push(c);
            }
        }
        line.push('\n');
        let mut ring = self.lock();
        ring.size += line.len();
        ring.lines.push_back(line);
        while ring.size > CAPACITY {
            let Some(oldest) = ring.lines.pop_front() else { break };
            ring.size -= oldest.len();
            ring.dropped += 1;
        }
        drop(ring);
        self.grown.notify_waiters();
    }

    /// At most `limit` bytes of text that READ has not given yet, and where they are; nothing when
    /// there is none. They count as given once [`KernelLog::given`] says so.
    pub fn next(&self, limit: usize) -> (Vec<u8>, Span) {
        let ring = self.lock();
        let start = ring.position();
        let (mut next, mut given) = start;
        let mut text = Vec::new();
        while let Some(line) = ring.lines.get((next - ring.dropped) as usize) {
            let rest = &line.as_bytes()[given..];
            let room = limit - text.len();
            if rest.len() > room {
                text.extend_from_slice(&rest[..room]);
                given += room;
                break;
            }
            text.extend_from_slice(rest);
            (next, given) = (next + 1, 0);
        }
        (text, Span { start, end: (next, given) })
    }

    /// The reader has this piece of text, unless another one was faster (`false`).
    pub fn given(&self, span: Span) -> bool {
        let mut ring = self.lock();
        let first = ring.position() == span.start;
        if first {
            ring.unread = span.end;
        }
        first
    }

    /// The last whole lines that fit into `limit` bytes, of those since the last clear.
    pub fn tail(&self, limit: usize) -> String {
        let ring = self.lock();
        let first = ring.cleared.saturating_sub(ring.dropped) as usize;
        let mut size = 0;
        let count = ring
            .lines
            .iter()
            .skip(first)
            .rev()
            .take_while(|line| {
                size += line.len();
                size <= limit
            })
            .count();
        ring.lines.iter().skip(first.max(ring.lines.len() - count)).map(String::as_str).collect()
    }

    /// The lines from number `first` on, counted from the first ever, and the number of the next one.
    /// What was cleared is in it, what was dropped is not.
    pub fn since(&self, first: u64) -> (String, u64) {
        let ring = self.lock();
        let skipped = first.saturating_sub(ring.dropped) as usize;
        let text = ring.lines.iter().skip(skipped).map(String::as_str).collect();
        (text, ring.dropped + ring.lines.len() as u64)
    }

    /// The first line from number `first` on, and its number.
    pub(super) fn line(&self, first: u64) -> Option<(u64, String)> {
        let ring = self.lock();
        let number = first.max(ring.dropped);
        ring.lines.get((number - ring.dropped) as usize).map(|line| (number, line.clone()))
    }

    /// The number of the first line since the last clear.
    pub(super) fn cleared(&self) -> u64 {
        self.lock().cleared
    }

    /// Waits until there are lines from number `first` on.
    pub async fn grown(&self, first: u64) {
        loop {
            // Made before the look, so that no line falls between the two.
            let grown = self.grown.notified();
            {
                let ring = self.lock();
                if ring.dropped + ring.lines.len() as u64 > first {
                    return;
                }
            }
            grown.await;
        }
    }

    /// READ_ALL gives only later lines from now on.
    pub fn clear(&self) {
        let mut ring = self.lock();
        ring.cleared = ring.dropped + ring.lines.len() as u64;
    }

    /// Bytes that READ has not given yet.
    pub fn unread(&self) -> usize {
        let ring = self.lock();
        let (next, given) = ring.position();
        let waiting = ring.lines.iter().skip((next - ring.dropped) as usize);
        waiting.map(String::len).sum::<usize>().saturating_sub(given)
    }

    /// Waits until READ has something to give. Nothing is lost when the wait is given up.
    pub async fn readable(&self) {
        loop {
            let grown = self.grown.notified();
            if self.unread() > 0 {
                return;
            }
            grown.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of the log, for a reader that may fail to take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: (u64, usize),
    end: (u64, usize),
}

impl Default for KernelLog {
    fn default() -> Self {
        KernelLog::new()
    }
}

impl Ring {
    /// Where READ goes on; what was dropped meanwhile is lost to it, as in the kernel.
    fn position(&self) -> (u64, usize) {
        if self.unread.0 < self.dropped { (self.dropped, 0) } else { self.unread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What READ does.
    fn read(log: &KernelLog, limit: usize) -> Vec<u8> {
        let (text, span) = log.next(limit);
        assert!(log.given(span));
        text
    }

    #[test]
    fn read_gives_each_byte_once_and_in_pieces() {
        let log = KernelLog::new();
        log.write(Level::Info, "first");
        log.write(Level::Warning, "second");
        let whole = log.tail(CAPACITY);
        assert!(whole.starts_with("<6>["), "{whole}");
        assert_eq!(log.unread(), whole.len());
        let mut pieces = Vec::new();
        loop {
            let piece = read(&log, 7);
            if piece.is_empty() {
                break;
            }
            assert!(piece.len() <= 7);
            pieces.extend(piece);
        }
        assert_eq!(pieces, whole.into_bytes());
        assert_eq!(log.unread(), 0);
    }

    #[test]
    fn text_that_a_reader_did_not_take_is_given_again_and_never_twice() {
        let log = KernelLog::new();
        log.write(Level::Info, "text");
        let (first, span) = log.next(7);
        assert_eq!(log.next(7).0, first);
        assert!(log.given(span));
        assert!(!log.given(span));
        assert_ne!(log.next(7).0, first);
    }

    #[test]
    fn characters_of_several_bytes_are_given_byte_by_byte() {
        let log = KernelLog::new();
        log.write(Level::Info, "\u{e9}\u{4e16}");
        let whole = log.tail(CAPACITY).into_bytes();
        let pieces: Vec<u8> = (0..whole.len()).flat_map(|_| read(&log, 1)).collect();
        assert_eq!(pieces, whole);
    }

    #[test]
    fn tail_gives_whole_lines_since_the_last_clear() {
        let log = KernelLog::new();
        log.write(Level::Info, "one");
        log.clear();
        assert_eq!(log.tail(CAPACITY), "");
        log.write(Level::Info, "two");
        log.write(Level::Info, "three");
        assert_eq!(log.tail(CAPACITY).lines().count(), 2);
        let last = log.tail(30);
        assert!(last.ends_with("three\n") && last.lines().count() == 1, "{last}");
    }

    #[test]
    fn old_lines_are_dropped_and_a_slow_reader_goes_on_behind_them() {
        let log = KernelLog::new();
        let line = "x".repeat(1000);
        for _ in 0..300 {
            log.write(Level::Info, &line);
        }
        assert!(log.tail(usize::MAX).len() <= CAPACITY);
        assert_eq!(log.unread(), log.tail(usize::MAX).len());
        assert!(!read(&log, 100).is_empty());
    }

    #[tokio::test]
    async fn lines_are_given_by_number_and_can_be_waited_for() {
        let log = KernelLog::new();
        log.write(Level::Info, "one");
        log.clear();
        let (text, next) = log.since(0);
        assert!(text.ends_with("one\n") && next == 1, "{text}");
        assert_eq!(log.since(next), (String::new(), 1));
        let (_, ()) = tokio::join!(log.grown(next), async { log.write(Level::Info, "two") });
        assert!(log.since(next).0.ends_with("two\n"));
        (0..300).for_each(|_| log.write(Level::Info, &"x".repeat(1000)));
        assert!(log.since(0).0.len() <= CAPACITY);
    }

    #[test]
    fn control_characters_of_guests_cannot_forge_lines() {
        let log = KernelLog::new();
        log.write(Level::Info, "a\n<0>[ 0.0] forged\x1b[31m");
        assert_eq!(log.tail(CAPACITY).lines().count(), 1);
        assert!(!log.tail(CAPACITY).contains('\x1b'));
    }
}
