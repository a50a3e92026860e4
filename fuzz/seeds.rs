//! Writes what the fuzzers begin with: a few small images, and what images of sandboxes say of these.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use sandbox::save::image::{Features, PAGE, Writer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args_os().skip(1);
    let mut directory = || -> Result<PathBuf, Box<dyn Error>> {
        let directory = PathBuf::from(words.next().ok_or("name a directory for images, and one for states")?);
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    };
    images(&directory()?)?;
    states(&directory()?, words)
}

/// The states of these images. (Built for fuzzing, a reader takes no image for whole that has checksums: docs/image.md tells
/// where the state is.)
fn states(directory: &Path, images: impl Iterator<Item = OsString>) -> Result<(), Box<dyn Error>> {
    for (number, image) in images.enumerate() {
        let image = std::fs::read(image)?;
        let length = |at: usize| -> Option<usize> {
            let bytes = image.get(at..at + 8)?.try_into().ok()?;
            usize::try_from(u64::from_le_bytes(bytes)).ok()
        };
        let state = length(24).zip(length(40)).and_then(|(features, state)| {
            let at = PAGE + features.checked_next_multiple_of(PAGE)?;
            image.get(at..at.checked_add(state)?)
        });
        std::fs::write(directory.join(number.to_string()), state.ok_or("it is no image")?)?;
    }
    Ok(())
}

fn images(directory: &Path) -> Result<(), Box<dyn Error>> {
    let features = Features::of_this_machine()?;
    for (number, compression) in [None, Some(1)].into_iter().enumerate() {
        for steps in 0..5 {
            let mut writer = Writer::begin(Vec::new(), &features, b"state", compression)?;
            for step in 0..steps {
                let mut pages = vec![0; 5 * PAGE];
                pages[..PAGE].fill(1);
                pages[PAGE..2 * PAGE].fill(1);
                pages[2 * PAGE] = step as u8;
                writer.pages(step % 2, 0x10000 * u64::from(step), &pages)?;
                writer.zeros(7, u64::from(step) << 20, 100)?;
                writer.bytes(step, 3, b"a few bytes of a stream")?;
            }
            let (image, _) = writer.finish()?;
            std::fs::write(directory.join(format!("{number}-{steps}")), image)?;
        }
    }
    Ok(())
}
