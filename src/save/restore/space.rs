//! An address space, put together in a process that has grown from a seed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::courier::Courier;
use super::descriptors::FilesPolicy;
use super::heritage::Stays;
use crate::save::capture::maps::{self, Line};
use crate::save::error::RestoreError;
use crate::save::hand::{self, AREA, CODE, Hand, HandError};
use crate::save::state::{Identity, MappedFile, Mapping, MappingKind, SharedKind, Space};
use crate::sys::agent;
use crate::sys::agent::{Data, Done, Place, Table};

const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
const SHARED: i32 = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
const NO_FD: u64 = u64::MAX;

/// Moves the agent to memory that is no file's, so that nothing of the seed's file is left (its program
/// could not be another one then: -EBUSY, replace_mm_exe_file in kernel/fork.c).
pub fn settle(mut hand: Hand, area: u64) -> Result<Hand, HandError> {
    let before = hand.area();
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    let writable = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let (code, table) = (CODE as u64, AREA - CODE as u64);
    let mut calls = hand.table();
    calls.call(libc::SYS_mmap, [area, code, executable, flags, NO_FD, 0]);
    calls.call(libc::SYS_mmap, [area + code, table, writable, flags, NO_FD, 0]);
    hand.run(&calls)?;
    hand::force(hand.tid(), area, agent::code())
        .map_err(|errno| HandError::Own("write to its memory", errno))?;
    let mut hand = Hand::new(hand.release()?, area);
    hand.call(libc::SYS_munmap, [before, AREA])?;
    Ok(hand)
}

/// Empties the address space but for the agent and what stays; the kernel's pages go where the image has them. The process
/// opens the files that it has mapped meanwhile ([`map`]).
pub fn clear<'s>(
    hand: &mut Hand,
    space: &'s Space,
    stays: &Stays,
) -> Result<Opening<'s>, RestoreError> {
    let failed = || RestoreError::of("a new process cannot be emptied");
    let lines = maps::list(hand.tid())
        .map_err(|errno| RestoreError::failed("the mappings of a new process", errno.desc()))?;
    let area = hand.area()..hand.area() + AREA;
    let is_kernels =
        |line: &&Line| matches!(&line.name[..], b"[vdso]" | b"[vvar]" | b"[vvar_vclock]");
    let mut table = hand.table();
    let outside = |line: &&Line| !area.contains(&line.start) && line.name != b"[vsyscall]";
    for line in lines.iter().filter(outside).filter(|line| !is_kernels(line)) {
        for (start, end) in stays.outside((line.start, line.end)) {
            make_room(hand, &mut table).map_err(failed())?;
            table.call(libc::SYS_munmap, [start, end - start]);
        }
    }
    for (start, end) in &stays.drop {
        make_room(hand, &mut table).map_err(failed())?;
        table.call(libc::SYS_madvise, [*start, end - start, libc::MADV_DONTNEED as u64]);
    }
    if !table.has_room(KERNELS, 0) {
        hand.run(&table).map_err(failed())?;
        table.clear();
    }
    // Aside first: where they go may be where another of them is.
    let mut aside = area.end + (1 << 20);
    let mut moves = Vec::new();
    for line in lines.iter().filter(is_kernels) {
        let length = line.end - line.start;
        let name = String::from_utf8_lossy(&line.name).into_owned();
        let Some(target) = kernels_target(space, &name) else {
            table.call(libc::SYS_munmap, [line.start, length]);
            continue;
        };
        if target.end - target.start != length {
            return Err(RestoreError::refused(format!(
                "the image was made under another kernel: its {name} has another size; restore it under the \
                 kernel that it was saved under"
            )));
        }
        table.call(libc::SYS_mremap, [line.start, length, length, MOVE, aside]);
        moves.push((aside, length, target.start));
        aside += length;
    }
    for (from, length, to) in moves {
        table.call(libc::SYS_mremap, [from, length, length, MOVE, to]);
    }
    let wanted = wanted_of(space, stays);
    let bytes = wanted.iter().take(AT_ONCE).map(|it| it.path.len() + STAT + 32).sum();
    if !table.has_room(2 * AT_ONCE, bytes) {
        hand.run(&table).map_err(failed())?;
        table.clear();
    }
    let asked = ask(&mut table, &wanted[..wanted.len().min(AT_ONCE)]);
    hand.post(table).map_err(failed())?;
    Ok(Opening { wanted, asked })
}

