//! Patterns of paths: of `--hide`, `--deny` and `--allow`, and of `sandbox commit --only`.
//!
//! Owns their meaning: `*` and `?` stand for characters of one name, `[...]` for one character, `**` for
//! any number of names. A pattern that begins with `/` is about whole paths, one without a slash about
//! names wherever they are, any other about the end of a path. What matches a directory matches all that
//! is in it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One pattern.
#[derive(Debug, Clone)]
pub struct Glob {
    anchored: bool,
    parts: Vec<Vec<u8>>,
}

impl Glob {
    /// Reads it.
    pub fn new(text: &OsStr) -> Glob {
        let text = text.as_bytes();
        let parts =
            text.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        Glob { anchored: text.starts_with(b"/"), parts: parts.map(<[u8]>::to_vec).collect() }
    }

    /// Whether it is about `path` (absolute), or a directory above that.
    pub fn matches(&self, path: &Path) -> bool {
        let names: Vec<&[u8]> = path.iter().skip(1).map(|name| name.as_bytes()).collect();
        let parts: Vec<&[u8]> = self.parts.iter().map(Vec::as_slice).collect();
        let starts = if self.anchored { 0..1 } else { 0..names.len().max(1) };
        starts.into_iter().any(|start| begins(&parts, names.get(start..).unwrap_or_default()))
    }
}

/// Whether a path is written as a pattern: something in it stands for other characters.
pub(crate) fn is_pattern(text: &OsStr) -> bool {
    unescaped(text.as_bytes()).is_none()
}

/// What a text without patterns in it stands for: a backslash before `*`, `?`, `[`, `]` or itself takes their
/// meaning, any other one is just that. `None`: there is a pattern in it.
pub(crate) fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'*' | b'?' | b'[' => return None,
            b'\\' => plain.push(bytes.next_if(|next| br"*?[]\".contains(next)).unwrap_or(byte)),
            byte => plain.push(byte),
        }
    }
    Some(plain)
}

/// The path that a word without patterns stands for; one with patterns stays as it is.
pub(crate) fn plain(path: PathBuf) -> PathBuf {
    unescaped(path.as_os_str().as_bytes()).map_or(path, |text| OsString::from_vec(text).into())
}

/// A path as a pattern that stands for that path alone.
pub(crate) fn escaped(path: &Path) -> OsString {
    let mut text = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if br"*?[]\".contains(byte) {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    OsString::from_vec(text)
}

/// Whether the parts match the first of these names, whatever follows.
fn begins(parts: &[&[u8]], names: &[&[u8]]) -> bool {
    // From each place in the pattern, where among the names it can stand: no combination is tried twice.
    let mut places = vec![false; names.len() + 1];
    places[0] = true;
    for part in parts {
        let mut next = vec![false; names.len() + 1];
        if *part == b"**" {
            let first = places.iter().position(|place| *place);
            if let Some(first) = first {
                next[first..].fill(true);
            }
        } else {
            for (at, name) in names.iter().enumerate() {
                next[at + 1] = places[at] && fits(part, name);
            }
        }
        places = next;
    }
    places.contains(&true)
}

/// Whether one name fits a part without `**`.
pub(crate) fn fits(part: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    loop {
        match part.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            None if n == name.len() => return true,
            Some(_) if n < name.len() => {
                if let Some(length) = one(&part[p..], name[n]) {
                    (p, n) = (p + length, n + 1);
                    continue;
                }
            }
            _ => {}
        }
        // The last star takes one more character.
        match star {
            Some((at, taken)) if taken < name.len() => {
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
            _ => return false,
        }
    }
}

/// How long the first element of a part is, if it fits this character.
fn one(part: &[u8], byte: u8) -> Option<usize> {
    match part {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', rest @ ..] => {
            let negated = matches!(rest.first(), Some(b'!' | b'^'));
            let from = usize::from(negated);
            // A bracket right at the beginning is one of the set.
            let end = rest.iter().skip(from + 1).position(|byte| *byte == b']');
            let Some(end) = end.map(|end| end + from + 1) else {
                return (byte == b'[').then_some(1);
            };
            let set = &rest[from..end];
            let mut at = 0;
            let mut found = false;
            while at < set.len() {
                if at + 2 < set.len() && set[at + 1] == b'-' {
                    found |= (set[at]..=set[at + 2]).contains(&byte);
                    at += 3;
                } else {
                    found |= set[at] == byte;
                    at += 1;
                }
            }
            (found != negated).then_some(end + 2)
        }
        [first, ..] => (*first == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(glob: &str, path: &str) -> bool {
        Glob::new(glob.as_ref()).matches(Path::new(path))
    }

    #[test]
    fn patterns_mean_what_is_written() {
        for (glob, path) in [
            ("*.c", "/a/b/x.c"),
            ("*.c", "/a/x.c/in"),
            ("/a/*", "/a/b"),
            ("/a/*", "/a/b/c"),
            ("/a/**/z", "/a/z"),
            ("/a/**/z", "/a/b/c/z"),
            ("b/*.c", "/a/b/x.c"),
            ("**/x", "/a/b/x"),
            ("[a-c]?[!x]", "/q/bzy"),
            ("[]]", "/]"),
            ("[", "/["),
            (r"\*", "/*"),
            ("/", "/a"),
        ] {
            assert!(matches(glob, path), "{glob} {path}");
        }
        for (glob, path) in [
            ("*.c", "/a/x.cc"),
            ("/a/*", "/b/a/x"),
            ("/a/*", "/a"),
            ("/a/**/z", "/a/b"),
            ("b/*.c", "/b/c/x.c"),
            ("[a-c]", "/d"),
            ("[!a]", "/a"),
            (r"\*", "/x"),
            ("a?", "/a"),
        ] {
            assert!(!matches(glob, path), "{glob} {path}");
        }
    }

    #[test]
    fn a_backslash_takes_the_meaning_of_what_means_something() {
        for (text, plain) in [
            ("/a/b", Some("/a/b")),
            (r"pages/\[id\].js", Some("pages/[id].js")),
            (r"a\*b\\c\d", Some(r"a*b\c\d")),
            ("a]", Some("a]")),
            ("*.c", None),
            ("a[b]", None),
            (r"\[a?", None),
        ] {
            assert_eq!(unescaped(text.as_bytes()).as_deref(), plain.map(str::as_bytes), "{text}");
            assert_eq!(is_pattern(text.as_ref()), plain.is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_stars_are_cheap(glob: Vec<u8>, path in "(/[a*?]{0,40}){0,6}") {
            use std::os::unix::ffi::OsStrExt;
            let glob = Glob::new(std::ffi::OsStr::from_bytes(&glob));
            glob.matches(Path::new(&path));
        }

        #[test]
        fn every_path_matches_itself(path in "(/[a-z]{1,5}){1,5}") {
            prop_assert!(matches(&path, &path));
            prop_assert!(matches("**", &path) && matches("*", &path));
        }
    }
}
