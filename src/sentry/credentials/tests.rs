//! Rules of ids and capabilities, and how they are inherited.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use proptest::prelude::*;

use super::capabilities::UPHELD;
use super::*;

const LEAVE: u32 = u32::MAX;

fn user(id: u32) -> Credentials {
    let mut it = Credentials::root();
    it.set_gids(Change::One(id)).unwrap();
    it.set_users(Change::One(id)).unwrap();
    it
}

fn ids(real: u32, effective: u32, saved: u32) -> Ids {
    Ids { real, effective, saved, fs: effective }
}

#[test]
fn who_has_stopped_being_root_does_not_become_it_again() {
    let mut it = Credentials::root();
    it.set_users(Change::Three(100, 100, 100)).unwrap();
    assert_eq!((it.uid, it.capabilities.permitted), (Ids::all(100), 0));
    for change in [Change::One(0), Change::Two(0, 0), Change::Three(LEAVE, 0, LEAVE)] {
        assert_eq!(it.set_users(change), Err(Errno::EPERM));
    }
    assert_eq!(it.set_gids(Change::One(1)), Err(Errno::EPERM));
    assert_eq!(it.set_supplementary(vec![]), Err(Errno::EPERM));
    assert_eq!(it.set_fs_user(0), 100);
    assert_eq!(it.uid, Ids::all(100));
}

#[test]
fn who_has_saved_root_becomes_it_again() {
    let mut it = Credentials::root();
    it.set_users(Change::Three(LEAVE, 100, LEAVE)).unwrap();
    assert_eq!((it.uid, it.capabilities.effective), (ids(0, 100, 0), 0));
    assert_eq!(it.set_gids(Change::One(1)), Err(Errno::EPERM));
    it.set_users(Change::Three(LEAVE, 0, LEAVE)).unwrap();
    assert_eq!((it.uid, it.capabilities.effective), (Ids::all(0), UPHELD));
}

#[test]
fn two_ids_change_the_saved_one_with_them() {
    let mut it = Credentials::root();
    it.set_users(Change::Two(100, 200)).unwrap();
    assert_eq!(it.uid, ids(100, 200, 200));
    // Exchanging them is anybody's right.
    it.set_users(Change::Two(200, 100)).unwrap();
    assert_eq!(it.uid, ids(200, 100, 100));
    assert_eq!(it.set_users(Change::Two(LEAVE, 300)), Err(Errno::EPERM));
}

#[test]
fn capabilities_are_kept_by_those_who_ask() {
    let mut it = Credentials::root();
    assert_eq!(it.control(libc::PR_SET_KEEPCAPS, [1, 0, 0, 0]), Ok(0));
    it.set_users(Change::One(100)).unwrap();
    assert_eq!((it.capabilities.permitted, it.capabilities.effective), (UPHELD, 0));
    let chown = Capability::Chown.bit();
    it.set_capabilities(chown, chown, chown).unwrap();
    assert!(it.has(Capability::Chown) && !it.has(Capability::SetUid));
    assert_eq!(it.set_capabilities(UPHELD, UPHELD, 0), Err(Errno::EPERM));
    let raise = [libc::PR_CAP_AMBIENT_RAISE as u64, 0, 0, 0];
    assert_eq!(it.control(libc::PR_CAP_AMBIENT, raise), Ok(0));
    let after = it.executed();
    assert_eq!((after.capabilities.effective, after.capabilities.ambient), (chown, chown));
    assert!(!after.securebits.keep_caps());
    // Without that, an exec leaves nothing.
    assert_eq!(user(100).executed(), user(100));
}

#[test]
fn the_id_for_files_takes_the_capabilities_for_files_along() {
    let mut it = Credentials::root();
    assert_eq!(it.set_fs_user(100), 0);
    assert!(!it.has(Capability::Chown) && it.has(Capability::SetUid));
    assert_eq!(it.set_fs_user(0), 100);
    assert_eq!(it, Credentials::root());
    assert_eq!((it.set_fs_user(LEAVE), it.uid.fs), (0, 0));
}

#[test]
fn locked_bits_stay() {
    let mut it = Credentials::root();
    let set = |it: &mut Credentials, bits| it.control(libc::PR_SET_SECUREBITS, [bits, 0, 0, 0]);
    assert_eq!(set(&mut it, 0b11), Ok(0));
    assert_eq!(set(&mut it, 0), Err(Errno::EPERM));
    assert_eq!(set(&mut it, 1 << 40), Err(Errno::EPERM));
    // Root is nothing special then.
    assert_eq!(it.executed().capabilities.permitted, 0);
}

fn id() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(100), Just(200), Just(LEAVE), any::<u32>()]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        id().prop_map(Change::One),
        (id(), id()).prop_map(|(a, b)| Change::Two(a, b)),
        (id(), id(), id()).prop_map(|(a, b, c)| Change::Three(a, b, c)),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Users(Change),
    Groups(Change),
    FsUser(u32),
    FsGroup(u32),
    Supplementary(Vec<u32>),
    Capabilities(u64, u64, u64),
    Control(i32, [u64; 4]),
    Execute,
}

