//! The T5 family: T5, T5 v1.1, Flan-T5 and mT5.
//!
//! What implementations get wrong, and this one keeps: the decoder's relative positions use *unidirectional* buckets;
//! the bias lives in layer 0 and serves all layers; q·k is not scaled; a tied head scales its input by
//! `width^-0.5`; cross-attention's keys and values are projected once a document. Sources are encoded one at a time on
//! exactly their own tokens, so that no padding exists and none has to be masked. Activations are f32 whatever the
//! weights are, so that the feed-forward layer, which overflows f16, cannot.

use std::sync::Arc;

use candle_core::Tensor;
use trefoil_kernels::{CacheType, Kernels, Lease, Operand, Readers, SharedKv, Weight, Words};

use crate::config::T5Config;
use crate::draft::{Draft, Token};
use crate::error::{Error, Result};
use crate::kv::{CrossKv, Kv, KvShape};
use crate::linear::{Linear, matrix, vector};
use crate::model::{CausalLm, Seq2SeqLm};
use crate::residual::Residual;
use crate::scored::{Rows, kind};
use crate::scores::Scores;
use crate::staged::Staged;
use crate::t5_bias::{decoder_bias, encoder_bias};
use crate::weights::Weights;

/// A loaded T5-family model. Clones share the weights.
#[derive(Clone)]
pub struct T5 {
    config: T5Config,
    kernels: Kernels,
    /// How documents' keys and values are kept.
    documents: CacheType,
    embedding: Arc<Weight>,
    head: Option<Arc<Weight>>,
    encoder: Vec<Arc<EncoderLayer>>,
    encoder_norm: Tensor,
    encoder_bias: Tensor,
    decoder: Vec<Arc<DecoderLayer>>,
    decoder_norm: Tensor,
    decoder_bias: Tensor,
}

struct EncoderLayer {
    attention: Attention,
    feed_forward: FeedForward,
}

struct DecoderLayer {
    attention: Attention,
    cross: Attention,
    feed_forward: FeedForward,
}

struct Attention {
    norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
}

struct FeedForward {
    norm: Tensor,
    gate: Linear,
    up: Option<Linear>,
    down: Linear,
}

/// T5 folds the scale into its initialisation.
const SCALE: f32 = 1.0;

