//! A check that a run leaves nothing on the host: no process, no mount, no file.
//!
//! Processes are recognised by the mark that their workspace put into their environment, wherever
//! they went and whoever their parent is; other tests that run at the same time do not disturb.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{LIMIT, Workspace, comes_true};

/// The host before a run; [`Leftovers::check`] compares it with the host after.
pub struct Leftovers {
    mark: String,
    mounts: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl Leftovers {
    /// Takes the state before; processes of `workspace` are looked for later.
    pub fn before(workspace: &Workspace) -> Leftovers {
        Leftovers { mark: workspace.mark().to_owned(), mounts: mounts(), files: files() }
    }

    /// Waits until nothing of the runs since is left, and fails with a list of what is.
    ///
    /// The kernel ends a pid namespace's processes and unmounts its file systems a moment after its
    /// init has been reaped, so this waits; other tests' own files may come and go meanwhile. What comes to be
    /// only now is theirs.
    #[track_caller]
    pub fn check(&self) {
        let (mut mounts, mut files) = (self.new_mounts(), self.new_files());
        let mut left = Vec::new();
        let nothing = comes_true(LIMIT, || {
            mounts = &mounts & &self.new_mounts();
            files = &files & &self.new_files();
            left = self.list(&mounts, &files);
            left.is_empty()
        });
        assert!(nothing, "left over after the run:\n{}", left.join("\n"));
        // A supervisor that was killed leaves its state directory to whoever meets it.
        let swept = std::process::Command::new(super::sandbox_program()).arg("ps").output();
        assert!(swept.is_ok_and(|it| it.status.success()), "sandbox ps failed");
    }

    /// What there is now and was not before.
    pub fn left(&self) -> Vec<String> {
        self.list(&self.new_mounts(), &self.new_files())
    }

    fn new_mounts(&self) -> BTreeSet<String> {
        &mounts() - &self.mounts
    }

    fn new_files(&self) -> BTreeSet<PathBuf> {
        &files() - &self.files
    }

    fn list(&self, mounts: &BTreeSet<String>, files: &BTreeSet<PathBuf>) -> Vec<String> {
        marked_processes(&self.mark)
            .into_iter()
            .map(|pid| format!("process {pid}: {}", describe(pid)))
            .chain(mounts.iter().map(|it| format!("mount {it}")))
            .chain(files.iter().map(|it| format!("file {}", it.display())))
            .collect()
    }
}

/// Processes of the host that carry this mark in their environment (those that may be looked into;
/// root may look into all).
pub fn marked_processes(mark: &str) -> Vec<i32> {
    let wanted = format!("SANDBOX_TEST_MARK={mark}").into_bytes();
    host_processes()
        .into_iter()
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == wanted)
        })
        .collect()
}

/// All processes of the host.
pub fn host_processes() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn describe(pid: i32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}

/// The mounts of the host, by their mount points and kinds.
fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().map(str::to_owned).collect()
}

/// Files that sandbox might leave: whatever bears its name in the places for temporary files and
/// run-time state.
fn files() -> BTreeSet<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = ["/tmp", "/var/tmp", "/dev/shm", "/run", "/sys/fs/cgroup"].map(PathBuf::from);
    places.into_iter().chain(runtime).flat_map(|place| files_in(&place)).collect()
}

/// `sandbox-UID`, in /tmp; `sandbox` where the user has a runtime directory.
fn is_state_directory(name: &str) -> bool {
    let uid = name.strip_prefix("sandbox-");
    name == "sandbox" || uid.is_some_and(|uid| uid.bytes().all(|byte| byte.is_ascii_digit()))
}

fn files_in(place: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(place) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Workspaces and guest programs of other tests are theirs to remove, and the state
            // directory is there as long as any sandbox runs (tests/control looks after it).
            name.contains("sandbox")
                && !name.starts_with("sandbox-test")
                && !is_state_directory(&name)
        })
        .collect()
}
