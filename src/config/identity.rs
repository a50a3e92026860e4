//! Who the guest is: `--user`, the id maps of its user namespace, its groups.
//!
//! Decides ids only; writing the maps and setting the ids is the launch's work.

use std::ffi::OsStr;

use super::error::refuse;
use super::host::Account;
use super::paths::quoted;
use super::{ConfigError, Host, IdRange, Identity};

/// `--user`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UserWish {
    /// `UID[:GID]`
    Ids(u32, Option<u32>),
    /// The name of a user.
    Name(String),
}

/// The guest's identity, and the account that `--user` chose where the user database knows it.
pub(crate) fn choose(
    host: &Host,
    user: Option<&OsStr>,
) -> Result<(Identity, Option<Account>), ConfigError> {
    let Some(text) = user else {
        return Ok((identity(host, host.uid, host.gid, Vec::new()), None));
    };
    let (uid, gid, account, groups) = match parse_user(text)? {
        UserWish::Ids(uid, gid) => {
            let account = find(text, host.accounts.by_uid(uid))?;
            let gid = gid.or(account.as_ref().map(|account| account.gid));
            // Root could be given any group: that it is group 0 must not follow from silence.
            let gid = gid.or((host.uid != 0).then_some(host.gid)).ok_or_else(|| {
                refuse!(
                    "cannot use --user {uid}: no user has that id here, so its group is unknown; \
                     write --user {uid}:GID"
                )
            })?;
            (uid, gid, account, Vec::new())
        }
        UserWish::Name(name) => {
            let account = find(text, host.accounts.by_name(&name))?.ok_or_else(|| {
                refuse!(
                    "cannot use --user {}: no user of that name exists here; name one that \
                     `getent passwd` lists, or write UID:GID",
                    quoted(&name)
                )
            })?;
            let groups = if host.uid == 0 { groups(host, &account)? } else { Vec::new() };
            (account.uid, account.gid, Some(account), groups)
        }
    };
    if host.uid == 0 {
        require_mapped(text, "user", uid, &host.uid_ranges)?;
        require_mapped(text, "group", gid, &host.gid_ranges)?;
    }
    Ok((identity(host, uid, gid, groups), account))
}

/// Reads `UID[:GID]` or a name.
pub(crate) fn parse_user(text: &OsStr) -> Result<UserWish, ConfigError> {
    let bad = |cause: &str| {
        refuse!("cannot use --user {}: {cause}; write UID, UID:GID or a user's name", quoted(text))
    };
    // The last id, -1, means "leave as it is" to setresuid(2): nobody can have it.
    let id = |digits: &str| match digits.parse() {
        Ok(u32::MAX) | Err(_) => Err(bad(&format!("{} is no id", quoted(digits)))),
        Ok(id) => Ok(id),
    };
    let word = text.to_str().ok_or_else(|| bad("it is not UTF-8"))?;
    let numeric = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    match word.split_once(':') {
        Some((uid, gid)) if numeric(uid) && numeric(gid) => {
            Ok(UserWish::Ids(id(uid)?, Some(id(gid)?)))
        }
        Some(_) => Err(bad("both sides of the colon must be numbers")),
        None if word.is_empty() => Err(bad("it is empty")),
        None if numeric(word) => Ok(UserWish::Ids(id(word)?, None)),
        None if word.contains(['\0', '\n', '/']) || word.starts_with(['-', '+']) => {
            Err(bad("no user can have that name"))
        }
        None => Ok(UserWish::Name(word.to_owned())),
    }
}

/// The maps of a guest with these ids (user_namespaces(7)).
fn identity(host: &Host, uid: u32, gid: u32, mut groups: Vec<u32>) -> Identity {
    if host.uid != 0 {
        // An ordinary user may map one id, its own, and no groups besides.
        let own = |inside, outside| vec![IdRange { inside, outside, count: 1 }];
        let (uid_map, gid_map) = (own(uid, host.uid), own(gid, host.gid));
        return Identity { uid, gid, groups: None, uid_map, gid_map };
    }
    groups.retain(|group| is_mapped(*group, &host.gid_ranges));
    let itself = |range: &IdRange| IdRange { outside: range.inside, ..*range };
    Identity {
        uid,
        gid,
        groups: Some(groups),
        uid_map: host.uid_ranges.iter().map(itself).collect(),
        gid_map: host.gid_ranges.iter().map(itself).collect(),
    }
}

/// The identity of a guest that had these ids inside, made anew for this caller. Groups that do not
/// exist here are left out.
pub(super) fn again(
    host: &Host,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
) -> Result<Identity, ConfigError> {
    for (id, ranges, map) in [(uid, &host.uid_ranges, "uid"), (gid, &host.gid_ranges, "gid")] {
        if host.uid == 0 && !is_mapped(id, ranges) {
            return Err(refuse!(
                "cannot restore its user: {map} {id} does not exist in this user namespace; restore it \
                 where /proc/self/{map}_map covers it"
            ));
        }
    }
    Ok(identity(host, uid, gid, groups))
}

