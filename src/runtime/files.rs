//! The list of the files that the guests touch (`--record-files`): made beside the main thread, and within a time
//! that no guest can stretch.

use std::sync::Arc;
use std::time::Duration;

use super::Supervisor;
use crate::sentry::file_log::{Caller, FileLog, Report};

/// After that no more hashes are made for the list.
const LONGEST: Duration = Duration::from_secs(600);

impl Supervisor<'_> {
    /// The program runs, which may have been executed unseen.
    pub(super) fn note_program(&mut self) {
        if self.kernel.file_log().is_none() {
            return;
        }
        let (kernel, pid) = (Arc::clone(&self.kernel), self.pid);
        self.noted = Some(tokio::task::spawn_blocking(move || {
            let is_valid = || kernel.program() == Some(pid);
            if let Some(log) = kernel.file_log() {
                log.note_program(&Caller { tid: pid, is_valid: &is_valid });
            }
        }));
    }

    /// The list, once the guests have ended.
    pub(super) async fn list_files(&mut self) -> Option<Report> {
        let log = self.kernel.file_log()?;
        let (kernel, noted) = (Arc::clone(&self.kernel), self.noted.take());
        let mut report = tokio::spawn(async move {
            if let Some(noted) = noted {
                // (It has failed: the program is not in the list.)
                let _ = noted.await;
            }
            tokio::task::spawn_blocking(move || kernel.file_log().map(FileLog::report)).await
        });
        if let Ok(done) = tokio::time::timeout(LONGEST, &mut report).await {
            return done.ok()?.ok()?;
        }
        log.hurry();
        report.await.ok()?.ok()?
    }
}
