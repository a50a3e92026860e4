//! Paths in profiles: what a shell would have made of them on a command line.
//!
//! Owns `~`, `$NAME`, `${NAME}` and `$$`, and what relative paths are relative to. There are no other
//! users' homes (`~user`), no patterns and no commands.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::super::glob::{escaped, is_pattern};
use super::super::paths::split_colons;
use super::super::{Host, quoted};

/// The path that `text` means; with `pair` it is `PATH[:DST]`. Relative ones are taken from `base`, or
/// left for the working directory. An error is the cause and the remedy.
pub(super) fn expand(
    text: &str,
    pair: bool,
    base: Option<&Path>,
    host: &Host,
) -> Result<OsString, String> {
    if !pair {
        return Ok(place(one(text.as_bytes(), host)?, base));
    }
    let mut whole = Vec::new();
    for (number, part) in split_colons(text.as_bytes()).iter().enumerate() {
        let part = one(part, host)?;
        let part = if number == 0 { place(part, base) } else { part };
        if number > 0 {
            whole.push(b':');
        }
        for byte in part.as_bytes() {
            whole.extend_from_slice(if *byte == b':' {
                br"\:"
            } else {
                std::slice::from_ref(byte)
            });
        }
    }
    Ok(OsString::from_vec(whole))
}

/// The path or pattern that `text` means: a relative pattern is about what lies anywhere below `base`.
pub(super) fn expand_pattern(
    text: &str,
    base: Option<&Path>,
    host: &Host,
) -> Result<OsString, String> {
    let word = one(text.as_bytes(), host)?;
    let Some(base) = base.filter(|_| !Path::new(&word).is_absolute() && !word.is_empty()) else {
        return Ok(word);
    };
    if !is_pattern(&word) {
        // What takes the meaning of a character there is written so already.
        let mut whole = escaped(base);
        let normal = Path::new(&word).strip_prefix(".").unwrap_or(Path::new(&word));
        if !normal.as_os_str().is_empty() {
            whole.push("/");
            whole.push(normal);
        }
        return Ok(whole);
    }
    let mut whole = escaped(base);
    let near = [&b"./"[..], b"../"].iter().any(|start| word.as_bytes().starts_with(start));
    whole.push(if near { "/" } else { "/**/" });
    whole.push(word);
    Ok(whole)
}

/// Takes a relative path from `base`. An empty one stays what it is, and is refused as that.
fn place(path: OsString, base: Option<&Path>) -> OsString {
    match base {
        Some(base) if !path.is_empty() => {
            let path = Path::new(&path);
            let normal = path.strip_prefix(".").unwrap_or(path);
            if normal.as_os_str().is_empty() { base.into() } else { base.join(normal).into() }
        }
        _ => path,
    }
}

fn one(text: &[u8], host: &Host) -> Result<OsString, String> {
    let (mut whole, mut rest) = match text {
        b"~" => return home(host).map(OsString::from),
        [b'~', b'/', rest @ ..] => {
            let mut home = home(host)?.into_os_string().into_vec();
            home.push(b'/');
            (home, rest)
        }
        [b'~', ..] => {
            return Err(
                "only your own home can be written as ~; write another one in full, and a \
                        name that begins with a tilde as ./~"
                    .to_owned(),
            );
        }
        text => (Vec::new(), text),
    };
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'$' => whole.extend(variable(&mut rest, host)?.as_bytes()),
            byte => whole.push(byte),
        }
    }
    Ok(OsString::from_vec(whole))
}

/// What stands behind a dollar.
fn variable(rest: &mut &[u8], host: &Host) -> Result<OsString, String> {
    let text = *rest;
    if let [b'$', after @ ..] = text {
        *rest = after;
        return Ok("$".into());
    }
    let braced = text.first() == Some(&b'{');
    let from = usize::from(braced);
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let length = text[from..].iter().take_while(|byte| word(byte)).count();
    let name = OsStr::from_bytes(&text[from..from + length]);
    let closed = !braced || text.get(from + length) == Some(&b'}');
    if length == 0 || !closed {
        return Err(
            "a $ is not followed by the name of a variable; write $NAME or ${NAME}, and $$ for \
                    a dollar"
                .to_owned(),
        );
    }
    *rest = &text[from + length + from..];
    let name = name.to_string_lossy();
    host.variable(&name).map(OsStr::to_owned).ok_or_else(|| {
        format!("the variable {name} is not set, or is empty; set it, or write the path in full")
    })
}

/// The caller's home.
pub(super) fn home(host: &Host) -> Result<PathBuf, String> {
    let known = host.variable("HOME").map(PathBuf::from);
    let known = known.or_else(|| Some(host.accounts.by_uid(host.uid).ok()??.home));
    known.filter(|home| home.is_absolute()).ok_or_else(|| {
        let home = host.variable("HOME").map(quoted);
        format!("there is no home directory (HOME is {})", home.as_deref().unwrap_or("not set"))
    })
}
