//! Writes a few small images for the fuzzer to begin with, into the directory that it is given.

use std::error::Error;
use std::path::PathBuf;

use sandbox::save::image::{Features, PAGE, Writer};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("name a directory")?);
    std::fs::create_dir_all(&directory)?;
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
