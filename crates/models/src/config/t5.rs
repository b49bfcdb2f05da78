//! The T5 family: T5, T5 v1.1, Flan-T5 and mT5.

use super::fields::Fields;
use trefoil_kernels::Activation;

use crate::error::Result;
use crate::weights::Weights;

/// An encoder-decoder model with relative positions.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// `t5` or `mt5`.
    pub architecture: String,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Dimensions of a head. `heads · head_dim` need not be `width`.
    pub head_dim: usize,
    /// Heads of every attention.
    pub heads: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Width inside the feed-forward layers.
    pub feed_forward: usize,
    /// Whether the feed-forward layers multiply `wi_0`'s activation by `wi_1`, or have one `wi`.
    pub gated: bool,
    /// The activation of the feed-forward layers.
    pub activation: Activation,
    /// Added to the mean square before its root.
    pub norm_eps: f32,
    /// Buckets of relative positions; even.
    pub buckets: usize,
    /// The distance from which on all positions share the last bucket.
    pub max_distance: usize,
    /// Whether the embedding serves as the head.
    pub tied_head: bool,
    /// Whether the decoder's output is scaled by `width^-0.5` before the head.
    pub scale_outputs: bool,
    /// The token that the decoder starts from.
    pub start: u32,
    /// The padding token.
    pub pad: u32,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// The length the model was trained for, in tokens. Relative positions have no end, so it is a default for each
    /// of source and text and not a bound.
    pub context_length: usize,
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "shared.weight";
const NORM_EPS: std::ops::RangeInclusive<f64> = 0.0..=1.0;
/// What T5 was published with, and what every file that says nothing means.
const CONTEXT: usize = 512;
const MAX_DISTANCE: usize = 128;
/// The tables of biases have a number for every head and distance; with the most heads they take 200 MB at this one.
const LARGEST_DISTANCE: u64 = 1 << 14;

impl T5Config {
    pub(super) fn from_json(fields: &Fields, generation: Option<&Fields>, weights: &Weights) -> Result<Self> {
        let multilingual = fields.text("model_type")? == "mt5";
        let vocabulary = fields.count("vocab_size", 1..=1 << 24)?;
        let encoder_layers = fields.count("num_layers", 1..=1024)?;
        let buckets = fields.optional_count("relative_attention_num_buckets", 4..=1 << 16)?.unwrap_or(32);
        let distance = "relative_attention_max_distance";
        let max_distance = fields.optional_count(distance, 1..=LARGEST_DISTANCE)?.unwrap_or(MAX_DISTANCE);
        check_buckets(fields, distance, buckets, max_distance)?;
        let projection = if multilingual { "gated-gelu" } else { "relu" };
        let projection = fields.optional_text("feed_forward_proj")?.unwrap_or(projection);
        let (gated, activation) = match projection {
            "relu" => (false, Activation::Relu),
            "gelu" => (false, Activation::Gelu),
            "gelu_new" => (false, Activation::GeluTanh),
            "silu" => (false, Activation::Silu),
            "gated-relu" => (true, Activation::Relu),
            // T5 v1.1 was trained with the approximation, whatever its name says.
            "gated-gelu" | "gated-gelu_new" => (true, Activation::GeluTanh),
            "gated-silu" => (true, Activation::Silu),
            other => {
                return Err(fields.unsupported("feed_forward_proj", other, "relu, gelu, silu and gated-…"));
            }
        };
        let pad = fields.token("pad_token_id", vocabulary)?.unwrap_or(0);
        let mut start = generation.map_or(Ok(None), |it| it.token("decoder_start_token_id", vocabulary))?;
        if start.is_none() {
            start = fields.token("decoder_start_token_id", vocabulary)?;
        }
        let mut eos = generation.map_or(Ok(None), |it| it.tokens("eos_token_id", vocabulary))?;
        if eos.is_none() {
            eos = fields.tokens("eos_token_id", vocabulary)?;
        }
        // Up to transformers 4 a head of its own meant an unscaled output; newer files say it apart. mT5 never scales.
        let scale_outputs = match fields.optional_flag("scale_decoder_outputs")? {
            Some(scaled) => scaled,
            None => !multilingual && fields.optional_flag("tie_word_embeddings")?.unwrap_or(true),
        };
        Ok(Self {
            architecture: fields.text("model_type")?.to_owned(),
            vocabulary,
            width: fields.count("d_model", 1..=1 << 17)?,
            head_dim: fields.count("d_kv", 1..=1024)?,
            heads: fields.count("num_heads", 1..=1024)?,
            encoder_layers,
            decoder_layers: fields.optional_count("num_decoder_layers", 1..=1024)?.unwrap_or(encoder_layers),
            feed_forward: fields.count("d_ff", 1..=1 << 20)?,
            gated,
            activation,
            norm_eps: fields.optional_float("layer_norm_epsilon", NORM_EPS)?.unwrap_or(1e-6) as f32,
            buckets,
            max_distance,
            tied_head: !weights.has(HEAD),
            scale_outputs,
            start: start.unwrap_or(pad),
            pad,
            eos: eos.unwrap_or_else(|| vec![1]),
            context_length: fields.optional_count("n_positions", 1..=1 << 30)?.unwrap_or(CONTEXT),
        })
    }

