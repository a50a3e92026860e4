//! The rules about one file, and those about tests and generated documents.

use std::path::{Path, PathBuf};

use super::source::{Source, TestItem};
use super::{Complaint, Generated};

/// A file longer than this is to be split.
const FILE_LINES: usize = 600;
/// Tables: one sequence of rows that a reader looks things up in, and no code.
const TABLES: &[&str] = &["src/sentry/syscalls/table/rows.rs"];
/// A function longer than this is to be split.
const FUNCTION_LINES: usize = 100;
/// What no file of the project may say: marks of unfinished work. Written in pieces, since this file
/// is checked too.
const DENIED: &[&str] = &[concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK:")];
/// Directories of single machines, where they begin a path.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/")];

/// White space, line ends, denied words and paths of the machine that this runs on.
pub(super) fn text(path: &Path, text: &str, repository: &Path, complaints: &mut Vec<Complaint>) {
    let here = repository.to_string_lossy();
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let mut complain = |what: String| complaints.push(Complaint::new(path, number, what));
        let Some(line) = line.strip_suffix('\n') else {
            complain("the last line does not end".to_owned());
            continue;
        };
        if line.ends_with([' ', '\t', '\r']) {
            complain("white space at the end of the line".to_owned());
        }
        if let Some(word) = DENIED.iter().find(|word| line.contains(**word)) {
            complain(format!("{word} does not belong in the repository"));
        }
        if here.len() > 1 && line.contains(&*here)
            || MACHINE_PATHS.iter().any(|it| begins(line, it))
        {
            complain("names a directory of one machine".to_owned());
        }
    }
}

/// Whether a line contains `path` where a path begins.
fn begins(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        !line[..at]
            .ends_with(|letter: char| letter.is_alphanumeric() || "/._-~$}*".contains(letter))
    })
}

/// Files stay readable in one sitting.
pub(super) fn length(source: &Source, complaints: &mut Vec<Complaint>) {
    let lines = source.text.lines().count();
    let table = TABLES.iter().any(|table| source.path.ends_with(table));
    if lines > FILE_LINES && !table {
        let what = format!("{lines} lines; {FILE_LINES} is the limit for a file");
        complaints.push(Complaint::new(&source.path, lines, what));
    }
}

/// Functions fit on a screen or two.
pub(super) fn functions(source: &Source, complaints: &mut Vec<Complaint>) {
    for at in source.words("fn") {
        let rest = source.code[at + 2..].trim_start();
        // `fn(` is a type; a declaration without a body ends with a semicolon.
        if rest.starts_with('(') {
            continue;
        }
        let Some(open) = body(&source.code, at) else { continue };
        let first = source.line_of(at);
        let lines = source.line_of(source.closing(open)) - first + 1;
        if lines > FUNCTION_LINES {
            let what = format!("{lines} lines; {FUNCTION_LINES} is the limit for a function");
            complaints.push(Complaint::new(&source.path, first, what));
        }
    }
}

/// The opening brace of the function whose `fn` is at `at`: the first outside parentheses and
/// brackets (an array type may hold a semicolon).
fn body(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0;
    for (offset, byte) in code[at..].bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at + offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Unsafe code is under src/sys, and a comment before it names the invariant.
pub(super) fn unsafe_code(source: &Source, complaints: &mut Vec<Complaint>) {
    let in_sys = source.path.starts_with("src/sys") || source.path == Path::new("src/sys.rs");
    for at in source.words("unsafe") {
        let line = source.line_of(at);
        // A type such as `unsafe extern "C" fn(i32)` does nothing by itself.
        let is_type = source.code[at + 6..].trim_start().starts_with("extern");
        let what = if !in_sys {
            "unsafe code outside src/sys"
        } else if !is_type && !has_safety_comment(source, line) {
            "unsafe without a SAFETY comment before it"
        } else {
            continue;
        };
        complaints.push(Complaint::new(&source.path, line, what));
    }
}

/// Whether the statement that reaches up to `line` is preceded by a SAFETY comment.
fn has_safety_comment(source: &Source, line: usize) -> bool {
    let code: Vec<&str> = source.code.lines().collect();
    let comments: Vec<&str> = source.comments.lines().collect();
    for index in (0..line).rev() {
        if comments[index].contains("SAFETY:") || comments[index].contains("# Safety") {
            return true;
        }
        let above = code[index].trim();
        if index + 1 != line && (above.ends_with([';', '}', '{'])) {
            return false;
        }
    }
    false
}

/// Every file of src says what it owns.
pub(super) fn module_docs(source: &Source, complaints: &mut Vec<Complaint>) {
    let mut lines = (1..).zip(source.text.lines());
    let first = lines.find(|(_, line)| !line.starts_with("#![") && !line.trim().is_empty());
    if !first.is_some_and(|(_, line)| line.starts_with("//!")) {
        let what = "does not begin with a `//!` comment that says what the module owns";
        complaints.push(Complaint::new(&source.path, first.map_or(0, |(line, _)| line), what));
    }
}

/// Code outside tests leaves nothing undone and does not panic where an input can cause it.
pub(super) fn panics(source: &Source, all: &[Source], complaints: &mut Vec<Complaint>) {
    let in_tests = |item: &TestItem| matches!(item, TestItem::Module(it) if *it == source.path);
    if all.iter().flat_map(Source::test_items).any(|item| in_tests(&item)) {
        return;
    }
    let tests = source.test_items();
    for denied in ["todo!", "unimplemented!", "dbg!", ".unwrap()"] {
        for (at, _) in source.code.match_indices(denied) {
            let tested =
                |it: &TestItem| matches!(it, TestItem::Block(a, b) if (a..=b).contains(&&at));
            if !tests.iter().any(tested) {
                let what = format!("{denied} outside tests");
                complaints.push(Complaint::new(&source.path, source.line_of(at), what));
            }
        }
    }
}

/// A test that does not run says for lack of what.
pub(super) fn skips(source: &Source, complaints: &mut Vec<Complaint>) {
    let silent =
        source.code.match_indices("skip(\"\")").chain(source.code.match_indices("#[ignore]"));
    complaints.extend(silent.map(|(at, _)| {
        Complaint::new(&source.path, source.line_of(at), "a test is skipped without a reason")
    }));
}

/// Every guest program has a test that runs it.
pub(super) fn guests_are_used(
    files: &[(PathBuf, String)],
    sources: &[Source],
    complaints: &mut Vec<Complaint>,
) {
    for (path, _) in files {
        let is_guest =
            path.starts_with("tests/guests") && path.extension().is_some_and(|it| it == "c");
        let Some(name) = path.file_stem().filter(|_| is_guest) else { continue };
        let quoted = format!("\"{}\"", name.to_string_lossy());
        let mut users = sources.iter().filter(|it| !it.path.starts_with("tests/guests"));
        if !users.any(|it| it.text.contains(&quoted)) {
            complaints.push(Complaint::new(path, 0, "no test runs this guest program"));
        }
    }
}

/// Generated documents are what their generators say.
pub(super) fn generated(
    files: &[(PathBuf, String)],
    documents: &[Generated],
    complaints: &mut Vec<Complaint>,
) {
    for (name, generate) in documents {
        let found = files.iter().find(|(path, _)| path == Path::new(name));
        if found.is_none_or(|(_, text)| *text != generate()) {
            let what = "is not what its generator says: run `cargo xtask codegen`";
            complaints.push(Complaint::new(Path::new(name), 0, what));
        }
    }
}
