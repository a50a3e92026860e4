//! The file view of a restored run: arranged anew of the rules of the saved one.
//!
//! Owns nothing but the order of business, which is that of [`super::arrange`]; who calls has found the
//! rules' paths to be where they were.

use std::path::{Path, PathBuf};

use super::super::error::refuse;
use super::super::paths::{Kind, quoted};
use super::super::{ConfigError, Host, Mount, MountKind, Shown, View, Why};
use super::objects::{Object, Objects};
use super::{Plan, flag_of};

/// What a saved run's view is arranged of.
pub(in crate::config) struct Again<'a> {
    /// Where the program started.
    pub(in crate::config) workdir: &'a Path,
    /// What the working directory was because it was that: writable, or an overlay.
    pub(in crate::config) opened: Option<MountKind>,
    /// The mounts of flags.
    pub(in crate::config) rules: Vec<Mount>,
    /// Directories in overlays that showed although something above them was hidden.
    pub(in crate::config) exceptions: Vec<PathBuf>,
    /// What was hidden by default or by a pattern, and whether by refusing: it stays so, whatever this host's
    /// defaults are and whatever is there now.
    pub(in crate::config) hidden: Vec<(PathBuf, bool)>,
}

/// The view.
pub(in crate::config) fn arrange_again(
    host: &Host,
    again: Again<'_>,
    homes: &[PathBuf],
) -> Result<View, ConfigError> {
    let real = |home: &PathBuf| host.walk(home).map_or_else(|_| home.clone(), |place| place.path);
    let homes = homes.iter().map(real).collect();
    let mut plan = Plan::new(host, homes);
    for mount in again.rules {
        let flag = flag_of(&mount.why);
        if matches!(mount.kind, MountKind::Overlay { .. }) {
            plan.overlaid(&flag, &mount.target)?;
        }
        plan.insert_rule(flag, mount)?;
    }
    plan.join_overlays();
    plan.add_defaults();
    for place in again.exceptions {
        plan.except_again(place)?;
    }
    let mut objects = plan.secret_objects();
    if let Some(kind) = again.opened {
        plan.open_workdir(again.workdir, kind, &objects)?;
    }
    plan.check_targets()?;
    plan.add_objects(&mut objects);
    plan.add_hidden_before(&again.hidden, &mut objects);
    plan.lay_overlays(&objects);
    plan.cover(objects)?;
    plan.check_workdir(again.workdir)?;
    Ok(plan.view)
}

impl Plan<'_> {
    /// Makes the working directory what it was, under the conditions of [`Plan::add_workdir`].
    fn open_workdir(
        &mut self,
        workdir: &Path,
        kind: MountKind,
        objects: &Objects,
    ) -> Result<(), ConfigError> {
        let overlaid = matches!(kind, MountKind::Overlay { .. });
        if overlaid && !self.is_overlaid(workdir) {
            return Err(refuse!(
                "cannot restore its file view: its working directory {} lies in no overlay, and was one",
                quoted(workdir)
            ));
        }
        if let Some(what) = self.too_wide(workdir, overlaid, objects) {
            return Err(refuse!(
                "cannot make the working directory {} writable: for you it is {what}; restore it as \
                 the user who saved it",
                quoted(workdir)
            ));
        }
        if self.view.at(workdir).is_none() {
            let target = workdir.to_owned();
            self.view.insert(Mount { target, kind, why: Why::WorkingDirectory });
        }
        Ok(())
    }

    /// What is at these places of the view, if anything still is.
    fn add_hidden_before(&self, places: &[(PathBuf, bool)], objects: &mut Objects) {
        for (place, denied) in places {
            let Shown::Host { path, .. } = self.view.shown_under(place) else { continue };
            let Ok(found) = self.host.walk(&path) else { continue };
            if found.kind == Kind::Missing || found.path == Path::new("/") {
                continue;
            }
            let directory = found.kind == Kind::Directory;
            let why = Why::Default("hidden when it was saved");
            let object = Object { denied: *denied, ..Object::hidden(directory, why) };
            objects.entry(found.path).or_insert(object);
        }
    }
}
