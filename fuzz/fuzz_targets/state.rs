//! Reads any bytes as what an image says of a sandbox, as far as that is looked at before anything is made.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox::save::{opened, spec};

fuzz_target!(|state: &[u8]| {
    let Ok(sandbox) = opened::decode(state) else { return };
    let _ = spec::read(&sandbox.run.spec);
    if let Some(root) = &sandbox.root
        && root.is_sound()
    {
        let sets = root.guests.credentials().expect("sound is what can be read");
        assert!(sets.len() == root.guests.sets.len());
        assert!(root.files.iter().all(|file| file.read().is_some()));
    }
});
