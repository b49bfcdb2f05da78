//! The Llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen2.5 and Qwen3.
//!
//! One file for all of them: they differ by what `LlamaConfig` says (biases on q, k and v; norms on q and k; tied or
//! own head; rope scaling; sliding window), not by their shape.

use std::sync::Arc;

use candle_core::Tensor;
use trefoil_kernels::{Activation, Kernels, Lease, Rope, Weight};

use crate::config::LlamaConfig;
use crate::draft::Draft;
use crate::error::Result;
use crate::kv::{Kv, KvShape};
use crate::linear::{Linear, matrix, vector};
use crate::model::CausalLm;
use crate::residual::Residual;
use crate::scored::{Rows, kind};
use crate::scores::Scores;
use crate::staged::Staged;
use crate::weights::Weights;

/// A loaded Llama-family model. Clones share the weights.
#[derive(Clone)]
pub struct Llama {
    config: LlamaConfig,
    kernels: Kernels,
    embedding: Arc<Weight>,
    layers: Vec<Arc<Layer>>,
    norm: Tensor,
    head: Option<Arc<Weight>>,
    rope: Arc<Rope>,
}

struct Layer {
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    feed_forward_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Llama {
    /// Reads the weights that `config` calls for; `progress` hears the share of layers read, from 0 to 1.
    ///
    /// # Errors
    /// Fails (`ErrorKind::Load`) for a missing tensor or one of another shape, naming both, and for a layer's tensor
    /// that the model does not have.
    pub fn load(
        config: LlamaConfig,
        weights: &Weights,
        kernels: &Kernels,
        progress: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<Self> {
        let (vocabulary, width) = (config.vocabulary, config.width);
        let embedding = matrix(kernels, weights, "model.embed_tokens.weight", vocabulary, width)?.into();
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            progress(index as f64 / config.layers as f64)?;
            layers.push(Arc::new(Layer::load(&config, weights, kernels, index)?));
        }
        let head = (!config.tied_head)
            .then(|| matrix(kernels, weights, "lm_head.weight", vocabulary, width).map(Arc::new))
            .transpose()?;
        let norm = vector(kernels, weights, "model.norm.weight", width)?;
        let rope = Rope::new(&config.inverse_frequencies()).into();
        weights.check_read(&[("model.layers.", config.layers), ("blk.", config.layers)])?;
        progress(1.0)?;
        Ok(Self { config, kernels: kernels.clone(), embedding, layers, norm, head, rope })
    }

    /// The first `layers` layers (all, where there are fewer) with the same head, as a model of its own that shares
    /// the weights: an early exit.
    #[must_use]
    pub fn first_layers(&self, layers: usize) -> Self {
        let layers = layers.min(self.layers.len());
        Self {
            config: LlamaConfig { layers, ..self.config.clone() },
            layers: self.layers[..layers].to_vec(),
            ..self.clone()
        }
    }

    /// The same model on other threads of the same device, sharing the weights.
    #[must_use]
    pub fn on(&self, kernels: &Kernels) -> Self {
        Self { kernels: kernels.clone(), ..self.clone() }
    }

    /// Where the model runs.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// What the model was built from.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Resident bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.embedding.bytes()
            + self.head.as_ref().map_or(0, |head| head.bytes())
            + self.layers.iter().map(|layer| layer.bytes()).sum::<usize>()
    }
}

