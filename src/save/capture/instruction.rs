//! Where a guest has a `syscall` instruction of its own.

use std::sync::OnceLock;

use super::maps;
use crate::save::error::SaveError;
use crate::save::hand::find_instruction;
use crate::sys::generated;

/// Where in the vDSO a `syscall` instruction is: it is the kernel's, and the same in every process.
static IN_VDSO: OnceLock<u64> = OnceLock::new();

/// Where that is in the process, once it is known of any.
pub(in crate::save) fn instruction_in_vdso(pid: i32) -> Option<u64> {
    let (offset, vdso) = IN_VDSO.get().zip(vdso_of(pid))?;
    let at = vdso.checked_add(*offset)?;
    find_instruction(pid, &[(at, at.checked_add(2)?, true)])
}

/// Remembers where one was found, if that was in the vDSO. Ranges: (start, end, whether it is that).
pub(in crate::save) fn note_vdso(found: Option<u64>, executable: &[(u64, u64, bool)]) {
    let Some(found) = found else { return };
    if let Some((start, ..)) = executable.iter().find(|it| it.2 && (it.0..it.1).contains(&found)) {
        let _ = IN_VDSO.set(found - start);
    }
}

/// Where a `syscall` instruction of the process is.
pub(in crate::save) fn instruction_of(pid: i32, who: &str) -> Result<u64, SaveError> {
    if let Some(known) = instruction_in_vdso(pid) {
        return Ok(known);
    }
    let executable: Vec<(u64, u64, bool)> = maps::list(pid)
        .map_err(|error| SaveError::failed(format!("{who}: its mappings"), error.desc()))?
        .iter()
        .filter(|line| line.protection & libc::PROT_EXEC as u32 != 0)
        .map(|line| (line.start, line.end, line.name == b"[vdso]"))
        .collect();
    let found = find_instruction(pid, &executable).ok_or_else(|| {
        SaveError::refused(format!("{who} has no code that could make a system call for the save"))
    })?;
    note_vdso(Some(found), &executable);
    Ok(found)
}

/// Where the kernel has put the vDSO of a process (getauxval(3)).
fn vdso_of(pid: i32) -> Option<u64> {
    let auxv = generated::contents(format!("/proc/{pid}/auxv")).ok()?;
    let (entries, _) = auxv.as_chunks::<16>();
    let words = entries.iter().map(|entry| {
        let (key, value) = entry.split_at(8);
        [key, value].map(|it| u64::from_ne_bytes(it.try_into().unwrap_or_default()))
    });
    words.into_iter().find(|[key, _]| *key == libc::AT_SYSINFO_EHDR).map(|[_, value]| value)
}
