//! Llama and T5 families, their cache and their weights.

pub mod config;
pub mod error;
pub mod weights;

pub use config::{LlamaConfig, ModelConfig, RopeScaling, T5Config};
pub use error::{Error, ErrorKind, Result};
pub use weights::{RawTensor, WeightType, Weights};
