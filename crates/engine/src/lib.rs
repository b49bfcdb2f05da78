//! The engine: from options and text to tokens and back, on one thread a model.
//!
//! Everything that a binding needs is here and knows no binding: options as data ([`Raw`]), a loaded model
//! ([`Engine`]), a text being written ([`Generation`]), typed errors ([`Error`]).

mod admit;
mod answer;
mod budget;
mod costs;
mod decoding;
mod device;
mod draft;
mod engine;
mod error;
mod files;
mod library;
mod lm;
mod loaded;
mod machine;
mod options;
mod outbox;
mod place;
mod prompt;
mod raw;
mod reading;
mod seats;
mod strategy;
pub mod text;
mod tuned;
mod usage;
mod writing;

pub use decoding::{BildDefaults, Decoding};
pub use device::Device;
pub use engine::Engine;
pub use error::{Error, ErrorKind, Result};
pub use library::Document;
pub use loaded::{ModelInfo, Progress};
pub use machine::Machine;
pub use options::{DraftSource, Dtype, GenerateOptions, LoadOptions};
pub use outbox::{Chunk, Event, Generation, Outcome, Stats};
pub use place::{Usable, probe};
pub use prompt::{Prompt, document, prompts, tokens};
pub use raw::{Raw, Reader};
pub use trefoil_decode::{BildSettings, Finish, Pick, Rule};
pub use trefoil_kernels::{Card, Cards, Lack};
pub use usage::Usage;
