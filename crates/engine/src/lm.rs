//! A model of either family, on each of the devices that it runs on.

use std::sync::Arc;

use trefoil_kernels::{Devices, Kernels};
use trefoil_models::{CacheType, CausalLm, CrossKv, Llama, ModelConfig, Sharded, T5, Token, Weights, encode};

use crate::error::Result;

/// Rows that a card scores in about the time of one.
const FREE: usize = 32;

/// A model, once for each of its devices.
pub(crate) enum Lm {
    /// Decoder only.
    Causal(Vec<Arc<Llama>>),
    /// Encoder and decoder; `start` begins every decoder text.
    Seq2Seq { devices: Vec<Arc<T5>>, start: Token },
}

impl Lm {
    /// Reads the weights, for one device after the other; gives the model, which keeps documents as `ty`, and its
    /// resident bytes on all of them. `hear` is told the share of the whole that is read.
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &Weights,
        devices: &Devices,
        ty: CacheType,
        hear: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<(Self, usize)> {
        let mut interrupted = None;
        let mut hear = |share: f64| {
            hear(share).map_err(|error| {
                interrupted = Some(error);
                trefoil_models::Error::internal("the load was interrupted")
            })
        };
        let loaded = match config {
            ModelConfig::Llama(config) => on_each(devices, &mut hear, |kernels, hear| {
                Llama::load(config.clone(), weights, kernels, hear)
            })
            .map(|models| {
                let bytes = models.iter().map(|model| model.bytes()).sum();
                (Self::Causal(models), bytes)
            }),
            ModelConfig::T5(config) => on_each(devices, &mut hear, |kernels, hear| {
                T5::load(config.clone(), weights, kernels, hear).map(|model| model.keeping(ty))
            })
            .map(|devices| {
                let bytes = devices.iter().map(|model| model.bytes()).sum();
                (Self::Seq2Seq { devices, start: config.start }, bytes)
            }),
        };
        loaded.map_err(|error| interrupted.unwrap_or_else(|| error.into()))
    }

    /// The token that begins every decoder text, where the model has an encoder.
    pub(crate) fn start(&self) -> Option<Token> {
        match self {
            Self::Causal(_) => None,
            Self::Seq2Seq { start, .. } => Some(*start),
        }
    }

    /// An encoding of `tokens`, where the model has an encoder.
    pub(crate) fn encode(&self, tokens: &[Token]) -> Result<Option<Arc<CrossKv>>> {
        match self {
            Self::Causal(_) => Ok(None),
            Self::Seq2Seq { devices, .. } => Ok(Some(encode(devices, tokens)?)),
        }
    }

    /// The part that writes, its steps shared out over its devices where there are several.
    pub(crate) fn decoder(&self) -> Arc<dyn CausalLm> {
        let (kernels, devices): (&Kernels, Vec<Arc<dyn CausalLm>>) = match self {
            Self::Causal(devices) => {
                (devices[0].kernels(), devices.iter().map(|model| Arc::clone(model) as _).collect())
            }
            Self::Seq2Seq { devices, .. } => {
                (devices[0].kernels(), devices.iter().map(|model| Arc::clone(model) as _).collect())
            }
        };
        match devices.as_slice() {
            [only] => Arc::clone(only),
            _ => Arc::new(Sharded::over(devices, if kernels.on_card() { FREE } else { 1 })),
        }
    }

    /// [`Lm::decoder`] of a model on one device, its steps shared out over workers with these kernels.
    pub(crate) fn sharded(&self, workers: &[Kernels]) -> Arc<dyn CausalLm> {
        let on = |kernels: &Kernels| -> Arc<dyn CausalLm> {
            match self {
                Self::Causal(devices) => Arc::new(devices[0].on(kernels)),
                Self::Seq2Seq { devices, .. } => Arc::new(devices[0].on(kernels)),
            }
        };
        Arc::new(Sharded::new(self.decoder(), workers.iter().map(on).collect()))
    }

    /// The model up to its decoder layer `layers`, sharing the weights of the first device.
    pub(crate) fn first_layers(&self, layers: usize) -> Self {
        match self {
            Self::Causal(devices) => Self::Causal(vec![devices[0].first_layers(layers).into()]),
            Self::Seq2Seq { devices, start } => {
                Self::Seq2Seq { devices: vec![devices[0].first_layers(layers).into()], start: *start }
            }
        }
    }
}

/// Hears the share of a load that is done.
type Hear<'a> = dyn FnMut(f64) -> trefoil_models::Result<()> + 'a;

/// Loads a model for one device after the other.
fn on_each<M>(
    devices: &Devices,
    hear: &mut Hear<'_>,
    load: impl Fn(&Kernels, &mut Hear<'_>) -> trefoil_models::Result<M>,
) -> trefoil_models::Result<Vec<Arc<M>>> {
    let count = devices.each().len() as f64;
    let one = |kernels: &Kernels| {
        let before = kernels.rank() as f64;
        load(kernels, &mut |share| hear((before + share) / count)).map(Arc::new)
    };
    devices.each().iter().map(one).collect()
}