/// Calls that the kernel's own pages take at most.
const KERNELS: usize = 32;

/// Has the calls of a full table made.
fn make_room(hand: &mut Hand, table: &mut Table) -> Result<(), HandError> {
    if !table.has_room(1, 0) {
        hand.run(table)?;
        table.clear();
    }
    Ok(())
}

const MOVE: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;

fn kernels_target<'s>(space: &'s Space, name: &str) -> Option<&'s Mapping> {
    space.mappings.iter().find(|mapping| match &mapping.kind {
        MappingKind::Vdso => name == "[vdso]",
        MappingKind::Vvar(which) => which == name,
        _ => false,
    })
}

/// What mappings of other things than plain memory need.
pub struct Sources<'s> {
    /// Gives descriptors of shared memory to the process.
    pub courier: &'s Courier,
    /// Shared memory, by index in [`crate::save::state::Sandbox::shared`].
    pub shared: &'s [Option<OwnedFd>],
    /// What all of it is.
    pub memory: &'s [crate::save::state::SharedMemory],
    /// What to think of changed files.
    pub policy: FilesPolicy,
    /// Where files come from the image itself: their times are not there yet.
    pub trees: &'s [PathBuf],
    /// Open file descriptions, by index in [`crate::save::state::Sandbox::files`].
    pub files: &'s [Option<OwnedFd>],
}

/// Maps everything but what `stays`, writable for now; what [`clear`] has the process open among it. Content comes next, then [`protect`].
pub fn map(
    hand: &mut Hand,
    (space, opening): (&Space, &Opening<'_>),
    sources: &Sources<'_>,
    stays: &Stays,
    who: &str,
) -> Result<(), RestoreError> {
    let files = open_files(hand, (space, opening), sources, who)?;
    let shared = give_shared(hand, space, sources, who)?;
    let mut table = hand.table();
    for mapping in space.mappings.iter().filter(|it| !stays.has(it)) {
        if !table.has_room(1, 0) {
            flush(hand, &mut table, who)?;
        }
        let length = mapping.end.checked_sub(mapping.start).filter(|it| *it > 0);
        let length = length.ok_or_else(|| broken(who, mapping))?;
        // Content is written through the mapping where that is no burden. To map all of a reserved
        // area writable would count it against what may be committed; only what counts already is.
        let mut protection = u64::from(mapping.protection);
        if has(mapping, "ac") {
            protection |= libc::PROT_WRITE as u64;
        }
        let reserve = if has(mapping, "nr") { libc::MAP_NORESERVE } else { 0 };
        let mut add = |protection: u64, flags: i32, fd: u64, offset: u64| {
            let flags = (flags | reserve) as u64;
            table.call(libc::SYS_mmap, [mapping.start, length, protection, flags, fd, offset]);
        };
        match &mapping.kind {
            MappingKind::Anonymous | MappingKind::Heap => {
                add(protection, PRIVATE | libc::MAP_ANONYMOUS, NO_FD, 0);
            }
            MappingKind::Stack => {
                let flags = PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN;
                add(protection, flags, NO_FD, 0);
            }
            MappingKind::FilePrivate { file, offset } => {
                add(protection, PRIVATE, number(&files, file, false, who)?, *offset);
            }
            MappingKind::FileShared { file, offset, writable } => {
                let own = u64::from(mapping.protection);
                add(own, SHARED, number(&files, file, *writable, who)?, *offset);
            }
            MappingKind::Shared { index, .. } if let Some(id) = system_v(sources, *index) => {
                let protection = mapping.protection as i32;
                let mut flags = 0;
                if protection & libc::PROT_WRITE == 0 {
                    flags |= libc::SHM_RDONLY;
                }
                if protection & libc::PROT_EXEC != 0 {
                    flags |= libc::SHM_EXEC;
                }
                table.call(libc::SYS_shmat, [id as u64, mapping.start, flags as u64]);
            }
            MappingKind::Shared { index, offset, private } => {
                let fd = shared.get(index).copied().ok_or_else(|| broken(who, mapping))?;
                if *private {
                    add(protection, PRIVATE, fd, *offset);
                } else {
                    add(u64::from(mapping.protection), SHARED, fd, *offset);
                }
            }
            // They have been moved.
            MappingKind::Vdso | MappingKind::Vvar(_) => {}
        }
    }
    if !table.has_room(1, 0) {
        flush(hand, &mut table, who)?;
    }
    let first = super::FIRST_FREE as u64;
    table.call(libc::SYS_close_range, [first, u64::from(u32::MAX), 0]);
    post(hand, table, who)
}

/// Has calls made while others have theirs.
fn post(hand: &mut Hand, table: Table, who: &str) -> Result<(), RestoreError> {
    hand.post(table).map_err(RestoreError::of(format!("{who}: its memory")))
}

fn flush(hand: &mut Hand, table: &mut Table, who: &str) -> Result<(), RestoreError> {
    if !table.is_empty() {
        hand.run(table).map_err(RestoreError::of(format!("{who}: its memory")))?;
        table.clear();
    }
    Ok(())
}

fn broken(who: &str, mapping: &Mapping) -> RestoreError {
    let (start, end) = (mapping.start, mapping.end);
    RestoreError::refused(format!("the image is damaged: {who}: mapping {start:x}-{end:x}"))
}

pub(super) fn has(mapping: &Mapping, flag: &str) -> bool {
    maps::has_flag(&mapping.flags, flag)
}

/// Descriptors of files, by file and whether they can be written to.
type Files = HashMap<(Wanted, bool), u64>;

/// A mapped file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wanted {
    Path(Vec<u8>),
    Open(u32),
}

