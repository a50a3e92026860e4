//! Where a guest has a `syscall` instruction of its own.

use std::ops::Range;
use std::sync::OnceLock;

use nix::errno::Errno;

use super::maps;
use crate::save::error::SaveError;
use crate::save::hand::find_instruction;
use crate::sys::generated;
use crate::sys::vdso::own_image;

/// Where in the vDSO a `syscall` instruction is: it is the kernel's, and the same in every process.
static IN_VDSO: OnceLock<u64> = OnceLock::new();

/// Where a `syscall` instruction of the process is, for a save of it.
pub(in crate::save) fn instruction_of(pid: i32, who: &str) -> Result<u64, SaveError> {
    let auxv = generated::contents(format!("/proc/{pid}/auxv")).unwrap_or_default();
    let found = find(pid, &auxv, 0..0)
        .map_err(|errno| SaveError::failed(format!("{who}: its mappings"), errno.desc()))?;
    found.ok_or_else(|| {
        SaveError::refused(format!("{who} has no code that could make a system call for the save"))
    })
}

/// Where one is that is not in these mappings. `auxv`: what the process was told of itself at its start.
pub(in crate::save) fn find(
    pid: i32,
    auxv: &[u8],
    without: Range<u64>,
) -> Result<Option<u64>, Errno> {
    if let Some(known) = find_in_vdso(pid, auxv).filter(|it| !without.contains(it)) {
        return Ok(Some(known));
    }
    let executable: Vec<(u64, u64, bool)> = maps::list(pid)?
        .iter()
        .filter(|line| line.protection & libc::PROT_EXEC as u32 != 0)
        .filter(|line| !without.contains(&line.start))
        .map(|line| (line.start, line.end, line.name == b"[vdso]"))
        .collect();
    let found = find_instruction(pid, &executable);
    let is_in = |it: &&(u64, u64, bool)| found.is_some_and(|at| (it.0..it.1).contains(&at));
    if let Some((at, (start, ..))) = found.zip(executable.iter().filter(|it| it.2).find(is_in)) {
        let _ = IN_VDSO.set(at - start);
    }
    Ok(found)
}

/// Where the vDSO of a process is.
pub(super) fn vdso_of(pid: i32) -> Option<Range<u64>> {
    static LENGTH: OnceLock<Option<u64>> = OnceLock::new();
    // (It is the kernel's, and as long in every process.)
    let length = LENGTH.get_or_init(|| own_image().map(|image| image.len() as u64));
    let begin = vdso(&generated::contents(format!("/proc/{pid}/auxv")).ok()?)?;
    Some(begin..begin.checked_add((*length)?)?)
}

/// Where it is in the vDSO, once that is known of any process.
fn find_in_vdso(pid: i32, auxv: &[u8]) -> Option<u64> {
    let (offset, vdso) = IN_VDSO.get().zip(vdso(auxv))?;
    let at = vdso.checked_add(*offset)?;
    find_instruction(pid, &[(at, at.checked_add(2)?, true)])
}

/// Where the kernel has put the vDSO (getauxval(3)).
fn vdso(auxv: &[u8]) -> Option<u64> {
    let (entries, _) = auxv.as_chunks::<16>();
    let words = entries.iter().map(|entry| {
        let (key, value) = entry.split_at(8);
        [key, value].map(|it| u64::from_ne_bytes(it.try_into().unwrap_or_default()))
    });
    words.into_iter().find(|[key, _]| *key == libc::AT_SYSINFO_EHDR).map(|[_, value]| value)
}
