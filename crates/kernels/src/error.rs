//! What can go wrong in a kernel: a caller's shapes, or the machine.

use std::error::Error as StdError;
use std::fmt;

/// The result of every fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure an [`Error`] is, for callers that branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A tensor has another shape, type or layout than the operation takes.
    Shape,
    /// An index (token, row, page, offset) lies outside what it indexes.
    Range,
    /// This machine cannot run what was asked for.
    Unsupported,
    /// The allocator had no memory for a weight or a cache.
    Memory,
    /// A task of the thread pool panicked; the pool goes on working.
    Panicked,
    /// The tensor backend failed.
    Backend,
    /// There is no such device here, or it can't be used.
    Device(Lack),
}

/// What is missing where a card can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lack {
    /// CUDA in this build.
    Build,
    /// A driver, or one that answers.
    Driver,
    /// A driver as new as the toolkit that this was built with.
    NewerDriver,
    /// A card of that number.
    Card,
    /// A card as new as the oldest that kernels are built for.
    NewerCard,
    /// Memory on the card.
    Memory,
    /// Kernels for heads as wide as the model's.
    Heads,
    /// Other cards of the same compute capability: rows are the same bits on those only.
    Alike,
    /// NCCL, by which cards exchange rows, or in this build what calls it.
    Nccl,
}

impl Lack {
    /// The name that programs know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Driver => "driver",
            Self::NewerDriver => "driver-too-old",
            Self::Card => "no-card",
            Self::NewerCard => "card-too-old",
            Self::Memory => "memory",
            Self::Heads => "heads-too-wide",
            Self::Alike => "cards-differ",
            Self::Nccl => "nccl",
        }
    }
}

/// A kernel's failure: a kind, a message that names the value and what is allowed, and a source.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<candle_core::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn shape(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Shape, message)
    }

    pub(crate) fn range(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Range, message)
    }

    pub(crate) fn device(lack: Lack, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Device(lack), message)
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self { kind: ErrorKind::Backend, message: format!("tensor backend: {source}"), source: Some(source) }
    }
}
