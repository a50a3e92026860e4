//! The image file of a saved sandbox: bytes, sections, frames and checks.
//!
//! Owns the format (docs/image.md, byte by byte), its [`Writer`], which can write to
//! a pipe, its [`Reader`], which can read from one, the [`Index`] of an image in a file, and [`Durable`],
//! a file that appears under its name whole or not at all. Deliberately does not know what the state
//! means (bytes), what an object is (a number), or what a sandbox is. Whatever is read is hostile until
//! it has been checked: lengths are capped before anything is allocated, sums are checked before
//! anything is believed, and a sum that fits proves no good will.

mod error;
mod features;
mod file;
mod format;
mod frames;
mod hash;
mod index;
mod lanes;
mod output;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use error::ImageError;
pub use features::{Features, OtherVdso};
pub use file::Durable;
pub use format::{Level, PAGE, Summary, VERSION};
pub use index::{CHECKERS, Index, Run, Source, Stream};
pub use output::Place;
pub use reader::{Frame, Opened, Reader};
pub use writer::{Fetch, Pages, Writer};
