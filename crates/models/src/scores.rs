//! What a step returns: the logits of the rows that asked for them.

use crate::draft::{Draft, RowId};

/// Logits of a draft's scored rows.
#[derive(Clone, Debug)]
pub struct Scores {
    vocabulary: usize,
    /// Logits as the workers gave them: `[scored rows, vocabulary]` each.
    parts: Vec<Vec<f32>>,
    /// For each row of the draft, its part and its place there.
    slots: Vec<Option<(u32, u32)>>,
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
                    (0, next - 1)
                })
            })
            .collect();
        debug_assert_eq!(logits.len(), next as usize * vocabulary);
        Self { vocabulary, parts: vec![logits], slots }
    }

    /// No row's logits yet.
    pub(crate) fn none(draft: &Draft, vocabulary: usize) -> Self {
        Self { vocabulary, parts: Vec::new(), slots: vec![None; draft.len()] }
    }

    /// Takes in the scores of a draft whose rows are `rows` of the whole one.
    pub(crate) fn join(&mut self, rows: &[RowId], other: Self) {
        let before = self.parts.len() as u32;
        self.parts.extend(other.parts);
        for (row, slot) in rows.iter().zip(other.slots) {
            if let Some((part, at)) = slot {
                self.slots[row.index()] = Some((before + part, at));
            }
        }
    }

    /// The logits after `row`: `[vocabulary]`; `None` where the draft did not ask for them.
    pub fn row(&self, row: RowId) -> Option<&[f32]> {
        let (part, at) = (*self.slots.get(row.index())?)?;
        self.parts.get(part as usize)?.chunks_exact(self.vocabulary).nth(at as usize)
    }
}
