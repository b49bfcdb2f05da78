//! The seam between models and decoding: two traits.

use std::sync::Arc;

use crate::draft::{Draft, Token};
use crate::error::Result;
use crate::kv::{CrossKv, Kv, KvShape};
use crate::scores::Scores;

/// A model that scores the rows of a draft.
pub trait CausalLm: Send + Sync {
    /// The shape of the cache that the model writes.
    fn kv_shape(&self) -> KvShape;

    /// Tokens in the vocabulary: the width of a score row.
    fn vocabulary(&self) -> usize;

    /// Scores every marked row of `draft` in one forward pass and stages the keys and values of all rows in `kv`.
    ///
    /// A row's logits are the same bits whatever other rows the draft holds.
    ///
    /// # Errors
    /// Fails for a token outside the vocabulary, a branch that is not open, or a failed tensor operation.
    fn score(&self, draft: &Draft, kv: &mut Kv) -> Result<Scores>;
}

/// A model that writes about an encoded source.
pub trait Seq2SeqLm: CausalLm {
    /// Encodes `source` and projects the cross-attention's keys and values of every decoder layer, once.
    ///
    /// # Errors
    /// Fails for an empty source or a token outside the vocabulary.
    fn encode(&self, source: &[Token]) -> Result<Arc<CrossKv>>;
}
