//! Extended attributes, where the guest takes itself for root: setxattr(2) and its kin.
//!
//! What root alone may set (capabilities of files, attributes of security modules, trusted ones) is kept in an
//! attribute of users with a longer name (`beliefs::INSTEAD`). The kernel never looks at those; beliefs themselves are
//! hidden.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::args::{AtFlags, DirFd, Fd, Flags, InBuf, Len, OutBuf, Path, Str};
use super::{believed, modes};
use crate::notify::Answer;
use crate::sentry::beliefs::{INSTEAD, NAME};
use crate::sentry::call::Call;
use crate::sentry::credentials::Capability;
use crate::sys::{attributes, beneath, files};

const CURRENT: DirFd = DirFd(libc::AT_FDCWD);
pub(super) const FOLLOW: AtFlags = AtFlags(0);
pub(super) const NO_FOLLOW: AtFlags = AtFlags(libc::AT_SYMLINK_NOFOLLOW as u32);
/// XATTR_SIZE_MAX and XATTR_NAME_MAX of include/uapi/linux/limits.h.
const LONGEST_VALUE: u64 = 65536;
const LONGEST_NAME: usize = 255;

/// What becomes of an attribute.
enum Kind {
    /// It is kept under this name.
    Instead(CString),
    /// No guest sees it.
    Hidden,
    /// An access control list, by which permissions are set as well (acl(5)).
    List,
    /// The kernel keeps it.
    Kernels,
}

/// `None`: no name.
fn kind(call: &Call<'_>, name: Str) -> Option<Kind> {
    let name = call.memory().read_string(name.0).ok()?;
    if is_hidden(&name) {
        return Some(Kind::Hidden);
    }
    if name.is_empty() || name.len() > LONGEST_NAME - INSTEAD.len() {
        return Some(Kind::Kernels);
    }
    Some(match name.as_slice() {
        name if name.starts_with(b"security.") || name.starts_with(b"trusted.") => {
            Kind::Instead(CString::new([INSTEAD, name].concat()).ok()?)
        }
        b"system.posix_acl_access" => Kind::List,
        _ => Kind::Kernels,
    })
}

/// Whether a name begins as those of beliefs and of [`INSTEAD`] do.
fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(NAME.to_bytes())
}

/// The file that a call is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Subject {
    /// What a path leads to; AT_SYMLINK_NOFOLLOW: what has that name itself.
    Path(Path, AtFlags),
    /// What is open.
    Open(Fd),
}

impl Subject {
    fn find(self, call: &Call<'_>) -> Option<OwnedFd> {
        match self {
            Subject::Path(path, flags) => believed::target(call, CURRENT, path, flags.0 as i32),
            Subject::Open(fd) => modes::open_file(call, fd),
        }
    }

    /// As the user's own, to be changed.
    fn own(self, call: &Call<'_>) -> Option<Result<OwnedFd, Errno>> {
        believed::own(call, call.kernel.beliefs()?, self.find(call)?)
    }
}

/// The value that an attribute is to have.
pub(super) fn value_of(call: &Call<'_>, value: InBuf, size: Len) -> Result<Vec<u8>, Errno> {
    if size.0 > LONGEST_VALUE {
        return Err(Errno::E2BIG);
    }
    let mut bytes = vec![0; size.0 as usize];
    if !bytes.is_empty() {
        call.memory().read(value.0, &mut bytes)?;
    }
    Ok(bytes)
}

/// What setxattr(2) and its kin do.
pub(super) fn set(
    call: &Call<'_>,
    subject: Subject,
    name: Str,
    (value, size): (InBuf, Len),
    flags: Flags,
) -> Answer {
    let name = match kind(call, name) {
        Some(Kind::Instead(name)) => name,
        Some(Kind::Hidden) => return Answer::Fail(Errno::EPERM),
        Some(Kind::Kernels) => {
            let _ = subject.own(call);
            return Answer::Continue;
        }
        Some(Kind::List) => return set_list(call, subject, (value, size)),
        None => return Answer::Continue,
    };
    let bytes = match value_of(call, value, size) {
        Ok(bytes) => bytes,
        Err(errno) => return Answer::Fail(errno),
    };
    if !believed::has(call, Capability::SetFCap) {
        return Answer::Fail(Errno::EPERM);
    }
    match subject.own(call) {
        None => Answer::Continue,
        Some(Err(errno)) => Answer::Fail(errno),
        Some(Ok(file)) => {
            changed(call, || attributes::set_extended(file.as_fd(), &name, &bytes, flags.0 as i32))
        }
    }
}

