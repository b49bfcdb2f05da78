//! A model in memory: weights, tokenizer, template, cache, and the limits that follow from the budget.

use std::sync::Arc;

use trefoil_kernels::{Graphs, Kernels, PAGE};
use trefoil_models::{CausalLm, Kv, ModelConfig, Token};

use crate::budget::budget;
use crate::costs::StepCosts;
use crate::decoding::BildDefaults;
use crate::draft::{DraftFiles, DraftModel};
use crate::error::Result;
use crate::files::Files;
use crate::library::Library;
use crate::lm::Lm;
use crate::options::{DEFAULT_CONTEXT, LoadOptions};
use crate::place::{self, Place};
use crate::text::{Template, Tokenizer};

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
    /// Where the model runs: `cpu` or `cuda:N`; several are divided by commas.
    pub device: String,
    /// Where the draft model runs, if there is one.
    pub draft_device: Option<String>,
    /// Why it does not run on a card, where it might have.
    pub fallback: Option<String>,
    /// What is known of the graphs of each card that it or the draft model runs on, by the device's name.
    pub graphs: Vec<(String, Graphs)>,
    /// The type of most weights.
    pub dtype: String,
    /// Resident bytes of the weights, a draft model's included.
    pub bytes: u64,
    /// What BiLD takes where a caller says nothing else.
    pub bild: BildDefaults,
}

impl ModelInfo {
    /// Why a card starts small steps launch by launch, since it has failed to start one as a graph.
    pub fn graph_failure(&self) -> Option<String> {
        let failed = |(name, graphs): &(String, Graphs)| Some(format!("{name}: {}", graphs.failure()?));
        self.graphs.iter().find_map(failed)
    }
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
    /// The part of `lm` that writes, on one worker or several.
    pub(crate) decoder: Arc<dyn CausalLm>,
    pub(crate) kv: Kv,
    pub(crate) draft: Option<DraftModel>,
    pub(crate) costs: StepCosts,
    pub(crate) library: Library,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<Template>,
    pub(crate) ends: Arc<[Token]>,
    pub(crate) info: ModelInfo,
}

impl Loaded {
    /// Loads what `options` name. `progress` can end the load with an error of its own.
    pub(crate) fn open(
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress) -> Result<()>,
    ) -> Result<Self> {
        let bild = options.tuned.as_deref().map(BildDefaults::read).transpose()?.unwrap_or_default();
        let files = Files::open(&options.source, options.dtype)?;
        let draft = options.draft.as_ref().map(|source| DraftFiles::open(source, &files)).transpose()?;
        let context =
            options.context_length.unwrap_or_else(|| default_context(&files.config, draft.as_ref()));
        let fits = |place: &Place| {
            let little = place.beside(options.draft_device(), options)?;
            place.devices.each()[0].check_heads(files.config.kv_shape().head_dim)?;
            if let Some(draft) = &draft {
                little.devices.each()[0].check_heads(draft.kv_shape(&files.config).head_dim)?;
            }
            let budget = budget(options, (place, &little), &files, draft.as_ref(), context)?;
            Ok((little, budget))
        };
        let (place, (little, (pages, room))) = Place::find(options, fits)?;
        let Files { weights, config, tokenizer, template, .. } = files;
        let mut kv = Kv::new(&place.devices, config.kv_shape(), options.cache_type, pages)?;
        let library = Library::new(options.document_cache, room);
        let info = ModelInfo {
            architecture: config.architecture().to_owned(),
            kind: config.kind(),
            parameters: weights.parameters(),
            layers: config.kv_shape().layers,
            vocabulary: config.vocabulary(),
            context_length: context,
            device: place.name(),
            draft_device: draft.as_ref().map(|_| little.name()),
            graphs: place.graphs().chain(draft.iter().flat_map(|_| little.graphs())).collect(),
            fallback: place.fallback,
            dtype: weights.main_type().map_or("none", |ty| ty.name()).into(),
            bytes: 0,
            bild,
        };
        let ends = config.eos().into();
        let own = weights.total_bytes();
        let total = own + draft.as_ref().map_or(0, DraftFiles::weight_bytes);
        let mut hear = |done: f64| progress(Progress { done: done as u64, total });
        let (lm, mut bytes) =
            Lm::load(&config, &weights, &place.devices, options.cache_type, &mut |share| {
                hear(share * own as f64)
            })?;
        let draft = match draft {
            None => None,
            Some(files) => {
                let rest = (total - own) as f64;
                let mut hear = |share: f64| hear(own as f64 + share * rest);
                let (draft, more) =
                    files.load(&lm, &little.devices, (options.cache_type, pages), &mut hear)?;
                bytes += more;
                Some(draft)
            }
        };
        let info = ModelInfo { bytes: bytes as u64, ..info };
        let decoder = match workers(options)?.as_slice() {
            [] => lm.decoder(),
            workers => lm.sharded(workers),
        };
        let costs =
            StepCosts::find(options, &place.devices, (&lm, decoder.as_ref()), &mut kv, draft.as_ref())?;
        Ok(Self { lm, decoder, kv, draft, costs, library, tokenizer, template, ends, info })
    }
}

impl Loaded {
    /// Bytes of a document's encoding, which is kept as the cache is; none for a model without an encoder.
    pub(crate) fn encoding_bytes(&self, tokens: usize) -> u64 {
        match self.lm {
            Lm::Causal(_) => 0,
            Lm::Seq2Seq { .. } => (tokens.div_ceil(PAGE) * self.kv.page_bytes()) as u64,
        }
    }
}

/// The kernels of each worker, where there are several: the threads in equal parts, at least one each.
fn workers(options: &LoadOptions) -> Result<Vec<Kernels>> {
    let count = if options.workers > 1 { options.workers } else { 0 };
    (0..count).map(|_| place::cpu((options.threads / count).max(1), false, options.dtype)).collect()
}

/// The context where nobody asks for one: what both models were trained for, within reason. An encoder-decoder model's
/// relative positions have no end, so that the length it was trained for is no limit.
fn default_context(config: &ModelConfig, draft: Option<&DraftFiles>) -> usize {
    match config {
        ModelConfig::Llama(_) => {
            let little = draft.map_or(usize::MAX, DraftFiles::context_length);
            config.context_length().min(little).min(DEFAULT_CONTEXT)
        }
        ModelConfig::T5(_) => DEFAULT_CONTEXT,
    }
}
