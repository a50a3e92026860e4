//! Paths as words: parsing `PATH[:DST]`, following symlinks, writing a path for a shell.
//!
//! Everything here is pure: what is at a path is asked of a function that the caller brings, so
//! that the same walk serves the host's tree and the guest's view of it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use super::ConfigError;
use super::error::refuse;
use crate::sys::errno_of;

/// Symlinks followed in one path before the kernel gives up with ELOOP (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

/// What is at a path, a symlink not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Missing,
    /// A directory.
    Directory,
    /// Anything else that is not a symlink.
    File,
    /// A symlink with this text.
    Link(PathBuf),
}

impl Found {
    /// Looks at `path` of the real file system (lstat(2), readlink(2)).
    pub(crate) fn at(path: &Path) -> Result<Found, Errno> {
        let kind = match path.symlink_metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Missing),
            Err(error) => return Err(errno_of(&error)),
        };
        if kind.is_symlink() {
            path.read_link().map(Found::Link).map_err(|error| errno_of(&error))
        } else if kind.is_dir() {
            Ok(Found::Directory)
        } else {
            Ok(Found::File)
        }
    }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Absolute, without symlinks, `.` and `..`.
    pub(crate) path: PathBuf,
    /// What is there.
    pub(crate) kind: Kind,
}

/// What is at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: the path is resolved as far as it exists, the rest is as written.
    Missing,
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// The component at which the walk ended.
    pub(crate) at: PathBuf,
    /// What the kernel would say.
    pub(crate) errno: Errno,
}

impl Trouble {
    /// Cause and remedy, as the second half of a sentence.
    pub(crate) fn words(&self) -> String {
        let at = quoted(self.at.as_os_str());
        match self.errno {
            Errno::ELOOP => format!(
                "more than {MAX_SYMLINKS} symlinks lead on from {at} (ELOOP); name the file that \
                 they are meant to reach"
            ),
            Errno::ENOTDIR => format!("{at} is not a directory; correct the path"),
            Errno::EACCES => {
                format!("you may not look into {at}; name something that you can read")
            }
            errno => format!("{at}: {}; correct the path", errno.desc()),
        }
    }
}

/// Follows `path` (absolute) as path_resolution(7) describes, asking `look` what is at each step.
/// From the first component on that does not exist, the rest is taken as written.
pub(crate) fn walk(
    path: &Path,
    mut look: impl FnMut(&Path) -> Result<Found, Errno>,
) -> Result<Place, Trouble> {
    let mut ahead: VecDeque<OsString> = VecDeque::new();
    let mut at = PathBuf::from("/");
    let mut kind = Kind::Directory;
    let mut links = 0;
    push_components(&mut ahead, path);
    while let Some(step) = ahead.pop_front() {
        if kind == Kind::File {
            return Err(Trouble { at, errno: Errno::ENOTDIR });
        }
        if step == ".." {
            // Below a missing directory this is a matter of words alone.
            at.pop();
            kind = if kind == Kind::Missing { kind_of(&mut look, &at)? } else { kind };
            continue;
        }
        at.push(&step);
        if kind == Kind::Missing {
            continue;
        }
        match look(&at).map_err(|errno| Trouble { at: at.clone(), errno })? {
            Found::Missing => kind = Kind::Missing,
            Found::Directory => kind = Kind::Directory,
            Found::File => kind = Kind::File,
            Found::Link(text) => {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(Trouble { at: path.to_owned(), errno: Errno::ELOOP });
                }
                at.pop();
                if text.is_absolute() {
                    at = PathBuf::from("/");
                }
                push_components(&mut ahead, &text);
            }
        }
    }
    Ok(Place { path: at, kind })
}

/// What is at a path that has no symlinks in it.
fn kind_of(
    look: &mut impl FnMut(&Path) -> Result<Found, Errno>,
    at: &Path,
) -> Result<Kind, Trouble> {
    if at == Path::new("/") {
        return Ok(Kind::Directory);
    }
    match look(at).map_err(|errno| Trouble { at: at.to_owned(), errno })? {
        Found::Directory => Ok(Kind::Directory),
        Found::File => Ok(Kind::File),
        Found::Missing | Found::Link(_) => Ok(Kind::Missing),
    }
}