fn find(
    text: &OsStr,
    found: Result<Option<Account>, nix::errno::Errno>,
) -> Result<Option<Account>, ConfigError> {
    found.map_err(|errno| {
        refuse!(
            "cannot look up --user {}: the user database says {}; write UID:GID",
            quoted(text),
            errno.desc()
        )
    })
}

fn groups(host: &Host, account: &Account) -> Result<Vec<u32>, ConfigError> {
    host.accounts.groups(account).map_err(|errno| {
        refuse!(
            "cannot list the groups of --user {}: {}; write {}:{} to do without them",
            quoted(&account.name),
            errno.desc(),
            account.uid,
            account.gid
        )
    })
}

fn is_mapped(id: u32, ranges: &[IdRange]) -> bool {
    ranges.iter().any(|range| id.checked_sub(range.inside).is_some_and(|n| n < range.count))
}

fn require_mapped(
    text: &OsStr,
    what: &str,
    id: u32,
    ranges: &[IdRange],
) -> Result<(), ConfigError> {
    if is_mapped(id, ranges) {
        return Ok(());
    }
    Err(refuse!(
        "cannot use --user {}: {what} id {id} does not exist in this user namespace; choose one \
         that /proc/self/{}_map covers",
        quoted(text),
        if what == "user" { "uid" } else { "gid" }
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::testing::TestHost;

    fn chosen(host: &TestHost, user: &str) -> Result<Identity, String> {
        let chosen = choose(&host.host, Some(OsStr::new(user)));
        chosen.map(|(identity, _)| identity).map_err(|error| error.to_string())
    }

    fn one(inside: u32, outside: u32) -> Vec<IdRange> {
        vec![IdRange { inside, outside, count: 1 }]
    }

    #[test]
    fn an_ordinary_user_stays_itself() {
        let host = TestHost::ordinary();
        let (identity, account) = choose(&host.host, None).unwrap();
        assert_eq!((identity.uid, identity.gid, identity.groups), (1000, 1000, None));
        assert_eq!((identity.uid_map, identity.gid_map), (one(1000, 1000), one(1000, 1000)));
        assert_eq!(account, None);
    }

    #[test]
    fn an_ordinary_user_can_look_like_another() {
        let host = TestHost::ordinary();
        let root = chosen(&host, "0").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!((root.uid_map, root.gid_map), (one(0, 1000), one(0, 1000)));
        let other = chosen(&host, "other").unwrap();
        assert_eq!((other.uid, other.gid, other.groups), (1001, 1002, None));
        let nobody_known = chosen(&host, "4242").unwrap();
        assert_eq!((nobody_known.uid, nobody_known.gid), (4242, 1000));
        assert_eq!(chosen(&host, "7:8").map(|i| (i.uid, i.gid)), Ok((7, 8)));
    }

    #[test]
    fn root_keeps_every_id_that_exists_for_it() {
        let mut host = TestHost::root();
        let range = |inside, outside, count| IdRange { inside, outside, count };
        host.host.uid_ranges = vec![range(0, 1000, 1), range(1, 100_000, 65536)];
        host.host.gid_ranges = host.host.uid_ranges.clone();
        let (root, _) = choose(&host.host, None).unwrap();
        assert_eq!((root.uid, root.gid, root.groups), (0, 0, Some(vec![])));
        assert_eq!(root.uid_map, [range(0, 0, 1), range(1, 1, 65536)]);
        let other = chosen(&host, "other").unwrap();
        assert_eq!((other.uid, other.gid, other.groups), (1001, 1002, Some(vec![1002, 44])));
        assert_eq!(chosen(&host, "1001").map(|i| i.groups), Ok(Some(vec![])));
        let error = chosen(&host, "70000:0").unwrap_err();
        assert!(error.contains("user id 70000 does not exist"), "{error}");
        let error = chosen(&host, "4242").unwrap_err();
        assert!(error.contains("--user 4242:GID"), "{error}");
    }

    #[test]
    fn a_bad_user_is_named() {
        let host = TestHost::ordinary();
        for (text, words) in [
            ("", "it is empty"),
            ("nosuch", "no user of that name"),
            ("4294967295", "is no id"),
            ("99999999999", "is no id"),
            ("1:", "is no id"),
            ("1:x", "must be numbers"),
            ("other:5", "must be numbers"),
            ("-1", "no user can have that name"),
        ] {
            let error = chosen(&host, text).unwrap_err();
            assert!(error.contains(words) && error.contains("--user"), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn ids_are_read_as_written(uid in 0..u32::MAX, gid in proptest::option::of(0..u32::MAX)) {
            let text = gid.map_or(uid.to_string(), |gid| format!("{uid}:{gid}"));
            prop_assert_eq!(parse_user(OsStr::new(&text)), Ok(UserWish::Ids(uid, gid)));
        }

        #[test]
        fn no_word_panics(word in any::<String>()) {
            if let Err(error) = parse_user(OsStr::new(&word)) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
