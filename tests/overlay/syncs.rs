//! `--fake-fsync`: nothing waits for the disk in an overlay, and everything does on the host.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::common::{LIMIT, command_line, finish, have, skip, start, wait_for};
use crate::desk::Desk;

/// Writes to a file and has it put on the disk, in all ways; then what is no file, and what may not be.
const SYNCS: &str = "
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for call in (os.fsync, os.fdatasync, libc.syncfs, lambda fd: libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), 7)):
    os.write(fd, os.urandom(65536))
    print(call(fd))
print(os.fsync(os.open('.', os.O_RDONLY)))
def error(fd):
    try: os.fsync(fd)
    except OSError as error: print(errno.errorcode[error.errno])
error(os.pipe()[0]); error(os.open('.', os.O_PATH)); error(999)
os.sync()
print('done', flush=True)
# Until it is looked at: at the end of the run the kernel puts all of an overlay on the disk.
open('synced', 'w').close()
sys.stdin.read()
";

/// Prints how many pages of a file are not on the disk (cachestat(2), Linux 6.5).
const DIRTY: &str = "
import ctypes, os, sys
libc, found = ctypes.CDLL(None), (ctypes.c_uint64 * 5)()
fd = os.open(sys.argv[1], os.O_RDONLY)
if libc.syscall(451, fd, (ctypes.c_uint64 * 2)(), found, 0): print('none')
else: print(found[1] + found[2])
";

fn dirty(desk: &Desk, path: &Path) -> Option<u64> {
    let told =
        desk.space.native(&["python3", "-c", DIRTY, path.to_str().unwrap()]).success().line();
    let count = told.parse().ok();
    if count.is_none() {
        skip("no cachestat(2)");
    }
    count
}

/// Where a file of an overlay is kept.
fn kept(desk: &Desk, id: &str, name: &str) -> Option<PathBuf> {
    let mut places = vec![desk.store().join(id)];
    while let Some(place) = places.pop() {
        for entry in std::fs::read_dir(&place).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => places.push(entry.path()),
                false if entry.file_name() == name => return Some(entry.path()),
                false => {}
            }
        }
    }
    None
}

/// Whether files of the workspace are on a disk.
fn on_disk(desk: &Desk) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    let found = nix::sys::statfs::statfs(&desk.host).unwrap();
    if found.filesystem_type().0 as i64 == TMPFS {
        skip("no disk below the workspace");
        return false;
    }
    true
}

#[test]
fn nothing_waits_for_the_disk_in_an_overlay() {
    let desk = Desk::new("syncs");
    if !have("python3") || !on_disk(&desk) {
        return;
    }
    desk.space.write("syncs.py", SYNCS);
    let script = desk.space.path().join("syncs.py");
    // How many pages are not on the disk after all that, of a file of the overlay or of `file`.
    let left = |id: &str, options: &[&str], file: Option<&Path>| {
        let mut command = desk.sandbox();
        command.args(["run", "--id", id, "--overlay", "."]).args(options);
        let words = file.map_or("data", |file| file.to_str().unwrap());
        command.args(["--", "python3", script.to_str().unwrap(), words]);
        command.stdin(Stdio::piped());
        let line = command_line(&command);
        let child = start(command);
        wait_for("the program", || kept(&desk, id, "synced").is_some());
        let file = file.map_or_else(|| kept(&desk, id, "data").unwrap(), Path::to_owned);
        let left = dirty(&desk, &file);
        finish(child, line, b"", LIMIT)
            .success()
            .expect_out("None\nNone\n0\n0\nNone\nEINVAL\nEBADF\nEBADF\ndone\n");
        left
    };
    let Some(real) = left("real", &[], None) else { return };
    assert_eq!(real, 0, "it was put on the disk");
    // (Another test may have the whole disk written just then; not each time.)
    let is_left =
        |number| left(&format!("fake-{number}"), &["--fake-fsync"], None).is_some_and(|it| it > 0);
    assert!((0..20).any(is_left), "it was put on the disk");
    // A file of the host's own is.
    let other = desk.space.path().join("copy");
    let options = ["--fake-fsync", "--rw", other.to_str().unwrap()];
    assert_eq!(left("host", &options, Some(&other.join("own"))), Some(0));
}

#[test]
fn without_an_overlay_there_is_nothing_to_fake() {
    let desk = Desk::new("syncs-none");
    desk.words(&["--fake-fsync", "--", "true"])
        .one_line_error(125, &["--fake-fsync", "--overlay DIR"]);
}
