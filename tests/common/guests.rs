//! Compiles the guest programs of tests/guests.
//!
//! Owns how a C file there becomes a program: the flags in its first line and a replacement that is
//! safe while other processes run the old one. Where the programs are put is the caller's choice
//! (the tests in `common`, the whole set in `cargo xtask guests`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Compiles `source` into `directory` under its own name without `.c`, unless what is there is
/// newer. The first line may carry flags: `// cc: -static -pthread`.
///
/// # Errors
/// One sentence and what the compiler printed.
pub fn compile(source: &Path, directory: &Path) -> Result<PathBuf, String> {
    let name = source.file_stem().ok_or_else(|| format!("{} has no name", source.display()))?;
    let program = directory.join(name);
    if is_newer(&program, source) {
        return Ok(program);
    }
    fs::create_dir_all(directory)
        .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    let text = fs::read_to_string(source)
        .map_err(|error| format!("cannot read {}: {error}", source.display()))?;
    let unfinished = unfinished_name(directory, name);
    let output = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&unfinished)
        .arg(source)
        .args(flags(&text))
        .output()
        .map_err(|error| format!("cannot run the C compiler: {error}"))?;
    if !output.status.success() {
        let _ = fs::remove_file(&unfinished);
        return Err(format!(
            "cannot compile {}:\n{}",
            source.display(),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    // A rename replaces the name at once, so that a test in another process sees the old program or
    // the new one and never half of one, and running copies are not disturbed (ETXTBSY).
    fs::rename(&unfinished, &program)
        .map_err(|error| format!("cannot put {} in place: {error}", program.display()))?;
    Ok(program)
}

/// The flags that the first line of a guest program asks for.
pub fn flags(text: &str) -> Vec<&str> {
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("// cc:").map(|rest| rest.split_whitespace().collect()).unwrap_or_default()
}

/// Whether `program` exists and is at least as new as `source`. A source that cannot be read (an
/// ordinary user testing with programs that root compiled) makes any program new enough.
fn is_newer(program: &Path, source: &Path) -> bool {
    let Ok(built) = fs::metadata(program).and_then(|it| it.modified()) else { return false };
    match fs::metadata(source).and_then(|it| it.modified()) {
        Ok(written) => built >= written,
        Err(_) => true,
    }
}

fn unfinished_name(directory: &Path, name: &std::ffi::OsStr) -> PathBuf {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    directory.join(format!(".{}.{}.{serial}", name.to_string_lossy(), std::process::id()))
}
