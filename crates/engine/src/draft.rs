//! The draft model of a loaded model: a little one of its own, or the first layers of the large one.
//!
//! It has a cache of as many pages as the large model's, and a branch has its place in both or in neither: pages are
//! promised here as they are there. They are not the same number, since a document's branches share its pages there and
//! read it alone here.

use std::sync::{Arc, Mutex, PoisonError};

use trefoil_decode::{Costs, Little};
use trefoil_kernels::{Devices, PAGE};
use trefoil_models::{CacheType, CrossKv, Kv, KvShape, ModelConfig, Token};

use crate::error::{Error, Result};
use crate::files::Files;
use crate::lm::Lm;
use crate::options::DraftSource;

/// What a draft model is made from, before any weights are read.
pub(crate) enum DraftFiles {
    /// A model of its own.
    Model(Box<Files>),
    /// The large model's first decoder layers.
    Layers(usize),
}

/// A draft model in memory.
pub(crate) struct DraftModel {
    lm: Lm,
    kv: Arc<Mutex<Kv>>,
    page_bytes: usize,
    /// Whether it encodes documents by itself.
    encodes: bool,
}

impl DraftFiles {
    /// Opens a draft model's files and checks that it can write for the model of `large`.
    pub(crate) fn open(source: &DraftSource, large: &Files) -> Result<Self> {
        match source {
            DraftSource::Model(path, _) => {
                let little = Files::open(path, large.dtype)?;
                little.fits(large)?;
                Ok(Self::Model(Box::new(little)))
            }
            DraftSource::Layers(layers) => {
                let most = large.config.kv_shape().layers.saturating_sub(1);
                if *layers > most {
                    let message =
                        format!("options.draft.layers is {layers}; allowed: a whole number from 1 to {most}");
                    return Err(Error::option(message));
                }
                Ok(Self::Layers(*layers))
            }
        }
    }

    /// The shape of the draft model's cache.
    pub(crate) fn kv_shape(&self, large: &ModelConfig) -> KvShape {
        match self {
            Self::Model(files) => files.config.kv_shape(),
            Self::Layers(layers) => KvShape { layers: *layers, ..large.kv_shape() },
        }
    }

    /// Bytes of its own weights.
    pub(crate) fn weight_bytes(&self) -> u64 {
        match self {
            Self::Model(files) => files.weights.total_bytes(),
            Self::Layers(_) => 0,
        }
    }

    /// The longest text that it was trained for.
    pub(crate) fn context_length(&self) -> usize {
        match self {
            Self::Model(files) => files.config.context_length(),
            Self::Layers(_) => usize::MAX,
        }
    }

    /// Reads the weights, where there are any of its own, for a device alone; gives the model and its resident bytes.
    pub(crate) fn load(
        self,
        large: &Lm,
        devices: &Devices,
        (cache, pages): (CacheType, usize),
        hear: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<(DraftModel, usize)> {
        let (lm, bytes, encodes) = match self {
            Self::Model(files) => {
                let (lm, bytes) = Lm::load(&files.config, &files.weights, devices, cache, hear)?;
                (lm, bytes, true)
            }
            Self::Layers(layers) => (large.first_layers(layers), 0, false),
        };
        let kv = Kv::new(devices, lm.decoder().kv_shape(), cache, pages)?;
        let page_bytes = kv.page_bytes();
        Ok((DraftModel { lm, kv: Arc::new(Mutex::new(kv)), page_bytes, encodes }, bytes))
    }
}

impl DraftModel {
    /// Times its steps.
    ///
    /// * `prompt`: some tokens, where there is an encoder, and `source` their encoding by the large model.
    pub(crate) fn measure(&self, prompt: &[Token], source: Option<&Arc<CrossKv>>) -> Result<Option<Costs>> {
        let (own, _) = self.encoding(prompt, source)?;
        let mut kv = self.kv.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Costs::measure(self.lm.decoder().as_ref(), &mut kv, own.as_ref())?)
    }

    /// Bytes of its own encoding of a document.
    pub(crate) fn encoding_bytes(&self, tokens: usize) -> u64 {
        match self.lm {
            Lm::Seq2Seq { .. } if self.encodes => (tokens.div_ceil(PAGE) * self.page_bytes) as u64,
            _ => 0,
        }
    }

    /// The draft model's part in a session, and the encoder runs that it took.
    ///
    /// * `prompt`: the document, where there is one.
    /// * `source`: the same, encoded by the large model.
    pub(crate) fn little(&self, prompt: &[Token], source: Option<&Arc<CrossKv>>) -> Result<(Little, usize)> {
        let (own, runs) = self.encoding(prompt, source)?;
        Ok((Little::new(self.lm.decoder(), Arc::clone(&self.kv), own), runs))
    }

    /// What its decoder reads, and the encoder runs that it took.
    fn encoding(
        &self,
        prompt: &[Token],
        source: Option<&Arc<CrossKv>>,
    ) -> Result<(Option<Arc<CrossKv>>, usize)> {
        match if self.encodes { self.lm.encode(prompt)? } else { None } {
            Some(own) => Ok((Some(own), 1)),
            None => Ok((source.cloned(), 0)),
        }
    }
}

impl Files {
    /// Checks that this model can draft for `large`: the same kind, and the same meaning of every token.
    fn fits(&self, large: &Files) -> Result<()> {
        let refuse = |difference: String| {
            Err(Error::load(format!("the draft model does not fit the model: {difference}")))
        };
        match (&self.config, &large.config) {
            (ModelConfig::Llama(_), ModelConfig::Llama(_)) => {}
            (ModelConfig::T5(little), ModelConfig::T5(large)) if little.start == large.start => {}
            (ModelConfig::T5(little), ModelConfig::T5(large)) => {
                return refuse(format!(
                    "it begins texts with token {}, the model with {}",
                    little.start, large.start
                ));
            }
            _ => {
                let kinds = (self.config.kind(), large.config.kind());
                return refuse(format!("it is a {} model, the model is {}", kinds.0, kinds.1));
            }
        }
        if self.config.vocabulary() != large.config.vocabulary() {
            let sizes = (self.config.vocabulary(), large.config.vocabulary());
            return refuse(format!("it scores {} tokens, the model {}", sizes.0, sizes.1));
        }
        self.tokenizer.same_vocabulary(&large.tokenizer).or_else(refuse)
    }
}
