//! Waiting for descriptors in the async runtime.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches for `fd` to become readable, through a descriptor of its own. Needs a tokio context.
pub fn watch_readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd.try_clone_to_owned()?, Interest::READABLE)
}

/// Watches `file` for what poll(2) calls POLLPRI: a file of a control group has changed. Needs a tokio
/// context.
pub fn watch_changes(file: File) -> io::Result<AsyncFd<OwnedFd>> {
    watch(file.into(), Interest::PRIORITY)
}

/// Watches a socket of the caller's own for both directions. Needs a tokio context.
pub fn watch_socket(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd, Interest::READABLE | Interest::WRITABLE)
}

/// Watches the end of a pipe that the caller writes to, which is ready too when nobody reads any more. Needs a
/// tokio context.
pub fn watch_writable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd, Interest::WRITABLE)
}

fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and the same until it is dropped, and AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[tokio::test]
    async fn a_file_of_a_control_group_tells_of_each_change() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
        let mounted = mount.and_then(|line| line.split(' ').nth(1)).unwrap_or("/nowhere");
        let group = std::path::Path::new(mounted).join(format!("watch-{}", std::process::id()));
        if std::fs::create_dir(&group).is_err() {
            println!("skipped: no writable control group of version 2");
            return;
        }
        let mut text = String::new();
        let mut file = File::open(group.join("cgroup.events")).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(text.contains("populated 0"), "{text}");
        let changes = watch_changes(file.try_clone().unwrap()).unwrap();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        for populated in [true, false] {
            match populated {
                true => std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap(),
                false => drop(child.stdin.take()),
            }
            changes.ready(Interest::PRIORITY).await.unwrap().clear_ready();
            let mut room = [0; 64];
            let count = file.read_at(&mut room, 0).unwrap();
            let text = String::from_utf8_lossy(&room[..count]);
            assert!(text.contains(&format!("populated {}", u8::from(populated))), "{text}");
        }
        child.wait().unwrap();
        std::fs::remove_dir(group).unwrap();
    }
}
