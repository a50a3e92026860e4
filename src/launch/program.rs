//! A program to be started, as lists of strings that a child side can use without allocating.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::plan::{PlanError, c_string};
use crate::sys::strings::{StringList, StringLists};

/// What is started, where, and with which environment.
#[derive(Debug, Clone)]
pub struct Program<'p> {
    /// The program as the user named it and its arguments; never empty.
    pub argv: &'p [OsString],
    /// Its whole environment.
    pub environment: &'p [(OsString, OsString)],
    /// Where it starts: absolute, as the guest sees it.
    pub workdir: &'p Path,
}

/// Where things are in the lists.
const WORKDIR: usize = 0;
const ARGV: usize = 1;
const ENVP: usize = 2;
/// Then two lists for each candidate: its path, and its arguments as a script without `#!`.
const CANDIDATES: usize = 3;

impl Program<'_> {
    /// The program as lists.
    pub(super) fn lists(&self) -> Result<Vec<Vec<CString>>, PlanError> {
        let argv = self.argv.iter().map(|word| c_string(word)).collect::<Result<Vec<_>, _>>()?;
        let envp = self.environment.iter().map(environment_entry).collect::<Result<_, _>>()?;
        let workdir = vec![c_string(self.workdir.as_os_str())?];
        let mut lists = vec![workdir, argv, envp];
        for path in self.candidates() {
            let path = c_string(path.as_os_str())?;
            let mut shell = vec![c"/bin/sh".to_owned(), path.clone()];
            shell.extend(lists[ARGV][1..].iter().cloned());
            lists.extend([vec![path], shell]);
        }
        Ok(lists)
    }

    /// Where execvp(3) would look, in order; relative paths are below the working directory.
    pub fn candidates(&self) -> Vec<PathBuf> {
        let name = &self.argv[0];
        if name.as_bytes().contains(&b'/') {
            return vec![PathBuf::from(name)];
        }
        let path = self.environment.iter().rev().find(|(key, _)| key == "PATH");
        let path = path.map_or(OsString::from("/usr/local/bin:/usr/bin:/bin"), |(_, v)| v.clone());
        std::env::split_paths(&path).map(|directory| directory.join(name)).collect()
    }
}

/// A program's lists, as a child side reads them.
#[derive(Clone, Copy)]
pub(super) struct Lists<'l>(pub(super) &'l StringLists);

/// One way to execute a program.
pub(super) struct Candidate<'l> {
    pub(super) path: &'l std::ffi::CStr,
    pub(super) by_shell: StringList<'l>,
}

impl<'l> Lists<'l> {
    pub(super) fn workdir(self) -> Result<&'l std::ffi::CStr, Errno> {
        self.0.list(WORKDIR)?.get(0).ok_or(Errno::EBADMSG)
    }

    pub(super) fn argv(self) -> Result<StringList<'l>, Errno> {
        self.0.list(ARGV)
    }

    pub(super) fn envp(self) -> Result<StringList<'l>, Errno> {
        self.0.list(ENVP)
    }

    /// Candidate number `index`, if there are so many.
    pub(super) fn candidate(self, index: usize) -> Option<Candidate<'l>> {
        let at = CANDIDATES + 2 * index;
        let path = self.0.list(at).ok()?.get(0)?;
        Some(Candidate { path, by_shell: self.0.list(at + 1).ok()? })
    }
}

fn environment_entry((name, value): &(OsString, OsString)) -> Result<CString, PlanError> {
    let mut entry = name.clone();
    entry.push("=");
    entry.push(value);
    c_string(&entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(argv: &[&str], path: &str) -> StringLists {
        let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
        let environment = [("PATH".into(), path.into())];
        let program = Program { argv: &argv, environment: &environment, workdir: Path::new("/w") };
        StringLists::new(&program.lists().unwrap())
    }

    fn paths(lists: Lists<'_>) -> Vec<String> {
        (0..)
            .map_while(|index| lists.candidate(index))
            .map(|candidate| candidate.path.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_name_is_searched_and_a_path_is_not() {
        let named = lists(&["prog", "x"], "/a:/b/");
        assert_eq!(paths(Lists(&named)), ["/a/prog", "/b/prog"]);
        let second = Lists(&named).candidate(1).unwrap().by_shell;
        assert_eq!(second.get(1), Some(c"/b/prog"));
        assert_eq!(second.get(2), Some(c"x"));
        assert_eq!(Lists(&named).workdir(), Ok(c"/w"));
        assert_eq!(Lists(&named).envp().unwrap().get(0), Some(c"PATH=/a:/b/"));
        assert_eq!(paths(Lists(&lists(&["./prog"], "/a"))), ["./prog"]);
    }
}
