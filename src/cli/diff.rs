//! `sandbox diff`: what an overlay changes of the host's files.
//!
//! Owns its lines, its JSON and its patch. What a change is, is decided in `overlay`.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use similar::{Algorithm, TextDiff};

use super::table::columns;
use super::{fail, print};
use crate::config::quoted;
use crate::launch::id_maps;
use crate::overlay::{Change, Content, Kept, Kind, OverlayError, Store, What};

/// No answer, as diff(1) has it.
const TROUBLE: i32 = 2;
/// How long the best patch of one file is looked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The words of `sandbox diff`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Of which sandbox; or the directory that is overlaid. Without it, list the overlays that are kept
    #[arg(value_name = "ID|DIR")]
    what: Option<String>,
    /// For programs to read
    #[arg(long, conflicts_with = "patch")]
    json: bool,
    /// Show what changed in text files, for patch -p1
    #[arg(long)]
    patch: bool,
    /// Where overlays are kept
    #[arg(long, value_name = "PATH")]
    overlay_dir: Option<PathBuf>,
}

/// One change as JSON; docs/control.md names its fields.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<Vec<u8>>,
    change: &'static str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    now: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differs: Vec<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    too_deep: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    withheld: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    believed: Option<String>,
}

impl Row {
    pub(super) fn of(change: &Change) -> Row {
        let (path, path_bytes) = words(&change.path);
        let names = [
            (What::CONTENT, "content"),
            (What::MODE, "mode"),
            (What::OWNER, "owner"),
            (What::XATTRS, "xattrs"),
        ];
        let differs = names.iter().filter(|(what, _)| change.what.contains(*what));
        Row {
            path,
            path_bytes,
            change: change.kind.word(),
            now: change.now.map(|it| it.word()),
            before: change.before.map(|it| it.word()),
            differs: differs.map(|(_, name)| *name).collect(),
            too_deep: change.too_deep,
            withheld: change.withheld.clone(),
            believed: change.believed.clone(),
        }
    }
}

/// A path as text, and its bytes where it is none.
pub(super) fn words(path: &Path) -> (String, Option<Vec<u8>>) {
    match path.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (path.to_string_lossy().into_owned(), Some(path.as_os_str().as_bytes().to_vec())),
    }
}

/// Lists the changes. Returns the exit status.
pub(super) fn run(command: &Command) -> i32 {
    let Some(what) = &command.what else { return list(command) };
    let found = found(what, command.overlay_dir.as_deref()).and_then(|mut kept| {
        let changes = kept.settle().and_then(|()| sorted(&kept));
        Ok((changes.map_err(|error| error.to_string())?, kept))
    });
    let (changes, kept) = match found {
        Ok(found) => found,
        Err(error) => {
            fail(error);
            return TROUBLE;
        }
    };
    let shown = if command.json {
        let rows: Vec<Row> = changes.iter().map(Row::of).collect();
        match serde_json::to_string(&rows) {
            Ok(text) => print(text + "\n"),
            Err(error) => Err(fail(error)),
        }
    } else if command.patch {
        patch(&kept, &changes)
    } else {
        print(changes.iter().map(line).collect::<String>())
    };
    if !command.json {
        notes(&changes);
    }
    match shown {
        Ok(()) => i32::from(!changes.is_empty()),
        Err(_) => TROUBLE,
    }
}

/// The overlay that `word` means. This process has the ids of its files from here on.
pub(super) fn found(word: &str, place: Option<&Path>) -> Result<Kept, String> {
    let kept = Kept::find(word, place).map_err(|error| error.to_string())?;
    if let Some(ids) = kept.ids() {
        id_maps::take_on(ids).map_err(|error| {
            format!(
                "cannot use the overlay {}, which was made with --root=sub-ids: {error}",
                kept.id
            )
        })?;
        // (What a removal that was killed has left of others can be removed now, too.)
        return Kept::find(word, place).map_err(|error| error.to_string());
    }
    Ok(kept)
}

