//! Trees that are captured, made again elsewhere and compared.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;

use super::*;
use crate::save::capture::collector::{Collector, Content};
use crate::save::capture::trees::capture;
use crate::save::{state, testing};

/// A directory in memory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/dev/shm/sandbox-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let all = Command::new("chmod").args(["-R", "u+rwx"]).arg(&self.0).output();
        assert!(all.is_ok());
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn fill(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/small"), b"few").unwrap();
    fs::write(root.join("a/empty"), b"").unwrap();
    fs::write(root.join("a/secret"), b"not to be read").unwrap();
    fs::write(root.join("a/middle"), vec![3; 16 << 10]).unwrap();
    let large = File::create(root.join("a/b/large")).unwrap();
    large.set_len(64 << 20).unwrap();
    large.write_all_at(b"in the middle", 32 << 20).unwrap();
    File::create(root.join("a/hole")).unwrap().set_len(1 << 40).unwrap();
    fs::hard_link(root.join("a/small"), root.join("a/b/c/other name")).unwrap();
    symlink("../../nowhere", root.join("a/b/link")).unwrap();
    symlink("/etc", root.join("out")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    drop(UnixListener::bind(root.join("socket")).unwrap());
    let mut set = Command::new("setfattr");
    set.args(["-n", "user.note", "-v", "kept"]);
    // (Without that program, or without such attributes in memory, there is one thing less to see.)
    let _ = set.arg(root.join("a/small")).output();
    set_mode(&root.join("a/secret"), 0o200);
    set_mode(&root.join("a/middle"), 0o2755);
    fs::create_dir(root.join("closed")).unwrap();
    fs::create_dir(root.join("closed/inside")).unwrap();
    fs::write(root.join("closed/inside/file"), vec![9; 100_000]).unwrap();
    set_mode(&root.join("closed"), 0);
    set_mode(root, 0o1777);
    let mut past = Command::new("touch");
    past.args(["-h", "-d", "2001-02-03 04:05:06.789"]);
    let all = ["a/small", "a/b/link", "a/b", "fifo", "socket", ""].map(|name| root.join(name));
    assert!(past.args(all).status().unwrap().success());
}

/// What can be told of a tree; names, not numbers, of files with several.
fn look(root: &Path) -> String {
    let mut out = String::new();
    let mut inodes: HashMap<u64, String> = HashMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let it = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let first = inodes.entry(it.ino()).or_insert(name.clone()).clone();
        let times =
            if it.is_dir() || it.is_symlink() || first != name { 0 } else { it.atime_nsec() };
        let line = (name, first, it.mode(), it.uid(), it.gid(), it.mtime(), it.mtime_nsec(), times);
        out += &format!("{line:?}");
        if it.is_dir() {
            let mode = it.permissions();
            set_mode(&path, 0o700);
            let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|it| it.unwrap()).collect();
            names.sort_by_key(|it| it.file_name());
            pending.extend(names.iter().map(|it| it.path()));
            // (Closed again only where the walk does not need it any more.)
            if mode.mode() & 0o700 == 0o700 {
                set_mode(&path, mode.mode());
            }
        } else if it.is_symlink() {
            out += &format!(" -> {}", fs::read_link(&path).unwrap().display());
        } else if it.is_file() {
            out += &format!(" {} in {} blocks", it.len(), it.blocks());
            set_mode(&path, 0o600);
            let content = File::open(&path).unwrap();
            let mut piece = vec![0; 200_000];
            for offset in [0, 32 << 20] {
                let count = content.read_at(&mut piece, offset).unwrap();
                let sum = piece[..count]
                    .iter()
                    .fold(0u64, |sum, it| sum * 31 % 1_000_003 + u64::from(*it));
                out += &format!(" {sum}");
            }
            let mut get = Command::new("getfattr");
            if let Ok(found) =
                get.args(["-d", "--absolute-names", "--only-values"]).arg(&path).output()
            {
                out += &format!(" {:?}", found.stdout);
            }
        }
        out += "\n";
    }
    out
}

/// What the image's writer and reader do with content.
fn carry(contents: Vec<Content>, maker: &Maker<'_>) {
    for content in contents {
        let (object, from, size) = match content {
            Content::File { object, file, size } => (object, file, size),
            Content::Below { object, directory, path, size } => {
                (object, Content::open_below(&directory, &path).unwrap(), size)
            }
            _ => panic!("no memory here"),
        };
        let Sink::Below { directory, path } = &maker.sinks[&object] else { panic!("no sink") };
        let to = Sink::open_below(directory, path).unwrap();
        let mut page = [0; 4096];
        for offset in (0..size).step_by(4096) {
            let count = from.read_at(&mut page, offset).unwrap();
            if page[..count].iter().any(|byte| *byte != 0) {
                to.write_all_at(&page[..count], offset).unwrap();
            }
        }
    }
}