/// Has `what` done to a file with the guest's rights.
fn changed(call: &Call<'_>, what: impl FnOnce() -> Result<(), Errno>) -> Answer {
    let Some(beliefs) = call.kernel.beliefs() else { return Answer::Continue };
    believed::change(call, beliefs, what).map(|()| 0).into()
}

/// One that says no more than permissions do becomes permissions. Any other is the kernel's.
fn set_list(call: &Call<'_>, subject: Subject, (value, size): (InBuf, Len)) -> Answer {
    let Some(Ok(file)) = subject.own(call) else { return Answer::Continue };
    let mut bytes = vec![0; size.0.min(LONGEST_VALUE) as usize];
    let read = call.memory().read(value.0, &mut bytes);
    let (Ok(()), Some(beliefs), Some((mode, is_all))) =
        (read, call.kernel.beliefs(), permissions(&bytes))
    else {
        return Answer::Continue;
    };
    match believed::change(call, beliefs, || beliefs.set_access(file.as_fd(), mode)) {
        Err(errno) => Answer::Fail(errno),
        Ok(()) if is_all => {
            let path = files::descriptor_path(file.as_fd());
            // (There may have been a longer one.)
            let list = c"system.posix_acl_access";
            let _ = believed::change(call, beliefs, || beneath::remove_attribute(&path, list));
            Answer::Return(0)
        }
        Ok(()) => Answer::Continue,
    }
}

/// The permissions in an access control list as setxattr(2) takes it (include/uapi/linux/posix_acl_xattr.h), and whether
/// there is nothing else in it.
fn permissions(list: &[u8]) -> Option<(u32, bool)> {
    const VERSION: [u8; 4] = 2u32.to_le_bytes();
    let (owner, group, mask, others) = (0x01, 0x04, 0x10, 0x20);
    let entries = list.strip_prefix(&VERSION)?;
    let (mut found, mut is_all) = ([None; 4], true);
    for entry in entries.chunks(8) {
        let &[tag, 0, bits, 0, ..] = entry else { return None };
        let place = [owner, group, mask, others].iter().position(|it| *it == tag);
        is_all &= place.is_some() && tag != mask;
        if let Some(place) = place {
            found[place] = Some(u32::from(bits & 7));
        }
    }
    let [owner, group, mask, others] = found;
    Some((owner? << 6 | mask.or(group)? << 3 | others?, is_all))
}

fn get(call: &Call<'_>, subject: Subject, name: Str, value: OutBuf, size: Len) -> Answer {
    let name = match kind(call, name) {
        Some(Kind::Instead(name)) => name,
        Some(Kind::Hidden) => return Answer::Fail(Errno::ENODATA),
        _ => return Answer::Continue,
    };
    let (Some(file), Some(beliefs)) = (subject.find(call), call.kernel.beliefs()) else {
        return Answer::Continue;
    };
    let path = files::descriptor_path(file.as_fd());
    match believed::as_guest(call, beliefs, || beneath::attribute(&path, &name)) {
        Ok(found) => give(call, &found, value, size),
        // The host's own, perhaps.
        Err(_) => Answer::Continue,
    }
}

/// What removexattr(2) and its kin do.
pub(super) fn remove(call: &Call<'_>, subject: Subject, name: Str) -> Answer {
    let name = match kind(call, name) {
        Some(Kind::Instead(name)) => name,
        Some(Kind::Hidden) => return Answer::Fail(Errno::ENODATA),
        Some(Kind::Kernels | Kind::List) => {
            let _ = subject.own(call);
            return Answer::Continue;
        }
        None => return Answer::Continue,
    };
    if !believed::has(call, Capability::SetFCap) {
        return Answer::Fail(Errno::EPERM);
    }
    match subject.own(call) {
        None => Answer::Continue,
        Some(Err(errno)) => Answer::Fail(errno),
        Some(Ok(file)) => {
            let path = files::descriptor_path(file.as_fd());
            changed(call, || beneath::remove_attribute(&path, &name))
        }
    }
}

