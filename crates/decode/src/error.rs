//! Errors of decoding.

use std::fmt;

/// A failed step: its message, and the model's error where that is the cause.
#[derive(Debug)]
pub struct Error {
    message: String,
    source: Option<trefoil_models::Error>,
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// The model's error, where it is the cause.
    pub fn model(&self) -> Option<&trefoil_models::Error> {
        self.source.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

impl From<trefoil_models::Error> for Error {
    fn from(source: trefoil_models::Error) -> Self {
        Self { message: "the model's forward pass failed".into(), source: Some(source) }
    }
}
