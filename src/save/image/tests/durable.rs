//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::Uid;

use super::super::*;

/// A directory of the test's own, removed with what is in it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let name = format!("sandbox-image-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Place(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn it_appears_when_it_is_complete() {
    let place = Place::new("new");
    let target = place.0.join("image");
    let mut file = Durable::create(&target).unwrap();
    file.write_all(b"whole").unwrap();
    let names = place.names();
    assert!(names.len() == 1 && names[0].starts_with(".image."), "{names:?}");
    assert!(names[0].ends_with(".partial"), "{names:?}");
    let mode = file.file().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    file.commit().unwrap();
    assert_eq!(place.names(), ["image"]);
    assert_eq!(fs::read(&target).unwrap(), b"whole");
}

#[test]
fn the_old_one_stays_until_then() {
    let place = Place::new("old");
    let target = place.0.join("image");
    fs::write(&target, "old").unwrap();
    let mut file = Durable::create(&target).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"old");
    drop(file);
    assert_eq!(place.names(), ["image"]);
    assert_eq!(fs::read(&target).unwrap(), b"old");
    let mut file = Durable::create(&target).unwrap();
    file.write_all(b"new").unwrap();
    file.commit().unwrap();
    assert_eq!(place.names(), ["image"]);
    assert_eq!(fs::read(&target).unwrap(), b"new");
}

#[test]
fn a_link_is_followed_and_stays() {
    let place = Place::new("link");
    fs::create_dir(place.0.join("there")).unwrap();
    symlink("there/image", place.0.join("one")).unwrap();
    symlink("one", place.0.join("two")).unwrap();
    let error = Durable::create(&place.0.join("two")).unwrap_err().to_string();
    assert!(error.ends_with("it links to nothing"), "{error}");
    fs::write(place.0.join("there/image"), "old").unwrap();
    for content in ["first", "second"] {
        let mut file = Durable::create(&place.0.join("two")).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read_to_string(place.0.join("there/image")).unwrap(), content);
    }
    assert!(place.0.join("two").symlink_metadata().unwrap().is_symlink());
    assert_eq!(place.names(), ["one", "there", "two"]);
}

#[test]
fn what_cannot_be_an_image_is_refused_by_name() {
    let place = Place::new("refused");
    symlink("circle", place.0.join("circle")).unwrap();
    let words = |path: &Path| Durable::create(path).unwrap_err().to_string();
    assert!(words(&place.0).ends_with("it is a directory"));
    assert!(words(Path::new("/dev/null")).contains("neither a regular file nor free"));
    assert!(words(&place.0.join("circle")).contains("Too many levels of symbolic links"));
    assert!(words(&place.0.join("absent/image")).contains("cannot open the directory"));
    assert!(words(&place.0.join("image/")).ends_with("its name ends as a directory's"));
    assert!(words(Path::new("/")).ends_with("it is a directory"));
    assert!(words(Path::new("")).contains("no file name"));
    assert_eq!(place.names(), ["circle"]);
}

#[test]
fn a_name_of_the_greatest_length_will_do() {
    let place = Place::new("long");
    let name = "n".repeat(255);
    Durable::create(&place.0.join(&name)).unwrap().commit().unwrap();
    assert_eq!(place.names(), [name]);
}

#[test]
fn a_full_disk_leaves_the_old_one() {
    if !Uid::effective().is_root() {
        println!("skipped: no right to mount a file system (a_full_disk_leaves_the_old_one)");
        return;
    }
    let place = Place::new("full");
    let none: Option<&str> = None;
    let mounted = mount(none, &place.0, Some("tmpfs"), MsFlags::empty(), Some("size=1m"));
    if mounted.is_err() {
        println!("skipped: no right to mount a file system (a_full_disk_leaves_the_old_one)");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let target = place.0.join("image");
        fs::write(&target, "old").unwrap();
        let file = Durable::create(&target).unwrap();
        let mut writer =
            Writer::begin(file, &super::round_trip::features(), b"state", None).unwrap();
        let pages: Vec<u8> = (0..1u32 << 19).flat_map(u32::to_le_bytes).collect();
        let error = writer.pages(1, 0, &pages).unwrap_err().to_string();
        assert!(error.contains("No space left"), "{error}");
        drop(writer);
        assert_eq!(place.names(), ["image"]);
        assert_eq!(fs::read(&target).unwrap(), b"old");
    });
    umount2(&place.0, MntFlags::MNT_DETACH).unwrap();
    outcome.unwrap();
}

#[test]
fn an_image_is_read_back_from_its_file() {
    let place = Place::new("back");
    let target = place.0.join("image");
    let file = Durable::create(&target).unwrap();
    let features = super::round_trip::features();
    let mut writer = Writer::begin_in_background(file, &features, b"state", None).unwrap();
    writer.pages(1, 0, &[7; 2 * PAGE]).unwrap();
    let (file, _) = writer.finish().unwrap();
    Index::open(file.file()).unwrap().verify(file.file()).unwrap();
    file.commit().unwrap();
    let file = File::open(&target).unwrap();
    assert_eq!(Index::features_of(&file).unwrap(), features);
    assert_eq!(Index::open(&file).unwrap().state(&file).unwrap(), b"state");
}