impl CausalLm for Llama {
    fn kv_shape(&self) -> KvShape {
        let config = &self.config;
        KvShape { layers: config.layers, kv_heads: config.kv_heads, head_dim: config.head_dim }
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn forward(&self, draft: &Draft, kv: &Kv) -> Result<(Scores, Staged)> {
        let kind = kind(&self.embedding, self.layers.len(), draft);
        self.kernels.pass(kind, draft.len(), |lease| self.pass(draft, kv, &lease))
    }
}

impl Llama {
    fn pass(&self, draft: &Draft, kv: &Kv, lease: &Lease) -> Result<(Scores, Staged)> {
        let (config, kernels) = (&self.config, &self.kernels);
        let rows = draft.len();
        let step = Rows::of(draft, kv)?;
        let turns = self.rope.turns(&step.positions());
        step.upload(kernels, &turns)?;
        let scale = 1.0 / (config.head_dim as f32).sqrt();

        let mut x = Residual::new(kernels, kernels.embed(&step.tokens, &self.embedding)?);
        let mut staged = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let layers = [&layer.q, &layer.k, &layer.v];
            let h = x.norm_for(&layer.attention_norm, config.norm_eps, &layers.map(Linear::weight))?;
            let [q, k, v] = Linear::forward_all(layers, kernels, &h)?;
            let heads = |y: Tensor, heads| y.reshape((rows, heads, config.head_dim));
            let (mut q, mut k) = (heads(q, config.heads)?, heads(k, config.kv_heads)?);
            let v = heads(v, config.kv_heads)?;
            if let (Some(q_norm), Some(k_norm)) = (&layer.q_norm, &layer.k_norm) {
                q = kernels.rms_norm(&q, q_norm, config.norm_eps)?;
                k = kernels.rms_norm(&k, k_norm, config.norm_eps)?;
            }
            let [q, k] = kernels.rope([&q, &k], &turns)?;
            let store = kv.store(kernels, index)?;
            let a = kernels.attend(&q, &k, &v, store, &step.sight, scale, config.window, None)?;
            staged.push((k, v));
            x.add(layer.o.forward(kernels, &a.into())?)?;

            let layers = [&layer.gate, &layer.up];
            let h = x.norm_for(&layer.feed_forward_norm, config.norm_eps, &layers.map(Linear::weight))?;
            let [gate, up] = Linear::forward_all(layers, kernels, &h)?;
            let h = kernels.gate_for(&gate, Some(&up), Activation::Silu, &[layer.down.weight()])?;
            x.add(layer.down.forward(kernels, &h)?)?;
        }
        let x = x.whole()?;
        let scores =
            step.logits(kernels, draft, lease, &x, self.head.as_ref().unwrap_or(&self.embedding), |x| {
                Ok(kernels.rms_norm(x, &self.norm, config.norm_eps)?)
            })?;
        Ok((scores, Staged::new(kernels, draft, staged).on(lease)))
    }
}

impl Layer {
    fn load(config: &LlamaConfig, weights: &Weights, kernels: &Kernels, index: usize) -> Result<Self> {
        let (width, hidden) = (config.width, config.feed_forward);
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let linear = |part: &str, n, k, bias| Linear::load(kernels, weights, &name(part), n, k, bias);
        let norm = |part: &str, len| vector(kernels, weights, &name(part), len);
        let head_norm = |part: &str| config.qk_norm.then(|| norm(part, config.head_dim)).transpose();
        Ok(Self {
            attention_norm: norm("input_layernorm.weight", width)?,
            q: linear("self_attn.q_proj", q_width, width, config.qkv_bias)?,
            k: linear("self_attn.k_proj", kv_width, width, config.qkv_bias)?,
            v: linear("self_attn.v_proj", kv_width, width, config.qkv_bias)?,
            o: linear("self_attn.o_proj", width, q_width, false)?,
            q_norm: head_norm("self_attn.q_norm.weight")?,
            k_norm: head_norm("self_attn.k_norm.weight")?,
            feed_forward_norm: norm("post_attention_layernorm.weight", width)?,
            gate: linear("mlp.gate_proj", hidden, width, false)?,
            up: linear("mlp.up_proj", hidden, width, false)?,
            down: linear("mlp.down_proj", width, hidden, false)?,
        })
    }

    fn bytes(&self) -> usize {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
            .iter()
            .map(|part| part.bytes())
            .sum()
    }
}
