//! `cargo xtask guests`: compiles every guest program, so that a mistake in one shows at once and a
//! test run can start with all of them in place.

#[path = "../../tests/common/guests.rs"]
#[allow(unreachable_pub)]
mod compiler;

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The command line of `cargo xtask guests`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to put the programs.
    #[arg(long, default_value = "target/tmp/guests")]
    out: PathBuf,
}

/// Compiles all; reports every failure, not only the first. A program for which this host lacks a
/// library (`-m32`) fails only its own test, so that is said and is no error.
pub(crate) fn run(repository: &Path, arguments: &Arguments) -> Result<(), String> {
    let directory = repository.join(&arguments.out);
    let mut failed = 0;
    for source in sources(repository).map_err(|error| format!("cannot list guests: {error}"))? {
        let text = fs::read_to_string(&source).unwrap_or_default();
        match compiler::compile(&source, &directory) {
            Ok(program) => println!("{}", program.display()),
            Err(message) if compiler::flags(&text).contains(&"-m32") => {
                println!("left out, its test will be skipped: {message}");
            }
            Err(message) => {
                eprintln!("{message}");
                failed += 1;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} guest programs do not compile")) }
}

/// Every guest program's source, in alphabetical order.
pub(crate) fn sources(repository: &Path) -> io::Result<Vec<PathBuf>> {
    let mut sources: Vec<PathBuf> = fs::read_dir(repository.join("tests/guests"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == "c"))
        .collect();
    sources.sort();
    Ok(sources)
}
