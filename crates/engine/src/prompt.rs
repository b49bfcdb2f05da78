//! Prompts: text as it is, or a conversation for the model's template.

use crate::error::{Error, Result};
use crate::raw::{Raw, Reader};

/// What a text continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, used as it is.
    Text(String),
    /// A conversation, as (role, content), which goes through the model's chat template.
    Messages(Vec<(String, String)>),
}

impl Prompt {
    /// Reads a string, or a list of `{ role, content }`.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) for anything else, naming what was found.
    pub fn resolve(raw: Raw) -> Result<Self> {
        match raw {
            Raw::Text(text) => Ok(Self::Text(text)),
            Raw::List(items) if !items.is_empty() => {
                let messages = items.into_iter().enumerate().map(|(at, item)| message(at, item));
                Ok(Self::Messages(messages.collect::<Result<_>>()?))
            }
            other => {
                Err(Error::option(format!("prompt is {other}; allowed: a string or a list of chat messages")))
            }
        }
    }
}

fn message(at: usize, item: Raw) -> Result<(String, String)> {
    let mut reader = Reader::new(&format!("prompt[{at}]"), item)?;
    let role = reader.text("role")?;
    let content = reader.text("content")?;
    reader.finish()?;
    match (role, content) {
        (Some(role), Some(content)) => Ok((role, content)),
        _ => Err(Error::option(format!("prompt[{at}] lacks role or content; allowed: {{ role, content }}"))),
    }
}

/// Reads a document's text.
///
/// # Errors
/// Fails (`InvalidOption`) for anything else, naming what was found.
pub fn document(raw: Raw) -> Result<String> {
    match raw {
        Raw::Text(text) => Ok(text),
        other => Err(Error::option(format!("document is {other}; allowed: a string"))),
    }
}

/// Reads a list of prompts.
///
/// # Errors
/// Fails (`InvalidOption`) for anything but a list of strings, naming the first that is none.
pub fn prompts(raw: Raw) -> Result<Vec<String>> {
    let Raw::List(items) = raw else {
        return Err(Error::option(format!("prompts is {raw}; allowed: a list of strings")));
    };
    let texts = items.into_iter().enumerate().map(|(at, item)| match item {
        Raw::Text(text) => Ok(text),
        other => Err(Error::option(format!("prompts[{at}] is {other}; allowed: a string"))),
    });
    texts.collect()
}

/// Reads a list of tokens.
///
/// # Errors
/// Fails (`InvalidOption`) for anything but a list of whole numbers below 2³², naming the first that is none.
pub fn tokens(raw: Raw) -> Result<Vec<u32>> {
    let Raw::List(items) = raw else {
        return Err(Error::option(format!("tokens is {raw}; allowed: a list of token ids")));
    };
    let ids = items.iter().enumerate().map(|(at, item)| match item {
        Raw::Number(id) if id.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(id) => Ok(*id as u32),
        other => Err(Error::option(format!(
            "tokens[{at}] is {other}; allowed: a whole number from 0 to {}",
            u32::MAX
        ))),
    });
    ids.collect()
}
