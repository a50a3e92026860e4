//! Where the writer's bytes go: straight to the output, or through a thread of its own; one behind the other, or
//! to places of a file.
//!
//! Owns batches of pieces, the vectored writing, and the thread. Does not know what a piece means.

use std::io::{ErrorKind, IoSlice, Write};
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::error::ImageError;
use super::format::{PAGE, Page};

/// Bytes of a batch's buffer, and about what is written at once.
pub(super) const BATCH: usize = 8 << 20;
/// Buffers of a writer with a thread: one that is filled, one that is written, one between.
const BUFFERS: usize = 3;
/// Pieces of one writev(2); the kernel takes 1024 (UIO_MAXIOV).
pub(super) const AT_ONCE: usize = 1024;

static ZEROS: Page = [0; PAGE];

/// Some of what is to be written.
#[derive(Debug)]
pub(super) enum Piece {
    /// A table of frames, or the trailer.
    Page(Box<Page>),
    /// Bytes of the batch's buffer.
    Own(Range<usize>),
    /// Bytes of what the caller of the writer has lent.
    Lent(Range<usize>),
    /// So many zeros, less than a page.
    Padding(usize),
}

impl Piece {
    pub(super) fn bytes<'a>(&'a self, own: &'a [u8], lent: &'a [u8]) -> &'a [u8] {
        match self {
            Piece::Page(page) => &page[..],
            Piece::Own(range) => &own[range.clone()],
            Piece::Lent(range) => &lent[range.clone()],
            Piece::Padding(count) => &ZEROS[..*count],
        }
    }
}

/// What is written at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// At most [`BATCH`] bytes, as many as were ever in use: what is not does not become memory.
    pub(super) buffer: Vec<u8>,
    /// Of those so many are in use.
    pub(super) used: usize,
    /// Each with its place in the image; together they have no gaps.
    pub(super) pieces: Vec<(u64, Piece)>,
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch { buffer: Vec::with_capacity(BATCH), used: 0, pieces: Vec::new() }
    }

    /// Bytes of the buffer that are free.
    pub(super) fn room(&self) -> usize {
        BATCH - self.used
    }

    /// So many bytes behind those in use are to be there.
    pub(super) fn prepare(&mut self, size: usize) {
        let length = self.buffer.len().max(self.used + size);
        self.buffer.resize(length, 0);
    }
}

/// A file in which an image begins at 0, and which can be written at any place, by several threads at once.
pub trait Place: Send + Sync {
    /// As pwritev(2).
    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> std::io::Result<usize>;
}

/// What takes bytes.
pub(super) struct Target<W> {
    /// One behind the other, if there are no places.
    pub(super) out: W,
    pub(super) place: Option<Arc<dyn Place>>,
}

/// Where batches go.
pub(super) enum Output<W> {
    Direct(Target<W>),
    Thread(Thread<W>),
}

/// The end of the writing thread that the writer holds.
pub(super) struct Thread<W> {
    batches: SyncSender<Batch>,
    /// Those that have been written.
    back: Receiver<Batch>,
    /// Buffers made so far.
    made: usize,
    thread: JoinHandle<Result<Target<W>, ImageError>>,
}

impl<W: Write> Output<W> {
    /// Writes the pieces, or hands them over, and leaves an empty batch. Only [`Output::Direct`] may
    /// be given `Lent` pieces.
    pub(super) fn put(self, batch: &mut Batch, lent: &[u8]) -> Result<Output<W>, ImageError> {
        if batch.pieces.is_empty() {
            return Ok(self);
        }
        match self {
            Output::Direct(mut to) => {
                write_batch(&mut to, batch, lent)?;
                Ok(Output::Direct(to))
            }
            Output::Thread(thread) => thread.put(batch).map(Output::Thread),
        }
    }

    /// Waits until everything is written.
    pub(super) fn finish(self) -> Result<Target<W>, ImageError> {
        match self {
            Output::Direct(to) => Ok(to),
            Output::Thread(Thread { batches, thread, back, .. }) => {
                drop(batches);
                drop(back);
                joined(thread)
            }
        }
    }
}

