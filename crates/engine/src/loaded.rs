//! A model in memory: weights, tokenizer, template, cache, and the limits that follow from the budget.

use std::sync::Arc;

use trefoil_kernels::Kernels;
use trefoil_models::{
    CausalLm, Kv, KvShape, Llama, LlamaConfig, ModelConfig, Seq2SeqLm, T5, T5Config, Token, Weights,
};

use crate::error::{Error, ErrorKind, Result};
use crate::options::{DEFAULT_CONTEXT, Dtype, LoadOptions};
use crate::text::{Template, Tokenizer};

/// Full contexts that the cache has room for, where memory allows: generations beyond that wait their turn.
const CONTEXTS: usize = 4;

/// Rows whose logits a step may hold at once, for the memory budget.
const SCORED_ROWS: usize = 64;

/// A model of either kind.
pub(crate) enum Lm {
    /// Decoder only.
    Causal(Box<dyn CausalLm>),
    /// Encoder and decoder; `start` begins every decoder text.
    Seq2Seq { model: Box<dyn Seq2SeqLm>, start: Token },
}

impl Lm {
    /// The part that writes.
    pub(crate) fn decoder(&self) -> &dyn CausalLm {
        match self {
            Self::Causal(model) => model.as_ref(),
            Self::Seq2Seq { model, .. } => model.as_ref(),
        }
    }
}

/// What callers may know about a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The configuration's name for the architecture: `llama`, `qwen2`, `t5`, …
    pub architecture: String,
    /// `causal` or `seq2seq`.
    pub kind: &'static str,
    /// Weights, as numbers.
    pub parameters: u64,
    /// Decoder layers.
    pub layers: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Tokens that a text may have, its prompt included.
    pub context_length: usize,
    /// Where the model runs.
    pub device: String,
    /// The type of most weights.
    pub dtype: String,
    /// Resident bytes of the weights.
    pub bytes: u64,
}

/// Progress of a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A model in memory.
pub(crate) struct Loaded {
    pub(crate) lm: Lm,
    pub(crate) kv: Kv,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<Template>,
    pub(crate) ends: Arc<[Token]>,
    pub(crate) info: ModelInfo,
}

impl Loaded {
    /// Loads what `options` name. `progress` can end the load with an error of its own.
    pub(crate) fn open(options: &LoadOptions, progress: &mut dyn FnMut(Progress) -> Result<()>) -> Result<Self> {
        let source = options.source.as_path();
        let mut weights = Weights::open(source)?;
        if let Some(ty) = options.dtype.dense() {
            weights.keep_dense_as(ty);
        }
        let config = ModelConfig::read(source, &weights)?;
        let sizes = Sizes::of(&config);
        let tokenizer = match weights.metadata() {
            Some(metadata) => Tokenizer::from_gguf(metadata)?,
            None => Tokenizer::from_folder(source)?,
        };
        if tokenizer.vocabulary() > sizes.vocabulary {
            return Err(Error::load(format!(
                "the tokenizer has {} tokens; the model's vocabulary has {}",
                tokenizer.vocabulary(),
                sizes.vocabulary
            )));
        }
        let template = match weights.metadata() {
            Some(metadata) => Template::from_gguf(metadata)?,
            None => Template::from_folder(source)?,
        };
        let context = options.context_length.unwrap_or(DEFAULT_CONTEXT.min(sizes.context));
        let pages = budget(options, &sizes, weights.total_bytes(), context)?;

        let kernels = Kernels::cpu(options.threads).map_err(|error| Error::internal("no kernels").because(&error))?;
        let total = weights.total_bytes();
        let mut interrupted = None;
        let mut hear = |share: f64| {
            let done = (share * total as f64) as u64;
            progress(Progress { done, total }).map_err(|error| {
                interrupted = Some(error);
                trefoil_models::Error::internal("the load was interrupted")
            })
        };
        let (lm, bytes, ends) = match config {
            ModelConfig::Llama(config) => {
                let ends = config.eos.clone();
                let model = Llama::load(config, &weights, &kernels, &mut hear);
                model.map(|model| (model.bytes(), ends, model)).map(|(b, e, m)| (Lm::Causal(Box::new(m)), b, e))
            }
            ModelConfig::T5(config) => {
                let (ends, start) = (config.eos.clone(), config.start);
                let model = T5::load(config, &weights, &kernels, &mut hear);
                model.map(|m| (m.bytes(), m)).map(|(b, m)| (Lm::Seq2Seq { model: Box::new(m), start }, b, ends))
            }
        }
        .map_err(|error| interrupted.take().unwrap_or_else(|| error.into()))?;
        let kv = Kv::new(&kernels, sizes.kv, pages)?;
        let info = ModelInfo {
            architecture: sizes.architecture,
            kind: sizes.kind,
            parameters: weights.parameters(),
            layers: sizes.kv.layers,
            vocabulary: sizes.vocabulary,
            context_length: context,
            device: "cpu".into(),
            dtype: weights.main_type().name().into(),
            bytes: bytes as u64,
        };
        Ok(Self { lm, kv, tokenizer, template, ends: ends.into(), info })
    }
}

