//! What can be wrong with an image, one sentence each.
//!
//! Owns the words; who prints them names the file.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why an image cannot be written or read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ImageError {
    /// The kernel refused to read or write.
    Io {
        /// What was being done: "cannot write the image".
        what: String,
        /// Its reason.
        source: io::Error,
    },
    /// It does not begin as an image does.
    NotAnImage,
    /// It was written by a newer program.
    Version {
        /// The version it says.
        found: u32,
    },
    /// The input ends before the image does.
    CutShort {
        /// Within what.
        within: &'static str,
    },
    /// A checksum says that something has changed.
    Damaged {
        /// What.
        what: String,
    },
    /// Something that no writer writes, under a checksum that fits.
    Impossible {
        /// What is wrong with what.
        what: String,
    },
    /// There is something behind the end.
    Trailing,
    /// A section or a number is above what this program takes.
    TooLarge {
        /// What, as "the state".
        what: &'static str,
        /// Its size.
        size: u64,
        /// The most it may have.
        most: u64,
    },
    /// This machine's pages are of another size.
    PageSize {
        /// The image's.
        image: u32,
        /// This machine's.
        here: u32,
    },
    /// The image needs what this processor has not.
    Processor {
        /// The flags, as /proc/cpuinfo writes them, or parts of extended state.
        lacks: Vec<String>,
    },
    /// A part of the extended state lies elsewhere on this processor.
    Layout {
        /// Which part.
        component: String,
    },
    /// The kernels map different code into programs.
    Vdso {
        /// The kernel of the image.
        image: String,
        /// The kernel of this machine.
        here: String,
    },
    /// A caller gave the writer what an image cannot hold.
    Unwritable {
        /// What is wrong with what.
        what: String,
    },
    /// The name cannot be an image's.
    Target {
        /// The name.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
}

impl ImageError {
    /// An error of the kernel's, with what was being done.
    pub(super) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> ImageError {
        ImageError::Io { what: what.into(), source: source.into() }
    }

    /// A checksum does not fit.
    pub(super) fn damaged(what: impl Into<String>) -> ImageError {
        ImageError::Damaged { what: what.into() }
    }

    /// Nonsense.
    pub(super) fn impossible(what: impl Into<String>) -> ImageError {
        ImageError::Impossible { what: what.into() }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::Io { what, source } => write!(to, "{what}: {source}"),
            ImageError::NotAnImage => write!(to, "this is not an image of a sandbox"),
            ImageError::Version { found } => write!(
                to,
                "the image is of format version {found}; this program reads up to {}",
                super::VERSION
            ),
            ImageError::CutShort { within } => {
                write!(to, "the image is cut short: it ends within {within}")
            }
            ImageError::Damaged { what } => {
                write!(to, "the image is damaged: the checksum of {what} does not fit")
            }
            ImageError::Impossible { what } => write!(to, "the image is malformed: {what}"),
            ImageError::Trailing => write!(to, "the image is malformed: something follows its end"),
            ImageError::TooLarge { what, size, most } => {
                write!(to, "the image is refused: {what} has {size} bytes; {most} is the most")
            }
            ImageError::PageSize { image, here } => write!(
                to,
                "the image needs pages of {image} bytes; those of this machine have {here}"
            ),
            ImageError::Processor { lacks } => {
                write!(
                    to,
                    "the image needs a processor with {}; this one lacks ",
                    lacks.join(", ")
                )?;
                to.write_str(if lacks.len() == 1 { "it" } else { "them" })
            }
            ImageError::Layout { component } => write!(
                to,
                "this processor keeps the registers of {component} at another place than the image's"
            ),
            ImageError::Vdso { image, here } => write!(
                to,
                "the image's programs hold the vDSO of kernel {image}, which differs from that of \
                 this one, {here}"
            ),
            ImageError::Unwritable { what } => write!(to, "cannot write the image: {what}"),
            ImageError::Target { path, why } => {
                write!(to, "cannot write an image to {}: {why}", path.display())
            }
        }
    }
}

impl std::error::Error for ImageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ImageError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
