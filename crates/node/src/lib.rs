//! Node bindings: glue between JavaScript values and the engine, without logic of its own.
//!
//! Failures cross the border as data, because an exception of the binding layer could carry neither our kinds nor our
//! causes. Every wait is a promise that the engine thread settles; no thread of Node's pool is ever used.

#![deny(unsafe_code)]
#![expect(clippy::missing_errors_doc, reason = "a method fails only where JavaScript itself does")]
#![expect(missing_docs, reason = "fields carry the names and meanings of the engine's own types")]

/// A step makes and drops tensors of megabytes. The system's allocator gives such memory back each time, and the page
/// faults of taking it again are up to a quarter of the step; this one keeps it for the next step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod document;
mod events;
mod loading;
mod machine;
mod model;
mod promise;
mod value;

pub use document::{NativeDocument, NativeRead, NativeReading};
pub use events::{NativeEvent, NativeFailure, NativeGeneration, NativeResult, NativeStats};
pub use loading::{NativeLoaded, NativeLoading, NativeProgress};
pub use machine::{NativeCard, NativeMachine, NativeProbe, machine, probe};
pub use model::{NativeInfo, NativeModel, NativeStarted, NativeText, NativeTokens};
