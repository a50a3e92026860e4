//! The `sandbox` command: parse, run, exit.

fn main() -> std::process::ExitCode {
    sandbox::cli::main()
}