impl T5 {
    /// Reads the weights that `config` calls for; `progress` hears the share of layers read, from 0 to 1.
    ///
    /// # Errors
    /// Fails (`ErrorKind::Load`) for a missing tensor or one of another shape, naming both, and for a layer's tensor
    /// that the model does not have.
    pub fn load(
        config: T5Config,
        weights: &Weights,
        kernels: &Kernels,
        progress: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<Self> {
        let (vocabulary, width) = (config.vocabulary, config.width);
        let read = Reader { config: &config, weights, kernels };
        let total = (config.encoder_layers + config.decoder_layers) as f64;
        let embedding = matrix(kernels, weights, "shared.weight", vocabulary, width)?.into();
        let mut encoder = Vec::with_capacity(config.encoder_layers);
        for index in 0..config.encoder_layers {
            progress(index as f64 / total)?;
            let block = format!("encoder.block.{index}.layer");
            encoder.push(Arc::new(EncoderLayer {
                attention: read.attention(&format!("{block}.0"), "SelfAttention")?,
                feed_forward: read.feed_forward(&format!("{block}.1"))?,
            }));
        }
        let mut decoder = Vec::with_capacity(config.decoder_layers);
        for index in 0..config.decoder_layers {
            progress((config.encoder_layers + index) as f64 / total)?;
            let block = format!("decoder.block.{index}.layer");
            decoder.push(Arc::new(DecoderLayer {
                attention: read.attention(&format!("{block}.0"), "SelfAttention")?,
                cross: read.attention(&format!("{block}.1"), "EncDecAttention")?,
                feed_forward: read.feed_forward(&format!("{block}.2"))?,
            }));
        }
        let head = (!config.tied_head)
            .then(|| matrix(kernels, weights, "lm_head.weight", vocabulary, width).map(Arc::new))
            .transpose()?;
        let encoder_bias = encoder_bias(&config, &read.buckets("encoder")?, kernels)?;
        let decoder_bias = decoder_bias(&config, &read.buckets("decoder")?, kernels)?;
        let encoder_norm = vector(kernels, weights, "encoder.final_layer_norm.weight", width)?;
        let decoder_norm = vector(kernels, weights, "decoder.final_layer_norm.weight", width)?;
        let (encoders, decoders) = (config.encoder_layers, config.decoder_layers);
        weights.check_read(&[
            ("encoder.block.", encoders),
            ("enc.blk.", encoders),
            ("decoder.block.", decoders),
            ("dec.blk.", decoders),
        ])?;
        progress(1.0)?;
        Ok(Self {
            kernels: kernels.clone(),
            documents: CacheType::F32,
            embedding,
            head,
            encoder,
            encoder_norm,
            encoder_bias,
            decoder,
            decoder_norm,
            decoder_bias,
            config,
        })
    }

    /// The encoder and the first `layers` decoder layers (all, where there are fewer) with the same head, as a model
    /// of its own that shares the weights: an early exit. It reads the documents that the whole model has encoded.
    #[must_use]
    pub fn first_layers(&self, layers: usize) -> Self {
        let decoder_layers = layers.min(self.decoder.len());
        Self {
            config: T5Config { decoder_layers, ..self.config.clone() },
            decoder: self.decoder[..decoder_layers].to_vec(),
            ..self.clone()
        }
    }

    /// The same model, which keeps the keys and values of documents as `ty`; whole, where nothing is said.
    #[must_use]
    pub fn keeping(self, ty: CacheType) -> Self {
        Self { documents: ty, ..self }
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
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Resident bytes of the weights.
    pub fn bytes(&self) -> usize {
        let encoder = self.encoder.iter().map(|layer| layer.attention.bytes() + layer.feed_forward.bytes());
        let decoder = self
            .decoder
            .iter()
            .map(|layer| layer.attention.bytes() + layer.cross.bytes() + layer.feed_forward.bytes());
        self.embedding.bytes()
            + self.head.as_ref().map_or(0, |head| head.bytes())
            + encoder.sum::<usize>()
            + decoder.sum::<usize>()
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(self.kernels.rms_norm(x, weight, self.config.norm_eps)?)
    }

    /// `[m, width]` to `[m, heads, head_dim]`, by each of `layers`.
    fn heads<const N: usize>(&self, layers: [&Linear; N], x: &Operand) -> Result<[Tensor; N]> {
        let mut all = Linear::forward_all(layers, &self.kernels, x)?;
        for y in &mut all {
            *y = y.reshape((y.dim(0)?, self.config.heads, self.config.head_dim))?;
        }
        Ok(all)
    }

    /// What `layers` make of the norm of `x`, as heads.
    fn normed_heads<const N: usize>(
        &self,
        x: &mut Residual<'_>,
        norm: &Tensor,
        layers: [&Linear; N],
    ) -> Result<[Tensor; N]> {
        let h = x.norm_for(norm, self.config.norm_eps, &layers.map(Linear::weight))?;
        self.heads(layers, &h)
    }

    /// Adds `feed_forward(norm(x))` to x.
    fn feed_forward(&self, x: &mut Residual<'_>, layer: &FeedForward) -> Result<()> {
        let (kernels, eps) = (&self.kernels, self.config.norm_eps);
        let (activation, next) = (self.config.activation, [layer.down.weight()]);
        let h = if let Some(up) = &layer.up {
            let layers = [&layer.gate, up];
            let h = x.norm_for(&layer.norm, eps, &layers.map(Linear::weight))?;
            let [gate, up] = Linear::forward_all(layers, kernels, &h)?;
            kernels.gate_for(&gate, Some(&up), activation, &next)?
        } else {
            let first = layer.gate.weight();
            kernels.activated(&x.norm_for(&layer.norm, eps, &[first])?, first, activation, &next)?
        };
        x.add(layer.down.forward(kernels, &h)?)
    }
}

impl CausalLm for T5 {
    fn kv_shape(&self) -> KvShape {
        let config = &self.config;
        KvShape { layers: config.decoder_layers, kv_heads: config.heads, head_dim: config.head_dim }
    }

    fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    fn forward(&self, draft: &Draft, kv: &Kv) -> Result<(Scores, Staged)> {
        let kind = kind(&self.embedding, self.decoder.len(), draft);
        self.kernels.pass(kind, draft.len(), |lease| self.pass(draft, kv, &lease))
    }
}

impl T5 {
    fn pass(&self, draft: &Draft, kv: &Kv, lease: &Lease) -> Result<(Scores, Staged)> {
        let kernels = &self.kernels;
        let step = Rows::of(draft, kv)?;
        let documents = Documents::of(draft, kv)?;
        step.upload(kernels, &documents.readers)?;
        let mut x = Residual::new(kernels, kernels.embed(&step.tokens, &self.embedding)?);
        let mut staged = Vec::with_capacity(self.decoder.len());
        for (index, layer) in self.decoder.iter().enumerate() {
            let own = &layer.attention;
            let [q, k, v] = self.normed_heads(&mut x, &own.norm, [&own.q, &own.k, &own.v])?;
            let bias = Some(&self.decoder_bias);
            let store = kv.store(kernels, index)?;
            let a = kernels.attend(&q, &k, &v, store, &step.sight, SCALE, None, bias)?;
            staged.push((k, v));
            x.add(own.o.forward(kernels, &a.into())?)?;

            let [q] = self.normed_heads(&mut x, &layer.cross.norm, [&layer.cross.q])?;
            let read = documents.layer(kernels, index)?;
            let a = kernels.attend_shared(&q, &read, &documents.readers, SCALE, None)?;
            x.add(layer.cross.o.forward(kernels, &a.into())?)?;

            self.feed_forward(&mut x, &layer.feed_forward)?;
        }
        let x = x.whole()?;
        let scores =
            step.logits(kernels, draft, lease, &x, self.head.as_ref().unwrap_or(&self.embedding), |x| {
                let x = self.norm(x, &self.decoder_norm)?;
                if !self.config.scale_outputs {
                    return Ok(x);
                }
                Ok(kernels.scale(&x, (self.config.width as f64).powf(-0.5) as f32)?)
            })?;
        Ok((scores, Staged::new(kernels, draft, staged).on(lease)))
    }
}

impl Seq2SeqLm for T5 {
    fn encode(&self, source: &[Token]) -> Result<Arc<CrossKv>> {
        if source.is_empty() {
            return Err(Error::internal("an empty source"));
        }
        let kernels = &self.kernels;
        // Row i is at position i, and every row reads the whole source.
        let positions = Words::from((0..source.len() as u32).collect::<Vec<_>>());
        let (tokens, readers) = (Words::from(source.to_vec()), Readers::new(vec![positions.to_vec()])?);
        kernels.upload(&[&tokens, &positions, &readers])?;
        let mut x = Residual::new(kernels, kernels.embed(&tokens, &self.embedding)?);
        for layer in &self.encoder {
            let own = &layer.attention;
            let [q, k, v] = self.normed_heads(&mut x, &own.norm, [&own.q, &own.k, &own.v])?;
            let own_keys = kernels.share(&k, &v, CacheType::F32)?;
            let bias = Some((&self.encoder_bias, &positions));
            let a = kernels.attend_shared(&q, &[&own_keys], &readers, SCALE, bias)?;
            x.add(own.o.forward(kernels, &a.into())?)?;
            self.feed_forward(&mut x, &layer.feed_forward)?;
        }
        let layers = self.decoder.iter().flat_map(|layer| [&layer.cross.k, &layer.cross.v]);
        let weights: Vec<_> = layers.map(Linear::weight).collect();
        let x = x.norm_for(&self.encoder_norm, self.config.norm_eps, &weights)?;
        let layers = self
            .decoder
            .iter()
            .map(|layer| {
                let [k, v] = self.heads([&layer.cross.k, &layer.cross.v], &x)?;
                Ok(kernels.share(&k, &v, self.documents)?)
            })
            .collect::<Result<_>>()?;
        Ok(Arc::new(CrossKv::new(layers)))
    }
}

/// The documents that a draft reads, and which of its rows read each.
struct Documents {
    all: Vec<Arc<CrossKv>>,
    readers: Readers,
}

impl Documents {
    fn of(draft: &Draft, kv: &Kv) -> Result<Self> {
        let (mut all, mut groups): (Vec<Arc<CrossKv>>, Vec<Vec<u32>>) = (Vec::new(), Vec::new());
        for (row, entry) in draft.rows().iter().enumerate() {
            let document =
                kv.source(entry.branch)?.ok_or_else(|| Error::internal("a branch without a document"))?;
            let at = all.iter().position(|known| Arc::ptr_eq(known, document)).unwrap_or(all.len());
            if at == all.len() {
                all.push(Arc::clone(document));
                groups.push(Vec::new());
            }
            groups[at].push(row as u32);
        }
        Ok(Self { all, readers: Readers::new(groups)? })
    }

    /// What cross-attention of a layer reads.
    fn layer(&self, kernels: &Kernels, layer: usize) -> Result<Vec<&SharedKv>> {
        self.all.iter().map(|document| document.layer(kernels, layer)).collect()
    }
}

struct Reader<'a> {
    config: &'a T5Config,
    weights: &'a Weights,
    kernels: &'a Kernels,
}

impl Reader<'_> {
    fn attention(&self, layer: &str, kind: &str) -> Result<Attention> {
        let (width, inner) = (self.config.width, self.config.heads * self.config.head_dim);
        let linear = |part: &str, n, k| {
            Linear::load(self.kernels, self.weights, &format!("{layer}.{kind}.{part}"), n, k, false)
        };
        Ok(Attention {
            norm: self.layer_norm(layer)?,
            q: linear("q", inner, width)?,
            k: linear("k", inner, width)?,
            v: linear("v", inner, width)?,
            o: linear("o", width, inner)?,
        })
    }

