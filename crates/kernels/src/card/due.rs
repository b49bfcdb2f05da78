//! Changes to caches that wait for the next upload.
//!
//! A commit says by words which rows go where, and a step of many branches has many commits. They
//! are gathered instead, and start as one launch a cache with the next upload, in front of
//! whatever reads them.

use candle_core::Tensor;

use super::{Arg, Card, count};
use crate::error::Result;

/// Layers of one launch.
pub(crate) const LAYERS: usize = 64;

/// Pages that are copied, then rows that are written: no two changes meet.
#[derive(Default)]
pub(crate) struct Due {
    copies: Vec<Change>,
    writes: Vec<Change>,
}

/// One launch: a kernel, and the words that say what it does.
pub(crate) struct Change {
    pub(crate) kernel: &'static str,
    /// Addresses by layer: staged keys and values, then the stores; or the stores alone.
    pub(crate) places: Vec<u64>,
    /// Blocks and threads, beside one grid row for each entry of `words`.
    pub(crate) grid: [usize; 2],
    pub(crate) threads: usize,
    /// What else the kernel is told.
    pub(crate) sizes: [usize; 2],
    /// What the addresses are those of, which must live until the launch.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) held: Vec<Tensor>,
    pub(crate) words: Vec<u32>,
}

/// Words of a page copy, from and to; and of a write: row, page and slot.
const COPY: usize = 2;
const WRITE: usize = 3;

impl Due {
    /// Whether anything waits.
    pub(crate) fn waits(&self) -> bool {
        !self.copies.is_empty() || !self.writes.is_empty()
    }

    /// Whether pages can be copied before all writes that wait, and after all copies.
    pub(crate) fn takes_copy(&self, from: u32, to: u32) -> bool {
        let copies = self.copies.iter().flat_map(|change| change.words.as_chunks::<COPY>().0);
        let mut writes = self.writes.iter().flat_map(|change| change.words.as_chunks::<WRITE>().0);
        !copies.into_iter().any(|[before, after]| *after == from || *after == to || *before == to)
            && !writes.any(|[_, page, _]| *page == from || *page == to)
    }

    /// Whether no write that waits goes to the same slot.
    pub(crate) fn takes_write(&self, page: u32, slot: u32) -> bool {
        let mut writes = self.writes.iter().flat_map(|change| change.words.as_chunks::<WRITE>().0);
        !writes.any(|[_, theirs, taken]| *theirs == page && *taken == slot)
    }

    pub(crate) fn copy(&mut self, change: Change) {
        join(&mut self.copies, change);
    }

    pub(crate) fn write(&mut self, change: Change) {
        join(&mut self.writes, change);
    }

    /// All words, in the order in which [`Due::launch`] expects them.
    pub(crate) fn words(&self) -> Vec<u32> {
        self.copies.iter().chain(&self.writes).flat_map(|change| change.words.iter().copied()).collect()
    }

    /// Starts everything; the words are at `address`.
    pub(crate) fn launch(self, card: &Card, mut address: u64) -> Result<()> {
        let copies = self.copies.into_iter().map(|change| (change, COPY));
        for (change, each) in copies.chain(self.writes.into_iter().map(|change| (change, WRITE))) {
            let [first, second] = change.sizes;
            let args = [Arg::Words(&change.places), Arg::Address(address), count(first), count(second)];
            let grid = [change.words.len() / each, change.grid[0], change.grid[1]];
            // SAFETY: rows, pages and slots were checked against the tensors, which are held.
            unsafe { card.launch_now(change.kernel, grid, change.threads, &args) }?;
            address += size_of_val(change.words.as_slice()) as u64;
        }
        Ok(())
    }
}

/// Adds a change to the one of the same tensors, if there is one.
fn join(changes: &mut Vec<Change>, change: Change) {
    match changes.iter_mut().find(|known| known.kernel == change.kernel && known.places == change.places) {
        Some(known) => known.words.extend(change.words),
        None => changes.push(change),
    }
}
