//! The address space of a stopped process.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_bytes::ByteBuf;

use super::collector::{Collector, Content, Subject};
use super::known::Known;
use super::maps::{self, Line};
use super::shared;
use super::snapshot::{self, Live};
use super::stale;
use super::zeros::{self, cut};
use crate::save::error::SaveError;
use crate::save::hand::AREA;
use crate::save::state::{Identity, Layout, MappedFile, Mapping, MappingKind, Object, Space};
use crate::sys::generated;
use crate::sys::pagemap;

/// The kernel's page at the end of the address space, the same in every process.
const VSYSCALL: &[u8] = b"[vsyscall]";

/// The address space of the subject: what is mapped, and which pages go to the memory section. `live`:
/// it has a copy, of this number, whose memory is read instead of its own, as far as a copy has it.
pub fn capture(
    subject: &mut Subject<'_>,
    live: Option<(&Live, i32)>,
    collector: &mut Collector,
) -> Result<Space, SaveError> {
    let pid = subject.pid;
    let who = subject.to_string();
    let failed = |what: &'static str| {
        let who = who.clone();
        move |error: nix::errno::Errno| SaveError::failed(format!("{who}: {what}"), error.desc())
    };
    let lines = match live {
        Some((live, _)) => live.mappings(pid, subject.hand.area()),
        None => maps::read(pid),
    };
    let lines = lines.map_err(failed("its mappings cannot be read"))?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))
        .map_err(|error| SaveError::failed(format!("{who}: its pages cannot be found"), error))?;
    let area = subject.hand.area();
    let mut mappings = Vec::with_capacity(lines.len());
    let object = collector.object();
    let first_content = collector.contents.len();
    let mut lock_new = 0;
    // Of one that has a copy only few mappings are asked about.
    let (all_own, all_guards) = match live {
        None => found_at_once(&pagemap, &lines).map_err(failed("its pages cannot be found"))?,
        Some(_) => (None, None),
    };
    for line in lines.iter().filter(|line| line.name != VSYSCALL) {
        // The hand's own place. The kernel may have joined it to a mapping beside it.
        for piece in without(line, area, area + AREA) {
            let mut kind = kind(subject, &piece, collector)?;
            let copy = live.filter(|_| !snapshot::is_lost(&piece.flags)).map(|(_, copy)| copy);
            // A copy has all guards of what is private (copy_pte_marker in mm/memory.c): they are found there, when
            // the process goes on.
            let is_left = copy.is_some()
                && has_own_pages(&kind)
                && !matches!(kind, MappingKind::Shared { .. })
                && !stale::may_be(&kind, &collector.known);
            let guards = match (&kind, &all_guards) {
                (MappingKind::Vvar(_) | MappingKind::Vdso, _) => Vec::new(),
                (_, Some(all)) => cut(all, piece.start, piece.end).collect(),
                _ if is_left => Vec::new(),
                _ => pagemap::guards(&pagemap, piece.start, piece.end)
                    .map_err(failed("its pages cannot be found"))?,
            };
            let pages = (&pagemap, &guards[..]);
            let stale = stale::look(pid, &piece, pages, &mut kind, &collector.known);
            // What is mapped privately of shared memory hides it where it has been changed.
            let mut own = Vec::new();
            if !stale.is_empty() {
                add_pages(collector, object, pid, &stale);
            } else if has_own_pages(&kind) {
                if let Some(all) = &all_own {
                    own = cut(all, piece.start, piece.end).collect();
                } else if copy.is_none() || matches!(kind, MappingKind::Shared { .. }) {
                    own = pagemap::own_pages(&pagemap, piece.start, piece.end)
                        .map_err(failed("its pages cannot be found"))?;
                }
                match copy {
                    Some(copy) => add_copied(collector, object, copy, (piece.start, piece.end)),
                    None => add_pages(collector, object, pid, &own),
                }
            }
            if let MappingKind::Shared { index, .. } = kind {
                collector.mapped.see(index, pid, &piece, (&own, &guards));
            }
            mappings.push(Mapping {
                start: piece.start,
                end: piece.end,
                protection: piece.protection,
                kind,
                flags: piece.flags.clone(),
                name: piece.given_name().map(ByteBuf::from),
                guards,
            });
        }
        // What is mapped from now on is treated as the hand's own place was.
        if line.start <= area && area < line.end && line.has("lo") {
            let on_fault = if line.has("lf") { libc::MCL_ONFAULT } else { 0 };
            lock_new = (libc::MCL_FUTURE | on_fault) as u32;
        }
    }
    // A guard that nobody tells of would be a fault of the process's own.
    if live.is_none() && pagemap::tells_of_guards(&pagemap) {
        find_zeros(subject, &mappings, &mut collector.contents[first_content..]);
    }
    let mut space = attributes(subject, object, mappings)?;
    space.lock_new = lock_new;
    let exe = space.exe.as_slice();
    let is_exe = |line: &&Line| line.has_file() && line.name == exe && line.deleted().is_some();
    let line = lines.iter().find(is_exe);
    space.exe_memory =
        line.and_then(|line| collector.known.shared_by_inode((line.device, line.inode)));
    Ok(space)
}

