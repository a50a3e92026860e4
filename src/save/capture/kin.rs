//! What processes share beside memory that is mapped shared: an address space, a descriptor table, a
//! working directory, signal handlers (CLONE_VM, CLONE_FILES, CLONE_FS, CLONE_SIGHAND of clone(2) without
//! CLONE_THREAD, and vfork(2)). A restore would give each of them its own, which is not the same: such
//! processes are refused by name, before anything is changed.

use std::cmp::Ordering;

use crate::save::error::SaveError;
use crate::sentry::ProcessInfo;
use crate::sys::descriptors::{self, Common};

const ALL: [(Common, &str, &str); 4] = [
    (Common::Memory, "its memory", "CLONE_VM of clone(2), or vfork(2)"),
    (Common::Descriptors, "its descriptor table", "CLONE_FILES of clone(2)"),
    (Common::Directory, "its working directory and umask", "CLONE_FS of clone(2)"),
    (Common::Handlers, "its signal handlers", "CLONE_SIGHAND of clone(2)"),
];

/// Refuses processes that share what cannot be shared again.
pub fn refuse(guests: &[ProcessInfo]) -> Result<(), SaveError> {
    let living: Vec<&ProcessInfo> = guests.iter().filter(|guest| guest.state != 'Z').collect();
    for (common, what, by) in ALL {
        // In the kernel's order, so that equal ones meet (kcmp(2)).
        let mut sorted: Vec<&ProcessInfo> = Vec::with_capacity(living.len());
        for guest in &living {
            let (mut low, mut high) = (0, sorted.len());
            while low < high {
                let middle = low + (high - low) / 2;
                let order = descriptors::compare_common(sorted[middle].pid, guest.pid, common);
                match order.map_err(|errno| cannot(guest, what, errno))? {
                    Ordering::Equal => return Err(shared(sorted[middle], guest, what, by)),
                    Ordering::Less => low = middle + 1,
                    Ordering::Greater => high = middle,
                }
            }
            sorted.insert(low, guest);
        }
    }
    Ok(())
}

fn name(guest: &ProcessInfo) -> String {
    let comm: String = guest.comm.chars().filter(|it| !it.is_control()).collect();
    format!("process {} ({comm})", guest.guest_pid)
}

fn cannot(guest: &ProcessInfo, what: &str, errno: nix::errno::Errno) -> SaveError {
    let who = name(guest);
    SaveError::failed(format!("cannot tell with whom {who} shares {what}"), errno.desc())
}

fn shared(one: &ProcessInfo, other: &ProcessInfo, what: &str, by: &str) -> SaveError {
    let (one, other) = (name(one), name(other));
    SaveError::refused(format!(
        "{one} shares {what} with {other} ({by}), which cannot be saved; try again when one of them has \
         ended or executed another program"
    ))
}
