//! What keeps a broken tokenizer from ending the process.
//!
//! The `tokenizers` crate takes its files on trust: a merge longer than any token indexes out of bounds, and one cut
//! within a character makes a string that is no UTF-8. What is known to do so is refused here; what is not known yet
//! is a panic, and is caught.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde_json::Value;

use super::limits::{Growth, check_added, check_tokens};
use crate::error::{Error, Result};

/// Runs `work`, and makes a panic an error like any other.
pub(super) fn contained<T, E: Display>(
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, String> {
    // Nothing that `work` touches is used again after a panic.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(message.unwrap_or("a fault of the tokenizer").to_owned())
        }
    }
}

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    dropout: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

/// Refuses a `tokenizer.json` that the crate would take and break on. Gives how much longer its normalizer may make a
/// text.
pub(super) fn check(bytes: &[u8], file: &str) -> Result<Growth> {
    let broken = |what: String| Error::load(format!("{file}: {what}"));
    let parsed: File = serde_json::from_slice(bytes)
        .map_err(|cause| Error::load(format!("{file} is not a tokenizer: {cause}")).because(&cause))?;
    let model = parsed.model;
    if model.dropout.is_some_and(|share| share > 0.0) {
        return Err(Error::load(format!(
            "{file} asks for dropout, which makes encoding random; allowed is none"
        )));
    }
    let growth = Growth::of(&parsed.normalizer).map_err(broken)?;
    check_added(parsed.added_tokens.iter().map(|token| token.content.as_str()), growth).map_err(broken)?;
    match &model.vocab {
        Value::Object(vocab) => check_tokens(vocab.keys().map(String::as_str), false),
        // A unigram model lists its tokens with their scores.
        Value::Array(vocab) => check_tokens(vocab.iter().filter_map(|entry| entry[0].as_str()), true),
        _ => Ok(()),
    }
    .map_err(broken)?;
    let prefix = model.continuing_subword_prefix.unwrap_or_default();
    let Value::Object(vocab) = &model.vocab else { return Ok(growth) };
    let longest = vocab.keys().map(String::len).max().unwrap_or(0);
    for merge in &model.merges {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Joined(text) => text.split_once(' ').unwrap_or((text, "")),
        };
        check_merge(left, right, &prefix, longest).map_err(broken)?;
    }
    Ok(growth)
}

/// Refuses a merge that no token can be the result of.
pub(super) fn check_merge(
    left: &str,
    right: &str,
    prefix: &str,
    longest: usize,
) -> std::result::Result<(), String> {
    let rest = right.strip_prefix(prefix).unwrap_or(right);
    if !prefix.is_empty() && rest.len() == right.len() {
        return Err(format!("the merge of {left:?} and {right:?} lacks the prefix {prefix:?}"));
    }
    if left.len() + rest.len() > longest {
        let shown: String = left.chars().chain(rest.chars()).take(40).collect();
        return Err(format!("the merge into {shown:?} is longer than every token ({longest} bytes)"));
    }
    Ok(())
}