/// An overlay that is kept, as JSON; docs/control.md names its fields.
#[derive(Debug, Serialize)]
struct KeptRow {
    id: String,
    directories: Vec<String>,
    in_use: bool,
}

/// Lists the overlays that are kept.
fn list(command: &Command) -> i32 {
    let all = match Store::all(command.overlay_dir.as_deref()) {
        Ok(all) => all,
        Err(error) => {
            fail(error);
            return TROUBLE;
        }
    };
    let rows: Vec<KeptRow> = all
        .iter()
        .map(|kept| KeptRow {
            id: kept.id.clone(),
            directories: kept.directories().iter().map(|path| words(path).0).collect(),
            in_use: kept.is_in_use(),
        })
        .collect();
    let shown = if command.json {
        match serde_json::to_string(&rows) {
            Ok(text) => print(text + "\n"),
            Err(error) => Err(fail(error)),
        }
    } else {
        let used = |row: &KeptRow| if row.in_use { "in use" } else { "kept" }.to_owned();
        let row = |row: &KeptRow| {
            let directories = row.directories.iter().map(quoted).collect::<Vec<_>>().join(" ");
            [row.id.clone(), used(row), directories]
        };
        let cells: Vec<[String; 3]> = rows.iter().map(row).collect();
        print(columns(["ID", "STATE", "OF"], &cells))
    };
    shown.err().map_or(0, |_| TROUBLE)
}

/// All changes, in the order of their paths.
fn sorted(kept: &Kept) -> Result<Vec<Change>, OverlayError> {
    let mut changes = kept.changes().collect::<Result<Vec<Change>, _>>()?;
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(changes)
}

/// A change as a line.
pub(super) fn line(change: &Change) -> String {
    let believed = change.believed.as_ref().map_or(String::new(), |words| format!(" ({words})"));
    format!("{} {}{believed}\n", change.kind.letter(), quoted(&change.path))
}

/// Says what of the changes no commit applies.
pub(super) fn notes(changes: &[Change]) {
    for change in changes.iter().filter(|it| it.too_deep || !it.withheld.is_empty()) {
        let path = quoted(&change.path);
        if change.too_deep {
            eprintln!("sandbox: {path} is too deep to be committed, and was not looked into");
        }
        for name in &change.withheld {
            eprintln!("sandbox: the attribute {} of {path} is not committed", quoted(name));
        }
    }
}

/// A patch of all files of text; the rest is named.
fn patch(kept: &Kept, changes: &[Change]) -> Result<(), i32> {
    let mut text: Vec<u8> = Vec::new();
    for change in changes {
        if text.len() > 1 << 20 {
            print_bytes(&text)?;
            text.clear();
        }
        one_patch(kept, change, &mut text);
    }
    print_bytes(&text)
}

fn print_bytes(text: &[u8]) -> Result<(), i32> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(fail(format_args!(
            "cannot write to the standard output: {error}; redirect it elsewhere"
        ))),
        _ => Ok(()),
    }
}