/// Puts the components of `path` before what is still ahead.
fn push_components(ahead: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => ahead.push_front(name.to_owned()),
            Component::ParentDir => ahead.push_front("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
}

/// The two halves of `PATH[:DST]`. A `\:` is a colon of the path itself; any other backslash is
/// just that.
pub(crate) fn parse_pair(
    flag: &str,
    text: &OsStr,
) -> Result<(PathBuf, Option<PathBuf>), ConfigError> {
    let mut halves = split_colons(text.as_bytes()).into_iter().map(to_path);
    let (source, target) = (halves.next().unwrap_or_default(), halves.next());
    let text = quoted(text);
    if halves.next().is_some() {
        return Err(refuse!(
            "cannot use {flag} {text}: it has more than one colon; write PATH:DST, and \\: for a \
             colon that belongs to a path"
        ));
    }
    check(flag, &source)?;
    if let Some(target) = &target {
        check(flag, target)?;
        if !target.is_absolute() {
            return Err(refuse!(
                "cannot use {flag} {text}: the mount target {} is relative; write it from / on (or \
                 \\: for a colon that belongs to the path)",
                quoted(target.as_os_str())
            ));
        }
    }
    Ok((source, target))
}

/// Splits at colons, and takes `\:` for a colon that does not split.
pub(crate) fn split_colons(text: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => parts.push(std::mem::take(&mut part)),
            b'\\' if bytes.next_if_eq(&b':').is_some() => part.push(b':'),
            byte => part.push(byte),
        }
    }
    parts.push(part);
    parts
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// Refuses what no path of a rule may contain: nothing at all, a NUL (no system call takes it) or
/// a newline (it would forge lines of what is printed about the run).
pub(crate) fn check(flag: &str, path: &Path) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().as_bytes();
    let (cause, remedy) = if bytes.is_empty() {
        ("the path is empty", "name one after the flag")
    } else if bytes.contains(&0) {
        ("the path contains a NUL byte", "no path can: correct it")
    } else if bytes.contains(&b'\n') {
        ("the path contains a newline", "name its parent directory, or rename it")
    } else {
        return Ok(());
    };
    Err(refuse!("cannot use {flag} {}: {cause}; {remedy}", quoted(path.as_os_str())))
}

/// `word` as it can be pasted into a shell, on one line whatever is in it.
pub(crate) fn quoted(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref();
    let plain = |c: char| c.is_alphanumeric() || "_@%+=:,./~-".contains(c);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(plain) => text.to_owned(),
        Some(text) if !text.chars().any(|c| c.is_control()) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        _ => format!("$'{}'", escaped(word.as_bytes())),
    }
}

