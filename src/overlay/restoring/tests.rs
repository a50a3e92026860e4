//! What an overlay of an image may take the place of, and what it leaves behind when it fails.

use std::fs;
use std::os::unix::fs::DirBuilderExt;

use super::*;
use crate::config::testing::{TestHost, options};

struct Bench {
    base: PathBuf,
    host: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let base =
            std::env::temp_dir().join(format!("sandbox-restoring-{name}-{}", std::process::id()));
        let base = {
            fs::create_dir_all(&base).unwrap();
            base.canonicalize().unwrap()
        };
        let host = base.join("host");
        fs::create_dir(&host).unwrap();
        fs::DirBuilder::new().mode(0o700).create(base.join("store")).unwrap();
        Bench { base, host }
    }

    fn store(&self) -> Store {
        let path = self.base.join("store");
        let directory = File::open(&path).unwrap().into();
        Store { path, directory }
    }

    fn names(&self) -> Vec<OsString> {
        entry::names(self.store().directory.as_fd()).unwrap()
    }

    fn wanted(&self) -> Wanted {
        let layer = WantedLayer {
            path: self.host.clone(),
            skeleton: Some(false),
            scaffold: Vec::new(),
            filled: true,
            names: BTreeSet::new(),
        };
        Wanted {
            directories: vec![self.host.clone()],
            starts: vec![(7, 8)],
            mark: b"mark".to_vec(),
            layers: vec![layer],
        }
    }

    /// An overlay that is kept, with one new file.
    fn keep(&self, id: &str, saved: Option<&[u8]>) {
        let store = self.store();
        let directory = store.make_entry(id).unwrap();
        fs::create_dir_all(store.path.join(id).join("layers/0/upper")).unwrap();
        fs::write(store.path.join(id).join("layers/0/upper/new"), "x").unwrap();
        drop(store::lock(directory.as_fd(), id).unwrap());
        let mut it = description(&self.wanted());
        it.saved = saved.map(serde_bytes::ByteBuf::from);
        it.write(directory.as_fd()).unwrap();
    }

    fn before(&self, id: &str) -> Result<bool, String> {
        before(&self.store(), id, b"mark").map(|it| it.is_some()).map_err(|it| it.to_string())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.base).unwrap();
    }
}

#[test]
fn only_what_the_image_has_or_nobody_would_miss_is_replaced() {
    let bench = Bench::new("before");
    assert_eq!(bench.before("it"), Ok(false));
    bench.keep("same", Some(&marked(5)));
    assert_eq!(bench.before("same"), Ok(true));
    bench.keep("later", None);
    bench.keep("other", Some(b"another"));
    // As earlier versions left it: a part of it alone.
    bench.keep("part", Some(b"mark"));
    for id in ["later", "other", "part"] {
        let error = bench.before(id).unwrap_err();
        assert!(error.contains("does not know of") && error.contains("--id"), "{error}");
    }
    // Whatever the mark says, files may be the host's and the overlay's.
    fs::write(bench.base.join("store/same/journal"), "").unwrap();
    let error = bench.before("same").unwrap_err();
    assert!(error.contains("was interrupted"), "{error}");
    // The host has come to the same.
    fs::write(bench.host.join("new"), "x").unwrap();
    assert_eq!(bench.before("later"), Ok(true));
    fs::create_dir(bench.base.join("store/files")).unwrap();
    fs::write(bench.base.join("store/files/mine"), "x").unwrap();
    let error = bench.before("files").unwrap_err();
    assert!(error.contains("no overlay"), "{error}");
    let held = store::lock(bench.store().entry("other").unwrap().unwrap().as_fd(), "other");
    let error = bench.before("other").unwrap_err();
    assert!(error.contains("in use"), "{error}");
    drop(held);
}

/// What a save leaves, with a sum of such bytes.
fn marked(sum: u8) -> Vec<u8> {
    [&b"mark"[..], &[sum; CONTENT_SUM]].concat()
}

