//! Programs that are restored with memory that is mapped from the image (`restore --lazy`).

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::common::{LIMIT, guest, run};
use crate::desk::{Desk, Way};

const LAST: &str = "all as it was\n";

/// A program that is saved and has ended.
fn saved(test: &str) -> Desk {
    let desk = Desk::new(test);
    desk.begin("save_lazy", "");
    desk.sandbox(&["save", "it", "-o", "image"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    desk
}

fn restore(desk: &Desk) {
    desk.sandbox(&["restore", "image", "--detach", "--id", "it", "--lazy"]).success();
}

/// How many of the program's mappings were the image's as it went on.
#[track_caller]
fn mapped(desk: &Desk) -> u32 {
    desk.workspace.read("mapped").trim().parse().unwrap()
}

#[test]
fn the_program_is_right_natively() {
    let desk = Desk::new("lazy-native");
    desk.touch("go");
    let command = desk.workspace.command(guest("save_lazy").to_str().unwrap());
    run(command, b"", LIMIT).success().expect_out(LAST);
}

#[test]
fn memory_of_an_image_is_as_plain_memory_is() {
    let desk = saved("lazy");
    restore(&desk);
    desk.touch("go");
    desk.ends_well(LAST);
    assert!(mapped(&desk) > 5, "{}", mapped(&desk));
    desk.is_clean();
}

#[test]
fn it_is_saved_again() {
    for way in [Way::LeftRunning, Way::Restored] {
        let desk = saved("lazy-again");
        restore(&desk);
        let image = ["save", "it", "-o", "second"];
        if way == Way::LeftRunning {
            desk.sandbox(&[&image[..], &["--leave-running"]].concat()).success();
        } else {
            desk.sandbox(&image).success();
            desk.sandbox(&["wait", "it"]).expect_status(137);
            std::fs::rename(
                desk.workspace.path().join("second"),
                desk.workspace.path().join("image"),
            )
            .unwrap();
            restore(&desk);
        }
        desk.touch("go");
        desk.ends_well(LAST);
        assert_eq!(mapped(&desk) > 0, way == Way::Restored);
        desk.is_clean();
    }
}

#[test]
fn who_overwrites_the_image_waits_for_the_program() {
    let desk = saved("lazy-overwritten");
    restore(&desk);
    let path = desk.workspace.path().join("image");
    let mut image = OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    image.write_all(&vec![0xaa; 1 << 20]).unwrap();
    desk.touch("go");
    desk.ends_well(LAST);
    assert_eq!(mapped(&desk), 0);
    desk.is_clean();
}

#[test]
fn an_image_that_is_removed_is_there_still() {
    let desk = saved("lazy-removed");
    restore(&desk);
    std::fs::remove_file(desk.workspace.path().join("image")).unwrap();
    desk.touch("go");
    desk.ends_well(LAST);
    desk.is_clean();
}

#[test]
fn what_cannot_be_kept_is_read_at_once() {
    let desk = saved("lazy-open");
    let writer = OpenOptions::new().write(true).open(desk.workspace.path().join("image")).unwrap();
    restore(&desk);
    let log = desk.sandbox(&["dmesg", "it"]);
    log.out_has("not --lazy: somebody has the image open for writing");
    drop(writer);
    desk.touch("go");
    desk.ends_well(LAST);
    assert_eq!(mapped(&desk), 0);
    desk.is_clean();
}

#[test]
fn a_damaged_image_ends_the_program() {
    let desk = saved("lazy-damaged");
    let image = OpenOptions::new().write(true).open(desk.workspace.path().join("image")).unwrap();
    let middle = image.metadata().unwrap().len() / 2 + 100;
    image.write_all_at(b"damage", middle).unwrap();
    drop(image);
    // (Nothing tells it to go on: it runs until somebody ends it.)
    let done = desk.sandbox(&["restore", "image", "--lazy"]);
    done.expect_status(137).err_has("the image is damaged");
    desk.is_clean();
}

#[test]
fn an_image_that_cannot_be_mapped_is_refused() {
    let desk = Desk::new("lazy-refused");
    desk.begin("save_lazy", "");
    desk.sandbox(&["save", "it", "-o", "image", "--compress", "zstd"]).success();
    desk.sandbox(&["wait", "it"]).expect_status(137);
    let done = desk.sandbox(&["restore", "image", "--lazy"]);
    done.expect_status(125).err_has("--lazy needs an image that lies in a file");
    // Without the flag it goes on.
    desk.sandbox(&["restore", "image", "--detach", "--id", "it"]).success();
    desk.touch("go");
    desk.ends_well(LAST);
    desk.is_clean();
}
