//! What a step stages: the keys and values of its rows, beside the cache until it is known which rows stay.

use candle_core::Tensor;
use trefoil_kernels::{Kernels, Lease, Move, Path};

use crate::draft::{Draft, RowId};
use crate::error::{Error, Result};

/// Keys and values by layer: `[rows, kv_heads, head_dim]` each.
pub type Layers = Vec<(Tensor, Tensor)>;

/// A page, and an offset there.
pub(crate) type Slot = (u32, u32);

/// Keys and values of a draft's rows in every layer, as one worker or several have computed them.
#[derive(Clone, Debug, Default)]
pub struct Staged {
    parts: Vec<Part>,
}

/// What one worker has computed.
#[derive(Clone, Debug)]
struct Part {
    /// The rank of the worker's device.
    device: usize,
    /// The draft's rows that the worker had, ascending.
    rows: Vec<RowId>,
    layers: Layers,
    /// Of the pass that made them.
    lease: Lease,
}

impl Staged {
    /// The keys and values of all rows of `draft`, on the device of `kernels`.
    pub fn new(kernels: &Kernels, draft: &Draft, layers: Layers) -> Self {
        let rows = (0..draft.len() as u32).map(RowId).collect();
        Self { parts: vec![Part { device: kernels.rank(), rows, layers, lease: Lease::default() }] }
    }

    /// The same, made by a pass whose memory they stand on.
    #[must_use]
    pub(crate) fn on(mut self, lease: &Lease) -> Self {
        self.parts.iter_mut().for_each(|part| part.lease.clone_from(lease));
        self
    }

    /// Takes in what a worker has staged for a draft whose rows are `rows` of the whole one, ascending.
    pub(crate) fn join(&mut self, rows: &[RowId], other: Self) {
        self.parts.extend(
            other.parts.into_iter().map(|part| Part {
                rows: part.rows.into_iter().map(|row| rows[row.index()]).collect(),
                ..part
            }),
        );
    }

    /// What each of so many devices has staged of `path`, to be committed to `slots`; nothing where a device has not
    /// staged it. No path is in pieces: who has a row has its ancestors.
    ///
    /// # Errors
    /// Fails where nobody has staged the path.
    pub(crate) fn find(
        &self,
        path: &[RowId],
        slots: &[Slot],
        devices: usize,
    ) -> Result<Vec<Option<Path<'_>>>> {
        let has = |part: &Part| -> Option<Vec<Move>> {
            let moved = path.iter().zip(slots).map(|(row, &(page, offset))| {
                let row = part.rows.binary_search(row).ok()? as u32;
                Some(Move { row, page, offset })
            });
            moved.collect()
        };
        let on = |device| {
            let mut parts = self.parts.iter().filter(|part| part.device == device);
            parts.find_map(|part| has(part).map(|moves| Path { layers: &part.layers, moves }))
        };
        let found: Vec<_> = (0..devices).map(on).collect();
        if found.iter().all(Option::is_none) {
            return Err(Error::internal("commit of rows that were not staged"));
        }
        Ok(found)
    }
}