    fn feed_forward(&self, layer: &str) -> Result<FeedForward> {
        let (width, hidden) = (self.config.width, self.config.feed_forward);
        let linear = |part: &str, n, k| {
            Linear::load(self.kernels, self.weights, &format!("{layer}.DenseReluDense.{part}"), n, k, false)
        };
        let (gate, up) = if self.config.gated {
            (linear("wi_0", hidden, width)?, Some(linear("wi_1", hidden, width)?))
        } else {
            (linear("wi", hidden, width)?, None)
        };
        Ok(FeedForward { norm: self.layer_norm(layer)?, gate, up, down: linear("wo", width, hidden)? })
    }

    fn layer_norm(&self, layer: &str) -> Result<Tensor> {
        vector(self.kernels, self.weights, &format!("{layer}.layer_norm.weight"), self.config.width)
    }

    /// The relative position biases of one side's layer 0: `[buckets, heads]`.
    fn buckets(&self, side: &str) -> Result<Weight> {
        let name = format!("{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        matrix(self.kernels, self.weights, &name, self.config.buckets, self.config.heads)
    }
}

impl Attention {
    fn bytes(&self) -> usize {
        self.q.bytes() + self.k.bytes() + self.v.bytes() + self.o.bytes()
    }
}

impl FeedForward {
    fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.as_ref().map_or(0, Linear::bytes) + self.down.bytes()
    }
}
