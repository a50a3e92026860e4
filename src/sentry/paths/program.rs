//! Programs whose files lack their content: it is there before the kernel reads them.
//!
//! An exec cannot be performed for a guest, so it goes on with the path, which may lead elsewhere by then. Then it
//! fails, or executes what is there: a file without content is no program (ENOEXEC).

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::change::Spot;
use super::resolve::{Landing, Start, Thing};
use super::{Guest, Paths};
use crate::sys::files::descriptor_path;

/// How deep interpreters are nested at most (exec_binprm in fs/exec.c), and one for the last of them.
const MOST: usize = 6;
/// Bytes that the kernel looks at to tell what a file is (BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h).
const HEAD: usize = 256;

impl Paths {
    /// Gives what a path leads to, and what interprets it, the content that they lack.
    pub(in crate::sentry) fn complete_program(
        &self,
        guest: Guest<'_>,
        (start, path): Spot<'_>,
        flags: i32,
    ) -> Result<(), Errno> {
        let Some(content) = &self.content else { return Ok(()) };
        let (mut start, mut path, mut flags) = (start, path.to_vec(), flags);
        for _ in 0..MOST {
            let Ok(Some(program)) = self.program(guest, (start, &path), flags) else {
                return Ok(());
            };
            if content.lacks(program.handle.as_fd(), &program.stat, false) {
                content.fetch(program.handle.as_fd())?;
            }
            let path_to_it = descriptor_path(program.handle.as_fd());
            let flags_of_it = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let Ok(file) = open(&*path_to_it, flags_of_it, Mode::empty()) else { return Ok(()) };
            let Some(interpreter) = interpreter_of(&File::from(file)) else { return Ok(()) };
            (start, path, flags) = (Start::Directory, interpreter, 0);
        }
        Ok(())
    }

    /// The file that a path leads to.
    fn program(
        &self,
        guest: Guest<'_>,
        (start, path): Spot<'_>,
        flags: i32,
    ) -> Result<Option<Thing>, Errno> {
        let found = self.with(guest, |resolver| match start {
            Start::Descriptor(fd) if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 => {
                resolver.descriptor(fd).map(Some)
            }
            _ => match resolver.walk(start, path, flags & libc::AT_SYMLINK_NOFOLLOW == 0)? {
                Landing::Thing(thing) => Ok(Some(thing)),
                Landing::Name { found, .. } => Ok(found),
            },
        })?;
        Ok(found.filter(|thing| thing.kind() == libc::S_IFREG))
    }
}

/// What the kernel executes for a file in its place, or maps beside it: a script's first line names one
/// (load_script in fs/binfmt_script.c), a program of ELF may (load_elf_binary in fs/binfmt_elf.c).
pub(crate) fn interpreter_of(file: &File) -> Option<Vec<u8>> {
    let mut head = [0u8; HEAD];
    let length = file.read_at(&mut head, 0).ok()?;
    let head = &head[..length];
    match head.strip_prefix(b"#!") {
        Some(line) => of_script(line),
        None if head.starts_with(b"\x7fELF") => of_elf(file, head),
        None => None,
    }
}

fn of_script(line: &[u8]) -> Option<Vec<u8>> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let line = line.split(|byte| *byte == b'\n').next()?;
    let begin = line.iter().position(|byte| !is_blank(byte))?;
    let path = line[begin..].split(|byte| is_blank(byte) || *byte == 0).next()?;
    (!path.is_empty()).then(|| path.to_vec())
}

/// The path in the segment of type PT_INTERP (elf(5)), of programs with words of 64 or 32 bits. The kernel takes a table of
/// its own entries, up to 64 KiB (load_elf_phdrs in fs/binfmt_elf.c).
fn of_elf(file: &File, head: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u64 = 3;
    const LONGEST: u64 = 64 << 10;
    let number = |bytes: &[u8], at: usize, size: usize| -> Option<u64> {
        let part = bytes.get(at..at + size)?;
        Some(part.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let wide = *head.get(4)? == 2;
    let (word, offset, size, count) = if wide { (8, 32, 54, 56) } else { (4, 28, 42, 44) };
    let entry = if wide { 56 } else { 32 };
    let (table, size) = (number(head, offset, word)?, number(head, size, 2)?);
    let length = number(head, count, 2)? * size;
    if size != entry || length > LONGEST {
        return None;
    }
    let mut entries = vec![0u8; length as usize];
    file.read_exact_at(&mut entries, table).ok()?;
    let mut entries = entries.chunks_exact(entry as usize);
    let entry = entries.find(|it| number(it, 0, 4) == Some(PT_INTERP))?;
    let (from, length) = if wide { (8, 32) } else { (4, 16) };
    let length = number(entry, length, word)?.min(libc::PATH_MAX as u64);
    let mut path = vec![0u8; length as usize];
    file.read_exact_at(&mut path, number(entry, from, word)?).ok()?;
    path.truncate(path.iter().position(|byte| *byte == 0)?);
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn scripts_and_programs_name_what_interprets_them() {
        for (line, path) in [
            (&b"/bin/sh\n"[..], Some(&b"/bin/sh"[..])),
            (b" \t/bin/sh -e\nx", Some(b"/bin/sh")),
            (b"../own/sh", Some(b"../own/sh")),
            (b"  \n/bin/sh", None),
            (b"", None),
        ] {
            assert_eq!(of_script(line).as_deref(), path);
        }
    }

    #[test]
    fn interpreters_are_found_in_scripts_and_programs() {
        let file = |content: &[u8]| {
            let mut file = crate::sys::memfd::anonymous_file(c"test").unwrap();
            file.write_all(content).unwrap();
            file
        };
        let of = |content: &[u8]| interpreter_of(&file(content));
        assert_eq!(of(b"#! /usr/bin/env python3\nrest").unwrap(), b"/usr/bin/env");
        assert_eq!(of(b"#!/bin/sh").unwrap(), b"/bin/sh");
        assert_eq!(of(b"#!\n"), None);
        assert_eq!(of(b""), None);
        assert_eq!(of(b"\x7fELF\x02\x01 cut"), None);
        let own = File::open("/proc/self/exe").unwrap();
        let found = interpreter_of(&own).unwrap();
        assert!(found.starts_with(b"/lib"), "{}", String::from_utf8_lossy(&found));
    }
}
