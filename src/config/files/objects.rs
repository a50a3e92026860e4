//! What must not show, wherever a mount would bring it: secrets, and what is hidden besides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::paths::{Found, Kind};
use super::super::{Mount, MountKind, Shown, Why, secrets};
use super::{DEFAULTS, Plan};

/// Something of the host that must not show, wherever a mount would bring it.
pub(super) struct Object {
    pub(super) directory: bool,
    /// To open it is refused, instead of there being nothing.
    pub(super) denied: bool,
    /// It is hidden whatever the rules are: no pattern makes an exception of it.
    pub(super) by_default: bool,
    /// Which rule counts, perhaps one besides.
    pub(super) why: Why,
}

/// Why a socket is hidden.
pub(crate) const HOST_SOCKET: &str = "a socket of the host";

/// Objects by their place on the host.
pub(super) type Objects = BTreeMap<PathBuf, Object>;

impl Object {
    /// One that is not to be there.
    pub(super) fn hidden(directory: bool, why: Why) -> Object {
        let by_default = matches!(why, Why::Default(_));
        Object { directory, denied: false, by_default, why }
    }

    /// The mount that hides it at `target`.
    pub(super) fn at(&self, target: PathBuf) -> Mount {
        let kind = MountKind::hiding(self.directory, self.denied);
        Mount { target, kind, why: self.why.clone() }
    }
}

impl Plan<'_> {
    /// The secrets that exist on this host.
    pub(super) fn secret_objects(&self) -> Objects {
        let mut objects = Objects::new();
        for secret in secrets::places(self.host, &self.homes) {
            let Ok(place) = self.host.walk(&secret.path) else { continue };
            if place.kind == Kind::Missing {
                continue;
            }
            // A link or a variable that leads to the home itself (or above it) names no secret.
            let wide = self.homes.iter().any(|home| home.starts_with(&place.path));
            if !wide && place.path != Path::new("/") {
                let directory = place.kind == Kind::Directory;
                objects
                    .entry(place.path)
                    .or_insert(Object::hidden(directory, Why::Default(secret.what)));
            }
        }
        objects
    }

    /// What must not show besides secrets.
    pub(super) fn add_objects(&self, objects: &mut Objects) {
        self.add_hidden_by_defaults(objects);
        self.add_process_views(objects);
        self.add_private(objects);
        self.add_sockets(objects);
        self.add_hidden_by_rules(objects);
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
                // A secret that the user names besides is one still.
                let by_default = objects.get(&path).is_some_and(|object| object.by_default);
                objects.insert(path, Object { directory, denied, by_default, why });
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
                let object = Object::hidden(false, Why::Default(HOST_SOCKET));
                objects.entry(place.path).or_insert(object);
            }
        }
    }
}