fn list(call: &Call<'_>, subject: Subject, into: OutBuf, size: Len) -> Answer {
    let (Some(file), Some(beliefs)) = (subject.find(call), call.kernel.beliefs()) else {
        return Answer::Continue;
    };
    let path = files::descriptor_path(file.as_fd());
    let Ok(names) = believed::as_guest(call, beliefs, || beneath::attribute_names(&path)) else {
        return Answer::Continue;
    };
    if !names.iter().any(|name| name.starts_with(NAME.to_bytes())) {
        return Answer::Continue;
    }
    give(call, &shown(names), into, size)
}

/// Names as a guest sees them, a NUL behind each.
fn shown(names: Vec<Vec<u8>>) -> Vec<u8> {
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for name in names {
        let name = match name.strip_prefix(INSTEAD) {
            Some(rest) => rest.to_vec(),
            None if is_hidden(&name) => continue,
            None => name,
        };
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen.into_iter()
        .flat_map(|mut name| {
            name.push(0);
            name
        })
        .collect()
}

fn give(call: &Call<'_>, bytes: &[u8], into: OutBuf, size: Len) -> Answer {
    if size.0 == 0 {
        return Answer::Return(bytes.len() as i64);
    }
    if (bytes.len() as u64) > size.0 {
        return Answer::Fail(Errno::ERANGE);
    }
    call.memory().write(into.0, bytes).map(|()| bytes.len() as i64).into()
}

/// Serves getxattr(2).
pub fn getxattr(call: &Call<'_>, path: Path, name: Str, value: OutBuf, size: Len) -> Answer {
    get(call, Subject::Path(path, FOLLOW), name, value, size)
}

/// Serves lgetxattr(2).
pub fn lgetxattr(call: &Call<'_>, path: Path, name: Str, value: OutBuf, size: Len) -> Answer {
    get(call, Subject::Path(path, NO_FOLLOW), name, value, size)
}

/// Serves fgetxattr(2).
pub fn fgetxattr(call: &Call<'_>, fd: Fd, name: Str, value: OutBuf, size: Len) -> Answer {
    get(call, Subject::Open(fd), name, value, size)
}

/// Serves listxattr(2).
pub fn listxattr(call: &Call<'_>, path: Path, into: OutBuf, size: Len) -> Answer {
    list(call, Subject::Path(path, FOLLOW), into, size)
}

/// Serves llistxattr(2).
pub fn llistxattr(call: &Call<'_>, path: Path, into: OutBuf, size: Len) -> Answer {
    list(call, Subject::Path(path, NO_FOLLOW), into, size)
}

/// Serves flistxattr(2).
pub fn flistxattr(call: &Call<'_>, fd: Fd, into: OutBuf, size: Len) -> Answer {
    list(call, Subject::Open(fd), into, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_the_three_classes_is_permissions() {
        let list = |entries: &[(u8, u8)]| {
            let mut all = 2u32.to_le_bytes().to_vec();
            for (tag, bits) in entries {
                all.extend([*tag, 0, *bits, 0, 255, 255, 255, 255]);
            }
            all
        };
        assert_eq!(permissions(&list(&[(1, 6), (4, 4), (32, 0)])), Some((0o640, true)));
        let long = list(&[(1, 7), (2, 7), (4, 4), (16, 5), (32, 1)]);
        assert_eq!(permissions(&long), Some((0o751, false)));
        assert_eq!(permissions(&list(&[(1, 6)])), None);
        assert_eq!(permissions(b"\x02\0\0\0\x01\0"), None);
        assert_eq!(permissions(b""), None);
    }

    #[test]
    fn a_guest_sees_its_own_names_and_no_beliefs() {
        let names: Vec<Vec<u8>> = [
            "user.a",
            "user.sandbox.root",
            "user.sandbox.rootless",
            "user.sandbox.root.security.capability",
            "security.capability",
        ]
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
        let seen = shown(names);
        assert_eq!(seen, b"user.a\0security.capability\0");
    }
}
