//! `--root=sub-ids`: the subordinate ids of the user (subuid(5)) are those of others inside, for the kernel as well.
//!
//! Decides the maps and refuses what cannot be with them; newuidmap(1) writes them for an ordinary user
//! (`launch::id_maps`), and looks at the same files.

use super::error::refuse;
use super::{ConfigError, Host, IdRange, Identity, Means, Options, RunSpec};
use crate::sentry::Features;
use crate::sentry::credentials::Capability;

/// What root inside is allowed, whose ids are the kernel's. docs/root.md says why these, and why no others.
pub const MAPPED_CAPABILITIES: [(Capability, &str); 11] = [
    (Capability::Chown, "CHOWN"),
    (Capability::DacOverride, "DAC_OVERRIDE"),
    (Capability::FOwner, "FOWNER"),
    (Capability::FSetId, "FSETID"),
    (Capability::Kill, "KILL"),
    (Capability::SetGid, "SETGID"),
    (Capability::SetUid, "SETUID"),
    (Capability::SetPCap, "SETPCAP"),
    (Capability::NetBindService, "NET_BIND_SERVICE"),
    (Capability::SysChroot, "SYS_CHROOT"),
    (Capability::SetFCap, "SETFCAP"),
];

/// So many take all ids from 1 to that of nobody, which systems give to users.
pub const LEAST_SUB_IDS: u64 = 65_534;

/// newuidmap(1) and the kernel take at most so many lines (UID_GID_MAP_MAX_EXTENTS).
const MOST_LINES: usize = 340;

/// What is written as a map has to be shorter than a page (map_write in kernel/user_namespace.c): bytes of the smallest.
const MAP_BYTES: usize = 4096;

/// So many ids a user is usually given, and not below [`FIRST_GIVEN`] (SUB_UID_COUNT and SUB_UID_MIN of login.defs(5)).
const GIVEN: u32 = 65_536;
const FIRST_GIVEN: u32 = 100_000;

/// Which ids a file of subordinate ones is about.
#[derive(Debug, Clone, Copy)]
struct Kind {
    file: &'static str,
    what: &'static str,
    flag: &'static str,
}

const USERS: Kind = Kind { file: "/etc/subuid", what: "user", flag: "--add-subuids" };
const GROUPS: Kind = Kind { file: "/etc/subgid", what: "group", flag: "--add-subgids" };

/// Root inside is the caller, and the subordinate ids follow from 1 on.
///
/// # Errors
/// The host's root asks for it, or there are not enough ids.
pub(super) fn identity(host: &Host) -> Result<Identity, ConfigError> {
    if host.uid == 0 {
        return Err(refuse!(
            "cannot use --root=sub-ids as root: root inside would be the host's, with rights over all of its files \
             in view; run it as an ordinary user, or use --root, where other ids are believed"
        ));
    }
    let number = host.uid.to_string();
    let account = host.accounts.by_uid(host.uid).ok().flatten();
    let name = account.map_or_else(|| number.clone(), |account| account.name);
    let read =
        |kind: Kind| std::fs::read_to_string(host.real(kind.file.as_ref())).unwrap_or_default();
    let [users, groups] = [USERS, GROUPS].map(read);
    let free = free_range([&users, &groups]);
    let map = |own, text: &str, kind: Kind| {
        map_of(own, &ranges(text, &name, &number, own), kind, (&name, &free))
    };
    Ok(Identity {
        uid: 0,
        gid: 0,
        // Those of the caller have no numbers inside, and root may give them up here.
        groups: Some(Vec::new()),
        uid_map: map(host.uid, &users, USERS)?,
        gid_map: map(host.gid, &groups, GROUPS)?,
    })
}

/// Where the ids that a file such as /etc/subuid gives a user begin, and how many they are: lines of a name or a number,
/// the first id, and a count (subuid(5)). Each id is in one of them, and `own`, which is root's, in none: the kernel takes
/// no map that has an id twice.
pub fn ranges(text: &str, name: &str, number: &str, own: u32) -> Vec<(u32, u32)> {
    let mut known = vec![(own, 1)];
    let mut new = Vec::new();
    let is_of_user = |owner: &str| owner == name || owner == number;
    for (_, first, count) in lines(text).filter(|(owner, ..)| is_of_user(owner)) {
        let parts = without((first, count), &known);
        known.extend(&parts);
        new.extend(parts);
    }
    new
}

/// What the lines of such a file say that make sense: owner, first id, count.
fn lines(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let is_sound = count > 0 && u32::checked_add(first, count).is_some();
        is_sound.then_some((owner, first, count))
    })
}

