//! Layers of overlays, made again on the host before anything else is: what [`crate::save::capture::layers`] saw.
//!
//! The sentry fills them, in directories of the store that are new and nobody else's; when the kernel mounts
//! them all is there, content too. So content of layers comes first in an image. Nothing of what the image says of
//! paths, sizes and attributes is trusted: a path names its entry's place among entries that were made before it,
//! is opened over no symbolic link, and ends in a name ([`make`]).

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::Identity;
use crate::overlay::{CONTENT_SUM, OverlayError, Place, Wanted, WantedLayer};
use crate::save::content_sum::ContentSum;
use crate::save::error::RestoreError;
use crate::save::image::{Frame, Index, Reader};
use crate::save::restore::trees;
use crate::save::sockets::Detail;
use crate::save::state::{FileKind, Layer, Object, Overlay, Sandbox, TreeEntry, TreeKind};

mod make;

use make::{Ids, Maker};

impl From<OverlayError> for RestoreError {
    fn from(error: OverlayError) -> Self {
        RestoreError::Refused(error.to_string())
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// What is wanted of the store. `mark`: see [`Overlay::mark`].
pub fn wanted(overlay: &Overlay, mark: &[u8]) -> Wanted {
    let entries = |layer: &Layer| match layer.skeleton {
        Some(true) => layer.tree.entries.iter().map(|entry| path(&entry.path)).collect(),
        _ => BTreeSet::new(),
    };
    let layer = |layer: &Layer| WantedLayer {
        path: path(&layer.tree.target),
        skeleton: layer.skeleton,
        scaffold: layer.scaffold.iter().map(|it| path(it)).collect(),
        filled: layer.tree.entries.len() > 1,
        names: entries(layer),
    };
    Wanted {
        directories: overlay.directories.iter().map(|it| path(it)).collect(),
        starts: overlay.starts.clone(),
        mark: mark.to_vec(),
        layers: overlay.layers.iter().map(layer).collect(),
    }
}

/// Layers that are being filled.
pub struct Filling<'o> {
    overlay: &'o Overlay,
    makers: Vec<Maker<'o>>,
    /// Where content goes: layer and entry.
    places: HashMap<Object, (usize, usize)>,
    /// What was written to last.
    open: Option<(Object, File)>,
    /// Of all that was written.
    sum: ContentSum,
}

impl<'o> Filling<'o> {
    /// Makes all that is in the layers, but for content that comes from the image. `roots`: an empty directory for
    /// each.
    ///
    /// # Errors
    /// The image cannot mean that, or something cannot be made.
    pub fn begin(
        overlay: &'o Overlay,
        roots: Vec<OwnedFd>,
        identity: &Identity,
    ) -> Result<Filling<'o>, RestoreError> {
        let mut filling = Filling {
            overlay,
            makers: Vec::with_capacity(overlay.layers.len()),
            places: HashMap::new(),
            open: None,
            sum: ContentSum::default(),
        };
        for (number, (layer, root)) in overlay.layers.iter().zip(roots).enumerate() {
            trees::check(&layer.tree)?;
            for (index, entry) in layer.tree.entries.iter().enumerate() {
                if let TreeKind::File { object, .. } = entry.kind
                    && filling.places.insert(object, (number, index)).is_some()
                {
                    return Err(damaged("two files of its layers have the same content"));
                }
            }
            let maker = Maker::new(&layer.tree, root, Ids::of(identity));
            filling.makers.push(maker);
        }
        // (Nothing is made before all of it has been looked at.)
        filling.makers.iter_mut().try_for_each(Maker::make)?;
        Ok(filling)
    }

    /// Takes content from an image that is a plain file.
    ///
    /// # Errors
    /// It is damaged, or there is no room.
    pub fn take_from_index(&mut self, file: &File, index: &Index) -> Result<(), RestoreError> {
        for run in index.runs() {
            if self.places.contains_key(&run.object) {
                return Err(damaged("a file of a layer has pages"));
            }
        }
        for stream in index.streams() {
            if self.places.contains_key(&stream.object) {
                let bytes = index.stream(file, stream)?;
                self.put(stream.object, stream.offset, &bytes)?;
            }
        }
        Ok(())
    }