impl<W: Write + Send + 'static> Thread<W> {
    /// Starts the thread.
    pub(super) fn start(to: Target<W>) -> Result<Thread<W>, ImageError> {
        let (batches, next) = sync_channel::<Batch>(BUFFERS);
        let (done, back) = channel();
        let work = move || write_all(to, &next, |batch| drop(done.send(batch)));
        let thread = Builder::new().name("image".to_owned()).spawn(work).map_err(|error| {
            ImageError::io("cannot start a thread that writes the image", error)
        })?;
        Ok(Thread { batches, back, made: 1, thread })
    }
}

impl<W> Thread<W> {
    fn put(mut self, batch: &mut Batch) -> Result<Thread<W>, ImageError> {
        if self.batches.send(mem::take(batch)).is_err() {
            return Err(self.failure());
        }
        *batch = if self.made < BUFFERS {
            self.made += 1;
            Batch::new()
        } else {
            let Ok(empty) = self.back.recv() else { return Err(self.failure()) };
            empty
        };
        Ok(self)
    }

    /// Why the thread has ended before its time.
    fn failure(self) -> ImageError {
        drop(self.batches);
        joined(self.thread).err().unwrap_or_else(thread_died)
    }
}

pub(super) fn thread_died() -> ImageError {
    ImageError::Unwritable { what: "a thread that writes it has died".to_owned() }
}

fn joined<T>(thread: JoinHandle<Result<T, ImageError>>) -> Result<T, ImageError> {
    thread.join().unwrap_or_else(|_| Err(thread_died()))
}

/// The thread's work: ends with the output when nobody gives it batches any more.
fn write_all<W: Write>(
    mut to: Target<W>,
    next: &Receiver<Batch>,
    done: impl Fn(Batch),
) -> Result<Target<W>, ImageError> {
    while let Ok(mut batch) = next.recv() {
        write_batch(&mut to, &mut batch, &[])?;
        done(batch);
    }
    Ok(to)
}

/// Writes all pieces and empties the batch.
fn write_batch<W: Write>(
    to: &mut Target<W>,
    batch: &mut Batch,
    lent: &[u8],
) -> Result<(), ImageError> {
    // (Nearly in order: tables come behind their payloads.)
    batch.pieces.sort_by_key(|(at, _)| *at);
    for some in batch.pieces.chunks(AT_ONCE) {
        let mut slices: Vec<IoSlice<'_>> =
            some.iter().map(|(_, it)| IoSlice::new(it.bytes(&batch.buffer, lent))).collect();
        match &to.place {
            Some(place) => write_slices_at(&**place, &mut slices, some[0].0)?,
            None => write_slices(&mut to.out, &mut slices)?,
        }
    }
    batch.pieces.clear();
    batch.used = 0;
    Ok(())
}

/// Writes some bytes, padded to whole pages with zeros.
pub(super) fn write_padded(to: &mut impl Write, bytes: &[u8]) -> Result<(), ImageError> {
    let padding = bytes.len().next_multiple_of(PAGE) - bytes.len();
    write_slices(to, &mut [IoSlice::new(bytes), IoSlice::new(&ZEROS[..padding])])
}

fn write_slices(to: &mut impl Write, slices: &mut [IoSlice<'_>]) -> Result<(), ImageError> {
    all_of(slices, |slices, _| to.write_vectored(slices))
}

/// Writes all of it at a place.
pub(super) fn write_slices_at(
    to: &dyn Place,
    slices: &mut [IoSlice<'_>],
    at: u64,
) -> Result<(), ImageError> {
    all_of(slices, |slices, done| to.write_at(slices, at + done))
}

/// Calls `write` with what is left, and how much was written, until nothing is left.
fn all_of(
    mut slices: &mut [IoSlice<'_>],
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> std::io::Result<usize>,
) -> Result<(), ImageError> {
    let failed = |error| ImageError::io("cannot write the image", error);
    // Slices without bytes go, so that 0 can only mean that nothing more is taken.
    IoSlice::advance_slices(&mut slices, 0);
    let mut done = 0;
    while !slices.is_empty() {
        match write(slices, done) {
            Ok(0) => return Err(failed(ErrorKind::WriteZero.into())),
            Ok(count) => {
                IoSlice::advance_slices(&mut slices, count);
                done += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}
