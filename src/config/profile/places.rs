//! Where profiles are: in the program, in the system's and the user's directory, in the project.
//!
//! Owns the search for a project's own file, which goes no further than the project does: it ends at
//! the root of a repository, below the home directory, at the border of a file system, and where others
//! could put a file.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, lstat, stat};

use super::super::error::refuse;
use super::super::{ConfigError, Host, absolute, quoted};
use super::expand::home;

/// The name of a project's own file.
pub(super) const PROJECT_FILE: &str = "sandbox.toml";

/// What lies at the root of a repository.
const REPOSITORIES: [&str; 4] = [".git", ".hg", ".svn", ".jj"];

/// A profile that comes with the program, and its text.
pub(super) type BuiltIn = (&'static str, &'static str);

/// Those that come with the program.
pub(super) const BUILT_IN: [BuiltIn; 5] = [
    ("default", include_str!("builtin/default.toml")),
    ("build", include_str!("builtin/build.toml")),
    ("agent", include_str!("builtin/agent.toml")),
    ("job", include_str!("builtin/job.toml")),
    ("debug", include_str!("builtin/debug.toml")),
];

/// Which profile is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of that name.
    Named(String),
    /// That file.
    File(PathBuf),
}

impl Wanted {
    /// What a word means: a file if there is a slash in it or it ends in `.toml`.
    pub(super) fn of(word: &OsStr, host: &Host) -> Result<Wanted, ConfigError> {
        match word.to_str() {
            Some(name) if !name.contains('/') && !name.ends_with(".toml") => Wanted::named(name)
                .map_err(|cause| refuse!("cannot use --profile {}: {cause}", quoted(word))),
            _ => Ok(Wanted::File(absolute(host, Path::new(word))?.components().collect())),
        }
    }

    /// The profile of that name; an error says why it is no name.
    pub(super) fn named(name: &str) -> Result<Wanted, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(allowed)
        {
            return Err(
                "a profile's name is at most 64 letters, digits, dashes, dots and underscores; \
                        a file is named with a slash, as in ./file"
                    .to_owned(),
            );
        }
        Ok(Wanted::Named(name.to_owned()))
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Named(name) => f.write_str(name),
            Wanted::File(path) => f.write_str(&quoted(path.as_os_str())),
        }
    }
}

/// The directories of named profiles, the weakest first.
pub(super) fn directories(host: &Host) -> Vec<PathBuf> {
    let user = host.variable("XDG_CONFIG_HOME").map(PathBuf::from);
    // A relative one is to be ignored (XDG Base Directory Specification).
    let user = user.filter(|path| path.is_absolute());
    let user = user.or_else(|| Some(home(host).ok()?.join(".config")));
    let system = PathBuf::from("/etc/sandbox");
    std::iter::once(system).chain(user.map(|user| user.join("sandbox"))).collect()
}

/// The names of profiles that there are, without those of the program.
pub(super) fn names(host: &Host, directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(host.real(directory)).into_iter().flatten().flatten();
    let name = |file: OsString| {
        let name = file.to_str()?.strip_suffix(".toml")?.to_owned();
        Wanted::named(&name).is_ok().then_some(name)
    };
    let mut names: Vec<String> = entries.filter_map(|entry| name(entry.file_name())).collect();
    names.sort();
    names
}

/// The project's own file: the nearest one from the working directory upwards.
pub(super) fn project(host: &Host) -> Option<PathBuf> {
    let cwd = host.cwd.as_ref().ok().filter(|cwd| cwd.is_absolute())?;
    let home = home(host).ok().map(|home| host.walk(&home).map_or(home, |place| place.path));
    let here = stat(&host.real(cwd)).ok()?;
    for directory in cwd.ancestors() {
        if home.as_deref() == Some(directory) || directory == Path::new("/") {
            return None;
        }
        if directory != cwd && !is_ours(&stat(&host.real(directory)).ok()?, &here, host) {
            return None;
        }
        let file = directory.join(PROJECT_FILE);
        // Whatever it is: who put it there will hear what is wrong with it.
        if !matches!(lstat(&host.real(&file)), Err(Errno::ENOENT | Errno::EACCES)) {
            return Some(file);
        }
        let is_root = |name: &str| lstat(&host.real(&directory.join(name))).is_ok();
        if REPOSITORIES.iter().any(|name| is_root(name)) {
            return None;
        }
    }
    None
}

/// Whether nobody but the user and root puts files there, on the file system of the working directory.
fn is_ours(stat: &FileStat, here: &FileStat, host: &Host) -> bool {
    let owned = stat.st_uid == host.uid || stat.st_uid == 0;
    owned && stat.st_mode & 0o002 == 0 && stat.st_dev == here.st_dev
}
