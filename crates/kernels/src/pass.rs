//! Passes: operations of which only the last one's result is waited for.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Tensor};

use crate::Kernels;
use crate::error::{Error, Result};

/// What passes are told apart by before they are made; passes of a kind are alike more often than not.
pub type Kind = [usize; 4];

/// Held by whatever stands on a pass's tensors: the next pass of its kind may write them once nobody does.
pub type Lease = Arc<()>;

/// Whether a card starts small passes as one. Clones know the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graphs(Arc<OnceLock<String>>);

impl Graphs {
    /// Why passes start launch by launch, since the card has failed to make, change or start a graph; nothing where it has
    /// not, or passes are the CPU's.
    pub fn failure(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    /// Notes the first failure.
    #[cfg(feature = "card")]
    pub(crate) fn fail(&self, why: String) {
        // Later ones have no graph to fail.
        let _ = self.0.set(why);
    }
}

/// Rows of a pass that is worth it, at most: a larger one takes longer to run than to ask for, and more memory.
#[cfg(feature = "card")]
const ROWS: usize = 16;

impl Kernels {
    /// What is known of a card's graphs.
    pub fn graphs(&self) -> Graphs {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return card.graphs();
        }
        Graphs::default()
    }

    /// Has a card start a pass as one, so that [`Kernels::graphs`] knows whether it can.
    ///
    /// # Errors
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend) if the device fails without a graph, too.
    pub fn try_graphs(&self) -> Result<()> {
        let x = Tensor::zeros((1, 1), DType::F32, self.device())?;
        // The second pass of a kind is the first with a graph.
        (0..2).try_for_each(|_| self.pass([usize::MAX; 4], 1, |_| self.scale(&x, 1.0)).map(drop))
    }

    /// Lets a card start the operations of `work` as one, where an earlier pass had the same.
    ///
    /// Within it tensors go through operations of this crate only, and nothing but the last one's result is read.
    /// Outside, the tensors that it made are good as long as the lease is held.
    ///
    /// # Errors
    /// Those of `work`, and [`ErrorKind::Backend`](crate::ErrorKind::Backend) if the device fails.
    pub fn pass<T, E: From<Error>>(
        &self,
        kind: Kind,
        rows: usize,
        work: impl FnOnce(Lease) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card().filter(|_| rows <= ROWS) {
            let made = work(card.begin(kind));
            let ended = card.end();
            let made = made?;
            return Ok(ended.map(|()| made)?);
        }
        let _ = (kind, rows);
        work(Lease::default())
    }
}