/// What of a range is in none of these.
fn without((first, count): (u32, u32), known: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let end = first + count;
    let mut known: Vec<(u32, u32)> = known.to_vec();
    known.sort_unstable();
    let mut parts = Vec::new();
    let mut next = first;
    for (start, count) in known {
        let start = start.min(end);
        if next < start {
            parts.push((next, start - next));
        }
        next = next.max(start.saturating_add(count));
    }
    if next < end {
        parts.push((next, end - next));
    }
    parts
}

/// Ids that nobody has been given in these two files, as usermod(8) takes them.
pub fn free_range(texts: [&str; 2]) -> String {
    let ends = texts.into_iter().flat_map(lines).map(|(_, first, count)| first + count);
    let first = ends.max().unwrap_or(0).max(FIRST_GIVEN);
    match first.checked_add(GIVEN) {
        Some(end) => format!("{first}-{}", end - 1),
        // There is none behind all others.
        None => "FIRST-LAST".to_owned(),
    }
}

fn map_of(
    own: u32,
    ranges: &[(u32, u32)],
    kind: Kind,
    (name, free): (&str, &str),
) -> Result<Vec<IdRange>, ConfigError> {
    let Kind { file, what, flag } = kind;
    let mut map = vec![IdRange { inside: 0, outside: own, count: 1 }];
    let mut next = 1_u32;
    let bytes = |it: &IdRange| format!("{} {} {}\n", it.inside, it.outside, it.count).len();
    let mut length = map.iter().map(bytes).sum::<usize>();
    for (outside, count) in ranges.iter().take(MOST_LINES - 1) {
        let count = (*count).min(u32::MAX - next);
        let range = IdRange { inside: next, outside: *outside, count };
        length += bytes(&range);
        if count == 0 || length >= MAP_BYTES {
            break;
        }
        map.push(range);
        next += count;
    }
    let remedy = format!(
        "have root run `usermod {flag} {free} {name}`, with a range that nobody else has, or use --root, \
         which takes none"
    );
    match u64::from(next) - 1 {
        0 => Err(refuse!(
            "cannot use --root=sub-ids: {file} gives {name} no subordinate {what} ids; {remedy}"
        )),
        count if count < LEAST_SUB_IDS => Err(refuse!(
            "cannot use --root=sub-ids: {file} gives {name} {count} subordinate {what} ids, and {LEAST_SUB_IDS} are needed \
             for all from 1 to that of nobody; {remedy}"
        )),
        _ => Ok(map),
    }
}