impl Dtype {
    fn dense(self) -> Option<trefoil_kernels::WeightType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(trefoil_kernels::WeightType::F32),
            Self::Bf16 => Some(trefoil_kernels::WeightType::Bf16),
            Self::F16 => Some(trefoil_kernels::WeightType::F16),
        }
    }
}

/// What the engine needs to know of a configuration, whichever family it is of.
struct Sizes {
    architecture: String,
    kind: &'static str,
    vocabulary: usize,
    context: usize,
    kv: KvShape,
}

impl Sizes {
    fn of(config: &ModelConfig) -> Self {
        match config {
            ModelConfig::Llama(LlamaConfig {
                architecture, vocabulary, context_length, layers, kv_heads, head_dim, ..
            }) => Self {
                architecture: architecture.clone(),
                kind: "causal",
                vocabulary: *vocabulary,
                context: *context_length,
                kv: KvShape { layers: *layers, kv_heads: *kv_heads, head_dim: *head_dim },
            },
            ModelConfig::T5(T5Config {
                architecture, vocabulary, context_length, decoder_layers, heads, head_dim, ..
            }) => Self {
                architecture: architecture.clone(),
                kind: "seq2seq",
                vocabulary: *vocabulary,
                context: *context_length,
                kv: KvShape { layers: *decoder_layers, kv_heads: *heads, head_dim: *head_dim },
            },
        }
    }
}

/// Pages of cache that the budget allows beside the weights and a step's logits: room for [`CONTEXTS`] full contexts,
/// fewer where memory is short, and never less than one.
fn budget(options: &LoadOptions, sizes: &Sizes, weights: u64, context: usize) -> Result<usize> {
    let page = sizes.kv.page_bytes() as u64;
    let pages = context.div_ceil(trefoil_kernels::PAGE) as u64;
    let logits = (SCORED_ROWS * sizes.vocabulary * size_of::<f32>()) as u64;
    let limit = options.memory_limit.or_else(physical_memory).unwrap_or(u64::MAX);
    let least = weights.saturating_add(logits).saturating_add(pages.saturating_mul(page));
    if least > limit {
        return Err(Error::new(
            ErrorKind::OutOfMemory,
            format!(
                "the model needs {least} bytes ({weights} of weights, {logits} of logits, {} of cache for {context} \
                 tokens); the limit is {limit}",
                pages.saturating_mul(page)
            ),
        ));
    }
    let affordable = (limit - weights - logits) / page.max(1);
    Ok(affordable.min(pages * CONTEXTS as u64) as usize)
}

/// The machine's memory in bytes, where the system says.
fn physical_memory() -> Option<u64> {
    let system =
        sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()));
    Some(system.total_memory()).filter(|&bytes| bytes > 0)
}
