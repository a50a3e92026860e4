//! What must not show besides secrets, wherever a mount would bring it.

use std::path::Path;

use super::super::paths::{Found, Kind};
use super::super::{MountKind, Shown, Why};
use super::{DEFAULTS, Object, Objects, Plan};

impl Plan<'_> {
    /// What must not show besides secrets.
    pub(super) fn add_objects(&self, objects: &mut Objects) {
        self.add_hidden_by_rules(objects);
        self.add_hidden_by_defaults(objects);
        self.add_process_views(objects);
        self.add_private(objects);
        self.add_sockets(objects);
    }

    /// What `--hide` names must not show under another name either.
    fn add_hidden_by_rules(&self, objects: &mut Objects) {
        for mount in self.view.mounts() {
            if !mount.kind.hides() {
                continue;
            }
            if let Shown::Host { path, .. } = self.view.shown_under(&mount.target) {
                let directories = [MountKind::HiddenDirectory, MountKind::DeniedDirectory];
                let directory = directories.contains(&mount.kind);
                let (denied, why) = (mount.kind.denies(), mount.why.clone());
                objects.insert(path, Object { directory, denied, why });
            }
        }
    }

    /// Nor must the host's processes, devices and sockets, which the defaults cover in their own
    /// place only: a socket in /run takes connections through a read-only mount, too.
    fn add_hidden_by_defaults(&self, objects: &mut Objects) {
        for (path, _, words) in DEFAULTS {
            let Ok(place) = self.host.walk(Path::new(path)) else { continue };
            if place.kind == Kind::Directory && place.path != Path::new("/") {
                let object = Object::hidden(true, Why::Default(words));
                objects.entry(place.path).or_insert(object);
            }
        }
    }

    /// Nor another view of the host's processes.
    fn add_process_views(&self, objects: &mut Objects) {
        for path in &self.host.process_views {
            let why = Why::Default("the host's processes");
            objects.entry(path.clone()).or_insert(Object::hidden(true, why));
        }
    }

    /// Nor the places from which the user's sandboxes are controlled.
    fn add_private(&self, objects: &mut Objects) {
        for path in &self.host.private {
            let why = Why::Default("the control sockets of your sandboxes");
            objects.insert(path.clone(), Object::hidden(true, why));
        }
        for path in &self.host.stores {
            let why = Why::Default("the overlays of your sandboxes");
            // A file is in the way of the place: a guest could remove it and make a store there.
            let directory = !matches!(self.host.look(path), Ok(Found::File));
            objects.insert(path.clone(), Object::hidden(directory, why));
        }
    }

    /// Nor sockets that somebody on the host is bound to elsewhere, for the same reason. One in a
    /// place that the run may write to belongs to the run.
    fn add_sockets(&self, objects: &mut Objects) {
        for path in &self.host.sockets {
            let covering = self.view.covering(path);
            if covering.is_some_and(|it| matches!(it.kind, MountKind::Writable { .. })) {
                continue;
            }
            if let Ok(place) = self.host.walk(path)
                && place.kind == Kind::File
            {
                let object = Object::hidden(false, Why::Default("a socket of the host"));
                objects.entry(place.path).or_insert(object);
            }
        }
    }
}
