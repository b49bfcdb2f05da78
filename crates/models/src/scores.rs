//! What a step returns: the logits of the rows that asked for them.

use crate::draft::{Draft, RowId};

/// Logits of a draft's scored rows.
#[derive(Clone, Debug)]
pub struct Scores {
    vocabulary: usize,
    logits: Vec<f32>,
    slots: Vec<Option<u32>>,
}

impl Scores {
    /// Takes the logits of the rows of `draft` that are marked as scored, in draft order.
    ///
    /// * `logits`: `[scored rows, vocabulary]`, f32, contiguous.
    pub fn new(draft: &Draft, vocabulary: usize, logits: Vec<f32>) -> Self {
        let mut next = 0;
        let slots = draft
            .rows()
            .iter()
            .map(|row| {
                row.scored.then(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        debug_assert_eq!(logits.len(), next as usize * vocabulary);
        Self { vocabulary, logits, slots }
    }

    /// The logits after `row`: `[vocabulary]`; `None` where the draft did not ask for them.
    pub fn row(&self, row: RowId) -> Option<&[f32]> {
        let slot = (*self.slots.get(row.index())?)? as usize;
        self.logits.get(slot * self.vocabulary..(slot + 1) * self.vocabulary)
    }
}