fn one_patch(kept: &Kept, change: &Change, text: &mut Vec<u8>) {
    let name = |side: &str| {
        let path = change.path.strip_prefix("/").unwrap_or(&change.path);
        git_quoted(&Path::new(side).join(path))
    };
    let (old, new) = kept.contents(change);
    let side = |content: &Content, side: &str| match content {
        Content::None => "/dev/null".to_owned(),
        _ => name(side),
    };
    let (a, b) = (side(&old, "a"), side(&new, "b"));
    let mut say = |words: String| text.extend_from_slice(words.as_bytes());
    match (&old, &new) {
        (Content::None, Content::None) => say(format!("# {}", line(change))),
        (Content::Unreadable(errno), _) | (_, Content::Unreadable(errno)) => {
            say(format!("# {} cannot be read: {}\n", quoted(&change.path), errno.desc()));
        }
        (Content::Long, _) | (_, Content::Long) => say(format!("Files {a} and {b} differ\n")),
        (Content::Link(_), _) | (_, Content::Link(_)) => {
            let target = |content: &Content| match content {
                Content::Link(target) => {
                    format!("symlink to {}", quoted(std::ffi::OsStr::from_bytes(target)))
                }
                Content::None => "nothing".to_owned(),
                _ => "file".to_owned(),
            };
            say(format!("# {}: {} -> {}\n", quoted(&change.path), target(&old), target(&new)));
        }
        (old, new) => {
            let bytes = |content: &Content| match content {
                Content::File(bytes) => bytes.clone(),
                _ => Vec::new(),
            };
            let (old, new) = (bytes(old), bytes(new));
            if is_binary(&old) || is_binary(&new) {
                return say(format!("Binary files {a} and {b} differ\n"));
            }
            if old == new {
                // Empty, or only its attributes are others.
                return say(format!("# {}", line(change)));
            }
            let diff = TextDiff::configure()
                .algorithm(Algorithm::Myers)
                .timeout(PATIENCE)
                .newline_terminated(true)
                .diff_slices(&lines(&old), &lines(&new));
            // A Vec takes every byte.
            let _ = diff.unified_diff().header(&a, &b).to_writer(text);
        }
    }
}

/// Lines as patch(1) counts them, with their ends.
fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').collect()
}

/// Whether it holds bytes that text does not. Among them is a carriage return that ends no line: some take it
/// for an end.
fn is_binary(bytes: &[u8]) -> bool {
    let odd = |at: usize| match bytes[at] {
        b'\n' | b'\t' => false,
        b'\r' => bytes.get(at + 1) != Some(&b'\n'),
        byte => byte.is_ascii_control(),
    };
    (0..bytes.len()).any(odd)
}

/// A name as patch(1) and git(1) read it: in double quotes where it holds anything odd.
fn git_quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let plain = |byte: &u8| (b'!'..=b'~').contains(byte) && !b"\"\\".contains(byte);
    if bytes.iter().all(plain) {
        return path.to_string_lossy().into_owned();
    }
    let mut name = String::from("\"");
    for byte in bytes {
        match byte {
            b'\n' => name.push_str("\\n"),
            b'\t' => name.push_str("\\t"),
            b'"' | b'\\' => name.extend(['\\', char::from(*byte)]),
            b' '..=b'~' => name.push(char::from(*byte)),
            byte => name.push_str(&format!("\\{byte:03o}")),
        }
    }
    name + "\""
}

/// What stands for a kind of change in a sum.
pub(super) fn sum(changes: &[Change]) -> String {
    let count = |kinds: &[Kind]| changes.iter().filter(|it| kinds.contains(&it.kind)).count();
    let rest = count(&[Kind::Modified, Kind::Type, Kind::Attributes]);
    let parts =
        [(count(&[Kind::Added]), "added"), (rest, "changed"), (count(&[Kind::Deleted]), "deleted")];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = parts.map(|(count, what)| format!("{count} {what}")).collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn text_has_no_control_bytes_but_ends_of_lines_and_tabs() {
        assert!(!is_binary(b"a\tb\r\n\xc3\xa9\n"));
        for bytes in [&b"a\rb\n"[..], b"a\r", b"a\0b", b"\x1b[31m", b"\x7f", b"\r\r\n"] {
            assert!(is_binary(bytes), "{bytes:?}");
        }
    }

    #[test]
    fn odd_names_are_quoted_as_git_does() {
        let quoted = |name: &[u8]| git_quoted(Path::new(OsStr::from_bytes(name)));
        assert_eq!(quoted(b"a/b"), "a/b");
        assert_eq!(quoted(b"a b"), "\"a b\"");
        assert_eq!(quoted(b"a\n\"\\\xff"), "\"a\\n\\\"\\\\\\377\"");
    }
}
