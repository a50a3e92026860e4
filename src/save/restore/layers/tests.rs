//! Layers that are captured, made again elsewhere and compared; and images that would have the sentry make
//! something else.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, mknod};
use proptest::prelude::*;
use serde_bytes::ByteBuf;

use super::*;
use crate::config::IdRange;
use crate::save::capture::collector::{Collector, Content};
use crate::save::capture::trees::{Ids as Inside, Of, walk};
use crate::save::content;
use crate::save::image::{Features, Opened, Writer};
use crate::save::state::Tree;
use crate::sys::{beneath, files};

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let base = std::env::temp_dir();
        let path = base.join(format!("sandbox-layers-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    /// An empty one in it.
    fn below(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        Command::new("chmod").args(["-R", "u+rwx"]).arg(&self.0).output().unwrap();
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn own_identity() -> Identity {
    let one = |id| vec![IdRange { inside: id, outside: id, count: 1 }];
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Identity { uid, gid, groups: None, uid_map: one(uid), gid_map: one(gid) }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether the file system keeps the attribute.
fn set_attribute(path: &Path, name: &std::ffi::CStr, value: &[u8]) -> bool {
    let file = File::open(path).unwrap();
    beneath::set_attribute(&files::descriptor_path(file.as_fd()), name, value).is_ok()
}

/// All that an upper layer can hold.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("merged/opaque/deep")).unwrap();
    set_attribute(&root.join("merged/opaque"), c"user.overlay.opaque", b"y");
    set_attribute(&root.join("merged"), c"user.overlay.impure", b"y");
    fs::write(root.join("merged/opaque/deep/small"), "few").unwrap();
    fs::write(root.join("merged/copied"), "copied up").unwrap();
    set_attribute(&root.join("merged/copied"), c"user.overlay.origin", b"some handle");
    set_attribute(&root.join("merged/copied"), c"user.overlay.overlay.opaque", b"a guest's");
    set_attribute(&root.join("merged/copied"), c"user.note", b"kept");
    let (file, mode) = (SFlag::S_IFCHR, Mode::empty());
    mknod(&root.join("gone"), file, mode, 0).unwrap();
    fs::hard_link(root.join("gone"), root.join("merged/gone too")).unwrap();
    fs::hard_link(root.join("merged/copied"), root.join("other name")).unwrap();
    symlink("/etc", root.join("out")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRUSR).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    let large = File::create(root.join("large")).unwrap();
    large.set_len(1 << 36).unwrap();
    large.write_all_at(&[7; 100_000], 1 << 35).unwrap();
    fs::write(root.join("secret"), vec![9; 50_000]).unwrap();
    set_mode(&root.join("secret"), 0);
    set_mode(&root.join("merged/copied"), 0o4711);
    fs::create_dir_all(root.join("closed/in")).unwrap();
    fs::write(root.join("closed/in/file"), vec![3; 40_000]).unwrap();
    set_mode(&root.join("closed/in"), 0o100);
    set_mode(&root.join("closed"), 0);
    let mut past = Command::new("touch");
    past.args(["-h", "-d", "2001-02-03 04:05:06.789"]);
    let all = ["merged/copied", "out", "merged", "fifo", "socket", "large", "closed"];
    assert!(past.args(all.map(|name| root.join(name))).status().unwrap().success());
    set_mode(root, 0o1755);
}

/// A tree in words: what is in it, and what can be told of that.
fn look(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inodes: HashMap<u64, PathBuf> = HashMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let it = fs::symlink_metadata(&path).unwrap();
        let kind = it.file_type();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let whiteout = kind.is_char_device();
        let first = match whiteout || kind.is_dir() {
            true => name.clone(),
            false => inodes.entry(it.ino()).or_insert(name.clone()).clone(),
        };
        let time = if whiteout { (0, 0) } else { (it.mtime(), it.mtime_nsec()) };
        let mut line = format!("{name:?} {first:?} {:o} {time:?} {}", it.mode(), it.rdev());
        if kind.is_symlink() {
            line += &format!(" -> {:?}", fs::read_link(&path).unwrap());
        } else if kind.is_file() || kind.is_dir() {
            // (Opened with what rights it takes, and closed again.)
            set_mode(&path, 0o700);
            let opened = File::open(&path).unwrap();
            let own = files::descriptor_path(opened.as_fd());
            let mut names = beneath::attribute_names(&own).unwrap_or_default();
            names.retain(|name| {
                crate::save::capture::layers::is_carried(name)
                    && !name.starts_with(b"user.overlay.impure")
            });
            names.sort();
            for name in names {
                let value =
                    beneath::attribute(&own, &std::ffi::CString::new(name.clone()).unwrap());
                line += &format!(" {}={:?}", name.escape_ascii(), value.unwrap());
            }
        }
        if kind.is_file() {
            let opened = File::open(&path).unwrap();
            let mut sum = 0u64;
            for offset in [0, 1 << 35] {
                let mut room = vec![0; 110_000];
                let count = opened.read_at(&mut room, offset).unwrap();
                sum =
                    room[..count].iter().fold(sum, |sum, it| sum * 31 % 1_000_003 + u64::from(*it));
            }
            line += &format!(" {} bytes ({sum}), sparse: {}", it.len(), it.blocks() < 10_000);
        }
        if kind.is_dir() {
            let mut names: Vec<_> =
                fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()).collect();
            names.sort();
            pending.extend(names);
        }
        lines.push(line);
    }
    lines.sort();
    lines
}

fn opened(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn overlay_of(trees: Vec<Tree>) -> Overlay {
    let layers =
        trees.into_iter().map(|tree| Layer { skeleton: Some(false), scaffold: Vec::new(), tree });
    Overlay {
        number: ByteBuf::from(*b"0123456789abcdef"),
        directories: Vec::new(),
        starts: vec![(1, 2)],
        layers: layers.collect(),
    }
}

fn captured(root: &Path, collector: &mut Collector) -> Overlay {
    let ids = Inside::of(std::process::id() as i32).unwrap();
    let target = Path::new("/layer");
    let tree = walk(opened(root), target, &ids, collector, Of::Layer).unwrap();
    overlay_of(vec![tree])
}

/// An image of these contents, some pages behind them.
fn image(contents: &[Content]) -> Vec<u8> {
    let features = Features::of_this_machine().unwrap();
    let mut writer = Writer::begin(Vec::new(), &features, b"state", Some(1)).unwrap();
    content::write(contents, &HashSet::new(), &mut writer).unwrap();
    writer.pages(1_000_000, 0, &[1; 4096]).unwrap();
    writer.finish().unwrap().0
}

#[test]
fn a_layer_is_made_again_as_it_was() {
    again("round", 0);
}

#[test]
fn what_has_no_room_in_the_state_is_content_like_any_other() {
    again("no-room", 64 << 20);
}

/// `inline`: how much content of other layers lies in the state.
fn again(name: &str, inline: u64) {
    let base = Directory::new(name);
    let (from, to, piped) = (base.below("from"), base.below("to"), base.below("piped"));
    fill(&from);
    let mut collector = Collector::default();
    collector.known.inline = inline;
    let overlay = captured(&from, &mut collector);
    let is_small = |entry: &TreeEntry| {
        *entry.path == b"merged/opaque/deep/small"[..]
            && matches!(&entry.kind, TreeKind::Small { content, .. } if **content == b"few"[..])
    };
    assert_eq!(overlay.layers[0].tree.entries.iter().any(is_small), inline == 0);
    let image = image(&collector.contents);
    let roots = |path: &Path| vec![opened(path)];
    let mut filling = Filling::begin(&overlay, roots(&piped), &own_identity()).unwrap();
    let (_, mut reader) = Opened::open(&image[..]).unwrap().state().unwrap();
    filling.take_from_stream(&mut reader).unwrap();
    assert!(matches!(reader.next_frame().unwrap(), Some(Frame::Data { object: 1_000_000, .. })));
    filling.dress().unwrap();
    let file = crate::sys::memfd::anonymous_file(c"image").unwrap();
    file.write_all_at(&image, 0).unwrap();
    let mut filling = Filling::begin(&overlay, roots(&to), &own_identity()).unwrap();
    filling.take_from_index(&file, &Index::open(&file).unwrap()).unwrap();
    filling.dress().unwrap();
    assert!(fs::symlink_metadata(to.join("gone")).unwrap().file_type().is_char_device());
    let was = look(&from);
    assert_eq!(look(&to), was);
    assert_eq!(look(&piped), was);
    assert!(was.iter().any(|line| line.contains("opaque") && line.contains("[121]")), "{was:?}");
}

fn entry(path: &str, kind: TreeKind) -> TreeEntry {
    let mode =
        if kind == TreeKind::Directory { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
    TreeEntry {
        path: ByteBuf::from(path.as_bytes()),
        mode,
        uid: 0,
        gid: 0,
        times: [0; 2],
        attributes: Vec::new(),
        kind,
    }
}

fn small() -> TreeKind {
    TreeKind::Small { content: ByteBuf::from(*b"x"), size: 1 }
}

fn link(to: &str) -> TreeKind {
    TreeKind::Link(ByteBuf::from(to.as_bytes()))
}

fn symbolic(to: &str) -> TreeKind {
    TreeKind::Symlink(ByteBuf::from(to.as_bytes()))
}

fn of_entries(entries: Vec<TreeEntry>) -> Overlay {
    let entries = std::iter::once(entry("", TreeKind::Directory)).chain(entries).collect();
    overlay_of(vec![Tree { target: ByteBuf::from(*b"/layer"), entries }])
}

fn with(name: &[u8], value: &[u8], of: TreeEntry) -> TreeEntry {
    TreeEntry { attributes: vec![(ByteBuf::from(name), ByteBuf::from(value))], ..of }
}

/// Makes it, content and all.
fn made(overlay: &Overlay, root: &Path, image: &[u8]) -> Result<(), RestoreError> {
    let roots = overlay.layers.iter().map(|_| opened(root)).collect();
    let mut filling = Filling::begin(overlay, roots, &own_identity())?;
    let (_, mut reader) = Opened::open(image)?.state()?;
    filling.take_from_stream(&mut reader)?;
    filling.dress()
}

#[test]
fn the_mark_of_an_image_is_bound_to_what_it_says() {
    let overlay = of_entries(vec![entry("file", small())]);
    let (mark, other) = (overlay.mark(b"state"), overlay.mark(b"statf"));
    assert_eq!(mark.len(), 16 + 32);
    assert!(mark != other && mark[..16] == other[..16] && mark == overlay.mark(b"state"));
}

#[test]
fn an_image_makes_nothing_outside_of_its_layer_and_nothing_that_no_run_makes() {
    let base = Directory::new("hostile");
    let outside = base.below("outside");
    fs::write(outside.join("there"), "untouched").unwrap();
    let path = outside.to_str().unwrap();
    let empty = image(&[]);
    let file = |object, size| TreeKind::File { object, size };
    for (number, (entries, words)) in [
        (vec![entry("../outside/x", small())], "cannot be so"),
        (vec![entry(&format!("{path}/x"), small())], "cannot be so"),
        (vec![entry("a", symbolic(path)), entry("a/x", small())], "cannot be so"),
        (vec![entry("a/x", small())], "cannot be so"),
        (vec![entry(".", TreeKind::Directory)], "cannot be so"),
        (vec![entry("a//b", small())], "cannot be so"),
        (vec![entry("a", small()), entry("a", small())], "cannot be so"),
        (vec![entry("a\0b", small())], "cannot be so"),
        (vec![entry("a", link("../outside/there"))], "cannot be so"),
        (vec![entry("a", link(""))], "cannot be so"),
        (vec![entry("a", file(1, 1 << 63))], "File too large"),
        (vec![entry("a", file(1, 5)), entry("b", file(1, 5))], "same content"),
        (
            vec![with(b"user.overlay.redirect", b"/outside", entry("a", TreeKind::Directory))],
            "redirect",
        ),
        (vec![with(b"user.overlay.metacopy", b"", entry("a", small()))], "metacopy"),
        (vec![with(b"trusted.overlay.opaque", b"y", entry("a", TreeKind::Directory))], "trusted"),
        (vec![with(b"security.selinux", b"x", entry("a", small()))], "security.selinux"),
        (vec![with(b"user.x", b"y", entry("a", symbolic("b")))], "user.x"),
        (
            vec![with(b"user.overlay.opaque", &[b'y'; 100], entry("a", TreeKind::Directory))],
            "opaque",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let layer = base.below(&format!("layer-{number}"));
        let error = made(&of_entries(entries), &layer, &empty).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{number}: {error}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("there")).unwrap(), "untouched");
    let found = fs::metadata(outside.join("there")).unwrap();
    assert_eq!(found.nlink(), 1);
}

#[test]
fn content_that_fits_no_file_is_refused() {
    let base = Directory::new("content");
    let features = Features::of_this_machine().unwrap();
    let of = |write: &dyn Fn(&mut Writer<Vec<u8>>)| {
        let mut writer = Writer::begin(Vec::new(), &features, b"state", None).unwrap();
        write(&mut writer);
        writer.finish().unwrap().0
    };
    let overlay = of_entries(vec![entry("a", TreeKind::File { object: 1, size: 10 })]);
    for (number, (image, words)) in [
        (of(&|to| to.bytes(1, 5, b"123456").unwrap()), "larger than it can be"),
        (of(&|to| to.bytes(1, 1 << 60, b"1").unwrap()), "larger than it can be"),
        (of(&|to| to.pages(1, 0, &[1; 4096]).unwrap()), "has pages"),
    ]
    .iter()
    .enumerate()
    {
        let layer = base.below(&format!("layer-{number}"));
        let error = made(&overlay, &layer, image).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(fs::metadata(layer.join("a")).unwrap().len() <= 10);
        // By the list it is no other.
        let layer = base.below(&format!("listed-{number}"));
        let file = crate::sys::memfd::anonymous_file(c"image").unwrap();
        file.write_all_at(image, 0).unwrap();
        let mut filling = Filling::begin(&overlay, vec![opened(&layer)], &own_identity()).unwrap();
        let error = filling.take_from_index(&file, &Index::open(&file).unwrap()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// The state of an image with one layer that has something of everything.
fn something() -> Vec<u8> {
    let overlay = of_entries(vec![
        entry("d", TreeKind::Directory),
        entry("d/small", small()),
        entry("d/l", symbolic("../../outside")),
        with(b"user.note", b"x", entry("large", TreeKind::File { object: 1, size: 100 })),
        entry("again", link("d/small")),
        entry("w", TreeKind::Whiteout),
        entry("fifo", TreeKind::Fifo),
        entry("s", TreeKind::Socket),
    ]);
    let mut bytes = Vec::new();
    ciborium::into_writer(&overlay, &mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_layer_is_made_within_its_directory_or_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        swaps in proptest::collection::vec((0..9usize, 0..9usize, 0..3usize), 0..3),
        parts in proptest::collection::vec(
            prop::sample::select(vec!["..", ".", "", "d", "l", "x", "outside"]), 1..5,
        ),
    ) {
        let mut bytes = something();
        for (place, byte) in changes {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        let overlay: Option<Overlay> = ciborium::from_reader(&bytes[..]).ok();
        let whole: Overlay = ciborium::from_reader(&something()[..]).unwrap();
        let mut overlay = overlay.unwrap_or(whole);
        let odd = ByteBuf::from(parts.join("/").into_bytes());
        for (one, other, what) in swaps {
            for layer in &mut overlay.layers {
                let entries = &mut layer.tree.entries;
                if one < entries.len() && other < entries.len() {
                    match what {
                        0 => entries.swap(one, other),
                        1 => entries[one].path = odd.clone(),
                        _ => entries[one].kind = TreeKind::Link(odd.clone()),
                    }
                }
            }
        }
        let base = Directory::new("damaged");
        let (outside, layer) = (base.below("outside"), base.below("layer"));
        fs::write(outside.join("there"), "untouched").unwrap();
        let _ = made(&overlay, &layer, &image(&[]));
        prop_assert_eq!(fs::read_dir(&base.0).unwrap().count(), 2);
        prop_assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        let found = fs::metadata(outside.join("there")).unwrap();
        prop_assert_eq!((found.len(), found.nlink(), found.mode() & 0o777), (9, 1, 0o644));
        set_mode(&layer, 0o700);
        for entry in fs::read_dir(&layer).unwrap().flatten() {
            let found = entry.path().symlink_metadata().unwrap();
            let kind = found.file_type();
            prop_assert!(!kind.is_block_device() && (!kind.is_char_device() || found.rdev() == 0));
        }
    }
}