fn step() -> impl Strategy<Value = Step> {
    let options = vec![
        libc::PR_CAPBSET_DROP,
        libc::PR_SET_SECUREBITS,
        libc::PR_SET_KEEPCAPS,
        libc::PR_CAP_AMBIENT,
        libc::PR_GET_SECUREBITS,
    ];
    let word = || prop_oneof![4 => 0..48_u64, 1 => any::<u64>()];
    prop_oneof![
        change().prop_map(Step::Users),
        change().prop_map(Step::Groups),
        id().prop_map(Step::FsUser),
        id().prop_map(Step::FsGroup),
        proptest::collection::vec(id(), 0..4).prop_map(Step::Supplementary),
        (any::<u64>(), any::<u64>(), any::<u64>())
            .prop_map(|(a, b, c)| Step::Capabilities(a, b, c)),
        (proptest::sample::select(options), word(), word())
            .prop_map(|(option, a, b)| Step::Control(option, [a, b, 0, 0])),
        Just(Step::Execute),
    ]
}

fn apply(it: &mut Credentials, step: Step) -> Result<(), Errno> {
    match step {
        Step::Users(change) => it.set_users(change),
        Step::Groups(change) => it.set_gids(change),
        Step::FsUser(id) => {
            it.set_fs_user(id);
            Ok(())
        }
        Step::FsGroup(id) => {
            it.set_fs_group(id);
            Ok(())
        }
        Step::Supplementary(groups) => it.set_supplementary(groups),
        Step::Capabilities(a, b, c) => it.set_capabilities(a & ALL, b & ALL, c & ALL),
        Step::Control(option, args) => it.control(option, args).map(drop),
        Step::Execute => {
            *it = it.executed();
            Ok(())
        }
    }
}

proptest! {
    /// Whatever is done: sets stay within those that bound them, nobody gets an id that is none, and what
    /// fails changes nothing.
    #[test]
    fn sets_stay_within_their_bounds(steps in proptest::collection::vec(step(), 0..40)) {
        let mut it = Credentials::root();
        for step in steps {
            let before = it.clone();
            if apply(&mut it, step).is_err() {
                prop_assert_eq!(&it, &before);
            }
            let sets = it.capabilities;
            prop_assert_eq!(sets.effective & !sets.permitted, 0);
            prop_assert_eq!(sets.ambient & !(sets.permitted & sets.inheritable), 0);
            prop_assert_eq!(sets.bounding & !before.capabilities.bounding, 0);
            prop_assert_eq!((sets.permitted | sets.inheritable) & !UPHELD, 0);
            let ids = [it.uid.real, it.uid.effective, it.uid.saved, it.uid.fs, it.gid.real, it.gid.fs];
            prop_assert!(!ids.contains(&LEAVE));
            prop_assert!(it.groups.is_sorted());
        }
    }

    /// Without capabilities only ids that one has can be taken.
    #[test]
    fn without_rights_ids_only_change_places(steps in proptest::collection::vec(change(), 0..20)) {
        let mut it = Credentials::root();
        it.set_users(Change::Three(100, 200, 300)).unwrap();
        for change in steps {
            let _ = it.set_users(change);
            let ids = [it.uid.real, it.uid.effective, it.uid.saved];
            prop_assert!(ids.iter().all(|id| [100, 200, 300].contains(id)), "{ids:?}");
        }
    }
}

/// No other test has processes with numbers meanwhile: whoever looks for those in use looks at all that there are.
pub(super) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that waits for its input to end. (Its start is over: that of a program is told before all of its memory is
/// laid out, begin_new_exec in fs/exec.c.)
pub(super) fn waiting() -> Child {
    let mut child =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

fn become_user(it: &mut Credentials) -> Result<(), Errno> {
    it.set_users(Change::One(100))
}

#[test]
fn the_kernel_carries_what_a_process_is() {
    let _alone = alone();
    let beliefs = Beliefs::default();
    let mut child = waiting();
    let pid = child.id() as i32;
    assert!(!beliefs.changed() && *beliefs.of(pid) == Credentials::root());
    beliefs.change(pid, become_user).unwrap();
    assert!(beliefs.changed() && beliefs.of(pid).uid == Ids::all(100));
    assert_eq!(beliefs.change(pid, |it| it.set_users(Change::One(0))), Err(Errno::EPERM));
    assert_eq!(number_of(pid), Some(0));
    // Another one that comes to the same gets the same number.
    let mut other = waiting();
    beliefs.change(other.id() as i32, become_user).unwrap();
    assert_eq!((number_of(other.id() as i32), beliefs.lock().known.len()), (Some(0), 1));
    // This process has never changed.
    assert_eq!(*beliefs.of(std::process::id() as i32), Credentials::root());
    for child in [&mut child, &mut other] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut inner = beliefs.lock();
    inner.free_unused();
    assert_eq!((&inner.free[..], inner.numbers.len()), (&[1][..], 0));
}

#[test]
fn numbers_are_used_again_when_there_are_too_many() {
    let _alone = alone();
    let beliefs = Beliefs::default();
    let mut child = waiting();
    let pid = child.id() as i32;
    for id in 0..MOST as u32 + 10 {
        let change = |it: &mut Credentials| {
            it.gid = Ids::all(id + 1);
            Ok(())
        };
        beliefs.change(pid, change).unwrap();
    }
    assert_eq!(beliefs.of(pid).gid.real, MOST as u32 + 10);
    assert!(beliefs.lock().known.len() <= MOST);
    child.kill().unwrap();
    child.wait().unwrap();
}
