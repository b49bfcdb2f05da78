//! One opaque error with a kind.
//!
//! Callers branch on five kinds and show one sentence; a variant for every cause would make each new check a
//! breaking change and tell them nothing more.

use std::error::Error as StdError;
use std::fmt;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A model file is missing, broken or does not fit its configuration: use another file.
    Load,
    /// The file is sound, but asks for something that is not built: use another model.
    Unsupported,
    /// More tokens than the context holds: shorten the text.
    Context,
    /// More memory than allowed: lower the context length or raise the limit.
    Memory,
    /// A defect of this program.
    Internal,
}

/// An error of this crate: a kind, a sentence with the offending value and what is allowed, and what caused it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// A result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A file that is missing, broken or does not fit.
    pub fn load(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Load, message)
    }

    /// A sound file that asks for something that is not built.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A text longer than the context.
    pub fn context(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Context, message)
    }

    /// A demand beyond the memory that may be taken.
    pub fn memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Memory, message)
    }

    /// A defect of this program.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: None }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::internal("a tensor operation failed").because(source)
    }
}

impl From<trefoil_kernels::Error> for Error {
    fn from(source: trefoil_kernels::Error) -> Self {
        Self::internal("an operation failed").because(source)
    }
}
