//! Options as a caller wrote them, and the reader that turns them into typed values.
//!
//! Every binding hands its options over as a [`Raw`] tree, so that names, types and ranges are checked in one place and
//! every binding reports them in the same words. Numbers stay f64 until a reader says what they are: NaN, fractions and
//! 1e300 are the caller's mistakes to be named, not to be rounded away.

use std::fmt;

use crate::error::{Error, Result};

/// A value from a dynamically typed caller.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// Not given, or null.
    Absent,
    /// A truth value.
    Bool(bool),
    /// Any number, NaN and infinities included.
    Number(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Raw>),
    /// Named values, in the order given.
    Map(Vec<(String, Raw)>),
    /// Something that is no data: a function, a symbol.
    Other(&'static str),
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("undefined"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(text) if text.chars().count() > 60 => {
                write!(f, "'{}…'", text.chars().take(60).collect::<String>())
            }
            Self::Text(text) => write!(f, "'{text}'"),
            Self::List(items) => write!(f, "a list of {}", items.len()),
            Self::Map(_) => f.write_str("an object"),
            Self::Other(kind) => write!(f, "a {kind}"),
        }
    }
}

/// Takes named values out of a map, each once, and then refuses what is left.
pub struct Reader {
    within: String,
    fields: Vec<(String, Raw)>,
    known: Vec<&'static str>,
}

impl Reader {
    /// Reads `raw`, which callers know as `within`; absent is the same as empty.
    ///
    /// # Errors
    /// Fails where `raw` is not an object.
    pub fn new(within: &str, raw: Raw) -> Result<Self> {
        let fields = match raw {
            Raw::Absent => Vec::new(),
            Raw::Map(fields) => fields,
            other => return Err(Error::option(format!("{within} is {other}; allowed: an object"))),
        };
        Ok(Self { within: within.to_owned(), fields, known: Vec::new() })
    }

    /// The value called `name`, as it was given.
    pub fn take(&mut self, name: &'static str) -> Raw {
        self.known.push(name);
        match self.fields.iter().position(|(field, _)| field == name) {
            Some(at) => self.fields.swap_remove(at).1,
            None => Raw::Absent,
        }
    }

    /// A whole number in `least..=most`.
    ///
    /// # Errors
    /// Fails for anything else, naming option, value and range.
    pub fn whole(&mut self, name: &'static str, least: u64, most: u64) -> Result<Option<u64>> {
        match self.take(name) {
            Raw::Absent => Ok(None),
            Raw::Number(value) if value.fract() == 0.0 && value >= least as f64 && value <= most as f64 => {
                Ok(Some(value as u64))
            }
            other => Err(self.refuse(name, &other, format!("a whole number from {least} to {most}"))),
        }
    }

    /// A number in `least..=most`.
    ///
    /// # Errors
    /// Fails for anything else, naming option, value and range.
    pub fn number(&mut self, name: &'static str, least: f64, most: f64) -> Result<Option<f64>> {
        match self.take(name) {
            Raw::Absent => Ok(None),
            Raw::Number(value) if (least..=most).contains(&value) => Ok(Some(value)),
            other => Err(self.refuse(name, &other, format!("a number from {least} to {most}"))),
        }
    }

    /// True or false.
    ///
    /// # Errors
    /// Fails for anything else.
    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>> {
        match self.take(name) {
            Raw::Absent => Ok(None),
            Raw::Bool(value) => Ok(Some(value)),
            other => Err(self.refuse(name, &other, "true or false")),
        }
    }

    /// Text.
    ///
    /// # Errors
    /// Fails for anything else.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        match self.take(name) {
            Raw::Absent => Ok(None),
            Raw::Text(text) => Ok(Some(text)),
            other => Err(self.refuse(name, &other, "a string")),
        }
    }

    /// The error for a value that `name` can't have.
    pub fn refuse(&self, name: &str, found: &Raw, allowed: impl fmt::Display) -> Error {
        Error::option(format!("{}.{name} is {found}; allowed: {allowed}", self.within))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Fails where a field is left that no reader asked for, naming it and all known ones.
    pub fn finish(self) -> Result<()> {
        match self.fields.iter().find(|(_, value)| *value != Raw::Absent) {
            None => Ok(()),
            Some((name, _)) => Err(Error::option(format!(
                "{} has an unknown option '{name}'; allowed: {}",
                self.within,
                self.known.join(", ")
            ))),
        }
    }
}
