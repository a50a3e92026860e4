//! `cargo xtask tidy`: the house rules that a program can check.
//!
//! Owns the list of files and of rules and how complaints are printed. The rules work on text that
//! [`source`] has taken apart into code and comments; none of them parses Rust fully, and none of
//! them replaces rustfmt or clippy.

mod layers;
mod rules;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use source::Source;

/// A document of the repository and what generates it.
type Generated = (&'static str, fn() -> String);

/// The documents that are generated: one that differs is a complaint that names `cargo xtask codegen`.
const GENERATED: &[Generated] = &[];

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Complaint {
    file: PathBuf,
    /// Counted from 1; 0 where the whole file is meant.
    line: usize,
    what: String,
}

impl Complaint {
    fn new(file: &Path, line: usize, what: impl Into<String>) -> Complaint {
        Complaint { file: file.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Checks the whole repository and prints every complaint.
pub(crate) fn run(repository: &Path) -> Result<(), String> {
    let files = read(repository)?;
    let mut complaints = check(repository, &files);
    complaints.sort();
    for complaint in &complaints {
        println!("{complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        count => Err(format!("{count} breaches of the house rules")),
    }
}

/// All complaints about these files (paths relative to the repository, and their text).
fn check(repository: &Path, files: &[(PathBuf, String)]) -> Vec<Complaint> {
    let sources: Vec<Source> = files
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|it| it == "rs"))
        .map(|(path, text)| Source::new(path, text))
        .collect();
    let mut complaints = Vec::new();
    for (path, text) in files {
        rules::text(path, text, repository, &mut complaints);
    }
    for source in &sources {
        rules::length(source, &mut complaints);
        rules::functions(source, &mut complaints);
        rules::unsafe_code(source, &mut complaints);
        rules::skips(source, &mut complaints);
        if source.path.starts_with("src") {
            rules::module_docs(source, &mut complaints);
            rules::panics(source, &sources, &mut complaints);
        }
    }
    layers::check(&sources, &mut complaints);
    rules::guests_are_used(files, &sources, &mut complaints);
    rules::generated(files, GENERATED, &mut complaints);
    complaints
}

/// Every text file that belongs to the repository, tracked or about to be.
fn read(repository: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository)
        .output()
        .map_err(|error| format!("cannot run git to list the files: {error}"))?;
    if !output.status.success() {
        let cause = String::from_utf8_lossy(&output.stderr);
        return Err(format!("git cannot list the files: {}", cause.trim()));
    }
    let names = String::from_utf8_lossy(&output.stdout);
    let read = |name: &str| {
        // A file that was deleted but not yet from the index, or that is not text, has no rules.
        let text = std::fs::read_to_string(repository.join(name)).ok()?;
        Some((PathBuf::from(name), text))
    };
    Ok(names.split('\0').filter(|name| !name.is_empty()).filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The complaints about these files, as text without line numbers.
    fn complaints(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> =
            files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        let mut complaints = check(Path::new("/repository/of/the/test"), &files);
        complaints.sort();
        complaints.iter().map(|it| format!("{}:{}", it.file.display(), it.line)).collect()
    }

    #[test]
    fn clean_files_have_no_complaint() {
        let files = [
            ("src/lib.rs", "//! Doc.\n\npub mod cli;\npub mod sys;\n"),
            ("src/cli.rs", "//! Doc.\nuse crate::sys::thing;\n"),
            (
                "src/sys.rs",
                "//! Doc.\npub fn thing() {\n    // SAFETY: no.\n    unsafe { f() }\n}\n",
            ),
            ("tests/a.rs", "fn t() { guest(\"b\"); skip(\"network\"); x.unwrap(); }\n"),
            ("tests/guests/b.c", "int main(void) { return 0; }\n"),
        ];
        assert_eq!(complaints(&files), [""; 0]);
    }

    #[test]
    fn imports_may_only_point_down() {
        let files = [
            ("src/lib.rs", "//! Doc.\npub mod cli;\npub mod launch;\npub mod sys;\n"),
            ("src/sys.rs", "//! Doc.\nuse crate::cli;\n// crate::cli in a comment is fine\n"),
            ("src/sys/a.rs", "//! Doc.\nuse crate::{\n    sys::b,\n    launch,\n};\n"),
            ("src/sys/b.rs", "//! Doc.\nfn f() { super::super::launch::go() }\n"),
            ("src/launch/mod.rs", "//! Doc.\nuse super::cli;\nuse super::sys;\n"),
            ("src/cli.rs", "//! Doc.\nuse crate::launch;\nuse clap::Parser;\n"),
            ("src/launch/c.rs", "//! Doc.\nuse clap::Parser;\n"),
        ];
        let expected = [
            "src/launch/c.rs:2",
            "src/launch/mod.rs:2",
            "src/sys/a.rs:4",
            "src/sys/b.rs:2",
            "src/sys.rs:2",
        ];
        assert_eq!(complaints(&files), expected);
    }

    #[test]
    fn unsafe_code_lives_in_sys_and_says_why_it_is_sound() {
        let files = [
            ("src/lib.rs", "//! Doc.\npub mod launch;\npub mod sys;\n"),
            ("src/launch.rs", "//! Doc.\n// SAFETY: none.\nfn f() { unsafe { g() } }\n"),
            ("src/sys.rs", "//! Doc.\nfn f() {\n    x;\n    unsafe { g() }\n}\n"),
            ("src/sys/a.rs", "//! Doc.\n/// # Safety\n/// Never.\nunsafe fn f() {}\n"),
            ("src/sys/b.rs", "//! Doc. unsafe\nfn f() { g(\"unsafe\", 'u') }\n"),
            ("src/sys/c.rs", "//! Doc.\n// SAFETY: it is.\nlet long =\n    unsafe { g() };\n"),
        ];
        assert_eq!(complaints(&files), ["src/launch.rs:3", "src/sys.rs:4"]);
    }

    #[test]
    fn sizes_are_limited() {
        let file = "//! Doc.\n".repeat(601);
        let function = format!("//! Doc.\nfn long() {{\n{}}}\n", "    x();\n".repeat(99));
        let fits = format!("//! Doc.\nfn long() {{\n{}}}\n", "    x();\n".repeat(98));
        let files = [("src/a.rs", &*file), ("src/b.rs", &*function), ("src/c.rs", &*fits)];
        assert_eq!(complaints(&files), ["src/a.rs:601", "src/b.rs:2"]);
    }

    #[test]
    fn a_source_begins_with_what_it_owns_and_does_not_panic() {
        let files = [
            ("src/a.rs", "use std::io;\n"),
            ("src/b.rs", "#![allow(unsafe_code)]\n//! Doc.\nfn f() { x.unwrap(); }\n"),
            (
                "src/c.rs",
                "//! Doc.\nfn f() { todo!() }\n#[cfg(test)]\nmod tests {\n x.unwrap() }\n",
            ),
            (
                "src/d.rs",
                "//! Doc.\n#[cfg(test)]\npub(crate) mod checks;\nfn f() { x.unwrap_or(1) }\n",
            ),
            ("src/d/checks.rs", "//! Doc.\nfn f() { x.unwrap() }\n"),
        ];
        assert_eq!(complaints(&files), ["src/a.rs:1", "src/b.rs:3", "src/c.rs:2"]);
    }

    #[test]
    fn text_is_clean_and_speaks_of_no_machine() {
        let files = [
            ("README.md", "fine\nspace \n"),
            ("a.sh", "cd /repository/of/the/test/x\n"),
            ("b", "no end of line"),
            ("c.toml", "\r\n"),
        ];
        assert_eq!(complaints(&files), ["README.md:2", "a.sh:1", "b:1", "c.toml:1"]);
    }

    #[test]
    fn guests_are_used_and_skips_say_why() {
        let files = [
            ("tests/guests/lonely.c", "int main(void) { return 0; }\n"),
            ("tests/guests/used.c", "int main(void) { return 0; }\n"),
            ("tests/a.rs", "fn f() { try_guest(\"used\"); }\nfn g() { skip(\"\"); }\n#[ignore]\n"),
        ];
        let expected = ["tests/a.rs:2", "tests/a.rs:3", "tests/guests/lonely.c:0"];
        assert_eq!(complaints(&files), expected);
    }

    #[test]
    fn a_generated_document_is_compared() {
        let generate: fn() -> String = || "new\n".to_owned();
        let documents: [Generated; 1] = [("docs/a.md", generate)];
        let check = |text: &str| {
            let mut complaints = Vec::new();
            let files = [(PathBuf::from("docs/a.md"), text.to_owned())];
            rules::generated(&files, &documents, &mut complaints);
            complaints.len()
        };
        assert_eq!((check("new\n"), check("old\n")), (0, 1));
    }
}
