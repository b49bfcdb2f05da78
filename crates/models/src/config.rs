//! What a model's files say about its shape, checked before anything is built from it.
//!
//! Models index and multiply by these numbers, so each one is bounded here, once, and nothing after this module has
//! to doubt them. JSON and GGUF are read through the same checks (`Fields`); they differ by names only.

mod fields;
mod llama;
mod rope;
mod t5;

use std::path::Path;

use crate::error::{Error, Result};
use crate::kv::KvShape;
use crate::weights::Weights;
use fields::Fields;
pub use llama::LlamaConfig;
pub use rope::RopeScaling;
pub use t5::T5Config;

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelConfig {
    /// A decoder-only model of the Llama family.
    Llama(LlamaConfig),
    /// An encoder-decoder model of the T5 family.
    T5(T5Config),
}

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const ALLOWED: &str = "llama, mistral, qwen2, qwen3, t5 and mt5";

impl ModelConfig {
    /// Reads the configuration of the model at `source`: `config.json` and `generation_config.json` of a folder, or
    /// the metadata of a GGUF file. What the files leave open (a tied head, biases) is seen from `weights`.
    ///
    /// # Errors
    /// Fails (`ErrorKind::Load`) for a field that is missing, of another type or out of its range, naming the file,
    /// the field, its value and what is allowed; and (`ErrorKind::Unsupported`) for a model that cannot be run.
    pub fn read(source: &Path, weights: &Weights) -> Result<Self> {
        if let Some(metadata) = weights.metadata() {
            let fields = Fields::from_metadata(metadata);
            return match fields.text("general.architecture")? {
                "t5" => T5Config::from_gguf(&fields, weights).map(Self::T5),
                "llama" | "qwen2" | "qwen3" => LlamaConfig::from_gguf(&fields, weights).map(Self::Llama),
                other => Err(fields.unsupported("general.architecture", other, "llama, qwen2, qwen3 and t5")),
            };
        }
        let fields = Fields::from_file(&source.join(CONFIG))?;
        let path = source.join(GENERATION);
        // A link that leads nowhere, or in a circle, does not exist either; reading it says why.
        let listed = path.exists() || path.is_symlink();
        let generation = listed.then(|| Fields::from_file(&path)).transpose()?;
        if fields.has("quantization_config") {
            let message = "holds weights quantised by another program (quantization_config); allowed are dense \
                           safetensors and GGUF";
            return Err(Error::unsupported(format!("{} {message}", source.display())));
        }
        match fields.text("model_type")? {
            "t5" | "mt5" => T5Config::from_json(&fields, generation.as_ref(), weights).map(Self::T5),
            "llama" | "mistral" | "qwen2" | "qwen3" => {
                LlamaConfig::from_json(&fields, generation.as_ref(), weights).map(Self::Llama)
            }
            other => Err(fields.unsupported("model_type", other, ALLOWED)),
        }
    }

    /// Tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Llama(config) => config.vocabulary,
            Self::T5(config) => config.vocabulary,
        }
    }

    /// The tokens that end a text.
    pub fn eos(&self) -> &[u32] {
        match self {
            Self::Llama(config) => &config.eos,
            Self::T5(config) => &config.eos,
        }
    }

    /// The configuration's own name for the architecture: `llama`, `qwen2`, `t5`, …
    pub fn architecture(&self) -> &str {
        match self {
            Self::Llama(config) => &config.architecture,
            Self::T5(config) => &config.architecture,
        }
    }

    /// `causal` for a decoder alone, `seq2seq` for an encoder and a decoder.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Llama(_) => "causal",
            Self::T5(_) => "seq2seq",
        }
    }

    /// The shape of the decoder's cache.
    pub fn kv_shape(&self) -> KvShape {
        match self {
            Self::Llama(LlamaConfig { layers, kv_heads, head_dim, .. }) => {
                KvShape { layers: *layers, kv_heads: *kv_heads, head_dim: *head_dim }
            }
            Self::T5(T5Config { decoder_layers, heads, head_dim, .. }) => {
                KvShape { layers: *decoder_layers, kv_heads: *heads, head_dim: *head_dim }
            }
        }
    }

    /// The longest text, in tokens.
    pub fn context_length(&self) -> usize {
        match self {
            Self::Llama(config) => config.context_length,
            Self::T5(config) => config.context_length,
        }
    }
}

/// The vocabulary of a GGUF model: the embedding's rows.
fn gguf_vocabulary(weights: &Weights, embedding: &str) -> Result<usize> {
    match weights.shape(embedding) {
        Some([vocabulary, _]) if (1..=1 << 24).contains(vocabulary) => Ok(*vocabulary),
        Some(shape) => {
            Err(Error::load(format!("tensor {embedding} has shape {shape:?}; expected [tokens, width]")))
        }
        None => Err(Error::load(format!("tensor {embedding} is missing"))),
    }
}

/// The tokens that end a text: those that the file names, and those whose text says so. Files made from chat models
/// name one end where the model was trained with two (of a turn and of a text).
fn gguf_eos(fields: &Fields, weights: &Weights, vocabulary: usize) -> Result<Vec<u32>> {
    const CONTROL: i64 = 3;
    const ENDS: [&str; 7] = [
        "<|im_end|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<|end|>",
    ];
    let mut eos = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos.extend(fields.token(&format!("tokenizer.ggml.{name}"), vocabulary)?);
    }
    let texts = weights.metadata().and_then(|metadata| metadata.texts("tokenizer.ggml.tokens"));
    let types = weights.metadata().and_then(|metadata| metadata.integers("tokenizer.ggml.token_type"));
    for (token, (text, ty)) in texts.unwrap_or_default().iter().zip(types.unwrap_or_default()).enumerate() {
        if *ty == CONTROL && ENDS.contains(&text.as_str()) && token < vocabulary {
            eos.push(token as u32);
        }
    }
    eos.sort_unstable();
    eos.dedup();
    Ok(eos)
}
