//! Who the guest of a saved run is.

use serde::{Deserialize, Serialize};

use super::super::error::refuse;
use super::super::{ConfigError, Host, IdRange, Identity, identity, root};
use crate::sentry::credentials::GROUPS_MAX;

/// [`Identity`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedIdentity {
    /// Ids inside.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Supplementary groups; none where the caller was not root.
    pub groups: Option<Vec<u32>>,
    /// Ids that the guest had: first inside, first outside, how many.
    pub uids: Vec<(u32, u32, u32)>,
    /// Groups, likewise.
    pub gids: Vec<(u32, u32, u32)>,
}

fn ranges(map: &[IdRange]) -> Vec<(u32, u32, u32)> {
    map.iter().map(|range| (range.inside, range.outside, range.count)).collect()
}

impl SavedIdentity {
    pub(super) fn of(identity: &Identity) -> SavedIdentity {
        SavedIdentity {
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups.clone(),
            uids: ranges(&identity.uid_map),
            gids: ranges(&identity.gid_map),
        }
    }

    /// The guest keeps its ids inside; outside they are the restoring user's own. `root`: see [`SavedSpec::root`].
    pub(super) fn restore(&self, host: &Host, root: bool) -> Result<Identity, ConfigError> {
        let by_root = self.groups.is_some();
        match (by_root, host.uid == 0) {
            (true, false) => {
                return Err(refuse!(
                    "cannot restore it as an ordinary user: root saved it, and its programs may have \
                     any user's id; restore it as root"
                ));
            }
            (false, true) => {
                return Err(refuse!(
                    "cannot restore it as root: an ordinary user saved it, and its files would be \
                     another user's; restore it as that user, for example with setpriv or su"
                ));
            }
            _ => {}
        }
        let groups = self.groups.clone().unwrap_or_default();
        if root {
            return match (self.uid, self.gid, groups.is_empty()) {
                (0, 0, true) => Ok(root::identity(host)),
                _ => Err(refuse!(
                    "cannot restore its user and groups: root inside (--root) is user 0"
                )),
            };
        }
        let ids = [self.uid, self.gid].into_iter().chain(groups.iter().copied());
        if groups.len() > GROUPS_MAX || ids.clone().any(|id| id == u32::MAX) {
            return Err(refuse!("cannot restore its user and groups: there can be no such ones"));
        }
        let wanted = groups.len();
        let identity = identity::again(host, self.uid, self.gid, groups)?;
        if identity.groups.as_ref().is_some_and(|groups| groups.len() < wanted) {
            return Err(refuse!(
                "cannot restore its groups: not all of them exist in this user namespace; restore it \
                 where /proc/self/gid_map covers them"
            ));
        }
        Ok(identity)
    }
}