fn number(
    files: &Files,
    file: &MappedFile,
    writable: bool,
    who: &str,
) -> Result<u64, RestoreError> {
    let wanted = match file {
        MappedFile::Path { path, .. } => Wanted::Path(path.to_vec()),
        MappedFile::Open(index) => Wanted::Open(*index),
    };
    let found = files.get(&(wanted, writable)).copied();
    found.ok_or_else(|| RestoreError::refused(format!("the image is damaged: {who}")))
}

/// A file that is to be opened by its path.
#[derive(Debug)]
struct ByPath<'s> {
    path: &'s [u8],
    writable: bool,
    identity: &'s Identity,
}

/// Each file that has a path and is still to be mapped, once.
fn wanted_of<'s>(space: &'s Space, stays: &Stays) -> Vec<ByPath<'s>> {
    let mut wanted: Vec<ByPath<'_>> = Vec::new();
    for mapping in space.mappings.iter().filter(|it| !stays.has(it)) {
        let (file, writable) = match &mapping.kind {
            MappingKind::FilePrivate { file, .. } => (file, false),
            MappingKind::FileShared { file, writable, .. } => (file, *writable),
            _ => continue,
        };
        if let MappedFile::Path { path, identity } = file
            && !wanted.iter().any(|it| it.path == path.as_slice() && it.writable == writable)
        {
            wanted.push(ByPath { path, writable, identity });
        }
    }
    wanted
}

/// So many files are opened at once.
const AT_ONCE: usize = 64;

/// struct stat of x86-64.
const STAT: usize = 144;

/// Files that a process opens.
#[derive(Debug)]
pub struct Opening<'s> {
    wanted: Vec<ByPath<'s>>,
    /// The first of them.
    asked: Vec<(Place, Data)>,
}

