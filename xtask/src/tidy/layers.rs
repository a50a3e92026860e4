//! Imports point down: a module uses those that stand below it in src/lib.rs and none above.

use std::path::Path;

use super::Complaint;
use super::source::Source;

/// Checks every `crate::x` and `super::...::x` of every module.
pub(super) fn check(sources: &[Source], complaints: &mut Vec<Complaint>) {
    let order = order(sources);
    for source in sources {
        let Some(own) = rank(&source.path, &order) else { continue };
        for (position, name) in references(source) {
            let Some(used) = order.iter().position(|it| *it == name) else { continue };
            if used < own {
                let what = format!("{} must not use {name}, which stands above it", order[own]);
                complaints.push(Complaint::new(&source.path, source.line_of(position), what));
            }
        }
        if order[own] != "cli" {
            complaints.extend(source.words("clap").map(|position| {
                let what = "only cli knows of the command line parser";
                Complaint::new(&source.path, source.line_of(position), what)
            }));
        }
    }
}

/// The modules of the library from the topmost down, as lib.rs lists them.
fn order(sources: &[Source]) -> Vec<String> {
    let library = sources.iter().find(|it| it.path == Path::new("src/lib.rs"));
    let lines = library.map_or("", |it| &it.code).lines();
    let names = lines.filter_map(|line| {
        let line = line.trim().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        line.strip_prefix("mod ")?.strip_suffix(';').map(str::to_owned)
    });
    names.collect()
}

/// The place of a file's top module in that order.
fn rank(path: &Path, order: &[String]) -> Option<usize> {
    let inside = path.strip_prefix("src").ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?;
    let name = first.trim_end_matches(".rs");
    order.iter().position(|it| it == name)
}

/// Names that a file reaches at the root of the crate, and where.
fn references(source: &Source) -> Vec<(usize, String)> {
    let code = &source.code;
    let own =
        source.words("crate").filter_map(|at| Some((at, code[at..].strip_prefix("crate::")?)));
    let mut found: Vec<(usize, String)> = own.flat_map(|(at, rest)| names(at + 7, rest)).collect();
    let depth = depth(&source.path);
    for at in source.words("super") {
        let before = &code[..at];
        if before.ends_with("super::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut climbed = 0;
        while let Some(shorter) = rest.strip_prefix("super::") {
            rest = shorter;
            climbed += 1;
        }
        if climbed == depth {
            found.extend(names(code.len() - rest.len(), rest));
        }
    }
    found
}

/// How many `super::` lead from a file's own module to the root of the crate.
fn depth(path: &Path) -> usize {
    let inside = path.strip_prefix("src").unwrap_or(path);
    let parts = inside.components().count();
    if path.file_name().is_some_and(|name| name == "mod.rs") { parts - 1 } else { parts }
}

/// The first names of a path: one, or those of a group in braces.
fn names(position: usize, rest: &str) -> Vec<(usize, String)> {
    let Some(group) = rest.strip_prefix('{') else {
        return vec![(position, first_word(rest))];
    };
    let mut depth = 0;
    let mut found = Vec::new();
    let mut expected = true;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expected = true,
            _ if expected && !letter.is_whitespace() => {
                found.push((position + 1 + at, first_word(&group[at..])));
                expected = false;
            }
            _ => {}
        }
    }
    found
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}
