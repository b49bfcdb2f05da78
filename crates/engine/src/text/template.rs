//! Chat templates: from messages to the text that a model was trained to continue.

mod budget;
mod clock;
mod filters;
mod json;
mod methods;
mod operators;
mod python;
mod render;
mod source;
mod texts;

use std::fs;
use std::path::Path;

use serde_json::Value;
use trefoil_models::weights::gguf::{self, Metadata};

use crate::error::{Error, Result};

const CONFIG: &str = "tokenizer_config.json";
const FILE: &str = "chat_template.jinja";
/// Where a file has several templates, the one for plain conversation.
const DEFAULT: &str = "default";
/// Published templates take up to 20 kB.
const LARGEST_TEMPLATE: u64 = 256 << 10;
/// `tokenizer_config.json` lists all added tokens.
const LARGEST_CONFIG: u64 = 16 << 20;

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct Template {
    source: String,
    bos: String,
    eos: String,
}

impl Template {
    /// Reads the template of the model in this folder: `chat_template.jinja`, or what `tokenizer_config.json` holds.
    /// Nothing where there is neither.
    ///
    /// # Errors
    /// Fails (`ModelLoad`) for a file that cannot be read or is too long. What is wrong within a template shows when
    /// it is rendered: a model can be used without it.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let config = match read(&folder.join(CONFIG), LARGEST_CONFIG)? {
            Some(text) => serde_json::from_str(&text).map_err(|cause| {
                Error::load(format!("{} is not JSON", folder.join(CONFIG).display())).because(&cause)
            })?,
            None => Value::Null,
        };
        let own = read(&folder.join(FILE), LARGEST_TEMPLATE)?;
        let Some(source) = own.or_else(|| listed(&config["chat_template"])) else { return Ok(None) };
        let token = |name: &str| {
            let token = &config[name];
            token.as_str().or_else(|| token["content"].as_str()).unwrap_or_default().to_owned()
        };
        Self::new(source, token("bos_token"), token("eos_token"), &folder.display().to_string()).map(Some)
    }

    /// Reads the template in a GGUF file. Nothing where it has none.
    ///
    /// # Errors
    /// Fails (`ModelLoad`) for a template that is too long.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>> {
        let Some(source) = metadata.get("tokenizer.chat_template").and_then(gguf::Value::text) else {
            return Ok(None);
        };
        let tokens = metadata.texts("tokenizer.ggml.tokens").unwrap_or_default();
        let token = |name: &str| {
            let id =
                metadata.get(name).and_then(gguf::Value::unsigned).and_then(|id| usize::try_from(id).ok());
            id.and_then(|id| tokens.get(id)).cloned().unwrap_or_default()
        };
        let (bos, eos) = (token("tokenizer.ggml.bos_token_id"), token("tokenizer.ggml.eos_token_id"));
        Self::new(source.to_owned(), bos, eos, metadata.file()).map(Some)
    }

    fn new(source: String, bos: String, eos: String, file: &str) -> Result<Self> {
        if source.len() as u64 > LARGEST_TEMPLATE {
            let len = source.len();
            return Err(Error::load(format!(
                "{file}: the chat template has {len} bytes; allowed are {LARGEST_TEMPLATE}"
            )));
        }
        Ok(Self { source, bos, eos })
    }

    /// The text of a conversation, each message as (role, content). With `answer` it ends where the model's answer
    /// begins.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) with the template's own words where it refuses the messages, and where it cannot be
    /// rendered within its bounds.
    pub fn render(&self, messages: &[(String, String)], answer: bool) -> Result<String> {
        render::render(&self.source, messages, answer, &self.bos, &self.eos)
            .map_err(|cause| Error::option(format!("the chat template fails: {cause:#}")))
    }
}

/// The template of a `chat_template` entry: one, or a list of them by name.
fn listed(entry: &Value) -> Option<String> {
    let named = |templates: &Vec<Value>| {
        templates.iter().find(|it| it["name"] == DEFAULT).map(|it| it["template"].clone())
    };
    entry.as_array().and_then(named).as_ref().unwrap_or(entry).as_str().map(str::to_owned)
}

/// The text of a file of at most `most` bytes; nothing where there is none.
fn read(path: &Path, most: u64) -> Result<Option<String>> {
    let failed = |cause: &dyn std::error::Error| {
        Error::load(format!("{} cannot be read", path.display())).because(cause)
    };
    let kind = match fs::metadata(path) {
        Ok(kind) => kind,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(failed(&cause)),
    };
    if !kind.is_file() || kind.len() > most {
        return Err(Error::load(format!("{} is not a file of at most {most} bytes", path.display())));
    }
    fs::read_to_string(path).map(Some).map_err(|cause| failed(&cause))
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