/// Opens files and looks at them.
fn ask(table: &mut Table, wanted: &[ByPath<'_>]) -> Vec<(Place, Data)> {
    let one = |it: &ByPath<'_>| {
        let path = table.string(it.path);
        let stat = table.room(STAT);
        let flags = if it.writable { libc::O_RDWR } else { libc::O_RDONLY };
        let flags = (flags | libc::O_CLOEXEC) as u64;
        let open = table.attempt(libc::SYS_openat, [libc::AT_FDCWD as u64, path.address, flags, 0]);
        let look = table.attempt(libc::SYS_fstat, [0, stat.address]);
        table.forward(open, look, 0);
        (open, stat)
    };
    wanted.iter().map(one).collect()
}

/// Opens every mapped file once, in the process itself.
fn open_files(
    hand: &mut Hand,
    (space, opening): (&Space, &Opening<'_>),
    sources: &Sources<'_>,
    who: &str,
) -> Result<Files, RestoreError> {
    let mut files = Files::new();
    let Opening { wanted, asked } = opening;
    let (first, others) = wanted.split_at(asked.len().min(wanted.len()));
    if hand.is_posted() {
        let done = hand.collect().map_err(RestoreError::of(who))?;
        check_opened(&mut files, (first, asked), &done, sources, who)?;
    }
    for some in others.chunks(AT_ONCE) {
        let mut table = hand.table();
        let asked = ask(&mut table, some);
        let done = hand.run(&table).map_err(RestoreError::of(who))?;
        check_opened(&mut files, (some, &asked), &done, sources, who)?;
    }
    for mapping in &space.mappings {
        let (file, writable) = match &mapping.kind {
            MappingKind::FilePrivate { file, .. } => (file, false),
            MappingKind::FileShared { file, writable, .. } => (file, *writable),
            _ => continue,
        };
        if let MappedFile::Open(index) = file
            && !files.contains_key(&(Wanted::Open(*index), writable))
        {
            let fd = open_again(hand, *index, writable, sources, who)?;
            files.insert((Wanted::Open(*index), writable), fd);
        }
    }
    Ok(files)
}

/// What has become of files that were to be opened; they have to be those of the save.
fn check_opened(
    files: &mut Files,
    (some, asked): (&[ByPath<'_>], &[(Place, Data)]),
    done: &Done,
    sources: &Sources<'_>,
    who: &str,
) -> Result<(), RestoreError> {
    for (ByPath { path, writable, identity }, (open, stat)) in some.iter().zip(asked) {
        let show = String::from_utf8_lossy(path);
        let fd = done.result(*open).map_err(|errno: Errno| {
            RestoreError::failed(
                format!("{who} has mapped {show}, which cannot be opened"),
                errno.desc(),
            )
        })?;
        // st_size and st_mtim.
        let size = done.word(*stat, 6);
        let modified = done.word(*stat, 11) as i64 * 1_000_000_000 + done.word(*stat, 12) as i64;
        let same = size == identity.size && modified == identity.modified;
        let name = Path::new(OsStr::from_bytes(path));
        let is_carried = sources.trees.iter().any(|tree| name.starts_with(tree));
        if !same && !is_carried && sources.policy == FilesPolicy::Strict {
            return Err(RestoreError::refused(format!(
                "{show}, which {who} has mapped, has changed since the save; put it back, or restore with \
                 --files changed-ok"
            )));
        }
        files.insert((Wanted::Path(path.to_vec()), *writable), fd);
    }
    Ok(())
}

/// A file without a name, by way of a description that has been made of it: with rights of its own.
fn open_again(
    hand: &mut Hand,
    index: u32,
    writable: bool,
    sources: &Sources<'_>,
    who: &str,
) -> Result<u64, RestoreError> {
    let fd = sources.files.get(index as usize).and_then(Option::as_ref);
    let given = give(hand, fd, sources.courier, who)?
        .ok_or_else(|| RestoreError::refused(format!("the image is damaged: {who}")))?;
    let flags = if writable { libc::O_RDWR } else { libc::O_RDONLY } | libc::O_CLOEXEC;
    let path = format!("/proc/self/fd/{given}");
    hand.call_path(libc::SYS_openat, path.as_bytes(), |at| {
        [libc::AT_FDCWD as u64, at, flags as u64, 0]
    })
    .map_err(RestoreError::of(format!("{who} has mapped a file that was removed")))
}

/// The id of shared memory of System V.
fn system_v(sources: &Sources<'_>, index: u32) -> Option<i32> {
    match sources.memory.get(index as usize)?.kind {
        SharedKind::SystemV { id } => Some(id),
        _ => None,
    }
}

/// Gives the process descriptors of the shared memory that it maps.
fn give_shared(
    hand: &mut Hand,
    space: &Space,
    sources: &Sources<'_>,
    who: &str,
) -> Result<HashMap<u32, u64>, RestoreError> {
    use std::os::fd::AsFd;
    let mut wanted: Vec<u32> = space
        .mappings
        .iter()
        .filter_map(|mapping| match mapping.kind {
            MappingKind::Shared { index, .. } if system_v(sources, index).is_none() => Some(index),
            _ => None,
        })
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let fds: Vec<_> = wanted
        .iter()
        .map(|index| sources.shared.get(*index as usize)?.as_ref().map(AsFd::as_fd))
        .collect::<Option<_>>()
        .ok_or_else(|| RestoreError::refused(format!("the image is damaged: {who}")))?;
    let numbers = sources.courier.send(hand, &fds).map_err(RestoreError::of(who))?;
    Ok(wanted.into_iter().zip(numbers.into_iter().map(|it| it as u64)).collect())
}

/// Where private pages lie over a file: (start, end).
pub fn files_below(space: &Space) -> Vec<(u64, u64)> {
    let is_file = |kind: &MappingKind| {
        matches!(
            kind,
            MappingKind::FilePrivate { .. }
                | MappingKind::Shared { private: true, .. }
                | MappingKind::Vdso
        )
    };
    let below = space.mappings.iter().filter(|mapping| is_file(&mapping.kind));
    below.map(|mapping| (mapping.start, mapping.end)).collect()
}

/// madvise(2) for each flag of VmFlags that one sets.
pub const ADVICE: [(&str, libc::c_int); 8] = [
    ("dc", libc::MADV_DONTFORK),
    ("dd", libc::MADV_DONTDUMP),
    ("hg", libc::MADV_HUGEPAGE),
    ("nh", libc::MADV_NOHUGEPAGE),
    ("mg", libc::MADV_MERGEABLE),
    ("wf", libc::MADV_WIPEONFORK),
    ("sr", libc::MADV_SEQUENTIAL),
    ("rr", libc::MADV_RANDOM),
];

/// Content is in place: gives each mapping its rights and flags, and the space its fields.
pub fn protect(hand: &mut Hand, space: &Space, who: &str) -> Result<(), RestoreError> {
    let mut table = hand.table();
    for mapping in &space.mappings {
        if !table.has_room(16, 128) {
            flush(hand, &mut table, who)?;
        }
        let range = [mapping.start, mapping.end - mapping.start];
        match mapping.kind {
            MappingKind::Vdso | MappingKind::Vvar(_) => continue,
            MappingKind::FileShared { .. } => {}
            _ if mapping.protection & libc::PROT_WRITE as u32 != 0 => {}
            _ => {
                let protection = u64::from(mapping.protection);
                table.call(libc::SYS_mprotect, [range[0], range[1], protection]);
            }
        }
        for (_, advice) in ADVICE.iter().filter(|(flag, _)| has(mapping, flag)) {
            // Memory that is not mergeable here, say: what it is for is speed.
            table.attempt(libc::SYS_madvise, [range[0], range[1], *advice as u64]);
        }
        if has(mapping, "lo") {
            let on_fault = if has(mapping, "lf") { MLOCK_ONFAULT } else { 0 };
            table.call(libc::SYS_mlock2, [range[0], range[1], on_fault]);
        }
        if let Some(name) = &mapping.name {
            let name = table.string(name).address;
            // A kernel may do without (CONFIG_ANON_VMA_NAME).
            table.attempt(
                libc::SYS_prctl,
                [PR_SET_VMA, PR_SET_VMA_ANON_NAME, range[0], range[1], name],
            );
        }
        for (start, end) in &mapping.guards {
            if !table.has_room(12, 128) {
                flush(hand, &mut table, who)?;
            }
            table.call(libc::SYS_madvise, [*start, end - start, MADV_GUARD_INSTALL]);
        }
    }
    post(hand, table, who)
}

/// What keeps a space as it is, and comes when all of it is there.
pub fn seal(
    hand: &mut Hand,
    space: &Space,
    shared: (&Courier, &[Option<OwnedFd>]),
    who: &str,
) -> Result<(), RestoreError> {
    let mut table = layout(hand, space, shared, who)?;
    let is_kernels = |it: &&Mapping| matches!(it.kind, MappingKind::Vdso | MappingKind::Vvar(_));
    for mapping in space.mappings.iter().filter(|it| has(it, "sl") && !is_kernels(it)) {
        if !table.has_room(1, 0) {
            flush(hand, &mut table, who)?;
        }
        table.call(SYS_MSEAL, [mapping.start, mapping.end - mapping.start, 0]);
    }
    if space.lock_new != 0 {
        table.call(libc::SYS_mlockall, [u64::from(space.lock_new)]);
    }
    post(hand, table, who)
}

/// A flag of mlock2(2).
pub const MLOCK_ONFAULT: u64 = 1;
/// include/uapi/asm-generic/mman-common.h, since Linux 6.13
const MADV_GUARD_INSTALL: u64 = 102;
/// Since Linux 6.10.
const SYS_MSEAL: libc::c_long = 462;
// include/uapi/linux/prctl.h
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;

/// PR_SET_MM_MAP (prctl(2)): calls that are still to be made.
fn layout(
    hand: &mut Hand,
    space: &Space,
    (courier, shared): (&Courier, &[Option<OwnedFd>]),
    who: &str,
) -> Result<Table, RestoreError> {
    let given = match space.exe_memory {
        Some(index) => {
            let fd = shared.get(index as usize).and_then(Option::as_ref);
            give(hand, fd, courier, who)?
        }
        None => None,
    };
    let mut table = hand.table();
    let named = given.map(|fd| format!("/proc/self/fd/{fd}").into_bytes());
    let path = table.string(named.as_deref().unwrap_or(&space.exe));
    let auxv = table.data(&space.layout.auxv);
    let mut map: Vec<u8> = space.layout.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    map.extend(auxv.address.to_ne_bytes());
    map.extend((space.layout.auxv.len() as u32).to_ne_bytes());
    // The descriptor of the program's file (exe_fd), and room for the other half of a word.
    map.extend([0; 8]);
    let map = table.data(&map);
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let open = table.call(libc::SYS_openat, [libc::AT_FDCWD as u64, path.address, flags, 0]);
    table.forward_into(open, map, 100);
    const LENGTH: u64 = 104;
    table.call(
        libc::SYS_prctl,
        [libc::PR_SET_MM as u64, libc::PR_SET_MM_MAP as u64, map.address, LENGTH, 0],
    );
    let first = super::FIRST_FREE as u64;
    table.call(libc::SYS_close_range, [first, u64::from(u32::MAX), 0]);
    Ok(table)
}

/// Gives the process a descriptor; its number there.
fn give(
    hand: &mut Hand,
    fd: Option<&OwnedFd>,
    courier: &Courier,
    who: &str,
) -> Result<Option<u64>, RestoreError> {
    use std::os::fd::AsFd;
    let Some(fd) = fd else { return Ok(None) };
    let numbers = courier.send(hand, &[fd.as_fd()]).map_err(RestoreError::of(who))?;
    Ok(numbers.first().map(|it| *it as u64))
}
