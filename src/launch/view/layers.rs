//! Overlays in the file view, and what takes their place where the kernel makes none.

use std::path::Path;

use super::{Need, OverlayStep, Step, View};
use crate::config::{Mount, MountKind, Why};
use crate::launch::plan::{PlanError, c_path};
use crate::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID};

impl View {
    /// An overlay is made of the host's own directories, before anything lies over them or is read-only:
    /// what it writes to keeps the attributes that the mount has now (ovl_get_upper in
    /// fs/overlayfs/super.c).
    pub(super) fn overlay(&mut self, mount: &Mount) -> Result<(), PlanError> {
        let target = mount.target.as_path();
        let Some(layer) = self.layers.iter().find(|layer| layer.target == target) else {
            return Err(PlanError::new(format!("there is no layer for {}", target.display())));
        };
        let no_exec = if layer.no_exec { ATTR_NOEXEC } else { 0 };
        if let Some(twin) = layer.twin.clone() {
            return self.twin(mount, &twin, no_exec);
        }
        if let Some(place) = layer.front.as_deref().and_then(Path::parent)
            && self.front.is_none()
        {
            self.front = Some(c_path(place)?);
            self.clones.push(Step::Front { place: c_path(place)? });
        }
        let step = OverlayStep {
            target: c_path(target)?,
            lower: c_path(&layer.lower)?,
            front: layer.front.as_deref().map(c_path).transpose()?,
            identity: layer.identity,
            upper: c_path(&layer.upper)?,
            work: c_path(&layer.work)?,
            attributes: ATTR_NOSUID | ATTR_NODEV | no_exec,
        };
        let tree = self.new_tree();
        self.clones.push(Step::Overlay { tree, layer: Box::new(step) });
        if target == Path::new("/") {
            self.root = Some(tree);
            return Ok(());
        }
        self.attach(mount, tree)
    }

    /// Where the kernel makes no overlay, a directory of the sandbox's own is shown as it is.
    fn twin(&mut self, mount: &Mount, twin: &Path, no_exec: u64) -> Result<(), PlanError> {
        let (target, source) = (mount.target.as_path(), c_path(twin)?);
        // What leads to a mount in it must not be moved aside.
        self.placed.insert(target.to_owned(), Some(twin.to_owned()));
        let tree = self.new_tree();
        let attributes = ATTR_NOSUID | ATTR_NODEV | no_exec;
        self.clones.push(Step::Twin { tree, source, attributes });
        self.attach(mount, tree)
    }

    /// Puts what was made for an overlay in its place.
    fn attach(&mut self, mount: &Mount, tree: usize) -> Result<(), PlanError> {
        let target = mount.target.as_path();
        self.make_directory(target)?;
        // A part of one may have gone from it in an earlier run.
        let need = match mount.why {
            Why::Default(_) => Need::UnlessReplaced,
            _ => Need::Required,
        };
        if let MountKind::Overlay { source, .. } = &mount.kind {
            self.bound.insert(target.to_owned(), source.clone());
        }
        self.mounts.push(Step::Attach { tree, target: c_path(target)?, need });
        Ok(())
    }

    /// Whether what is mounted there takes the place of an overlay, or leads to something in one.
    pub(super) fn is_twin(&self, root: &Path) -> bool {
        let above = root.ancestors().find(|it| !self.pinned.contains(*it));
        self.layers.iter().any(|it| it.twin.is_some() && Some(it.target.as_path()) == above)
    }
}
