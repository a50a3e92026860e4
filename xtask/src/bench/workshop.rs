//! The directory that a bench works in: C guests, generated sources, scripts; removed at the end.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs under `xtask/bench`.
const PROGRAMS: [&str; 11] = [
    "crowd", "dials", "floor", "halt", "heap", "loops", "scatter", "served", "spawn", "spin",
    "storm",
];

/// A temporary directory with the C programs built in it. It is the working directory of every
/// guest and so the one that a sandbox shows writable.
#[derive(Debug)]
pub(super) struct Workshop {
    path: PathBuf,
}

impl Workshop {
    /// Makes the directory below `target` (or the system's directory for temporary files, where
    /// that cannot be written) and compiles the sources in `sources` into it.
    ///
    /// # Errors
    /// One sentence: neither place can be written, or the C compiler is missing or complains.
    pub(super) fn new(sources: &Path, target: &Path) -> Result<Workshop, String> {
        let workshop = Workshop { path: make_directory(target)? };
        for program in PROGRAMS {
            workshop.compile(&sources.join(program).with_extension("c"), program)?;
        }
        Ok(workshop)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The absolute path of something in it.
    pub(super) fn file(&self, name: &str) -> OsString {
        self.path.join(name).into_os_string()
    }

    /// Writes a file, with the directories above it.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn write(&self, name: &str, content: &str) -> Result<(), String> {
        let path = self.path.join(name);
        let directory = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(&path, content))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    fn compile(&self, source: &Path, program: &str) -> Result<(), String> {
        let built = Command::new("cc")
            .args(["-O2", "-pthread", "-o"])
            .arg(self.path.join(program))
            .arg(source)
            .output()
            .map_err(|error| format!("cannot build the C guests with cc: {error}; install gcc"))?;
        if built.status.success() {
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&built.stderr);
        Err(format!("cannot compile {}: {}", source.display(), complaint.trim()))
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("bench: cannot remove {}: {error}", self.path.display());
        }
    }
}

fn make_directory(target: &Path) -> Result<PathBuf, String> {
    let name = format!("sandbox-bench-{}", std::process::id());
    let mut refusal = String::new();
    for parent in [target.to_path_buf(), std::env::temp_dir()] {
        let path = parent.join(&name);
        match fs::create_dir(&path).and_then(|()| path.canonicalize()) {
            Ok(path) => return Ok(path),
            Err(error) => refusal = format!("{}: {error}", path.display()),
        }
    }
    Err(format!(
        "cannot make a working directory: {refusal}; set TMPDIR to one that can be written"
    ))
}