fn place(bench: &Bench, replaces: bool) -> Guard {
    let own = bench.store().directory;
    let name = OsString::from(format!(".it{SUFFIX}"));
    fs::create_dir(bench.base.join("store").join(&name)).unwrap();
    fs::write(bench.base.join("store").join(&name).join("image"), "x").unwrap();
    let (taken, running) = (AtomicBool::new(false), AtomicBool::new(false));
    let (id, gone) = ("it".to_owned(), Mutex::new(false));
    let content = replaces.then_some([5; CONTENT_SUM]);
    let place = Place { store: own, name, id, replaces, content, taken, running, gone };
    Guard { place: Arc::new(place), _before: None }
}

#[test]
fn the_store_is_as_it_was_or_has_the_new_one() {
    let bench = Bench::new("place");
    let has = |name: &str| bench.base.join("store/it").join(name).exists();
    // Nobody had the name.
    drop(place(&bench, false));
    assert_eq!(bench.names(), [""; 0]);
    let guard = place(&bench, false);
    guard.place.take(&[5; CONTENT_SUM]).unwrap();
    assert!(has("image"));
    guard.place.give_back();
    drop(guard);
    assert_eq!(bench.names(), [""; 0]);
    // Somebody had it.
    bench.keep("it", None);
    let guard = place(&bench, true);
    guard.place.take(&[5; CONTENT_SUM]).unwrap();
    assert!(has("image") && !has("description"));
    drop(guard);
    assert_eq!(bench.names(), ["it"]);
    assert!(has("description") && !has("image"));
    let guard = place(&bench, true);
    guard.place.take(&[5; CONTENT_SUM]).unwrap();
    guard.place.settle();
    assert_eq!(bench.names().len(), 2, "no guest runs yet");
    guard.place.begin();
    assert!(!guard.place.give_back());
    // Whoever comes last waits for the other, and finds nothing left to do.
    let other = Arc::clone(&guard.place);
    let other = std::thread::spawn(move || other.settle());
    drop(guard);
    assert_eq!(bench.names(), ["it"]);
    assert!(has("image") && !has("description"));
    other.join().unwrap();
    assert!(has("image"));
    // Once it is gone, the name may be another's.
    let guard = place(&bench, true);
    guard.place.take(&[5; CONTENT_SUM]).unwrap();
    guard.place.begin();
    guard.place.settle();
    fs::create_dir(bench.base.join("store").join(&guard.place.name)).unwrap();
    drop(guard);
    assert_eq!(bench.names().len(), 2);
    fs::remove_dir(bench.base.join("store").join(format!(".it{SUFFIX}"))).unwrap();
    // The supervisor fails while guests run.
    let guard = place(&bench, true);
    guard.place.take(&[5; CONTENT_SUM]).unwrap();
    guard.place.begin();
    let failed = std::thread::spawn(move || {
        let _guard = guard;
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(failed.join().is_err());
    assert_eq!(bench.names(), ["it"]);
    assert!(has("image"));
    // Its files had other content than those of the image.
    let guard = place(&bench, true);
    let error = guard.place.take(&[6; CONTENT_SUM]).unwrap_err().to_string();
    assert!(error.contains("other content") && error.contains("--id"), "{error}");
    drop(guard);
    assert_eq!(bench.names(), ["it"]);
    // It has come into being meanwhile.
    let guard = place(&bench, false);
    let error = guard.place.take(&[5; CONTENT_SUM]).unwrap_err().to_string();
    assert!(error.contains("File exists"), "{error}");
    drop(guard);
    assert_eq!(bench.names(), ["it"]);
}

#[test]
fn what_a_killed_restore_leaves_goes_and_what_is_at_work_stays() {
    let bench = Bench::new("sweep");
    let store = bench.store();
    for name in [".dead.sandbox-restoring", ".busy.sandbox-restoring", ".own.sandbox-restoring"] {
        fs::create_dir_all(store.path.join(name).join("layers/0")).unwrap();
    }
    let directory =
        |name: &str| entry::open_directory(store.directory.as_fd(), name.as_ref()).unwrap();
    drop(store::lock(directory(".dead.sandbox-restoring").as_fd(), "dead").unwrap());
    let held = store::lock(directory(".busy.sandbox-restoring").as_fd(), "busy").unwrap();
    sweep(store.directory.as_fd(), ".own.sandbox-restoring".as_ref());
    assert_eq!(bench.names(), [".busy.sandbox-restoring"]);
    drop(held);
    sweep(store.directory.as_fd(), ".own.sandbox-restoring".as_ref());
    assert_eq!(bench.names(), [""; 0]);
}

#[test]
fn who_sweeps_and_who_begins_do_not_take_each_others() {
    let bench = Bench::new("occupy");
    let store = bench.store();
    let (all, name) = (store.directory.as_fd(), OsStr::new(".it.sandbox-restoring"));
    let (directory, lock) = occupy(all, name).unwrap();
    assert_eq!(occupy(all, name).unwrap_err(), Errno::EEXIST);
    sweep(all, name);
    assert_eq!(bench.names(), [name]);
    // A lock that belongs to what had the name before is nobody's reason to remove what has it now.
    remove_tree(all, name).unwrap();
    let (_now, held) = occupy(all, name).unwrap();
    assert!(
        !is_there(all, name, lock.file()).unwrap() && is_there(all, name, held.file()).unwrap()
    );
    drop((directory, lock));
    sweep(all, name);
    assert_eq!(bench.names(), [name]);
    drop(held);
    // Who sweeps keeps everybody away meanwhile.
    let swept = nobodys(all, name, OsStr::new("")).unwrap();
    assert!(swept.is_some() && nobodys(all, name, OsStr::new("")).is_none());
    drop(swept);
    sweep(all, OsStr::new(""));
    assert_eq!(bench.names(), [""; 0]);
}

#[test]
fn no_run_begins_later_than_now() {
    let bench = Bench::new("starts");
    let wanted = Wanted { starts: vec![(7, 8), (i64::MAX, 9)], ..bench.wanted() };
    let found = description(&wanted).starts;
    assert_eq!(found[0], Stamp { seconds: 7, nanoseconds: 8 });
    assert!(found[1] <= now() && found[1].seconds > 7);
}

#[test]
fn a_directory_that_the_host_has_gained_covers_nothing() {
    let mut host = TestHost::ordinary();
    host.host.mounts.push(("/data/in".into(), "xfs".into()));
    let spec = host.resolve(&options(&["--overlay /"])).unwrap();
    let layer = |path: &str, skeleton, names: &[&str]| WantedLayer {
        path: path.into(),
        skeleton: Some(skeleton),
        scaffold: Vec::new(),
        filled: true,
        names: names.iter().map(PathBuf::from).collect(),
    };
    let check = |layers: Vec<WantedLayer>| {
        let directories = vec![PathBuf::from("/")];
        let wanted = Wanted { directories, starts: vec![(7, 8)], mark: Vec::new(), layers };
        check_layers(&wanted, &spec).map_err(|error| error.to_string())
    };
    let root = |names: &[&str]| layer("/", true, names);
    assert_eq!(check(vec![root(&["", "made", "usr"]), layer("/usr", false, &[])]), Ok(()));
    let error = check(vec![root(&["", "made", "usr"])]).unwrap_err();
    assert!(error.contains("has a directory /usr of its own"), "{error}");
}

#[test]
fn what_cannot_be_so_is_damaged() {
    let bench = Bench::new("check");
    assert!(check(&bench.wanted()).is_ok());
    let layer = |path: &str| WantedLayer { path: path.into(), ..bench.wanted().layers[0].clone() };
    let scaffold = |path: &str| WantedLayer {
        scaffold: vec![path.into()],
        ..bench.wanted().layers[0].clone()
    };
    for wanted in [
        Wanted { directories: Vec::new(), ..bench.wanted() },
        Wanted { starts: Vec::new(), ..bench.wanted() },
        Wanted { directories: vec!["relative".into()], ..bench.wanted() },
        Wanted { layers: vec![layer("/etc")], ..bench.wanted() },
        Wanted { layers: vec![layer(&format!("{}/../x", bench.host.display()))], ..bench.wanted() },
        Wanted { layers: vec![layer(&format!("{}//x", bench.host.display()))], ..bench.wanted() },
        Wanted { layers: vec![bench.wanted().layers[0].clone(); 2], ..bench.wanted() },
        Wanted { layers: vec![scaffold("../x")], ..bench.wanted() },
        Wanted { layers: vec![scaffold("/x")], ..bench.wanted() },
    ] {
        let error = check(&wanted).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