    /// Takes content from an image that is read from front to back, as far as it is that of layers.
    ///
    /// # Errors
    /// It is damaged, or there is no room.
    pub fn take_from_stream<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
    ) -> Result<(), RestoreError> {
        while let Some(object) = reader.next_object()? {
            if !self.places.contains_key(&object) {
                return Ok(());
            }
            match reader.next_frame()? {
                Some(Frame::Bytes { offset, bytes, .. }) => self.put(object, offset, bytes)?,
                _ => return Err(damaged("a file of a layer has pages")),
            }
        }
        Ok(())
    }

    fn put(&mut self, object: Object, offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let Some((number, index)) = self.places.get(&object).copied() else {
            return Err(damaged("content is nobody's"));
        };
        let maker = &mut self.makers[number];
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > maker.size(index)) {
            return Err(damaged("a file of a layer is larger than it can be"));
        }
        let file = match self.open.take() {
            Some((last, file)) if last == object => file,
            _ => maker.open_content(index)?,
        };
        file.write_all_at(bytes, offset).map_err(|error| maker.failed("write", index, error))?;
        self.open = Some((object, file));
        self.sum.add(object, offset, bytes);
        Ok(())
    }

    fn dress(&mut self) -> Result<(), RestoreError> {
        self.open = None;
        self.makers.iter_mut().try_for_each(Maker::dress)
    }

    /// All content is there: gives everything its owner, attributes, mode and times.
    ///
    /// # Errors
    /// Something cannot have what it had.
    pub fn finish(mut self, place: Arc<Place>) -> Result<Layers, RestoreError> {
        self.dress()?;
        let roots = self.overlay.layers.iter().zip(self.makers);
        let roots = roots.map(|(layer, maker)| (path(&layer.tree.target), maker.into_root()));
        Ok(Layers { place, roots: roots.collect(), content: self.sum.finish() })
    }
}

fn damaged(what: &str) -> RestoreError {
    RestoreError::refused(format!("the image is damaged: {what}"))
}

/// Layers that are filled, while guests are put together over them.
#[derive(Debug)]
pub struct Layers {
    place: Arc<Place>,
    /// By the directory of each.
    roots: Vec<(PathBuf, OwnedFd)>,
    /// The sum of what the image had for them.
    content: [u8; CONTENT_SUM],
}

impl Layers {
    /// All guests stand ready: the overlay gets its name.
    pub(super) fn take_place(&self, sandbox: &Sandbox) -> Result<(), RestoreError> {
        self.settle_times(sandbox);
        Ok(self.place.take(&self.content)?)
    }

    /// They run: what had the name before goes, which may take its time.
    pub(super) fn settle(&self) {
        let place = Arc::clone(&self.place);
        place.begin();
        // Where no thread can be had it goes at the end of the run.
        let _ = std::thread::Builder::new().name("sweep".to_owned()).spawn(move || place.settle());
    }

    /// They did not come to run.
    pub(super) fn give_back(&self) {
        self.place.give_back();
    }

    /// Directories in which something was made for a moment, or bound, get the times that they had. (What cannot
    /// be reached has not been changed either.)
    fn settle_times(&self, sandbox: &Sandbox) {
        let Some(overlay) = &sandbox.overlay else { return };
        let mut touched = touched(sandbox);
        touched.sort_unstable();
        touched.dedup();
        for directory in touched {
            let layers = overlay.layers.iter().zip(&self.roots);
            let nearest = layers
                .filter(|(_, (target, _))| directory.starts_with(target))
                .max_by_key(|(_, (target, _))| target.components().count());
            let Some((layer, (target, root))) = nearest else { continue };
            let Ok(below) = directory.strip_prefix(target) else { continue };
            let below = below.as_os_str().as_bytes();
            let is_it = |entry: &&TreeEntry| {
                entry.path == below && matches!(entry.kind, TreeKind::Directory)
            };
            if let Some(entry) = layer.tree.entries.iter().find(is_it) {
                make::settle_times(root, entry);
            }
        }
    }
}

fn parent(path: &[u8]) -> Option<&Path> {
    Path::new(OsStr::from_bytes(path)).parent()
}

/// Directories whose list of names a restore changes.
fn touched(sandbox: &Sandbox) -> Vec<&Path> {
    let mut all = Vec::new();
    for file in &sandbox.files {
        match &file.kind {
            FileKind::Deleted { path, .. } => {
                // What was missing above it was made and removed, too.
                all.extend(Path::new(OsStr::from_bytes(path)).ancestors().skip(1));
            }
            FileKind::Socket(socket) => {
                let Detail::Unix(unix) = &socket.detail else { continue };
                let file = unix.file.as_ref().and_then(|file| file.path.as_ref());
                all.extend(file.and_then(|path| parent(path)));
                all.extend(unix.name.as_ref().and_then(|name| parent(name)));
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests;
