//! Models: the Llama and T5 families, their cache and their weights.
//!
//! A model scores a [`Draft`], a forest of rows over the branches of a [`Kv`] cache, in one forward pass
//! ([`CausalLm::score`]). It knows nothing of why the rows are there.

mod config;
mod draft;
mod error;
mod kv;
mod linear;
mod llama;
mod model;
mod ranked;
mod residual;
mod scored;
mod scores;
mod sharded;
mod staged;
mod t5;
mod t5_bias;
pub mod weights;

pub use config::{LlamaConfig, ModelConfig, RopeScaling, T5Config};
pub use draft::{BranchId, Draft, Draw, Row, RowId, Token};
pub use error::{Error, ErrorKind, Result};
pub use kv::{CrossKv, Kv, KvShape};
pub use llama::Llama;
pub use model::{CausalLm, Seq2SeqLm};
pub use ranked::{Ranked, Rescore};
pub use scores::{Logits, Probabilities, Scores};
pub use sharded::{Sharded, encode};
pub use staged::{Layers, Staged};
pub use t5::T5;
pub use trefoil_kernels::{CacheType, Devices};
pub use weights::{RawTensor, Weights};
