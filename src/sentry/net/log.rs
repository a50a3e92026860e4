//! The record of `--net-log`: a line of JSON for everything that was decided.
//!
//! Lines are written by a thread of their own, so that no guest waits for a disk. So many wait for it at most; what is too
//! much is counted, and said in the record itself.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::sentry::task::{Status, comm};

/// Lines that wait to be written.
const MOST: usize = 1024;
/// Addresses in a line; more are counted.
pub(super) const MOST_ANSWERS: usize = 64;
/// How long the end of a run waits for the last lines to be taken, by a pipe maybe that nobody reads.
const PATIENCE: Duration = Duration::from_secs(10);

/// The record of a run.
#[derive(Debug)]
pub struct NetLog {
    writer: Mutex<Writer>,
    /// Lines that were left out since the last one.
    lost: Arc<AtomicU64>,
}

/// A leaf of the lock order.
#[derive(Debug)]
struct Writer {
    lines: Option<SyncSender<String>>,
    /// How it went, once all is written.
    done: Option<Receiver<std::io::Result<()>>>,
}

/// A line; docs/network.md names its fields.
#[derive(Debug, Default, Serialize)]
pub(super) struct Record<'a> {
    pub(super) event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decision: Option<&'static str>,
    /// The rule that has decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rule: Option<String>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    /// What was said when it was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<&'static str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) who: Option<Who>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answers: Option<Vec<IpAddr>>,
    /// Addresses beside these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) more: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) complete: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<u64>,
}

/// Who has asked.
#[derive(Debug, Serialize)]
pub(super) struct Who {
    /// The process, as the host numbers it.
    pid: i32,
    /// As the guest does.
    guest_pid: i32,
    /// The thread's name.
    comm: String,
}

impl Who {
    /// The process of this thread, which waits for an answer.
    pub(super) fn of(tid: i32) -> Option<Who> {
        let status = Status::read(tid).ok()?;
        let comm = comm(tid).unwrap_or_default();
        Some(Who { pid: status.tgid, guest_pid: status.guest_tgid, comm })
    }
}

#[derive(Serialize)]
struct Line<'a> {
    /// Microseconds since 1970, by the host's clock.
    time: u64,
    #[serde(flatten)]
    record: &'a Record<'a>,
}

impl NetLog {
    /// Writes to `file` from now on.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(file: File) -> std::io::Result<NetLog> {
        let (lines, waiting) = sync_channel(MOST);
        let (told, done) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let left_out = Arc::clone(&lost);
        let thread = std::thread::Builder::new().name("net-log".into()).stack_size(128 << 10);
        thread.spawn(move || {
            let _ = told.send(write_all(file, &waiting, &left_out));
        })?;
        let writer = Writer { lines: Some(lines), done: Some(done) };
        Ok(NetLog { writer: Mutex::new(writer), lost })
    }

    /// Adds a line, without waiting.
    pub(super) fn write(&self, record: &Record<'_>) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lines) = &writer.lines else { return };
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let is_told = lost == 0 || put(lines, &gap(lost));
        if !is_told {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        } else if !put(lines, record) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All that was added is written, and nothing more is. Waits for the disk.
    ///
    /// # Errors
    /// The first that there was: from there on nothing was written.
    pub(super) fn finish(&self) -> std::io::Result<()> {
        let done = {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            drop(writer.lines.take());
            writer.done.take()
        };
        let Some(done) = done else { return Ok(()) };
        let late = |_| Err(std::io::Error::other("the last lines were not taken in time"));
        done.recv_timeout(PATIENCE).unwrap_or_else(late)
    }
}

/// So many lines were left out here.
fn gap(count: u64) -> Record<'static> {
    Record { event: "lost", count: Some(count), ..Record::default() }
}

/// `false`: there is no room.
fn put(lines: &SyncSender<String>, record: &Record<'_>) -> bool {
    // (One that has gone has failed, which is said at the end.)
    !matches!(lines.try_send(text(record)), Err(TrySendError::Full(_)))
}

fn text(record: &Record<'_>) -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    serde_json::to_string(&Line { time, record }).map_or_else(|_| String::new(), |it| it + "\n")
}

fn write_all(mut file: File, lines: &Receiver<String>, lost: &AtomicU64) -> std::io::Result<()> {
    // (Each line by one write, so that lines of several runs in one file stay whole.)
    lines.iter().try_for_each(|line| file.write_all(line.as_bytes()))?;
    match lost.swap(0, Ordering::Relaxed) {
        0 => Ok(()),
        lost => file.write_all(text(&gap(lost)).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_too_fast_is_counted_and_errors_are_told_once() {
        let (reading, writing) = nix::unistd::pipe().unwrap();
        let log = NetLog::start(writing.into()).unwrap();
        let name = "x".repeat(1000);
        for _ in 0..MOST * 2 {
            log.write(&Record { event: "lookup", name: Some(&name), ..Record::default() });
        }
        let reader = std::thread::spawn(move || std::io::read_to_string(File::from(reading)));
        log.finish().unwrap();
        let text = reader.join().unwrap().unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let lost: u64 = lines.iter().filter_map(|line| line["count"].as_u64()).sum();
        let told = lines.iter().filter(|line| line["event"] == "lookup").count();
        assert!(lost > 0);
        assert_eq!(told as u64 + lost, MOST as u64 * 2);
        let full = NetLog::start(File::options().write(true).open("/dev/full").unwrap()).unwrap();
        full.write(&Record { event: "lookup", ..Record::default() });
        assert_eq!(full.finish().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(full.finish().is_ok());
    }

    #[test]
    fn words_of_guests_cannot_forge_lines() {
        let who = Who { pid: 1, guest_pid: 2, comm: "a\n{\"event\":\"x\"}".into() };
        let record = Record { event: "connect", who: Some(who), ..Record::default() };
        assert_eq!(text(&record).lines().count(), 1);
    }
}