/// Has a process that stands still until its memory is read look which of its pages are zero.
fn find_zeros(subject: &mut Subject<'_>, mappings: &[Mapping], contents: &mut [Content]) {
    for content in contents {
        let Content::Pages { ranges, zeros, .. } = content else { continue };
        let pieces = zeros::worth_a_look(ranges, mappings);
        match zeros::look(subject.hand, &pieces) {
            Ok(found) => *zeros = found,
            Err(error) => tracing::debug!(%error, "zeros of a process are not looked for"),
        }
    }
}

/// Ranges of addresses, where they have been found.
type Ranges = Option<pagemap::Ranges>;

/// The pages of a process's own, and the guards, of all of its mappings. None: each mapping has to be asked about.
fn found_at_once(pagemap: &File, lines: &[Line]) -> Result<(Ranges, Ranges), nix::errno::Errno> {
    let whole = lines.first().zip(lines.iter().rfind(|line| line.name != VSYSCALL));
    let Some((first, last)) = whole else { return Ok((None, None)) };
    match pagemap::own_pages_and_guards_anywhere(pagemap, first.start, last.end) {
        Ok((own, guards)) => Ok((Some(own), Some(guards))),
        // (It tells of no guards, either.)
        Err(nix::errno::Errno::ENOTTY) => Ok((None, Some(Vec::new()))),
        Err(errno) => Err(errno),
    }
}

/// Contents of an object are in the order of its addresses.
fn add_pages(collector: &mut Collector, object: Object, pid: i32, own: &[(u64, u64)]) {
    if let Some(Content::Pages { object: last, ranges, .. }) = collector.contents.last_mut()
        && *last == object
    {
        own.iter().for_each(|range| join(ranges, *range));
    } else {
        let (ranges, zeros) = (own.to_vec(), Vec::new());
        collector.contents.push(Content::Pages { object, pid, ranges, zeros, copy: None });
    }
}

fn add_copied(collector: &mut Collector, object: Object, copy: i32, mapping: (u64, u64)) {
    if let Some(Content::Copied { object: last, mappings, .. }) = collector.contents.last_mut()
        && *last == object
    {
        mappings.push(mapping);
    } else {
        collector.contents.push(Content::Copied { object, pid: copy, mappings: vec![mapping] });
    }
}

/// Adds a range to others, in order.
pub fn join(ranges: &mut Vec<(u64, u64)>, range: (u64, u64)) {
    match ranges.last_mut() {
        Some(last) if last.1 == range.0 => last.1 = range.1,
        _ => ranges.push(range),
    }
}

/// What is left of a mapping outside a range.
fn without(line: &Line, start: u64, end: u64) -> Vec<Line> {
    let piece = |from: u64, to: u64| Line {
        start: from,
        end: to,
        offset: line.offset + if line.has_file() { from - line.start } else { 0 },
        ..line.clone()
    };
    let before = (line.start, line.end.min(start));
    let behind = (line.start.max(end), line.end);
    if line.end <= start || line.start >= end {
        return vec![line.clone()];
    }
    [before, behind].into_iter().filter(|(from, to)| from < to).map(|(a, b)| piece(a, b)).collect()
}

/// Whether pages of it can be the process's own. Shared memory has its content elsewhere.
fn has_own_pages(kind: &MappingKind) -> bool {
    match kind {
        MappingKind::Anonymous
        | MappingKind::Stack
        | MappingKind::Heap
        | MappingKind::FilePrivate { .. }
        | MappingKind::Vdso => true,
        MappingKind::Shared { private, .. } => *private,
        MappingKind::FileShared { .. } | MappingKind::Vvar(_) => false,
    }
}

fn kind(
    subject: &Subject<'_>,
    line: &Line,
    collector: &mut Collector,
) -> Result<MappingKind, SaveError> {
    let refuse = |what: &str| {
        let (start, end) = (line.start, line.end);
        Err(SaveError::refused(format!(
            "{subject} maps {what} at {start:x}-{end:x}, which cannot be saved"
        )))
    };
    let name = line.name.as_slice();
    if line.has("um") || line.has("uw") {
        return refuse("memory that a userfaultfd watches");
    }
    if name.starts_with(b"/secretmem") {
        return refuse("secret memory (memfd_secret)");
    }
    if line.key != 0 {
        return refuse(&format!("memory with protection key {} (pkeys(7))", line.key));
    }
    if line.has("ht") {
        return refuse("huge pages of hugetlbfs");
    }
    match name {
        b"[vdso]" => return Ok(MappingKind::Vdso),
        b"[vvar]" | b"[vvar_vclock]" => {
            return Ok(MappingKind::Vvar(String::from_utf8_lossy(name).into_owned()));
        }
        b"[heap]" => return Ok(MappingKind::Heap),
        _ => {}
    }
    if line.has("io") || line.has("pf") && !line.has_file() && !name.is_empty() {
        return refuse(&format!("a device ({})", String::from_utf8_lossy(name)));
    }
    if !line.has_file() {
        return Ok(if line.has("gd") { MappingKind::Stack } else { MappingKind::Anonymous });
    }
    if name.starts_with(b"/[aio]") {
        return refuse("rings of io_setup(2)");
    }
    if let Some(index) = shared::index(subject.pid, line, collector) {
        let (offset, private) = (line.offset, !line.shared);
        return Ok(MappingKind::Shared { index, offset, private });
    }
    let file = mapped_file(subject, line, collector)?;
    if line.shared && line.has("mw") {
        if let MappedFile::Path { identity, .. } = &file
            && collector.known.changed_files.contains(&identity.inode)
        {
            let shown = String::from_utf8_lossy(name);
            return refuse(&format!("{shown}, which was opened by an answer to --ask"));
        }
        let who = subject.to_string();
        let view = collector.known.view_of(subject.pid);
        super::flush::sync_mapped(&view, &line.name, &who, &mut collector.synced)?;
    }
    Ok(if line.shared {
        MappingKind::FileShared { file, offset: line.offset, writable: line.has("mw") }
    } else {
        MappingKind::FilePrivate { file, offset: line.offset }
    })
}

