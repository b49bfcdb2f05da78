//! Named values of a configuration file, each taken with its bounds.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::weights::gguf;

/// Larger than any configuration, and small enough to parse at once.
const LARGEST_FILE: u64 = 16 << 20;

/// Values by name, and where they come from.
pub(super) struct Fields {
    file: String,
    values: Map<String, Value>,
}

impl Fields {
    pub(super) fn from_file(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let failed = |cause| Error::load(format!("{file} cannot be read")).because(cause);
        let kind = fs::metadata(path).map_err(failed)?;
        if !kind.is_file() || kind.len() > LARGEST_FILE {
            let message = format!("{file} is not a file of at most {LARGEST_FILE} bytes");
            return Err(Error::load(message));
        }
        let bytes = fs::read(path).map_err(failed)?;
        let values = serde_json::from_slice(&bytes)
            .map_err(|cause| Error::load(format!("{file} is not a JSON object")).because(cause))?;
        Ok(Self { file, values })
    }

    /// The scalars of GGUF metadata; an array, which no field here may be, counts as a text that says so.
    pub(super) fn from_metadata(metadata: &gguf::Metadata) -> Self {
        let values = metadata.iter().map(|(key, value)| {
            let value = match value {
                gguf::Value::Integer(n) => i64::try_from(*n).map_or(Value::Null, Value::from),
                gguf::Value::Float(n) => serde_json::Number::from_f64(*n).map_or(Value::Null, Value::Number),
                gguf::Value::Flag(flag) => Value::Bool(*flag),
                gguf::Value::Text(text) => Value::String(text.clone()),
                gguf::Value::Array(_) => Value::Array(Vec::new()),
            };
            (key.to_owned(), value)
        });
        Self { file: metadata.file().to_owned(), values: values.collect() }
    }

    /// The object under `name`, if there is one.
    pub(super) fn within(&self, name: &str) -> Result<Option<Self>> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(values)) => {
                Ok(Some(Self { file: format!("{} ({name})", self.file), values: values.clone() }))
            }
            Some(_) => Err(self.broken(name, "an object")),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// A whole number that must be there.
    pub(super) fn count(&self, name: &str, allowed: RangeInclusive<u64>) -> Result<usize> {
        self.optional_count(name, allowed.clone())?.ok_or_else(|| self.broken(name, &whole(&allowed)))
    }

    /// A whole number that may be missing or null.
    pub(super) fn optional_count(&self, name: &str, allowed: RangeInclusive<u64>) -> Result<Option<usize>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_u64().filter(|number| allowed.contains(number));
        number.map(|number| Some(number as usize)).ok_or_else(|| self.broken(name, &whole(&allowed)))
    }

    /// A number that may be missing or null.
    pub(super) fn optional_float(&self, name: &str, allowed: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| allowed.contains(number));
        let words = format!("numbers from {} to {}", allowed.start(), allowed.end());
        number.map(Some).ok_or_else(|| self.broken(name, &words))
    }

    /// A number that must be there.
    pub(super) fn float(&self, name: &str, allowed: RangeInclusive<f64>) -> Result<f64> {
        let words = format!("numbers from {} to {}", allowed.start(), allowed.end());
        self.optional_float(name, allowed)?.ok_or_else(|| self.broken(name, &words))
    }

    pub(super) fn optional_flag(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.broken(name, "true and false"))
    }

    pub(super) fn text(&self, name: &str) -> Result<&str> {
        self.optional_text(name)?.ok_or_else(|| self.broken(name, "a string"))
    }

    pub(super) fn optional_text(&self, name: &str) -> Result<Option<&str>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.broken(name, "a string"))
    }

    /// Strings that may be missing or null.
    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let texts = value.as_array().and_then(|values| values.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.broken(name, "a list of strings"))
    }

    /// One token or a list of tokens, each below `vocabulary`.
    pub(super) fn tokens(&self, name: &str, vocabulary: usize) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let tokens =
            values.iter().map(|value| value.as_u64().filter(|&n| n < vocabulary as u64).map(|n| n as u32));
        let words = format!("tokens below {vocabulary}, one or a list");
        tokens.collect::<Option<_>>().map(Some).ok_or_else(|| self.broken(name, &words))
    }

    /// One token below `vocabulary`.
    pub(super) fn token(&self, name: &str, vocabulary: usize) -> Result<Option<u32>> {
        Ok(self.optional_count(name, 0..=vocabulary.saturating_sub(1) as u64)?.map(|token| token as u32))
    }

    /// The error for a field whose value is none of `allowed`.
    pub(super) fn broken(&self, name: &str, allowed: &str) -> Error {
        match self.value(name) {
            None => Error::load(format!("{}: {name} is missing; expected {allowed}", self.file)),
            Some(value) => {
                Error::load(format!("{}: {name} is {}; allowed are {allowed}", self.file, shortened(value)))
            }
        }
    }

    /// The error for a sound value that asks for what is not built.
    pub(super) fn unsupported(&self, name: &str, value: impl std::fmt::Debug, allowed: &str) -> Error {
        let value = format!("{value:?}");
        Error::unsupported(format!(
            "{}: {name} {} is not supported; allowed are {allowed}",
            self.file,
            cut(&value)
        ))
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| !value.is_null())
    }
}

fn whole(allowed: &RangeInclusive<u64>) -> String {
    format!("whole numbers from {} to {}", allowed.start(), allowed.end())
}

fn shortened(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => cut(&other.to_string()),
    }
}

/// A value from a hostile file may be megabytes long.
fn cut(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(80).chain(['…']).collect() }
}