fn captured(root: &Path) -> (Vec<Tree>, Collector) {
    let mut collector = Collector::default();
    let targets = [root.to_owned()];
    let trees = capture(std::process::id() as i32, &targets, &mut collector).unwrap();
    (trees, collector)
}

#[test]
fn a_tree_is_made_again_as_it_was() {
    let (from, to) = (Directory::new("from"), Directory::new("to"));
    fill(&from.0);
    let closed = |root: &Path| fs::metadata(root.join("closed")).unwrap().mode();
    let (mut trees, collector) = captured(&from.0);
    assert_eq!(closed(&from.0) & 0o777, 0);
    assert_eq!(fs::metadata(from.0.join("a/secret")).unwrap().mode() & 0o777, 0o200);
    trees[0].target = serde_bytes::ByteBuf::from(to.0.as_os_str().as_bytes());
    let sandbox = state::Sandbox { trees, ..testing::empty() };
    testing::with_maker(&sandbox, |maker| {
        restore(maker, std::slice::from_ref(&to.0)).unwrap();
        carry(collector.contents, maker);
        for finish in std::mem::take(&mut maker.finishes) {
            finish(maker).unwrap();
        }
    });
    assert_eq!(closed(&to.0) & 0o777, 0);
    assert_eq!(look(&from.0), look(&to.0));
}

#[test]
fn an_image_cannot_lead_out_of_its_tree() {
    let to = Directory::new("guarded");
    let entry = |path: &str, kind| TreeEntry {
        path: serde_bytes::ByteBuf::from(path.as_bytes()),
        mode: 0o644,
        uid: 0,
        gid: 0,
        times: [0; 2],
        attributes: Vec::new(),
        kind,
    };
    let small = || TreeKind::Small { content: Default::default(), size: 0 };
    let link = || TreeKind::Symlink(serde_bytes::ByteBuf::from("/etc"));
    for entries in [
        vec![entry("../x", small())],
        vec![entry("/etc/x", small())],
        vec![entry("a", link()), entry("a/x", small())],
        vec![entry("a/x", small())],
        vec![entry("", TreeKind::Directory)],
        vec![entry("a", TreeKind::Link(serde_bytes::ByteBuf::from("../../etc/passwd")))],
    ] {
        let target = serde_bytes::ByteBuf::from(to.0.as_os_str().as_bytes());
        let root = entry("", TreeKind::Directory);
        let entries = std::iter::once(root).chain(entries).collect();
        let sandbox = state::Sandbox { trees: vec![Tree { target, entries }], ..testing::empty() };
        let error =
            testing::with_maker(&sandbox, |maker| restore(maker, std::slice::from_ref(&to.0)));
        assert!(error.unwrap_err().to_string().contains("damaged"));
    }
    let (trees, _) = captured(&to.0);
    let sandbox = state::Sandbox { trees, ..testing::empty() };
    let error = testing::with_maker(&sandbox, |maker| restore(maker, &[])).unwrap_err();
    assert!(error.to_string().contains("no file system in memory"), "{error}");
}

#[test]
fn ten_thousand_files_are_many() {
    let (from, to) = (Directory::new("many"), Directory::new("again"));
    for directory in 0..100 {
        let directory = from.0.join(directory.to_string());
        fs::create_dir(&directory).unwrap();
        (0..100).for_each(|it| fs::write(directory.join(it.to_string()), b"x").unwrap());
    }
    let begin = std::time::Instant::now();
    let (mut trees, collector) = captured(&from.0);
    let taken = begin.elapsed();
    assert!(collector.contents.is_empty());
    trees[0].target = serde_bytes::ByteBuf::from(to.0.as_os_str().as_bytes());
    let sandbox = state::Sandbox { trees, ..testing::empty() };
    let begin = std::time::Instant::now();
    testing::with_maker(&sandbox, |maker| {
        restore(maker, std::slice::from_ref(&to.0)).unwrap();
        maker.finishes.pop().unwrap()(maker).unwrap();
    });
    println!("captured in {taken:?}, made in {:?}", begin.elapsed());
    assert_eq!(look(&from.0), look(&to.0));
}
