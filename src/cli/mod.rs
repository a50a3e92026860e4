//! The command line.

/// Parses the command line, runs the verb and gives its exit status.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
