//! The state of the host's clock, as adjtimex(2) tells it.

use nix::errno::Errno;

pub use libc::timex as Timex;

/// What a caller of adjtimex(2) asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adjustment {
    modes: u32,
    offset: i64,
    step: (i64, i64),
}

/// Reads the clock only, though it looks like a change (ADJ_OFFSET_SS_READ).
const ONLY_READS: u32 = 0xa001;
const ADJ_SETOFFSET: u32 = 0x0100;
const ADJ_NANO: u32 = 0x2000;
const SECOND: i64 = 1_000_000_000;

impl Adjustment {
    /// What a guest's `timex` holds.
    pub fn read(raw: &[u8; size_of::<Timex>()]) -> Adjustment {
        // SAFETY: a timex consists of numbers: any bytes are one.
        let timex: Timex = unsafe { std::mem::transmute(*raw) };
        let step = (timex.time.tv_sec, timex.time.tv_usec);
        Adjustment { modes: timex.modes, offset: timex.offset, step }
    }

    /// Whether it changes anything.
    pub fn changes(&self) -> bool {
        self.modes != 0 && self.modes != ONLY_READS
    }

    /// By how many nanoseconds it moves the clock, if it does.
    pub fn step(&self) -> Option<i64> {
        let nanoseconds = |number: i64| {
            let unit = if self.modes & ADJ_NANO != 0 { 1 } else { 1000 };
            number.saturating_mul(unit)
        };
        if self.modes & ADJ_SETOFFSET != 0 {
            let (seconds, rest) = self.step;
            return Some(seconds.saturating_mul(SECOND).saturating_add(nanoseconds(rest)));
        }
        // ADJ_OFFSET_SINGLESHOT counts in microseconds.
        match self.modes & 0xffff {
            0x8001 => Some(self.offset.saturating_mul(1000)),
            modes if modes & libc::ADJ_OFFSET != 0 => Some(nanoseconds(self.offset)),
            _ => None,
        }
    }
}

/// The host's `timex` with another time in it (seconds, nanoseconds), as bytes, and the state that
/// the call returns.
pub fn state_of_clock(time: (i64, i64)) -> Result<(i32, [u8; size_of::<Timex>()]), Errno> {
    // SAFETY: all-zero modes ask for the state and change nothing.
    let mut timex: Timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in one timex.
    let state = Errno::result(unsafe { libc::adjtimex(&mut timex) })?;
    let nanoseconds = timex.status & libc::STA_NANO != 0;
    timex.time.tv_sec = time.0;
    timex.time.tv_usec = if nanoseconds { time.1 } else { time.1 / 1000 };
    // SAFETY: the structure was all zero first, its padding too, so each byte has a value.
    Ok((state, unsafe { std::mem::transmute::<Timex, [u8; size_of::<Timex>()]>(timex) }))
}
