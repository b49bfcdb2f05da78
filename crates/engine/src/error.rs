//! Errors that callers see: a kind they can act on, a message that names the value and what is allowed, a chain of
//! causes.

use std::fmt;

use trefoil_kernels::Lack;

/// What went wrong, by what a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller cancelled.
    Aborted,
    /// An option or argument has a value that is not allowed.
    InvalidOption,
    /// The model's files can't be used.
    ModelLoad,
    /// The text does not fit the context.
    ContextOverflow,
    /// The memory limit would be passed.
    OutOfMemory,
    /// There is no such device, or it can't be used.
    Device(Lack),
    /// Too much work is waiting.
    Overloaded,
    /// The model was disposed.
    Disposed,
    /// A fault of the engine itself.
    Internal,
}

impl ErrorKind {
    /// The kind's name, as bindings show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aborted => "Aborted",
            Self::InvalidOption => "InvalidOption",
            Self::ModelLoad => "ModelLoad",
            Self::ContextOverflow => "ContextOverflow",
            Self::OutOfMemory => "OutOfMemory",
            Self::Device(_) => "Device",
            Self::Overloaded => "Overloaded",
            Self::Disposed => "Disposed",
            Self::Internal => "Internal",
        }
    }

    /// Why a device can't be used, as bindings name it.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Device(lack) => Some(lack.name()),
            _ => None,
        }
    }
}

/// An engine error. Clones, because one failure can reach several generations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    causes: Vec<String>,
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new() }
    }

    /// The same error with the chain of `source` as its causes.
    #[must_use]
    pub fn because(mut self, source: &dyn std::error::Error) -> Self {
        let mut next = Some(source);
        while let Some(cause) = next {
            self.causes.push(cause.to_string());
            next = cause.source();
        }
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message, without causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What caused it, nearest first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }

    /// The same error, whose message begins with `whose`.
    pub(crate) fn within(self, whose: &str) -> Self {
        Self { message: format!("{whose}; {}", self.message), ..self }
    }

    pub(crate) fn option(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidOption, message)
    }

    pub(crate) fn load(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ModelLoad, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub(crate) fn disposed() -> Self {
        Self::new(ErrorKind::Disposed, "the model has been disposed")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<trefoil_kernels::Error> for Error {
    fn from(error: trefoil_kernels::Error) -> Self {
        use trefoil_kernels::ErrorKind as Kind;
        let kind = match error.kind() {
            Kind::Device(lack) => ErrorKind::Device(lack),
            Kind::Memory => ErrorKind::OutOfMemory,
            _ => ErrorKind::Internal,
        };
        let wrapped = Self::new(kind, error.to_string());
        match std::error::Error::source(&error) {
            Some(source) => wrapped.because(source),
            None => wrapped,
        }
    }
}

impl From<trefoil_models::Error> for Error {
    fn from(error: trefoil_models::Error) -> Self {
        use trefoil_models::ErrorKind as Kind;
        let kind = match error.kind() {
            Kind::Load | Kind::Unsupported => ErrorKind::ModelLoad,
            Kind::Context => ErrorKind::ContextOverflow,
            Kind::Memory => ErrorKind::OutOfMemory,
            Kind::Internal => ErrorKind::Internal,
        };
        let wrapped = Self::new(kind, error.to_string());
        match std::error::Error::source(&error) {
            Some(source) => wrapped.because(source),
            None => wrapped,
        }
    }
}

impl From<trefoil_decode::Error> for Error {
    fn from(error: trefoil_decode::Error) -> Self {
        match error.model() {
            Some(model) => {
                let mut wrapped = Self::new(ErrorKind::Internal, error.to_string()).because(model);
                if model.kind() == trefoil_models::ErrorKind::Memory {
                    wrapped.kind = ErrorKind::OutOfMemory;
                }
                wrapped
            }
            None => Self::internal(error.to_string()),
        }
    }
}
