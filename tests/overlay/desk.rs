//! A tree of the host, a copy of it for the same work natively, and ways to compare them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::common::{LIMIT, Outcome, Workspace, run};

/// What a tree begins with. All of it is old, so that what is new shows.
const SEED: &str = r#"
    umask 022
    mkdir -p src/deep/er empty linked 'with space' docs
    for n in 1 2 3 4; do echo "file $n" > src/f$n; echo "deep $n" > src/deep/er/g$n; done
    seq 1 2000 > docs/long
    ln -s ../src/f1 docs/link
    ln -s nowhere docs/dangling
    echo shared > linked/a; ln linked/a linked/b
    mkfifo pipe
    echo run > tool; chmod 755 tool
    echo odd > 'with space/na me'
    truncate -s 300000 sparse; printf x | dd of=sparse bs=1 seek=200000 conv=notrunc status=none
    find . -exec touch -h -d '2001-02-03 04:05:06' {} +
"#;

/// How overlays are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the kernel.
    Overlayfs,
    /// By the sandbox, as where the kernel makes none.
    Twins,
}

thread_local! {
    /// How this test has them made.
    static WAY: Cell<Way> = const { Cell::new(Way::Overlayfs) };
}

/// Does a test both ways.
pub(crate) fn both(test: impl Fn()) {
    for way in [Way::Overlayfs, Way::Twins] {
        println!("{way:?}");
        WAY.set(way);
        test();
    }
}

/// Whether it is being done without overlayfs.
pub(crate) fn by_twins() -> bool {
    WAY.get() == Way::Twins
}

pub(crate) struct Desk {
    pub(crate) space: Workspace,
    /// The tree that is overlaid.
    pub(crate) host: PathBuf,
    /// The same tree, for native work.
    pub(crate) copy: PathBuf,
}

/// Everything about one path that a program can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) content: Vec<u8>,
    /// The first name of the same file.
    pub(crate) first_name: PathBuf,
    pub(crate) attributes: Vec<(OsString, Vec<u8>)>,
    /// When it was changed, if that is long ago.
    pub(crate) modified: Option<i64>,
    /// Fewer bytes on the disk than in the file.
    pub(crate) sparse: bool,
}

pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

impl Desk {
    pub(crate) fn new(test: &str) -> Desk {
        Desk::seeded(test, SEED)
    }

    pub(crate) fn seeded(test: &str, seed: &str) -> Desk {
        let space = Workspace::new(test);
        let (host, copy) = (space.path().join("host"), space.path().join("copy"));
        fs::create_dir(&host).unwrap();
        fs::DirBuilder::new().mode(0o700).create(space.path().join("run")).unwrap();
        let desk = Desk { space, host, copy };
        desk.sh(&desk.host, seed).success();
        let mut twin = desk.space.command("cp");
        twin.arg("-a").arg(&desk.host).arg(&desk.copy);
        run(twin, b"", LIMIT).success();
        desk
    }

    /// Runs a script natively in a directory.
    pub(crate) fn sh(&self, directory: &Path, script: &str) -> Outcome {
        let mut command = self.space.command("bash");
        command.current_dir(directory).args(["-euc", script]);
        run(command, b"", LIMIT)
    }

    /// `sandbox`, with overlays kept in this workspace, and ids of its own.
    pub(crate) fn sandbox(&self) -> Command {
        let mut command = self.space.sandbox();
        command.current_dir(&self.host).env("XDG_STATE_HOME", self.space.path().join("state"));
        command.env("XDG_RUNTIME_DIR", self.space.path().join("run"));
        command
    }

    /// A verb or a run, with these words.
    pub(crate) fn words<S: AsRef<OsStr>>(&self, words: &[S]) -> Outcome {
        let mut command = self.sandbox();
        let words: Vec<&OsStr> = words.iter().map(AsRef::as_ref).collect();
        let at = usize::from(words.first().is_some_and(|word| *word == "run"));
        let own: &[&str] = if by_twins() && words.contains(&"--overlay".as_ref()) {
            &["--without", "overlayfs"]
        } else {
            &[]
        };
        command.args(&words[..at]).args(own).args(&words[at..]);
        run(command, b"", LIMIT)
    }

    /// Runs a script in the overlay of the tree.
    pub(crate) fn inside(&self, id: &str, script: &str) -> Outcome {
        self.words(&["run", "--id", id, "--overlay", ".", "--", "bash", "-euc", script])
    }

    pub(crate) fn diff(&self, id: &str) -> Vec<(char, PathBuf)> {
        let outcome = self.words(&["diff", id, "--json"]);
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&outcome.stdout)
            .unwrap_or_else(|error| panic!("{error}\n{}", outcome.report()));
        outcome.expect_status(i32::from(!rows.is_empty()));
        let letter = |row: &serde_json::Value| match row["change"].as_str().unwrap() {
            "added" => 'A',
            "modified" => 'M',
            "deleted" => 'D',
            "type" => 'T',
            "attributes" => 'P',
            other => panic!("an unknown change: {other}"),
        };
        let path = |row: &serde_json::Value| match row["path_bytes"].as_array() {
            Some(bytes) => {
                let bytes: Vec<u8> =
                    bytes.iter().map(|it| u8::try_from(it.as_u64().unwrap()).unwrap()).collect();
                PathBuf::from(OsStr::from_bytes(&bytes))
            }
            None => PathBuf::from(row["path"].as_str().unwrap()),
        };
        rows.iter()
            .map(|row| (letter(row), path(row).strip_prefix(&self.host).unwrap().to_owned()))
            .collect()
    }

    /// Where the overlays are.
    pub(crate) fn store(&self) -> PathBuf {
        self.space.path().join("state/sandbox/overlays")
    }

    /// Nothing is kept of any overlay.
    #[track_caller]
    pub(crate) fn nothing_is_kept(&self) {
        let kept: Vec<_> = fs::read_dir(self.store()).into_iter().flatten().flatten().collect();
        assert!(kept.is_empty(), "an overlay is left: {kept:?}");
    }
}

