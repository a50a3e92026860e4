//! The program that init or a keeper is about to execute.
//!
//! That exec is made from memory that the sentry may not read, so its path is followed beforehand, from outside. What a
//! guest puts in its place meanwhile makes the exec fail, and nothing else: only files of twins are filled.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use super::super::entry::Type;
use super::fill::Twins;
use crate::sentry::Content;
use crate::sentry::paths::interpreter_of;
use crate::sys::files::descriptor_path;

/// Links that are followed on one path (MAXSYMLINKS of include/linux/namei.h), and interpreters one behind the other.
const MOST_LINKS: usize = 40;
const MOST_INTERPRETERS: usize = 6;

impl Twins {
    /// Fills what a path leads to, as guests know it, and what interprets that (a relative path is one from the working
    /// directory there, too).
    pub(super) fn complete_program(&self, path: &Path, workdir: &Path) -> Result<(), Errno> {
        let mut path = workdir.join(path);
        for _ in 0..MOST_INTERPRETERS {
            let Some(place) = self.follow(&path) else { return Ok(()) };
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let Ok(file) = open(&place, flags, Mode::empty()) else { return Ok(()) };
            let stat = fstat(&file)?;
            if Type::of(&stat) != Type::File {
                return Ok(());
            }
            self.fetch(file.as_fd())?;
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let own = descriptor_path(file.as_fd());
            let Ok(file) = open(&*own, flags, Mode::empty()) else { return Ok(()) };
            let Some(next) = interpreter_of(&File::from(file)) else { return Ok(()) };
            path = workdir.join(OsString::from_vec(next));
        }
        Ok(())
    }

    /// Where a path of guests' leads on the host, links followed. None: nowhere.
    fn follow(&self, path: &Path) -> Option<PathBuf> {
        let mut rest: VecDeque<OsString> = names(path);
        let (mut at, mut links) = (PathBuf::from("/"), 0);
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            at.push(&name);
            let place = self.place_of(&at);
            let Ok(found) = place.symlink_metadata() else { return None };
            if !found.is_symlink() {
                continue;
            }
            links += 1;
            if links > MOST_LINKS {
                return None;
            }
            let text = place.read_link().ok()?;
            at.pop();
            if text.is_absolute() {
                at = PathBuf::from("/");
            }
            for name in names(&text).into_iter().rev() {
                rest.push_front(name);
            }
        }
        Some(self.place_of(&at))
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    });
    names.collect()
}