/// Refuses what the sentry would have to do to files in place of guests: it is the caller alone, and they may be others.
///
/// # Errors
/// The first such wish, with what to do instead.
pub(super) fn check(spec: &RunSpec, options: &Options) -> Result<(), ConfigError> {
    let has = |feature| spec.features.contains(feature);
    let wishes = [
        (
            options.learn,
            "sandbox learn",
            "files of others cannot be looked at for the list of files",
        ),
        (
            has(Features::FILE_LOG),
            "--record-files",
            "files of others cannot be looked at for the list of files",
        ),
        (
            options.deterministic.is_some(),
            "--deterministic",
            "files of others cannot be looked at for their time stamps",
        ),
        (
            has(Features::VIRTUAL_TIME),
            "--time",
            "files of others cannot be looked at for their time stamps",
        ),
        (
            has(Features::PATTERNS),
            "rules with patterns",
            "the sentry, which judges names that come later, cannot make files of others",
        ),
        (
            spec.limits.pids.is_some_and(|bound| bound.by == Means::Rlimit),
            "--pids",
            "without a control group the kernel counts the processes of each user apart (RLIMIT_NPROC)",
        ),
    ];
    match wishes.into_iter().find(|(wished, ..)| *wished) {
        None => Ok(()),
        Some((_, wish, why)) => Err(refuse!(
            "cannot use --root=sub-ids with {wish}: {why}; leave one of them out, or use --root, where ids are \
             believed"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestHost, options};
    use super::super::{Root, RuleKind};
    use super::*;

    fn wishes() -> Options {
        Options { root: Root::Mapped, ..options(&[]) }
    }

    fn host(users: &str, groups: &str) -> TestHost {
        let host = TestHost::ordinary();
        host.write("/etc/subuid", users);
        host.write("/etc/subgid", groups);
        host
    }

    #[test]
    fn subordinate_ids_follow_the_callers_own() {
        let all = "other:100000:65536\n1000:200000:65000\nme:300000:1000\n";
        let spec = host(all, "me:500000:65536\n").resolve(&wishes()).unwrap();
        let range = |inside, outside, count| IdRange { inside, outside, count };
        let identity = &spec.identity;
        assert_eq!(
            identity.uid_map,
            [range(0, 1000, 1), range(1, 200_000, 65_000), range(65_001, 300_000, 1000)]
        );
        assert_eq!(identity.gid_map, [range(0, 1000, 1), range(1, 500_000, 65_536)]);
        assert_eq!((identity.uid, identity.gid, &identity.groups), (0, 0, &Some(Vec::new())));
        assert!(spec.features.contains(Features::SUB_IDS));
        assert!(!spec.features.intersects(Features::ROOT | Features::FOREIGN_IDS));
    }

    #[test]
    fn whoever_has_too_few_is_told_of_the_file_and_the_command() {
        let error = host("", "me:1:65536").resolve(&wishes()).unwrap_err();
        assert!(
            error.contains("/etc/subuid") && error.contains("usermod --add-subuids"),
            "{error}"
        );
        let error = host("me:100000:65536", "me:2000:1000").resolve(&wishes()).unwrap_err();
        assert!(error.contains("/etc/subgid gives me 1000"), "{error}");
        let error = TestHost::root().resolve(&wishes()).unwrap_err();
        assert!(error.contains("as root"), "{error}");
    }

    #[test]
    fn what_the_sentry_would_do_in_place_of_others_is_refused() {
        let host = host("me:100000:65536", "me:100000:65536");
        let refused = |wishes: Options, word: &str| {
            let error = host.resolve(&wishes).unwrap_err();
            assert!(error.contains("--root=sub-ids") && error.contains(word), "{error}");
        };
        refused(Options { time: vec!["+1d".into()], ..wishes() }, "--time");
        refused(Options { deterministic: Some("".into()), ..wishes() }, "--deterministic");
        refused(Options { record_files: Some("list".into()), ..wishes() }, "--record-files");
        let rules = vec![super::super::Rule::new(RuleKind::Hide, "./**/*.pem")];
        refused(Options { rules, ..wishes() }, "patterns");
        refused(Options { ask: crate::sentry::asking::About::FILES, ..wishes() }, "--ask files");
        let mut pids = wishes();
        pids.limits.pids = Some("9".into());
        refused(pids, "--pids");
        let user = Some("5:5".into());
        let error = host.resolve(&Options { user, ..wishes() }).unwrap_err();
        assert!(error.contains("--user"), "{error}");
    }

    #[test]
    fn lines_that_are_none_are_left_out() {
        let text = "me:1:2\n\nme:x:2\nme:4294967295:2\nme:7:0\nyou:1:2\nme:9\n 1000:5:6 \n";
        assert_eq!(ranges(text, "me", "1000", 0), [(1, 2), (5, 6)]);
    }

    #[test]
    fn no_id_is_there_twice() {
        let text = "me:100:50\n1000:100:50\nme:140:20\nme:90:100\nme:1000:1\nme:995:10\nyou:1:9\n";
        let expected = [(100, 50), (150, 10), (90, 10), (160, 30), (995, 5), (1001, 4)];
        assert_eq!(ranges(text, "me", "1000", 1000), expected);
        let spec = host("me:100000:65536\n1000:100000:65536\n", "me:999:65536\n");
        let identity = spec.resolve(&wishes()).unwrap().identity;
        let range = |inside, outside, count| IdRange { inside, outside, count };
        assert_eq!(identity.uid_map, [range(0, 1000, 1), range(1, 100_000, 65_536)]);
        let groups = [range(0, 1000, 1), range(1, 999, 1), range(2, 1001, 65_534)];
        assert_eq!(identity.gid_map, groups);
    }

    #[test]
    fn a_map_is_shorter_than_a_page() {
        let many = |count: u32, step: u32| -> Vec<(u32, u32)> {
            (0..400).map(|at| (4_000_000_000 + at * step, count)).collect()
        };
        let map = |ranges: &[(u32, u32)]| map_of(1000, ranges, USERS, ("me", "1-2")).unwrap();
        let text = |map: &[IdRange]| -> usize {
            let line = |it: &IdRange| format!("{} {} {}\n", it.inside, it.outside, it.count).len();
            map.iter().map(line).sum()
        };
        let long = map(&many(10_000, 20_000));
        assert!((100..340).contains(&long.len()) && (4050..4096).contains(&text(&long)));
        let short: Vec<(u32, u32)> =
            std::iter::once((1, 65_534)).chain((0..400).map(|at| (70_000 + 2 * at, 1))).collect();
        assert!(map(&short).len() <= 340);
    }

    #[test]
    fn what_is_proposed_nobody_has() {
        assert_eq!(free_range(["", ""]), "100000-165535");
        assert_eq!(free_range(["a:100000:65536\n", "b:165536:65536\nc:5:6\n"]), "231072-296607");
        assert_eq!(free_range(["a:4294901760:65535", ""]), "FIRST-LAST");
        let error = host("you:100000:65536", "").resolve(&wishes()).unwrap_err();
        assert!(error.contains("usermod --add-subuids 165536-231071 me"), "{error}");
    }
}
