//! What the content of files in the layers of overlays is known by.

use sha2::{Digest, Sha256};

use crate::overlay::CONTENT_SUM;
use crate::save::state::Object;

/// The SHA-256 of all parts of such content in the order of the image, each with its object, its place, and its
/// length in front. It is in no image: who has written one, and who reads it, comes to the same.
#[derive(Debug, Clone, Default)]
pub struct ContentSum(Sha256);

impl ContentSum {
    /// A part of an object's content, as one frame has it.
    pub fn add(&mut self, object: Object, offset: u64, bytes: &[u8]) {
        self.0.update(object.to_le_bytes());
        self.0.update(offset.to_le_bytes());
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The sum of all of it.
    pub fn finish(self) -> [u8; CONTENT_SUM] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_whose_it_is_and_where_make_the_sum() {
        let sum = |parts: &[(u32, u64, &[u8])]| {
            let mut sum = ContentSum::default();
            parts.iter().for_each(|(object, offset, bytes)| sum.add(*object, *offset, bytes));
            sum.finish()
        };
        let one = sum(&[(1, 0, b"some"), (2, 5, b"more")]);
        assert_eq!(one, sum(&[(1, 0, b"some"), (2, 5, b"more")]));
        for other in [
            &[(1, 0, &b"same"[..]), (2, 5, b"more")][..],
            &[(3, 0, b"some"), (2, 5, b"more")],
            &[(1, 0, b"some"), (2, 6, b"more")],
            &[(2, 5, b"more"), (1, 0, b"some")],
            &[(1, 0, b"somemore")],
            &[],
        ] {
            assert_ne!(one, sum(other));
        }
    }
}
