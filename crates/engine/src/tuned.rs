//! Thresholds that were tuned for a pair of models, from a file: what BiLD takes where a caller gives no others.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::decoding::{BildDefaults, candidates, max_draft, threshold};
use crate::error::{Error, Result};
use crate::raw::{Raw, Reader};

/// Bytes that such a file may have.
const LARGEST: u64 = 1 << 20;

impl BildDefaults {
    /// Reads the `bild` of a JSON file: `fallback`, `rollback` and `maxDraft`, and `cumulative` and `candidates` where it
    /// has them. Whatever else the file says of how they were found is for people.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) where the file can't be read or lacks one of them, or has a value that is not allowed.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let refuse = |why: String| {
            let allowed = "allowed: a JSON file whose bild has fallback, rollback and maxDraft";
            Error::option(format!("options.tuned is '{}', {why}; {allowed}", path.display()))
        };
        let size =
            fs::metadata(path).map_err(|cause| refuse("which can't be read".into()).because(&cause))?;
        if !size.is_file() || size.len() > LARGEST {
            return Err(refuse(format!("which is no file of at most {LARGEST} bytes")));
        }
        let bytes = fs::read(path).map_err(|cause| refuse("which can't be read".into()).because(&cause))?;
        let mut file: Value = serde_json::from_slice(&bytes)
            .map_err(|cause| refuse("which is no JSON".into()).because(&cause))?;
        let Some(Value::Object(bild)) = file.get_mut("bild").map(Value::take) else {
            return Err(refuse("which has no bild".into()));
        };
        let fields = bild.into_iter().map(|(name, value)| (name, raw(value)));
        let mut reader = Reader::new(&format!("bild of {}", path.display()), Raw::Map(fields.collect()))?;
        let (fallback, rollback) = (threshold(&mut reader, "fallback")?, threshold(&mut reader, "rollback")?);
        let max_draft = max_draft(&mut reader)?;
        let (cumulative, candidates) = (reader.flag("cumulative")?, candidates(&mut reader)?);
        reader.finish()?;
        match (fallback, rollback, max_draft) {
            (Some(fallback), Some(rollback), Some(max_draft)) => {
                let Self { cumulative: alone, candidates: none, .. } = Self::default();
                let (cumulative, candidates) = (cumulative.unwrap_or(alone), candidates.unwrap_or(none));
                Ok(Self { fallback, cumulative, candidates, rollback, max_draft })
            }
            _ => Err(refuse("whose bild lacks one of them".into())),
        }
    }
}

/// A JSON value as options have it; what no option of a tuned file can be keeps only its kind.
fn raw(value: Value) -> Raw {
    match value {
        Value::Null => Raw::Absent,
        Value::Bool(value) => Raw::Bool(value),
        Value::Number(number) => number.as_f64().map_or(Raw::Other("number"), Raw::Number),
        Value::String(text) => Raw::Text(text),
        Value::Array(items) => Raw::List(items.into_iter().map(raw).collect()),
        Value::Object(_) => Raw::Map(Vec::new()),
    }
}
