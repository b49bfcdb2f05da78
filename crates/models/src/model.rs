//! The seam between models and decoding: two traits.

use std::sync::Arc;

use crate::draft::{Draft, Token};
use crate::error::Result;
use crate::kv::{CrossKv, Kv, KvShape};
use crate::scores::Scores;
use crate::staged::Staged;

/// A model that scores the rows of a draft.
pub trait CausalLm: Send + Sync {
    /// The shape of the cache that the model writes.
    fn kv_shape(&self) -> KvShape;

    /// Tokens in the vocabulary: the width of a score row.
    fn vocabulary(&self) -> usize;

    /// Scores every marked row of `draft` in one forward pass over what `kv` has committed; gives the scores, and the
    /// keys and values of all rows.
    ///
    /// A row's logits are the same bits whatever other rows the draft holds.
    ///
    /// # Errors
    /// Fails for a token outside the vocabulary, a branch that is not open, or a failed tensor operation.
    fn forward(&self, draft: &Draft, kv: &Kv) -> Result<(Scores, Staged)>;

    /// [`CausalLm::forward`], and stages the keys and values in `kv`, so that rows can be committed.
    ///
    /// # Errors
    /// As [`CausalLm::forward`].
    fn score(&self, draft: &Draft, kv: &mut Kv) -> Result<Scores> {
        let (scores, staged) = self.forward(draft, kv)?;
        kv.stage(staged);
        Ok(scores)
    }
}

/// A model that writes about an encoded source.
pub trait Seq2SeqLm: CausalLm {
    /// Encodes `source` and projects the cross-attention's keys and values of every decoder layer, once.
    ///
    /// # Errors
    /// Fails for an empty source or a token outside the vocabulary.
    fn encode(&self, source: &[Token]) -> Result<Arc<CrossKv>>;
}
