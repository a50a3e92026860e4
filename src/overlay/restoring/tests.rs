//! What an overlay of an image may take the place of, and what it leaves behind when it fails.

use std::fs;
use std::os::unix::fs::DirBuilderExt;

use super::*;

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
        };
        Wanted {
            directories: vec![self.host.clone()],
            starts: vec![(7, 8)],
            number: b"number".to_vec(),
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
        before(&self.store(), id, b"number").map(|it| it.is_some()).map_err(|it| it.to_string())
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
    bench.keep("same", Some(b"number"));
    assert_eq!(bench.before("same"), Ok(true));
    bench.keep("later", None);
    bench.keep("other", Some(b"another"));
    for id in ["later", "other"] {
        let error = bench.before(id).unwrap_err();
        assert!(error.contains("does not know of") && error.contains("--id"), "{error}");
    }
    // Whatever the number says, files may be the host's and the overlay's.
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

fn place(bench: &Bench, replaces: bool) -> Guard {
    let own = bench.store().directory;
    let name = OsString::from(format!(".it{SUFFIX}"));
    fs::create_dir(bench.base.join("store").join(&name)).unwrap();
    fs::write(bench.base.join("store").join(&name).join("image"), "x").unwrap();
    let place =
        Place { store: own, name, id: "it".to_owned(), replaces, taken: AtomicBool::new(false) };
    Guard { place: Arc::new(place), stays: false, _before: None }
}

#[test]
fn the_store_is_as_it_was_or_has_the_new_one() {
    let bench = Bench::new("place");
    let has = |name: &str| bench.base.join("store/it").join(name).exists();
    // Nobody had the name.
    drop(place(&bench, false));
    assert_eq!(bench.names(), [""; 0]);
    let guard = place(&bench, false);
    guard.place.take().unwrap();
    assert!(has("image"));
    guard.place.give_back();
    drop(guard);
    assert_eq!(bench.names(), [""; 0]);
    // Somebody had it.
    bench.keep("it", None);
    let guard = place(&bench, true);
    guard.place.take().unwrap();
    assert!(has("image") && !has("description"));
    drop(guard);
    assert_eq!(bench.names(), ["it"]);
    assert!(has("description") && !has("image"));
    let mut guard = place(&bench, true);
    guard.place.take().unwrap();
    guard.place.settle();
    guard.stays = true;
    drop(guard);
    assert_eq!(bench.names(), ["it"]);
    assert!(has("image") && !has("description"));
    // It has come into being meanwhile.
    let guard = place(&bench, false);
    let error = guard.place.take().unwrap_err().to_string();
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
