//! The names of what inotify descriptions watch.
//!
//! The kernel tells the inode of a watch and not its name, and an ordinary user cannot open an inode.
//! So names are looked for: in the directories that guests have open or work in, and then from the root
//! of the file view down, on the file systems in question, until all are found or too much was seen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};

use nix::dir::{Dir, Type};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstat;
use serde_bytes::ByteBuf;

use super::paths::resolve;
use crate::save::capture::collector::Collector;
use crate::save::capture::known::Inode;
use crate::save::error::SaveError;
use crate::save::state::FileKind;
use crate::sys::generated;

/// Entries of directories that are looked at before a name counts as not found: a few seconds.
const MOST: usize = 1_000_000;

pub(super) fn finish(collector: &mut Collector) -> Result<(), SaveError> {
    let waiting = std::mem::take(&mut collector.known.watchers);
    let mut wanted: HashSet<Inode> = HashSet::new();
    wanted.extend(waiting.iter().flat_map(|it| &it.items).map(|it| it.inode));
    let Some(root) = waiting.first().map(|it| it.root.as_fd()).filter(|_| !wanted.is_empty())
    else {
        return Ok(());
    };
    let mut search =
        Search { root, wanted, found: HashMap::new(), devices: HashMap::new(), left: MOST };
    let mut starts = std::mem::take(&mut collector.known.directories);
    // (Of mounts only those are told that lie below a root directory of its own.)
    let places = waiting.iter().flat_map(|it| ["cwd", "root"].map(|link| (it.place.0, link)));
    starts.extend(places.filter_map(|(tid, link)| {
        let place = std::fs::read_link(format!("/proc/{tid}/{link}")).ok()?;
        let is_whole = place == std::path::Path::new("/");
        (!is_whole).then(|| std::os::unix::ffi::OsStringExt::into_vec(place.into_os_string()))
    }));
    // What lies near those places, then what lies at the usual ones, then all.
    starts.extend(["/tmp", "/home", "/root", "/var", "/etc"].map(|it| it.as_bytes().to_vec()));
    let mounts = waiting.first().map_or(0, |it| it.place.0);
    starts.extend(search.mounts(mounts));
    search.run(&starts);
    for watcher in &waiting {
        let mut watches = Vec::with_capacity(watcher.items.len());
        for item in &watcher.items {
            let Some(path) = search.found.get(&item.inode) else {
                let (device, inode) = item.inode;
                return Err(SaveError::refused(format!(
                    "{} watches a file (inode {inode} of device {}:{}) with its inotify descriptor {} \
                     whose name was not found, which cannot be saved; end the watch first",
                    watcher.holder,
                    libc::major(device),
                    libc::minor(device),
                    watcher.place.1,
                )));
            };
            watches.push((item.number, ByteBuf::from(path.clone()), item.mask));
        }
        collector.files[watcher.file as usize].kind = FileKind::Inotify(watches, ByteBuf::new());
    }
    Ok(())
}

/// A search for inodes by walking directories, breadth first.
struct Search<'r> {
    root: BorrowedFd<'r>,
    wanted: HashSet<Inode>,
    found: HashMap<Inode, Vec<u8>>,
    /// Devices of what is looked for, by those that stat(2) shows for them: the kernel tells of a watch
    /// the device of its file system, and some file systems show others (Btrfs).
    devices: HashMap<u64, u64>,
    left: usize,
}

impl Search<'_> {
    /// Where the file systems in question are mounted in the file view of a thread, the root last
    /// (proc_pid_mountinfo(5)).
    fn mounts(&mut self, tid: i32) -> Vec<Vec<u8>> {
        let devices: HashSet<u64> = self.wanted.iter().map(|it| it.0).collect();
        self.devices = devices.iter().map(|it| (*it, *it)).collect();
        let text = std::fs::read(format!("/proc/{tid}/mountinfo")).unwrap_or_default();
        let mut targets = Vec::new();
        for line in text.split(|it| *it == b'\n') {
            let words: Vec<&[u8]> = line.split(|it| *it == b' ').collect();
            let device = words.get(2).and_then(|it| std::str::from_utf8(it).ok()?.split_once(':'));
            let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
                continue;
            };
            let device = libc::makedev(major, minor);
            if let (true, Some(target)) = (devices.contains(&device), words.get(4)) {
                let target = generated::unescape(target);
                if let Ok(Ok(stat)) = resolve(self.root, &target).map(fstat) {
                    self.devices.entry(stat.st_dev).or_insert(device);
                }
                targets.push(target);
            }
        }
        targets.sort_by_key(|it| std::cmp::Reverse(it.len()));
        targets
    }

    /// The inode as the kernel tells of it, if it is on one of the file systems in question.
    fn inode(&self, stat: &nix::sys::stat::FileStat) -> Option<Inode> {
        Some((*self.devices.get(&stat.st_dev)?, stat.st_ino))
    }

    fn run(&mut self, starts: &[Vec<u8>]) {
        let numbers: HashSet<u64> = self.wanted.iter().map(|it| it.1).collect();
        let mut seen = HashSet::new();
        for start in starts {
            let mut queue = VecDeque::from([start.clone()]);
            self.consider(start);
            while let Some(directory) = queue.pop_front() {
                if self.wanted.is_empty() || self.left == 0 {
                    return;
                }
                self.directory(&directory, &numbers, &mut seen, &mut queue);
            }
        }
    }

    /// Looks at a name itself.
    fn consider(&mut self, path: &[u8]) {
        let Ok(Ok(stat)) = resolve(self.root, path).map(fstat) else { return };
        let Some(inode) = self.inode(&stat) else { return };
        if self.wanted.remove(&inode) {
            self.found.insert(inode, path.to_vec());
        }
    }

    fn directory(
        &mut self,
        path: &[u8],
        numbers: &HashSet<u64>,
        seen: &mut HashSet<Inode>,
        queue: &mut VecDeque<Vec<u8>>,
    ) {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let Ok(directory) = openat2(self.root, path, how) else { return };
        let Ok(stat) = fstat(&directory) else { return };
        // What is mounted below is gone through from where it is mounted.
        let Some(inode) = self.inode(&stat) else { return };
        if !seen.insert(inode) {
            return;
        }
        if self.wanted.remove(&inode) {
            self.found.insert(inode, path.to_vec());
        }
        let Ok(mut directory) = Dir::from_fd(directory) else { return };
        for entry in directory.iter().flatten() {
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            self.left = self.left.saturating_sub(1);
            if self.left == 0 || self.wanted.is_empty() {
                return;
            }
            let child = || {
                let slash: &[u8] = if path.ends_with(b"/") { b"" } else { b"/" };
                [path, slash, name].concat()
            };
            match entry.file_type() {
                Some(Type::Directory) => queue.push_back(child()),
                // A mounted file has the number of what it hides: those are found by no number.
                _ if numbers.contains(&entry.ino()) => self.consider(&child()),
                _ => {}
            }
        }
    }
}