/// Reads a tree.
pub(crate) fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    read(root, Path::new(""), &mut names, &mut tree);
    tree
}

fn read(root: &Path, relative: &Path, names: &mut BTreeMap<(u64, u64), PathBuf>, tree: &mut Tree) {
    let mut entries: Vec<_> =
        fs::read_dir(root.join(relative)).into_iter().flatten().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, below) = (entry.path(), relative.join(entry.file_name()));
        let found = path.symlink_metadata().unwrap();
        let kind = found.file_type();
        let letter = match kind {
            kind if kind.is_dir() => 'd',
            kind if kind.is_symlink() => 'l',
            kind if kind.is_fifo() => 'p',
            kind if kind.is_file() => 'f',
            _ => '?',
        };
        let content = match letter {
            'f' => fs::read(&path).unwrap_or_else(|_| b"(unreadable)".to_vec()),
            'l' => fs::read_link(&path).unwrap().into_os_string().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        let first_name = match letter {
            'd' => below.clone(),
            _ => names.entry((found.dev(), found.ino())).or_insert_with(|| below.clone()).clone(),
        };
        let made = Entry {
            kind: letter,
            mode: found.mode() & 0o7777,
            owner: (found.uid(), found.gid()),
            content,
            first_name,
            attributes: if letter == 'l' { Vec::new() } else { attributes(&path) },
            modified: Some(found.mtime()).filter(|time| *time < 1_500_000_000),
            sparse: letter == 'f' && found.blocks() * 512 + 65536 < found.size(),
        };
        tree.insert(below.clone(), made);
        if letter == 'd' {
            read(root, &below, names, tree);
        }
    }
}

/// Attributes of users, by getfattr's own calls in Python: no crate of the tests has them.
fn attributes(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    use std::ffi::CString;
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let names = sandbox::sys::beneath::attribute_names(&path).unwrap_or_default();
    let mut found: Vec<(OsString, Vec<u8>)> = names
        .into_iter()
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let value =
                sandbox::sys::beneath::attribute(&path, &CString::new(name.clone()).unwrap());
            (OsStr::from_bytes(&name).to_owned(), value.unwrap_or_default())
        })
        .collect();
    found.sort();
    found
}

/// What was done to the first tree, if the second one came of it: what `sandbox diff` has to say.
pub(crate) fn expected(before: &Tree, after: &Tree) -> Vec<(char, PathBuf)> {
    let mut all: Vec<&PathBuf> = before.keys().chain(after.keys()).collect();
    all.sort();
    all.dedup();
    let mut changes = Vec::new();
    for path in all {
        let letter = match (before.get(path), after.get(path)) {
            (None, Some(_)) => 'A',
            (Some(_), None) => {
                let above = path.parent().filter(|it| !it.as_os_str().is_empty());
                // What has gone with its directory is not told of.
                if above.is_some_and(|it| after.get(it).is_none_or(|it| it.kind != 'd')) {
                    continue;
                }
                'D'
            }
            (Some(one), Some(other)) if one.kind != other.kind => 'T',
            (Some(one), Some(other)) if one.content != other.content => 'M',
            (Some(one), Some(other))
                if (one.mode, one.owner, &one.attributes)
                    != (other.mode, other.owner, &other.attributes) =>
            {
                'P'
            }
            _ => continue,
        };
        changes.push((letter, path.clone()));
    }
    changes
}

/// Fails with the paths that differ.
#[track_caller]
pub(crate) fn same_trees(what: &str, one: &Tree, other: &Tree) {
    let mut differ = Vec::new();
    for path in one.keys().chain(other.keys()) {
        if one.get(path) != other.get(path) {
            let short = |entry: Option<&Entry>| {
                entry.map(|it| {
                    let mut it = it.clone();
                    it.content.truncate(60);
                    it
                })
            };
            differ.push(format!(
                "{path:?}:\n  {:?}\n  {:?}",
                short(one.get(path)),
                short(other.get(path))
            ));
        }
    }
    differ.dedup();
    assert!(differ.is_empty(), "{what}:\n{}", differ.join("\n"));
}

/// A file system that goes with this.
pub(crate) struct Unmount(PathBuf);

impl Unmount {
    /// A directory in memory.
    pub(crate) fn tmpfs(at: &Path, options: &str) -> Unmount {
        fs::create_dir_all(at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "none"]).arg(at);
        run(command, b"", LIMIT).success();
        Unmount(at.to_owned())
    }
}

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
