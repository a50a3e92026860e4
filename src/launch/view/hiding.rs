//! What lies over things that must not show.
//!
//! Owns what hiding and denying look like inside; which things are hidden is the plan's.

use std::ffi::CStr;
use std::path::Path;

use super::{Ground, Need, Step, View};
use crate::launch::plan::{PlanError, c_path};
use crate::sys::mount::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY};

/// Where what is hidden leads: nothing can be made there, and the name tells why it is not there.
const NOWHERE: &CStr = c"/proc/none/hidden";

impl View {
    /// A directory with nothing in it.
    pub(super) fn hide_directory(&mut self, target: &Path) -> Result<(), PlanError> {
        self.empty(target, "mode=555,size=4k,nr_inodes=2")
    }

    /// A directory that nobody may enter or list: a guest has no capability to pass that. (Root inside has,
    /// with `--root`, and finds nothing in it.)
    pub(super) fn deny_directory(&mut self, target: &Path) -> Result<(), PlanError> {
        self.make_in_memory(target, true)?;
        self.empty(target, "mode=0,size=4k,nr_inodes=2")
    }

    fn empty(&mut self, target: &Path, data: &str) -> Result<(), PlanError> {
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
        self.mount("tmpfs", target, flags, data, self.unless_gone(target))
    }

    /// In a directory in memory there is nothing yet that could be denied.
    pub(super) fn make_in_memory(
        &mut self,
        target: &Path,
        directory: bool,
    ) -> Result<(), PlanError> {
        match (self.ground(target), directory) {
            (Ground::Host(_), _) => Ok(()),
            (Ground::Memory(_), true) => self.make_directory(target),
            (Ground::Memory(_), false) => self.make_file(target),
        }
    }

    /// Something that is not there: a path that ends at a mounted link goes on from there (step_into in
    /// fs/namei.c), and this one leads to where nothing is nor can be made. It comes from the directory that
    /// `dev` has made.
    pub(super) fn hide_file(&mut self, target: &Path) -> Result<(), PlanError> {
        let need = self.unless_gone(target);
        let Some(source) = &self.nowhere else { return self.deny_file(target, need) };
        let (source, target) = (c_path(source)?, c_path(target)?);
        self.mounts.push(Step::Nowhere { source, target, need });
        Ok(())
    }

    /// An unopenable file: the null device through a mount that allows no devices. There are many of
    /// them, so they are bound from the one that `dev` has put in place, where it has come before.
    pub(super) fn deny_file(&mut self, target: &Path, need: Need) -> Result<(), PlanError> {
        if let Some(source) = &self.unopenable {
            let (source, target) = (c_path(source)?, c_path(target)?);
            self.mounts.push(Step::Bind { source, target, need });
            return Ok(());
        }
        self.attach_unopenable(target, need)
    }

    pub(super) fn attach_unopenable(&mut self, target: &Path, need: Need) -> Result<(), PlanError> {
        let attributes = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV;
        let step = |tree, source| Step::Clone { tree, source, recursive: false, attributes };
        let null = Path::new("/dev/null");
        let source = null.canonicalize().unwrap_or_else(|_| null.to_owned());
        self.clone_and_attach(step, &source, target, need)
    }

    /// Makes what hidden files are shown as, in the /dev at `directory`, for as long as that is built.
    pub(super) fn make_nowhere(&mut self, directory: &Path) -> Result<(), PlanError> {
        let nowhere = directory.join(".nowhere");
        let (content, path) = (NOWHERE.to_owned(), c_path(&nowhere)?);
        self.mounts.push(Step::Symlink { content, path: path.clone() });
        self.last.push(Step::Remove { path });
        self.nowhere = Some(nowhere);
        Ok(())
    }
}
