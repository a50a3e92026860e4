//! Whether a project's own file may say something without being trusted.
//!
//! Owns the comparison of one setting with the run as it is without that file: what shows or allows
//! nothing more is taken, everything else is left out. When in doubt it is left out.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use super::super::glob::plain;
use super::super::limits;
use super::super::paths::{Kind, parse_pair};
use super::super::{
    ConfigError, Host, MountKind, Network, Options, RuleKind, Shown, View, absolute, file_view,
};
use super::keys::Project;
use super::setting::Setting;

/// A run without the project's file.
pub(super) struct Judge<'h> {
    host: &'h Host,
    base: Options,
    /// Its file view, made when something is said about files.
    view: OnceCell<View>,
}

impl<'h> Judge<'h> {
    pub(super) fn new(host: &'h Host, base: Options) -> Judge<'h> {
        Judge { host, base, view: OnceCell::new() }
    }

    /// The setting, if it allows nothing more than there is without it; with the place for which that is so, where
    /// it is about one.
    ///
    /// # Errors
    /// There is no run without it.
    pub(super) fn take(&self, setting: Setting) -> Result<Result<Setting, Setting>, ConfigError> {
        let taken = match setting.key.project {
            Project::Taken => true,
            Project::LeftOut => false,
            Project::On => setting.is_on(),
            Project::Off => !setting.is_on() || self.base.kmsg,
            Project::Network => {
                setting.word() == "none"
                    || self.base.network == Network::Host
                    || setting.word() == "allow"
                        && super::super::network(&self.base)? == Network::Allow
            }
            Project::Lower => self.is_lower(&setting)?,
            Project::Place(RuleKind::Hide | RuleKind::Deny) => true,
            Project::Place(kind) => {
                return Ok(match self.narrowed(kind, &setting)? {
                    Some(place) => Ok(Setting { judged: Some(place), ..setting }),
                    None => Err(setting),
                });
            }
        };
        Ok(if taken { Ok(setting) } else { Err(setting) })
    }

    fn is_lower(&self, setting: &Setting) -> Result<bool, ConfigError> {
        let (name, limits) = (setting.key.name, &self.base.limits);
        let own = match name {
            "memory" => &limits.memory,
            "pids" => &limits.pids,
            "cpus" => &limits.cpus,
            "open-files" => &limits.open_files,
            "file-size" => &limits.file_size,
            "cpu-time" => &limits.cpu_time,
            "timeout" => &limits.timeout,
            "net-rate" => &limits.net_rate,
            "net-total" => &limits.net_total,
            _ => return Ok(false),
        };
        let Some(own) = own else { return Ok(true) };
        let (own, wished) = (limits::weigh(name, own)?, limits::weigh(name, setting.text()?)?);
        Ok(wished.iter().zip(own).all(|(wished, own)| *wished <= own))
    }

    /// The place of a rule that shows and opens nothing more.
    fn narrowed(&self, kind: RuleKind, setting: &Setting) -> Result<Option<PathBuf>, ConfigError> {
        let path = match kind {
            RuleKind::ReadOnly | RuleKind::Writable => {
                let (source, target) = parse_pair(kind.flag(), setting.word())?;
                if target.is_some() {
                    return Ok(None);
                }
                // A pattern is about too much to be looked at: it is no path of anything.
                plain(source)
            }
            _ => setting.word().into(),
        };
        let path = absolute(self.host, &path)?;
        let Ok(place) = self.host.walk(&path) else { return Ok(None) };
        if place.kind == Kind::Missing {
            return Ok(None);
        }
        // The place shows itself: not something else of the host, nothing made up, nothing hidden.
        let shows_itself = |path: &Path| path == place.path;
        let is_narrower = match self.view()?.shown(&place.path) {
            Shown::Host { path, .. } if !shows_itself(&path) => false,
            Shown::Host { by, .. } => {
                let writable =
                    by.is_some_and(|mount| matches!(mount.kind, MountKind::Writable { .. }));
                kind == RuleKind::ReadOnly || writable
            }
            Shown::Private(mount) => {
                kind == RuleKind::Tmpfs && matches!(mount.kind, MountKind::Tmpfs { .. })
            }
            Shown::Hidden(_) => false,
        };
        Ok(is_narrower.then_some(place.path))
    }

    fn view(&self) -> Result<&View, ConfigError> {
        if let Some(view) = self.view.get() {
            return Ok(view);
        }
        let view = file_view(&self.base, self.host)?;
        Ok(self.view.get_or_init(|| view))
    }
}
