//! A model's files, before any weights are read.

use std::path::Path;

use trefoil_kernels::WeightType;
use trefoil_models::{ModelConfig, Weights};

use crate::error::{Error, Result};
use crate::options::Dtype;
use crate::text::{Template, Tokenizer};

/// A model's files, open and checked, with no weights read yet.
pub(crate) struct Files {
    pub(crate) weights: Weights,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) dtype: Dtype,
    pub(crate) template: Option<Template>,
}

impl Files {
    /// Opens the model at `source`.
    pub(crate) fn open(source: &Path, dtype: Dtype) -> Result<Self> {
        let mut weights = Weights::open(source)?;
        if let Some(ty) = dtype.dense() {
            weights.read_dense_as(ty);
        }
        let config = ModelConfig::read(source, &weights)?;
        let (tokenizer, template) = match weights.metadata() {
            Some(metadata) => (Tokenizer::from_gguf(metadata)?, Template::from_gguf(metadata)?),
            None => (Tokenizer::from_folder(source)?, Template::from_folder(source)?),
        };
        if tokenizer.vocabulary() > config.vocabulary() {
            return Err(Error::load(format!(
                "the tokenizer has {} tokens; the model's vocabulary has {}",
                tokenizer.vocabulary(),
                config.vocabulary()
            )));
        }
        Ok(Self { weights, config, tokenizer, dtype, template })
    }
}

impl Dtype {
    fn dense(self) -> Option<WeightType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(WeightType::F32),
            Self::Bf16 => Some(WeightType::Bf16),
            Self::F16 => Some(WeightType::F16),
            Self::Q8_0 => Some(WeightType::Q8_0),
        }
    }
}
