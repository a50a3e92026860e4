//! What processes and threads share beside memory that is mapped shared ([`crate::save::sharing`]), found by kcmp(2).
//!
//! Everything is asked of processes by their first threads, and of other threads only where they are not like that
//! one.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use nix::errno::Errno;
use serde_bytes::ByteBuf;

use super::adjustments::one_without;
use super::status::Status;
use super::{guest_number, threads_of};
use crate::save::error::SaveError;
use crate::save::sharing::{Place, Resource, Sharing};
use crate::sentry::ProcessInfo;
use crate::sys::descriptors::{self, Common};

/// What is shared, by numbers of the host.
#[derive(Debug, Default)]
pub struct Kin {
    classes: HashMap<(Resource, i32), usize>,
    members: Vec<(Resource, Vec<i32>)>,
    /// Threads that are not like the first of their process.
    apart: HashMap<i32, Vec<Resource>>,
    /// Spaces and tables of classes, once they are captured.
    captured: HashMap<usize, u32>,
}

fn common(what: Resource) -> Common {
    match what {
        Resource::Memory => Common::Memory,
        Resource::Handlers => Common::Handlers,
        Resource::Descriptors => Common::Descriptors,
        Resource::Directory => Common::Directory,
        Resource::Adjustments => Common::Adjustments,
    }
}

impl Kin {
    /// Compares all tasks of these processes.
    pub fn find(guests: &[ProcessInfo]) -> Result<Kin, SaveError> {
        let living = guests.iter().filter(|guest| guest.state != 'Z');
        let mut processes: Vec<(&ProcessInfo, Vec<i32>)> = Vec::new();
        for guest in living {
            let cannot = |errno: Errno| SaveError::failed(guest.words(), errno.desc());
            processes.push((guest, threads_of(guest.pid).map_err(cannot)?));
        }
        let mut kin = Kin::default();
        for (guest, tids) in &processes {
            let Some((first, others)) = tids.split_first() else { continue };
            for what in Resource::LOOSE {
                for tid in others {
                    if compare(*first, *tid, what, guest)? != Ordering::Equal {
                        kin.apart.entry(*tid).or_default().push(what);
                    }
                }
            }
        }
        for what in Resource::ALL {
            kin.classify(what, &processes)?;
        }
        Ok(kin)
    }

    fn classify(
        &mut self,
        what: Resource,
        processes: &[(&ProcessInfo, Vec<i32>)],
    ) -> Result<(), SaveError> {
        // In the kernel's order, so that equal ones meet.
        let mut sorted: Vec<Vec<i32>> = Vec::with_capacity(processes.len());
        for (guest, tids) in processes {
            let is_task = |(at, tid): &(usize, &i32)| *at == 0 || self.is_apart(**tid, what);
            for (_, tid) in tids.iter().enumerate().filter(is_task) {
                match descriptors::search(&sorted, |class| compare(class[0], *tid, what, guest))? {
                    Ok(class) => sorted[class].push(*tid),
                    Err(at) => sorted.insert(at, vec![*tid]),
                }
            }
        }
        sorted.retain(|class| class.len() > 1);
        if what == Resource::Adjustments && !sorted.is_empty() {
            // Who has none at all has the same none.
            let none = one_without().map_err(cannot_tell)?;
            let order =
                |class: &Vec<i32>| descriptors::compare_common(class[0], none, Common::Adjustments);
            if let Ok(class) = descriptors::search(&sorted, order).map_err(cannot_tell)? {
                sorted.remove(class);
            }
        }
        for class in sorted {
            let number = self.members.len();
            self.classes.extend(class.iter().map(|tid| ((what, *tid), number)));
            self.members.push((what, class));
        }
        Ok(())
    }

    /// Whether a thread does not share this with the first of its process.
    pub fn is_apart(&self, tid: i32, what: Resource) -> bool {
        self.apart.get(&tid).is_some_and(|it| it.contains(&what))
    }

    /// Those of a process's threads that are apart in something.
    pub fn apart_of(&self, tids: &[i32]) -> Vec<i32> {
        tids.iter().skip(1).copied().filter(|tid| self.apart.contains_key(tid)).collect()
    }

    /// The class of a task.
    pub fn class(&self, what: Resource, tid: i32) -> Option<usize> {
        self.classes.get(&(what, tid)).copied()
    }

    /// The space or table that a task has, if one that shares it has been captured.
    pub fn captured(&self, what: Resource, tid: i32) -> Option<u32> {
        self.captured.get(&self.class(what, tid)?).copied()
    }

    /// A task's space or table is this.
    pub fn captured_as(&mut self, what: Resource, tid: i32, index: u32) {
        if let Some(class) = self.class(what, tid) {
            self.captured.insert(class, index);
        }
    }

    /// As an image knows it.
    pub fn sharing(&self) -> Result<Vec<Sharing>, SaveError> {
        let mut numbers: HashMap<i32, i32> = HashMap::new();
        let tids: HashSet<i32> = self.members.iter().flat_map(|it| &it.1).copied().collect();
        for tid in tids {
            let number = guest_number(tid).ok_or_else(|| cannot_tell(Errno::ESRCH))?;
            numbers.insert(tid, number);
        }
        let all = self.members.iter().map(|(what, tids)| {
            let mut tasks: Vec<i32> =
                tids.iter().filter_map(|it| numbers.get(it)).copied().collect();
            tasks.sort_unstable();
            Sharing { what: *what, tasks }
        });
        Ok(all.collect())
    }
}

fn cannot_tell(errno: Errno) -> SaveError {
    SaveError::failed("what processes share cannot be told", errno.desc())
}

fn compare(
    one: i32,
    other: i32,
    what: Resource,
    guest: &ProcessInfo,
) -> Result<Ordering, SaveError> {
    descriptors::compare_common(one, other, common(what)).map_err(|errno| {
        let (who, what) = (guest.words(), what.words());
        SaveError::failed(format!("cannot tell with whom {who} shares {what}"), errno.desc())
    })
}

/// Where a task works (proc_pid_cwd(5)). `status`: what is known of it.
pub fn place(tid: i32, status: &Status, who: &str) -> Result<Place, SaveError> {
    use std::os::unix::ffi::OsStringExt;
    let failed = |error: std::io::Error| {
        SaveError::failed(format!("{who}: the working directory of thread {tid}"), error)
    };
    let directory = std::fs::read_link(format!("/proc/{tid}/cwd")).map_err(failed)?;
    let umask = status.umask;
    let umask = umask.ok_or_else(|| failed(std::io::Error::from_raw_os_error(libc::ENODATA)))?;
    let directory = ByteBuf::from(directory.into_os_string().into_vec());
    Ok(Place { directory, root: None, umask })
}
