//! The file of `--record-files`: which files a run has touched, as JSON (docs/record.md). And how a file is written
//! whole or not at all, where it was meant to be.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, RenameFlags, fcntl, open, openat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};
use serde::Serialize;

use crate::sentry::file_log::{Content, Kind, Report, Touch, Touched};
use crate::sys::{errno_of, random};

/// Raised when a name changes its meaning.
const VERSION: u32 = 1;

/// Where it is to be written. The directory is found before anything runs: what a program makes of its path
/// meanwhile has no influence.
#[derive(Debug)]
pub(super) struct Destination {
    flag: &'static str,
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
}

impl Destination {
    /// The place that a flag names.
    pub(super) fn find(flag: &'static str, path: PathBuf) -> Result<Destination, String> {
        let failed = |errno: Errno| {
            format!(
                "cannot write {flag} {}: {}; name a file in a directory that you may write to",
                path.display(),
                errno.desc()
            )
        };
        let name = path.file_name().ok_or_else(|| failed(Errno::EISDIR))?.to_owned();
        let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory =
            open(parent.unwrap_or(Path::new(".")), flags, Mode::empty()).map_err(failed)?;
        let here = AccessFlags::W_OK | AccessFlags::X_OK;
        faccessat(directory.as_fd(), ".", here, nix::fcntl::AtFlags::AT_EACCESS).map_err(failed)?;
        Ok(Destination { flag, path, directory, name })
    }

    /// Writes the list, whole or not at all.
    pub(super) fn write(&self, report: &Report) -> Result<(), String> {
        self.write_with(0o666, true, |file| write_to(file, report))
    }

    /// Writes it with these permissions, whole or not at all; over what has come there meanwhile, or not.
    pub(super) fn write_with(
        &self,
        mode: u32,
        replaces: bool,
        write: impl FnOnce(&File) -> std::io::Result<()>,
    ) -> Result<(), String> {
        let failed = |error: std::io::Error| {
            format!("cannot write {} {}: {error}", self.flag, self.path.display())
        };
        let (temporary, file) = self.temporary(mode).map_err(|errno| failed(errno.into()))?;
        let written = write(&file).and_then(|()| {
            let (from, directory) = (temporary.as_os_str(), self.directory.as_fd());
            let rename =
                |flags| renameat2(directory, from, directory, self.name.as_os_str(), flags);
            let flags = if replaces { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
            Ok(match rename(flags) {
                // Not every file system can tell (rename(2)).
                Err(Errno::EINVAL) => rename(RenameFlags::empty()),
                done => done,
            }?)
        });
        if written.is_err() {
            let name = temporary.as_os_str();
            let _ = unlinkat(self.directory.as_fd(), name, UnlinkatFlags::NoRemoveDir);
        }
        written.map_err(failed)
    }
}

impl Destination {
    /// A new file, by a name that nobody can have taken on purpose.
    fn temporary(&self, mode: u32) -> Result<(OsString, File), Errno> {
        let mut random = [0; 8];
        random::fill(&mut random).map_err(|_| Errno::EAGAIN)?;
        let name = OsString::from(format!(".sandbox-record.{}", hexadecimal(&random)));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        let file = openat(self.directory.as_fd(), name.as_os_str(), flags, mode)?;
        Ok((name, File::from(file)))
    }
}

/// Opens the file of `--net-log`, which grows while the run lasts. A link that leads to a file is not followed: a program
/// may have put it there.
pub(super) fn append(path: &Path) -> Result<File, String> {
    let failed = |errno: Errno| {
        format!(
            "cannot write --net-log {}: {}; name a file that you may write",
            path.display(),
            errno.desc()
        )
    };
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    // (A pipe that nobody reads is told at once, and does not wait for somebody: fifo(7).)
    let flags = flags | OFlag::O_NONBLOCK;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = match open(path, flags | OFlag::O_CREAT | OFlag::O_NOFOLLOW, mode) {
        // /dev/stderr and its like.
        Err(Errno::ELOOP) => {
            // (To look a file up opens nothing yet.)
            if path.metadata().map_err(|it| failed(errno_of(&it)))?.is_file() {
                return Err(failed(Errno::ELOOP));
            }
            let file = File::from(open(path, flags, Mode::empty()).map_err(failed)?);
            if file.metadata().is_ok_and(|it| it.is_file()) {
                return Err(failed(Errno::ELOOP));
            }
            file
        }
        opened => File::from(opened.map_err(failed)?),
    };
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).map_err(failed)?;
    Ok(file)
}

fn write_to(file: &File, report: &Report) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(file);
    serde_json::to_writer_pretty(&mut out, &Json::from(report))?;
    out.write_all(b"\n")?;
    out.flush()
}

#[derive(Serialize)]
struct Json {
    version: u32,
    complete: bool,
    files: Vec<Line>,
    missing: Vec<Name>,
}

/// A path, which need not be text.
#[derive(Serialize)]
struct Name {
    path: String,
    /// The bytes, where they are no text, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    name: Name,
    kind: &'static str,
    touched: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    before: Option<Sum>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Option<Sum>>,
}

#[derive(Serialize)]
struct Sum {
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl From<&Report> for Json {
    fn from(report: &Report) -> Json {
        Json {
            version: VERSION,
            complete: report.untold == 0,
            files: report.files.iter().map(Line::from).collect(),
            missing: report.missing.iter().map(|path| Name::from(&path[..])).collect(),
        }
    }
}

impl From<&[u8]> for Name {
    fn from(path: &[u8]) -> Name {
        let text = OsStr::from_bytes(path).to_str();
        Name {
            path: String::from_utf8_lossy(path).into_owned(),
            path_bytes: text.is_none().then(|| hexadecimal(path)),
        }
    }
}

impl From<&Touched> for Line {
    fn from(touched: &Touched) -> Line {
        const NAMES: [(Touch, &str); 8] = [
            (Touch::READ, "read"),
            (Touch::LISTED, "listed"),
            (Touch::EXECUTED, "executed"),
            (Touch::INSPECTED, "inspected"),
            (Touch::WRITTEN, "written"),
            (Touch::CREATED, "created"),
            (Touch::CHANGED, "changed"),
            (Touch::REMOVED, "removed"),
        ];
        let names = NAMES.into_iter().filter(|(it, _)| touched.touch.contains(*it));
        let is_other = touched.touch.may_change();
        Line {
            name: Name::from(&touched.path[..]),
            kind: match touched.kind {
                Kind::File => "file",
                Kind::Directory => "directory",
                Kind::Link => "link",
                Kind::Special => "special",
                Kind::Kernel => "kernel",
                Kind::Unknown => "unknown",
            },
            touched: names.map(|(_, name)| name).collect(),
            target: touched.target.as_deref().map(|it| String::from_utf8_lossy(it).into_owned()),
            before: touched.before.map(Sum::from),
            after: is_other.then(|| touched.after.map(Sum::from)),
        }
    }
}

impl From<Content> for Sum {
    fn from(content: Content) -> Sum {
        let sha256 = content.sha256.map(|it| hexadecimal(&it));
        let is_file = sha256.is_some() || content.size > 0;
        Sum { size: is_file.then_some(content.size), sha256 }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
