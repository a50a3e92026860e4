//! Writes what is generated from the syscall table: docs/syscalls.md.

use std::path::Path;

/// How the files are treated.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only tell whether the files are as they would be written.
    #[arg(long)]
    check: bool,
}

/// Writes the generated files, or with `--check` compares them.
pub(crate) fn run(repository: &Path, arguments: &Arguments) -> Result<(), String> {
    let path = repository.join("docs/syscalls.md");
    let wanted = sandbox::cli::syscalls::markdown();
    if arguments.check {
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        return if found == wanted {
            Ok(())
        } else {
            Err("docs/syscalls.md is not what the table says; run `cargo xtask codegen`".into())
        };
    }
    std::fs::write(&path, wanted)
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}
