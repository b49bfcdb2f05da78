//! What a step stages: the keys and values of its rows, beside the cache until it is known which rows stay.

use candle_core::Tensor;

use crate::draft::{Draft, RowId};
use crate::error::{Error, Result};

/// Keys and values by layer: `[rows, kv_heads, head_dim]` each.
pub type Layers = Vec<(Tensor, Tensor)>;

/// Keys and values of a draft's rows in every layer, as one worker or several have computed them.
#[derive(Clone, Debug, Default)]
pub struct Staged {
    parts: Vec<Part>,
}

/// What one worker has computed.
#[derive(Clone, Debug)]
struct Part {
    /// The draft's rows that the worker had, ascending.
    rows: Vec<RowId>,
    layers: Layers,
}

impl Staged {
    /// The keys and values of all rows of `draft`.
    pub fn new(draft: &Draft, layers: Layers) -> Self {
        let rows = (0..draft.len() as u32).map(RowId).collect();
        Self { parts: vec![Part { rows, layers }] }
    }

    /// Takes in what a worker has staged for a draft whose rows are `rows` of the whole one, ascending.
    pub(crate) fn join(&mut self, rows: &[RowId], other: Self) {
        self.parts.extend(other.parts.into_iter().map(|part| Part {
            rows: part.rows.into_iter().map(|row| rows[row.index()]).collect(),
            layers: part.layers,
        }));
    }

    /// The layers that hold every row of `path`, and where in them each row is. No path is in pieces: who has a row
    /// has its ancestors.
    ///
    /// # Errors
    /// Fails where nobody has staged the path.
    pub(crate) fn find(&self, path: &[RowId]) -> Result<(&Layers, Vec<u32>)> {
        let has = |part: &Part| -> Option<Vec<u32>> {
            path.iter().map(|row| part.rows.binary_search(row).ok().map(|at| at as u32)).collect()
        };
        let found = self.parts.iter().find_map(|part| Some((&part.layers, has(part)?)));
        found.ok_or_else(|| Error::internal("commit of rows that were not staged"))
    }
}
