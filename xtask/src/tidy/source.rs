//! One Rust file, taken apart: code without comments and literals, and the comments by line.

use std::path::{Path, PathBuf};

/// A Rust file. Both texts have the lines of the original, so that positions agree.
pub(super) struct Source {
    /// Relative to the repository.
    pub(super) path: PathBuf,
    /// As it is in the file.
    pub(super) text: String,
    /// The text with comments and the content of literals replaced by spaces.
    pub(super) code: String,
    /// The text with everything but comments replaced by spaces.
    pub(super) comments: String,
}

impl Source {
    /// Takes `text` apart.
    pub(super) fn new(path: &Path, text: &str) -> Source {
        let (code, comments) = split(text);
        Source { path: path.to_owned(), text: text.to_owned(), code, comments }
    }

    /// The line, counted from 1, of a byte position in `code`.
    pub(super) fn line_of(&self, position: usize) -> usize {
        self.code[..position].matches('\n').count() + 1
    }

    /// Positions of a whole word in the code.
    pub(super) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let bytes = self.code.as_bytes();
        self.code.match_indices(word).map(|(at, _)| at).filter(move |at| {
            let before = at.checked_sub(1).map(|it| bytes[it]);
            let after = bytes.get(at + word.len()).copied();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
    }

    /// The position of the brace that closes the one at `open`; the end of the file if none does.
    pub(super) fn closing(&self, open: usize) -> usize {
        let mut depth = 0;
        for (at, byte) in self.code.bytes().enumerate().skip(open) {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return at;
            }
        }
        self.code.len().saturating_sub(1)
    }

    /// What stands behind each `#[cfg(test)]`: a block (its range of positions) or the name of a
    /// module in another file.
    pub(super) fn test_items(&self) -> Vec<TestItem> {
        let items = self.code.match_indices("#[cfg(test)]");
        items.filter_map(|(at, mark)| self.test_item(at + mark.len())).collect()
    }

    fn test_item(&self, from: usize) -> Option<TestItem> {
        let end = from + self.code[from..].find(['{', ';'])?;
        if self.code.as_bytes()[end] == b'{' {
            return Some(TestItem::Block(from, self.closing(end)));
        }
        let item = self.code[from..end].trim();
        let name = item.strip_prefix("pub(crate) ").unwrap_or(item).strip_prefix("mod ")?;
        Some(TestItem::Module(self.module_directory().join(name.trim()).with_extension("rs")))
    }

    /// The directory in which this file's modules live.
    fn module_directory(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default();
        if name == "mod.rs" || name == "lib.rs" || name == "main.rs" {
            return self.path.parent().unwrap_or(Path::new("")).to_owned();
        }
        self.path.with_extension("")
    }
}

/// See [`Source::test_items`].
pub(super) enum TestItem {
    Block(usize, usize),
    Module(PathBuf),
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The code and the comments of a Rust text, each with spaces where the other is.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let mut code = vec![b' '; bytes.len()];
    let mut comments = vec![b' '; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let (end, kind) = token(bytes, at);
        for position in at..end {
            let byte = bytes[position];
            let delimits = position == at || position + 1 == end;
            match kind {
                _ if byte == b'\n' => {}
                Kind::Code => code[position] = byte,
                Kind::Comment => comments[position] = byte,
                // The quotes stay, so that `skip("")` and `skip("x")` can be told apart.
                Kind::Literal if delimits => code[position] = byte,
                Kind::Literal => {}
            }
        }
        at = end;
    }
    for (position, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        (code[position], comments[position]) = (*byte, *byte);
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(code.iter().map(ascii).collect()), text(comments.iter().map(ascii).collect()))
}

/// Non-ASCII bytes become `?`, so that positions stay byte positions.
fn ascii(byte: &u8) -> u8 {
    if byte.is_ascii() { *byte } else { b'?' }
}

enum Kind {
    Code,
    Comment,
    Literal,
}

/// Where the comment, literal or single byte of code at `at` ends, and which it is.
fn token(bytes: &[u8], at: usize) -> (usize, Kind) {
    let rest = &bytes[at..];
    let at_word_start = at == 0 || !is_word(bytes[at - 1]);
    if rest.starts_with(b"//") {
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        return (at + length, Kind::Comment);
    }
    if rest.starts_with(b"/*") {
        return (at + block_comment(rest), Kind::Comment);
    }
    if at_word_start && let Some(length) = raw_string(rest) {
        return (at + length, Kind::Literal);
    }
    if rest[0] == b'"' {
        return (at + quoted(rest, b'"'), Kind::Literal);
    }
    if rest[0] == b'\'' && is_character(rest) {
        return (at + quoted(rest, b'\''), Kind::Literal);
    }
    (at + 1, Kind::Code)
}

/// The length of a block comment, which may contain others.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The length of `r"..."`, `r#"..."#`, `br"..."` or `cr"..."`, if one begins here.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = [&b"br"[..], b"cr", b"r"].into_iter().find(|it| rest.starts_with(it))?.len();
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.extend(std::iter::repeat_n(b'#', hashes));
    let body = &rest[open + 1..];
    let found = body.windows(end.len()).position(|window| window == end);
    Some(found.map_or(rest.len(), |at| open + 1 + at + end.len()))
}

/// The length of a quoted literal with backslash escapes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Whether a `'` begins a character and not a lifetime.
fn is_character(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        Some(byte) if !byte.is_ascii() => rest[1..].iter().take(6).any(|it| *it == b'\''),
        _ => rest.get(2) == Some(&b'\''),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_comments_are_told_apart() {
        let text = "a // b \"c\"\nlet d = \"e // f\"; /* g /* h */ i */ 'j'\n";
        let (code, comments) = split(text);
        assert_eq!(code, "a         \nlet d = \"      \";                   ' '\n");
        assert_eq!(comments.split_whitespace().collect::<String>(), "//b\"c\"/*g/*h*/i*/");
        assert_eq!(code.len(), text.len());
    }

    #[test]
    fn literals_of_every_kind_are_blanked() {
        let text = r####"f(r#"a " b"#, br"c", '\'', '"', "\"", b"d", 'x: loop {}, &'a T, 'é')"####;
        let (code, _) = split(text);
        for letter in ["a \"", "c\"", "d"] {
            assert!(!code.contains(letter), "{letter} in {code}");
        }
        assert!(code.contains("'x: loop {}") && code.contains("&'a T"), "{code}");
    }

    #[test]
    fn words_are_whole() {
        let source = Source::new(Path::new("a.rs"), "unsafe unsafe_code // unsafe\n#[unsafe(x)]\n");
        assert_eq!(source.words("unsafe").map(|at| source.line_of(at)).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_block_ends_at_its_own_brace() {
        let source = Source::new(Path::new("a.rs"), "fn f() { if a { \"}\" } // }\n}\nx\n");
        assert_eq!(source.line_of(source.closing(7)), 2);
    }
}
