//! The mappings of a process, as /proc tells them (proc_pid_smaps(5)).

use crate::sys::errno_of;
use crate::sys::generated;
use nix::errno::Errno;

/// One mapping, as the kernel prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// First address.
    pub start: u64,
    /// Address behind it.
    pub end: u64,
    /// PROT_*.
    pub protection: u32,
    /// MAP_SHARED (or at least mapped so).
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Device, as st_dev tells it, and inode; 0: no file.
    pub device: u64,
    /// See above.
    pub inode: u64,
    /// Path or name, as printed, with the kernel's escapes undone.
    pub name: Vec<u8>,
    /// VmFlags.
    pub flags: String,
    /// The protection key (pkeys(7)).
    pub key: u32,
}

/// Reads all mappings, without their flags. The kernel goes through no page for it, as it does for
/// [`read`] (show_smap in fs/proc/task_mmu.c).
pub fn list(pid: i32) -> Result<Vec<Line>, Errno> {
    let text =
        generated::contents(format!("/proc/{pid}/maps")).map_err(|error| errno_of(&error))?;
    parse(&text).ok_or(Errno::EPROTO)
}

/// Gives each line the flags of one that overlaps it and is otherwise the same, read at another time or
/// of another process. Gives whether all have got some. Both are in the order of addresses.
pub fn adopt_flags(lines: &mut [Line], others: &[Line]) -> bool {
    let mut all = true;
    for line in lines {
        let first = others.partition_point(|other| other.end <= line.start);
        let overlapping = others[first..].iter().take_while(|other| other.start < line.end);
        match overlapping.clone().find(|other| other.is_like(line)) {
            Some(other) => {
                line.flags.clone_from(&other.flags);
                line.key = other.key;
            }
            None => all = false,
        }
    }
    all
}

/// Reads all mappings.
pub fn read(pid: i32) -> Result<Vec<Line>, Errno> {
    let text =
        generated::contents(format!("/proc/{pid}/smaps")).map_err(|error| errno_of(&error))?;
    parse(&text).ok_or(Errno::EPROTO)
}

fn parse(text: &[u8]) -> Option<Vec<Line>> {
    let mut all: Vec<Line> = Vec::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            all.last_mut()?.flags = String::from_utf8_lossy(flags).trim().to_owned();
        } else if let Some(key) = line.strip_prefix(b"ProtectionKey:") {
            all.last_mut()?.key = String::from_utf8_lossy(key).trim().parse().ok()?;
        } else if line[0].is_ascii_digit() || (b'a'..=b'f').contains(&line[0]) {
            all.push(head(line)?);
        }
    }
    Some(all)
}

/// start-end rwxp offset major:minor inode      name
fn head(line: &[u8]) -> Option<Line> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut field = || fields.next().and_then(|it| std::str::from_utf8(it).ok());
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let rights = field()?.as_bytes();
    let right = |at: usize, letter, bit: i32| {
        if rights.get(at) == Some(&letter) { bit as u32 } else { 0 }
    };
    let protection = right(0, b'r', libc::PROT_READ)
        | right(1, b'w', libc::PROT_WRITE)
        | right(2, b'x', libc::PROT_EXEC);
    let shared = rights.get(3) == Some(&b's');
    let offset = hexadecimal(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let device = libc::makedev(hexadecimal(major)? as u32, hexadecimal(minor)? as u32);
    let inode = field()?.parse().ok()?;
    let name = fields.next().unwrap_or_default();
    Some(Line {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        protection,
        shared,
        offset,
        device,
        inode,
        name: unescape(name.trim_ascii_start()),
        flags: String::new(),
        key: 0,
    })
}

/// Whether a flag is among VmFlags: two letters each, and a space between them.
pub fn has_flag(flags: &str, flag: &str) -> bool {
    flags.as_bytes().chunks(3).any(|it| it.get(..2) == Some(flag.as_bytes()))
}

/// A newline in a name is printed as \012 (seq_path in fs/seq_file.c).
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, more)) = rest.split_first() {
        if let Some(more) = rest.strip_prefix(b"\\012") {
            plain.push(b'\n');
            rest = more;
        } else {
            plain.push(*first);
            rest = more;
        }
    }
    plain
}

impl Line {
    /// Whether a file is behind it. (The inode of shared memory of System V is its number, and the first
    /// of a namespace has number 0: newseg() in ipc/shm.c.)
    pub fn has_file(&self) -> bool {
        self.inode != 0 || self.name.starts_with(b"/SYSV")
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: &str) -> bool {
        has_flag(&self.flags, flag)
    }

    /// The name that a guest gave to memory that is no file's (PR_SET_VMA_ANON_NAME).
    pub fn given_name(&self) -> Option<&[u8]> {
        self.name.strip_prefix(b"[anon:")?.strip_suffix(b"]")
    }

    /// Whether it maps the same with the same rights.
    fn is_like(&self, other: &Line) -> bool {
        (self.protection, self.shared, self.device, self.inode)
            == (other.protection, other.shared, other.device, other.inode)
            && self.name == other.name
    }

    /// A file without a name any more: the name that it had.
    pub fn deleted(&self) -> Option<&[u8]> {
        self.name.strip_suffix(b" (deleted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_with_their_flags_whatever_the_name() {
        let text = b"7f0-800 r-xp 00001000 fe:00 77   /a b/c\\012d (deleted)\nSize: 1 kB\n\
                     VmFlags: rd ex mr \nffff-10000 rw-s 00000000 00:01 5\nVmFlags: rd wr sh \n";
        let all = parse(text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].start, all[0].end, all[0].inode), (0x7f0, 0x800, 77));
        assert_eq!(all[0].protection, 5);
        assert_eq!(all[0].deleted(), Some(&b"/a b/c\nd"[..]));
        assert!(all[0].has("ex") && !all[0].has("wr"));
        assert!(all[1].shared && all[1].name.is_empty());
        let mut moved = vec![Line { end: 0x900, flags: String::new(), ..all[0].clone() }];
        assert!(adopt_flags(&mut moved, &all));
        assert_eq!(moved[0].flags, all[0].flags);
        moved[0].protection = 1;
        assert!(!adopt_flags(&mut moved, &all));
        assert!(list(std::process::id() as i32).unwrap().iter().any(|it| it.name == b"[stack]"));
        assert!(read(std::process::id() as i32).unwrap().iter().any(|it| it.name == b"[stack]"));
    }
}
