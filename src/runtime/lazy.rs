//! What goes on beside guests whose memory is mapped from their image: the image is kept as it is, and
//! compared with its checksums.

use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::save::restore::lazy::Lazy;
use crate::save::settle;
use crate::sentry::{self, Kernel, Unsettled};
use crate::sys::{generated, lease};

/// What tells of somebody who wants to write to the image. By itself it does nothing (signal(7)), and only
/// the thread that waits for it gets it.
const SOMEBODY_WRITES: Signal = Signal::SIGURG;

/// Keeps the image from being changed under the guests' memory, from before they map it. Whoever wants to
/// write to it waits until all of that is theirs. What is given is to be told when they have mapped it. Else
/// the reason why it cannot be kept.
pub(super) fn keep(kernel: &Arc<Kernel>, lazy: &Arc<Lazy>) -> Result<mpsc::Sender<()>, String> {
    let system = fstatvfs(lazy.file().as_fd());
    if system.is_ok_and(|it| it.flags().contains(FsFlags::ST_NOEXEC)) {
        return Err("the image lies on a file system that is mounted noexec".to_owned());
    }
    let image = lazy.image();
    let memory = Arc::new(sentry::Lazy::new(image, move |kernel, what| {
        settle::settle(kernel, image, what).map_err(|error| error.to_string())
    }));
    let (of_kernel, to_settle, lazy) = (Arc::clone(kernel), Arc::clone(&memory), Arc::clone(lazy));
    let (tell, told) = mpsc::channel();
    let (mapped, all_mapped) = mpsc::channel();
    let started = thread::Builder::new().name("lease".to_owned()).spawn(move || {
        let mut wanted = SigSet::empty();
        wanted.add(SOMEBODY_WRITES);
        let taken = wanted
            .thread_block()
            .and_then(|()| lease::take_read(lazy.file(), SOMEBODY_WRITES as libc::c_int));
        let is_whole = *taken.as_ref().unwrap_or(&false);
        if tell.send(taken).is_ok() && is_whole {
            watch(&of_kernel, &to_settle, &lazy, (&wanted, &all_mapped));
        }
    });
    started.map_err(|error| format!("there is no thread to watch the image: {error}"))?;
    match told.recv() {
        Ok(Ok(true)) => {
            kernel.set_lazy(memory);
            Ok(mapped)
        }
        Ok(Ok(false) | Err(Errno::EAGAIN)) => {
            Err("somebody has the image open for writing".to_owned())
        }
        Ok(Err(Errno::EACCES)) => Err("the image is another user's file".to_owned()),
        Ok(Err(Errno::EINVAL)) => {
            Err("the image's file system has no leases (fcntl(2))".to_owned())
        }
        Ok(Err(errno)) => Err(format!("the image cannot be kept from changes: {}", errno.desc())),
        Err(_) => Err("the thread that watches the image has died".to_owned()),
    }
}

/// Waits for somebody who wants to write to the image.
fn watch(
    kernel: &Arc<Kernel>,
    memory: &sentry::Lazy,
    lazy: &Lazy,
    (wanted, all_mapped): (&SigSet, &mpsc::Receiver<()>),
) {
    if wanted.wait().is_err() {
        return;
    }
    let until = Instant::now() + patience();
    lazy.is_good_until(until);
    // (Or the restore has failed, and they never will.)
    if all_mapped.recv().is_ok() {
        let settled = memory.settle(kernel, &Unsettled::Everything);
        let why = match settled {
            Err(why) => Some(why),
            Ok(()) if Instant::now() > until => Some("it took too long".to_owned()),
            Ok(()) => None,
        };
        if let Some(why) = why {
            let why = format!(
                "the image was about to be changed while memory of its programs lay in it, and everything was \
                 killed: {why}"
            );
            end(kernel, why);
        }
        // Whoever compares the image with its checksums does so before it is another one.
        let _ = lazy.damage();
    }
    let _ = lease::give_up(lazy.file());
}

/// How long one who wants to write waits at most (lease-break-time in proc_sys_fs(5)).
fn patience() -> Duration {
    const USUAL: u64 = 45;
    let text = generated::text("/proc/sys/fs/lease-break-time").unwrap_or_default();
    Duration::from_secs(text.trim().parse().unwrap_or(USUAL))
}

/// Compares what is mapped with its checksums, while the guests run.
pub(super) fn check(kernel: &Arc<Kernel>, lazy: Arc<Lazy>, mapped: &mpsc::Sender<()>) {
    let _ = mapped.send(());
    let of_kernel = Arc::clone(kernel);
    let look = move || {
        if let Some(why) = lazy.damage() {
            let why = format!(
                "everything was killed, since memory of its programs lay in its image: {why}"
            );
            end(&of_kernel, why);
        }
    };
    if let Err(error) = thread::Builder::new().name("check".to_owned()).spawn(look) {
        end(
            kernel,
            format!("there is no thread to check the image, and everything was killed: {error}"),
        );
    }
}

fn end(kernel: &Kernel, why: String) {
    kernel.limit_reached("lazy", "every process was killed".to_owned(), why);
    let _ = kernel.kill(libc::SIGKILL);
}
