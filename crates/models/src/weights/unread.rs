//! Tensors of a model's layers that nothing reads.
//!
//! A bias that the architecture does not have changes every answer of the program that wrote the file and none here,
//! so a model that brings one is refused rather than run without it.

use super::Weights;
use crate::error::{Error, Result};

/// Tensors that files hold although no one needs them: copies of what the configuration says, and a table that T5's
/// first implementation had and did not use.
const HARMLESS: [&str; 3] =
    [".rotary_emb.inv_freq", ".attn_rot_embd.weight", ".EncDecAttention.relative_attention_bias.weight"];

impl Weights {
    /// Refuses a tensor under one of these layers that has not been read: to be called when a model has been loaded.
    ///
    /// * `layers`: the beginnings of the layers' names, up to the number, in both formats; and how many there are.
    pub(crate) fn check_read(&self, layers: &[(&str, usize)]) -> Result<()> {
        let of_layer = |name: &str| {
            layers.iter().any(|(start, count)| {
                let number = name.strip_prefix(start).and_then(|rest| rest.split_once('.'));
                number
                    .and_then(|(number, _)| number.parse().ok())
                    .is_some_and(|number: usize| number < *count)
            })
        };
        let unread = self.entries.iter().filter(|(_, entry)| !entry.is_read()).map(|(name, _)| name.as_str());
        let unread = unread.filter(|name| of_layer(name) && !HARMLESS.iter().any(|end| name.ends_with(end)));
        // The first in order, so that the same file always gives the same error.
        match unread.min() {
            None => Ok(()),
            Some(name) => Err(Error::load(format!(
                "tensor {name} has no place in this model, which would run as if it were not there; allowed are the \
                 tensors of its architecture"
            ))),
        }
    }
}
