//! The kernel's own answers about random trees, held against ours.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::openat;
use proptest::prelude::*;

use super::*;

/// Rules that say nothing.
#[derive(Debug)]
struct None;

impl Rules for None {
    fn verdict(&self, _: &[u8]) -> Verdict {
        Verdict::Plain
    }

    fn same_below(&self, _: &[u8], _: &[u8]) -> bool {
        true
    }
}

struct Tree(PathBuf);

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tree(name: &str) -> Tree {
    let path = std::env::temp_dir().join(format!("sandbox-paths-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    Tree(path.canonicalize().unwrap())
}

/// A directory below it, so deep that links, which lead up seven times each at most, do not lead out of it one behind the
/// other: what is made through them is removed with the tree.
fn deep(place: &Path) -> PathBuf {
    let deep = (0..20).fold(place.to_owned(), |path, _| path.join("d"));
    std::fs::create_dir_all(&deep).unwrap();
    deep
}

fn resolver(root: &Root) -> Resolver<'_> {
    Resolver::new(nix::unistd::gettid().as_raw(), root, &None, &|| true)
}

/// Device, inode and flags of what is opened, or the error.
type Answer = Result<(u64, u64, u32), Errno>;

fn seen(opened: Result<OwnedFd, Errno>) -> Answer {
    let file = File::from(opened?);
    let found = file.metadata().unwrap();
    Ok((found.dev(), found.ino(), found.mode()))
}

fn natively(directory: &File, path: &[u8], flags: i32) -> Answer {
    let flags = OFlag::from_bits_retain(flags | libc::O_CLOEXEC | libc::O_NONBLOCK);
    seen(openat(directory, os(path), flags, Mode::from_bits_retain(0o640)))
}

fn ours(root: &Root, directory: &File, path: &[u8], flags: i32) -> Answer {
    let wish = Wish::of(flags | libc::O_NONBLOCK, 0o640)?.unwrap();
    let start = Start::Descriptor(directory.as_raw_fd());
    match resolver(root).open(start, path, wish, Option::None)? {
        Opened::Now(fd) | Opened::New(fd) => seen(Ok(fd)),
        Opened::Later(_) | Opened::Lacking(_) => panic!("something waits"),
    }
}

/// What a tree is made of: directories, files and links by the same few names.
fn pieces() -> impl Strategy<Value = Vec<(String, u8, String)>> {
    let path = "[abc](/[abc]){0,2}";
    let target = "(/|\\./|(\\.\\./){1,4})?([abc.]{1,2}/?){0,3}";
    proptest::collection::vec((path, 0u8..6, target), 1..14)
}

fn build(tree: &Path, pieces: &[(String, u8, String)]) {
    for (path, kind, target) in pieces {
        let path = tree.join(path);
        let _ = match kind {
            0 | 1 => std::fs::create_dir(path),
            2 => std::fs::write(path, "x"),
            _ if target.starts_with('/') => symlink(tree.join(&target[1..]), path),
            _ => symlink(target, path),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn paths_lead_where_the_kernel_says(
        pieces in pieces(),
        paths in proptest::collection::vec("(\\./|\\.\\./)?([abc.]{1,2}/{0,2}){0,5}", 1..20),
        absolute: bool,
    ) {
        const FLAGS: [i32; 6] = [
            libc::O_RDONLY,
            libc::O_RDONLY | libc::O_NOFOLLOW,
            libc::O_RDONLY | libc::O_DIRECTORY,
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW,
            libc::O_WRONLY,
            libc::O_RDWR | libc::O_NOFOLLOW,
        ];
        let place = tree("lead");
        let tree = deep(&place.0);
        build(&tree, &pieces);
        let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
        let directory = File::open(&tree).unwrap();
        for path in &paths {
            let mut path = path.clone().into_bytes();
            if absolute {
                path = joined(tree.as_os_str().as_bytes(), &path);
            }
            for flags in FLAGS {
                let (kernel, own) =
                    (natively(&directory, &path, flags), ours(&root, &directory, &path, flags));
                let text = String::from_utf8_lossy(&path).into_owned();
                prop_assert_eq!(kernel, own, "{} {:o}", text, flags);
            }
        }
    }

    #[test]
    fn files_are_made_where_the_kernel_makes_them(
        pieces in pieces(),
        path in "(\\./|\\.\\./)?([abc.]{1,2}/{0,2}){0,4}",
        flags in 0usize..4,
    ) {
        const FLAGS: [i32; 4] = [
            libc::O_CREAT | libc::O_WRONLY,
            libc::O_CREAT | libc::O_RDWR | libc::O_EXCL,
            libc::O_CREAT | libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_TRUNC,
            libc::O_TMPFILE | libc::O_RDWR,
        ];
        let flags = FLAGS[flags];
        let place = tree("made");
        let answers = ["kernel", "ours"].map(|name| {
            // (No path leads to where the other one is.)
            let tree = deep(&place.0.join(name));
            build(&tree, &pieces);
            let directory = File::open(&tree).unwrap();
            let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
            let opened = match name {
                "kernel" => natively(&directory, path.as_bytes(), flags),
                _ => ours(&root, &directory, path.as_bytes(), flags),
            };
            (opened.map(|(_, _, mode)| mode), listed(&place.0.join(name)))
        });
        prop_assert_eq!(&answers[0], &answers[1], "{} {:o}", path, flags);
    }

    #[test]
    fn nothing_panics(path: Vec<u8>) {
        let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
        let path: Vec<u8> = path.into_iter().filter(|byte| *byte != 0).collect();
        let _ = resolver(&root).walk(Start::Directory, &path, true);
        let _ = resolver(&root).parent(Start::Directory, &path);
    }
}

/// All names in a tree, with what they are.
fn listed(tree: &Path) -> Vec<(PathBuf, u32, u64)> {
    let mut all = Vec::new();
    let mut left = vec![tree.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().flatten() {
            let found = entry.path().symlink_metadata().unwrap();
            let size = if found.is_file() { found.len() } else { 0 };
            all.push((entry.path().strip_prefix(tree).unwrap().to_owned(), found.mode(), size));
            if found.is_dir() {
                left.push(entry.path());
            }
        }
    }
    all.sort();
    all
}

#[test]
fn a_slash_at_the_end_makes_no_file_over_links_either() {
    let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
    let tree = tree("slash");
    let directory = File::open(&tree.0).unwrap();
    std::fs::write(tree.0.join("file"), "x").unwrap();
    for (name, target) in [("self", "self/"), ("none", "new/"), ("both", "file/"), ("up", "../")] {
        symlink(target, tree.0.join(name)).unwrap();
    }
    for path in ["self", "self/", "none", "none/", "both", "both/", "up", "up/", "file/", "new/"] {
        for flags in [libc::O_CREAT, libc::O_CREAT | libc::O_EXCL, libc::O_CREAT | libc::O_NOFOLLOW]
        {
            let flags = flags | libc::O_WRONLY;
            let kernel = natively(&directory, path.as_bytes(), flags);
            assert_eq!(kernel, ours(&root, &directory, path.as_bytes(), flags), "{path} {flags:o}");
        }
    }
    assert!(!tree.0.join("new").exists());
}

#[test]
fn magic_links_and_devices_are_those_of_the_caller() {
    let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
    let tree = tree("magic");
    std::fs::write(tree.0.join("file"), "x").unwrap();
    let file = File::open(tree.0.join("file")).unwrap();
    let directory = File::open(&tree.0).unwrap();
    let number = file.as_raw_fd();
    for path in [
        format!("/proc/self/fd/{number}"),
        format!("/proc/thread-self/fd/{number}"),
        format!("/proc/{}/fd/{number}", std::process::id()),
        format!("/dev/fd/{number}"),
        format!("/proc/self/fd/{}/file", directory.as_raw_fd()),
        format!("/proc/self/root{}/file", tree.0.display()),
        "/proc/self/exe".to_owned(),
        "/proc/self/cwd/Cargo.toml".to_owned(),
        "/proc/self/root/..".to_owned(),
        "/proc/mounts".to_owned(),
        "/proc/self/fd/x".to_owned(),
        "/dev/null".to_owned(),
        "/..".to_owned(),
        "/".to_owned(),
    ] {
        let answers = [natively, |directory: &File, path: &[u8], flags| {
            ours(&Root::of(nix::unistd::gettid().as_raw()).unwrap(), directory, path, flags)
        }]
        .map(|open| open(&directory, path.as_bytes(), libc::O_RDONLY));
        assert_eq!(answers[0], answers[1], "{path}");
    }
    // What was removed is still there for who has it open.
    std::fs::remove_file(tree.0.join("file")).unwrap();
    let path = format!("/proc/self/fd/{number}");
    assert_eq!(
        ours(&root, &directory, path.as_bytes(), libc::O_RDONLY),
        natively(&directory, path.as_bytes(), libc::O_RDONLY)
    );
}

#[test]
fn links_to_the_root_directory_lead_no_higher() {
    let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
    let tree = tree("root");
    let directory = File::open(&tree.0).unwrap();
    for (name, target) in [("slash", "/"), ("dot", "/."), ("up", "/.."), ("far", "/../../dev")] {
        symlink(target, tree.0.join(name)).unwrap();
        for behind in ["", "/", "/.", "/..", "/null", "/dev/null", "/../dev/null", "/none"] {
            let path = format!("{name}{behind}");
            for flags in [libc::O_RDONLY, libc::O_RDONLY | libc::O_NOFOLLOW, libc::O_DIRECTORY] {
                let kernel = natively(&directory, path.as_bytes(), flags);
                let own = ours(&root, &directory, path.as_bytes(), flags);
                assert_eq!(kernel, own, "{path} {flags:o}");
            }
        }
    }
}

#[test]
fn links_in_a_circle_and_long_paths_end() {
    let root = Root::of(nix::unistd::gettid().as_raw()).unwrap();
    let tree = tree("circle");
    for at in 0..45 {
        symlink(format!("l{}", at + 1), tree.0.join(format!("l{at}"))).unwrap();
    }
    std::fs::write(tree.0.join("l45"), "").unwrap();
    symlink("self/x", tree.0.join("self")).unwrap();
    let directory = File::open(&tree.0).unwrap();
    let long = "a/".repeat(2100);
    let name = "n".repeat(256);
    for path in ["l0", "l4", "l5", "l6", "self", "self/", &long, &name, "", "l45/x", "l45/"] {
        let (path, flags) = (path.as_bytes(), libc::O_RDONLY);
        assert_eq!(ours(&root, &directory, path, flags), natively(&directory, path, flags));
    }
}
