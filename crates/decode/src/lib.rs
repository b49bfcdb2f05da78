//! Decoding: the step over a forest of drafts, and the strategies that fill it.
//!
//! A [`Strategy`] hangs draft rows under each branch's pending token and judges the scores; [`Session::step`] does the
//! rest: one forward pass, one path kept per branch, the others dropped. This crate knows tokens and scores, neither
//! devices nor text.

mod auto;
mod bild;
mod cost;
mod echoes;
mod error;
mod jacobi;
mod ledger;
mod little;
mod lookahead;
mod ngrams;
mod odds;
mod plain;
mod prefill;
mod random;
mod sampler;
mod session;
mod strategy;
mod transcript;
mod window;

pub use auto::{AUTO_REACH, Auto, AutoGround};
pub use bild::{Bild, BildSettings, Rule};
pub use cost::Costs;
pub use error::{Error, Result};
pub use jacobi::Jacobi;
pub use little::Little;
pub use lookahead::{Lookahead, LookaheadSettings};
pub use ngrams::Ngrams;
pub use plain::Plain;
pub use prefill::fill;
pub use sampler::{Pick, Sampler, Sampling};
pub use session::{Finish, Kept, Session, Tally};
pub use strategy::{Counters, Due, Hear, Live, Strategy, Verdict, walk};
pub use transcript::Transcript;