/// The inside of bash's `$'...'`.
fn escaped(bytes: &[u8]) -> String {
    let one = |&byte: &u8| match byte {
        b'\n' => r"\n".to_owned(),
        b'\'' => r"\'".to_owned(),
        b'\\' => r"\\".to_owned(),
        b' '..=b'~' => char::from(byte).to_string(),
        byte => format!(r"\x{byte:02x}"),
    };
    bytes.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn pair(text: &str) -> Result<(PathBuf, Option<PathBuf>), ConfigError> {
        parse_pair("--ro", OsStr::new(text))
    }

    fn paths(source: &str, target: Option<&str>) -> (PathBuf, Option<PathBuf>) {
        (source.into(), target.map(PathBuf::from))
    }

    #[test]
    fn a_pair_is_a_path_with_perhaps_a_target() {
        assert_eq!(pair("/a"), Ok(paths("/a", None)));
        assert_eq!(pair("a b:/c"), Ok(paths("a b", Some("/c"))));
        assert_eq!(pair(r"/pci-0\:1:/c"), Ok(paths("/pci-0:1", Some("/c"))));
        assert_eq!(pair(r"/dev-disk\x2d"), Ok(paths(r"/dev-disk\x2d", None)));
    }

    #[test]
    fn a_bad_pair_is_named() {
        for (text, words) in [
            ("", "the path is empty"),
            (":/x", "the path is empty"),
            ("/x:", "the path is empty"),
            ("/x:y", "the mount target y is relative"),
            ("/x:/y:/z", "more than one colon"),
            ("/x\n", "contains a newline"),
            ("/x\0", "contains a NUL"),
        ] {
            let error = pair(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
            assert!(error.contains("--ro") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn quoting_is_what_a_shell_reads_back() {
        assert_eq!(quoted("/a/b"), "/a/b");
        assert_eq!(quoted("a b'c"), r"'a b'\''c'");
        assert_eq!(quoted("a\nb"), r"$'a\nb'");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted(OsStr::from_bytes(b"\xff")), r"$'\xff'");
    }

    /// A tree of directories, files and links, as `look` sees it.
    fn tree(entries: &[(&str, Found)]) -> impl Fn(&Path) -> Result<Found, Errno> + use<> {
        let entries: HashMap<PathBuf, Found> =
            entries.iter().map(|(path, found)| (path.into(), found.clone())).collect();
        move |path| Ok(entries.get(path).cloned().unwrap_or(Found::Missing))
    }

    fn link(to: &str) -> Found {
        Found::Link(to.into())
    }

    #[test]
    fn a_walk_follows_links_of_both_kinds() {
        let look = tree(&[
            ("/usr", Found::Directory),
            ("/usr/bin", Found::Directory),
            ("/usr/bin/sh", link("dash")),
            ("/usr/bin/dash", Found::File),
            ("/bin", link("usr/bin")),
            ("/back", link("/usr/../bin/./sh")),
        ]);
        let to = |path: &str| walk(Path::new(path), &look).map(|p| (p.path, p.kind));
        assert_eq!(to("/bin/sh"), Ok(("/usr/bin/dash".into(), Kind::File)));
        assert_eq!(to("/back"), Ok(("/usr/bin/dash".into(), Kind::File)));
        assert_eq!(to("/../bin/.."), Ok(("/usr".into(), Kind::Directory)));
        assert_eq!(to("/bin/new/dir"), Ok(("/usr/bin/new/dir".into(), Kind::Missing)));
        assert_eq!(to("/new/../bin/sh"), Ok(("/usr/bin/dash".into(), Kind::File)));
        assert_eq!(to("/"), Ok(("/".into(), Kind::Directory)));
        let errno = walk(Path::new("/back/x"), &look).unwrap_err().errno;
        assert_eq!(errno, Errno::ENOTDIR);
    }

    #[test]
    fn forty_links_are_followed_and_no_more() {
        let chain = |length: usize| {
            let mut entries = vec![(format!("/{length}"), Found::File)];
            entries.extend((0..length).map(|n| (format!("/{n}"), link(&format!("{}", n + 1)))));
            let entries: Vec<_> = entries.iter().map(|(p, f)| (p.as_str(), f.clone())).collect();
            walk(Path::new("/0"), tree(&entries))
        };
        assert_eq!(chain(40).unwrap().path, Path::new("/40"));
        let trouble = chain(41).unwrap_err();
        assert_eq!(trouble.errno, Errno::ELOOP);
        assert!(trouble.words().contains("ELOOP"), "{}", trouble.words());
        let circle = tree(&[("/a", link("b")), ("/b", link("/a"))]);
        assert_eq!(walk(Path::new("/a/x"), circle).unwrap_err().errno, Errno::ELOOP);
    }

    proptest! {
        #[test]
        fn every_pair_survives_being_written(
            source in r"[a-z/\\: ]{1,20}", target in proptest::option::of(r"/[a-z/\\: ]{0,20}"),
        ) {
            // A backslash before a colon, or at the end, would be read with what follows it.
            prop_assume!(!source.contains(r"\:") && !source.ends_with('\\'));
            prop_assume!(target.as_ref().is_none_or(|t| !t.contains(r"\:")));
            let mut text = source.replace(':', r"\:");
            if let Some(target) = &target {
                text = format!("{text}:{}", target.replace(':', r"\:"));
            }
            let read = pair(&text);
            prop_assert_eq!(read, Ok(paths(&source, target.as_deref())));
        }

        #[test]
        fn no_text_panics_and_every_refusal_is_one_line(text in any::<Vec<u8>>()) {
            if let Err(error) = parse_pair("--rw", OsStr::from_bytes(&text)) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }

        #[test]
        fn a_walk_in_a_plain_tree_gives_a_normal_path(steps in r"(/(\.|\.\.|[a-c])){0,8}/?") {
            let place = walk(Path::new(&steps), |_| Ok(Found::Directory));
            let path = place.map(|place| place.path).unwrap_or_default();
            prop_assert!(path.is_absolute());
            prop_assert!(!path.components().any(|c| c == Component::ParentDir));
        }
    }
}
