//! Words of the supervisor's between the guest's output: questions, and what became of them.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::unistd::write;

/// Words, shown on lines of their own.
#[derive(Default)]
pub(super) struct Words {
    /// What has not been written yet.
    bytes: Vec<u8>,
    /// The cursor is not at the beginning of a line.
    in_line: bool,
    /// Words that begin go on with a line.
    begun: bool,
    /// Since when all of it has been written, and no key been typed.
    shown: Option<Instant>,
}

/// Nobody reads a question and answers it in less; whoever types a text pauses less between two keys.
pub(super) const REACTION: Duration = Duration::from_millis(700);

/// CAN: ends a control sequence.
const CANCEL: u8 = 0x18;

/// Has a terminal show what follows whatever the guest has written before: a sequence that it has left open is ended
/// (CAN, ST), the terminal is reset but for what is on the screen (DECSTR; that may turn off the wrapping of long lines,
/// which is turned on again: DECAWM), and colours (SGR) and characters (G0 is ASCII, SI) are those that can be read. All
/// of them in ctlseqs of xterm, console_codes(4). On a line of its own, wherever the cursor is.
const PLAIN: &[u8] = b"\x18\x1b\\\x1b[!p\x1b[?7h\x1b[0m\x1b(B\x0f\r\n";

impl Words {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a question. It is seen as it is, in whatever state the guest has left the terminal.
    pub(super) fn ask(&mut self, words: &str) {
        self.bytes.extend_from_slice(PLAIN);
        self.add(words);
    }

    pub(super) fn add(&mut self, words: &str) {
        self.bytes.extend_from_slice(words.as_bytes());
        self.shown = None;
    }

    /// The guest's output ends with this byte.
    pub(super) fn after(&mut self, last: Option<u8>) {
        if let Some(last) = last {
            self.in_line = last != b'\n';
            self.begun = false;
        }
    }

    /// Writes once, at most `limit` bytes.
    pub(super) fn drain(&mut self, to: BorrowedFd, limit: usize) -> nix::Result<()> {
        let begins = !std::mem::replace(&mut self.begun, true);
        // (A question brings its own line.)
        if begins && self.in_line && self.bytes.first() != Some(&CANCEL) {
            self.bytes.splice(..0, *b"\r\n");
        }
        let end = self.bytes.len().min(limit);
        let count = write(to, &self.bytes[..end])?;
        self.bytes.drain(..count);
        if self.bytes.is_empty() {
            self.shown = Some(Instant::now());
        }
        Ok(())
    }

    /// Whether there has been time to read them.
    pub(super) fn were_read(&self) -> bool {
        self.shown.is_some_and(|shown| shown.elapsed() >= REACTION)
    }

    /// Somebody has typed: that time begins anew.
    pub(super) fn read_anew(&mut self) {
        if self.shown.is_some() {
            self.shown = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_question_is_seen_whatever_was_written_before() {
        let (reading, writing) = nix::unistd::pipe().unwrap();
        let mut words = Words::default();
        words.after(Some(b'x'));
        words.ask("may it? ");
        while !words.is_empty() {
            words.drain(writing.as_fd(), 3).unwrap();
        }
        words.add("yes\r\n");
        words.drain(writing.as_fd(), usize::MAX).unwrap();
        drop(writing);
        let mut written = Vec::new();
        File::from(reading).read_to_end(&mut written).unwrap();
        assert_eq!(written, [PLAIN, b"may it? yes\r\n"].concat());
    }

    #[test]
    fn each_key_has_the_time_to_read_begin_anew() {
        let mut words = Words::default();
        words.read_anew();
        assert!(!words.were_read() && words.shown.is_none());
        words.shown = Instant::now().checked_sub(REACTION);
        assert!(words.were_read());
        words.read_anew();
        assert!(!words.were_read());
    }
}