fn mapped_file(
    subject: &Subject<'_>,
    line: &Line,
    collector: &mut Collector,
) -> Result<MappedFile, SaveError> {
    let show = String::from_utf8_lossy(&line.name).into_owned();
    let path = ByteBuf::from(line.name.clone());
    let identity = known_identity(subject.pid, &line.name, &mut collector.known)
        .map_err(|error| SaveError::failed(format!("{subject}: the mapped file {show}"), error))?;
    Ok(MappedFile::Path { path, identity })
}

/// What a file of the guests' view, which all of them share, is like. Processes map the same ones.
pub fn known_identity(pid: i32, path: &[u8], known: &mut Known) -> std::io::Result<Identity> {
    if let Some(identity) = known.identities.get(path) {
        return Ok(*identity);
    }
    let identity = identity(&known.view_of(pid), path)?;
    known.identities.insert(path.to_vec(), identity);
    Ok(identity)
}

/// What a file of the guests' view is like. `view`: where that is.
fn identity(view: &str, path: &[u8]) -> std::io::Result<Identity> {
    use std::os::unix::ffi::OsStrExt;
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    let found = std::fs::metadata(Path::new(view).join(std::ffi::OsStr::from_bytes(relative)))?;
    Ok(Identity {
        inode: (found.dev(), found.ino()),
        size: found.size(),
        modified: found.mtime() * 1_000_000_000 + found.mtime_nsec(),
        mode: found.mode(),
    })
}

/// What is known of the space as a whole.
fn attributes(
    subject: &mut Subject<'_>,
    object: u32,
    mappings: Vec<Mapping>,
) -> Result<Space, SaveError> {
    let pid = subject.pid;
    let who = subject.to_string();
    let mut table = subject.hand.table();
    let brk = table.call(libc::SYS_brk, [0]);
    let dumpable = table.attempt(libc::SYS_prctl, [libc::PR_GET_DUMPABLE as u64]);
    let flags = [libc::PR_GET_THP_DISABLE, PR_GET_MEMORY_MERGE, PR_GET_MDWE]
        .map(|option| table.attempt(libc::SYS_prctl, [option as u64, 0, 0, 0, 0]));
    let membarrier = table.attempt(libc::SYS_membarrier, [MEMBARRIER_CMD_GET_REGISTRATIONS, 0]);
    subject.hand.post(table).map_err(SaveError::of(&who))?;
    let missing = |what: &str| SaveError::failed(format!("{who}: {what}"), "cannot be read");
    let stat = super::stat::read(pid).ok_or_else(|| missing("its state"))?;
    let auxv =
        generated::contents(format!("/proc/{pid}/auxv")).map_err(|_| missing("its vector"))?;
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|_| missing("its program"))?;
    let filter = generated::text(format!("/proc/{pid}/coredump_filter"));
    let filter = filter.ok().and_then(|text| u32::from_str_radix(text.trim(), 16).ok());
    let done = subject.hand.collect().map_err(SaveError::of(&who))?;
    let words = [
        stat.field(26),
        stat.field(27),
        stat.field(45),
        stat.field(46),
        stat.field(47),
        done.result(brk).unwrap_or(0),
        stat.field(28),
        stat.field(48),
        stat.field(49),
        stat.field(50),
        stat.field(51),
    ];
    let exe = std::os::unix::ffi::OsStringExt::into_vec(exe.into_os_string());
    Ok(Space {
        object,
        mappings,
        layout: Layout { words, auxv: ByteBuf::from(auxv) },
        exe: ByteBuf::from(exe),
        exe_memory: None,
        lock_new: 0,
        dumpable: done.result(dumpable).unwrap_or(1) as u32,
        coredump_filter: filter.unwrap_or(0x33),
        flags: flags.map(|place| done.result(place).unwrap_or(0)),
        membarrier: done.result(membarrier).unwrap_or(0),
    })
}

// include/uapi/linux/prctl.h and membarrier.h
const PR_GET_MEMORY_MERGE: libc::c_int = 68;
const PR_GET_MDWE: libc::c_int = 66;
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