    pub(super) fn from_gguf(fields: &Fields, weights: &Weights) -> Result<Self> {
        let vocabulary = super::gguf_vocabulary(weights, EMBEDDING)?;
        let encoder_layers = fields.count("t5.block_count", 1..=1024)?;
        let buckets = fields.count("t5.attention.relative_buckets_count", 4..=1 << 16)?;
        check_buckets(fields, "t5.attention.relative_buckets_count", buckets, MAX_DISTANCE)?;
        if weights.has("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight") {
            return Err(fields.unsupported(
                "general.architecture",
                "t5 with a bias in every layer (umt5)",
                "t5 and mt5",
            ));
        }
        // GGUF names no activation: a gate means v1.1's approximated GELU, none the first T5's ReLU.
        let gated = weights.has("encoder.block.0.layer.1.DenseReluDense.wi_0.weight");
        let tied_head = !weights.has(HEAD);
        let pad = fields.token("tokenizer.ggml.padding_token_id", vocabulary)?.unwrap_or(0);
        Ok(Self {
            architecture: "t5".to_owned(),
            vocabulary,
            width: fields.count("t5.embedding_length", 1..=1 << 17)?,
            head_dim: fields.count("t5.attention.key_length", 1..=1024)?,
            heads: fields.count("t5.attention.head_count", 1..=1024)?,
            encoder_layers,
            decoder_layers: fields
                .optional_count("t5.decoder_block_count", 1..=1024)?
                .unwrap_or(encoder_layers),
            feed_forward: fields.count("t5.feed_forward_length", 1..=1 << 20)?,
            gated,
            activation: if gated { Activation::GeluTanh } else { Activation::Relu },
            norm_eps: fields.float("t5.attention.layer_norm_rms_epsilon", NORM_EPS)? as f32,
            buckets,
            max_distance: MAX_DISTANCE,
            tied_head,
            scale_outputs: tied_head,
            start: fields.token("t5.decoder_start_token_id", vocabulary)?.unwrap_or(pad),
            pad,
            eos: super::gguf_eos(fields, weights, vocabulary)?,
            context_length: fields.optional_count("t5.context_length", 1..=1 << 30)?.unwrap_or(CONTEXT),
        })
    }
}

/// The encoder halves the buckets by direction, and half of what is left is exact; beyond that, distance is
/// logarithmic up to the last one.
fn check_buckets(fields: &Fields, name: &str, buckets: usize, max_distance: usize) -> Result<()> {
    if !buckets.is_multiple_of(4) {
        return Err(fields.unsupported("the number of relative buckets", buckets, "multiples of 4"));
    }
    if max_distance <= buckets / 2 {
        return Err(fields.broken(name, &format!("distances above half of the {buckets} buckets")));
    }
    Ok(())
}
