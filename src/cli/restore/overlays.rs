//! The overlays of a restored run: found a place, filled from the image, and kept at its end.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::config::RunSpec;
use crate::overlay::{Held, Layer, Restoring, Saver, Store};
use crate::save::error::RestoreError;
use crate::save::image::{Index, Reader};
use crate::save::restore::layers::{Filling, Layers, wanted};
use crate::save::state::{Overlay, Sandbox};

/// Where the overlays of the image are to be kept, if it has any.
pub(super) fn store(
    sandbox: &Sandbox,
    named: Option<&Path>,
) -> Result<Option<Store>, RestoreError> {
    match &sandbox.overlay {
        None => Ok(None),
        Some(_) => Ok(Store::open(named, true)?),
    }
}

/// The overlays, filled; nothing where there are none.
#[derive(Default)]
pub(super) struct Overlays {
    restoring: Option<Restoring>,
    /// What is mounted.
    pub(super) layers: Vec<Layer>,
    /// For who saves the run again.
    pub(super) saver: Option<Arc<Saver>>,
    /// For who puts its guests together.
    pub(super) filled: Option<Arc<Layers>>,
}

impl Overlays {
    /// Makes those of the image, under this id. `mark`: what one that is kept has of it; `plain`: the image, if it is a
    /// plain file.
    pub(super) fn make<R: Read>(
        (sandbox, mark, spec): (&Sandbox, &[u8], &RunSpec),
        store: Option<Store>,
        id: &str,
        (plain, reader): (Option<(&File, &Index)>, &mut Reader<R>),
    ) -> Result<Overlays, RestoreError> {
        let overlay: &Overlay = match (&sandbox.overlay, spec.overlays().is_empty()) {
            (None, true) => return Ok(Overlays::default()),
            (Some(overlay), false) => overlay,
            _ => {
                return Err(RestoreError::refused(
                    "the image is damaged: its run and its layers do not agree whether it has overlays",
                ));
            }
        };
        let store =
            store.ok_or_else(|| RestoreError::refused("there is no place for its overlays"))?;
        let mut restoring = Restoring::begin(store, id, wanted(overlay, mark), spec)?;
        let mut filling = Filling::begin(overlay, restoring.uppers()?, &spec.identity)?;
        match plain {
            Some((file, index)) => filling.take_from_index(file, index)?,
            None => filling.take_from_stream(reader)?,
        }
        let filled = Arc::new(filling.finish(restoring.place())?);
        let layers = restoring.finish_layers(spec)?;
        let saver = Some(Arc::new(restoring.saver()?));
        Ok(Overlays { restoring: Some(restoring), layers, saver, filled: Some(filled) })
    }

    /// The run has ended, if it has begun: what has changed is kept, and the sentence that says so.
    pub(super) fn end(&mut self) -> Option<String> {
        self.restoring.take().and_then(Restoring::settle).and_then(Held::finish)
    }
}
