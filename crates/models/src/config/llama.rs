//! The Llama family: Llama, `SmolLM2`, Mistral, Qwen2 and Qwen3.

use super::fields::Fields;
use super::rope::RopeScaling;
use crate::error::Result;
use crate::weights::Weights;

/// A decoder-only model with rotary positions, RMS norms and gated feed-forward layers.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub architecture: String,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimensions of a head; even. `heads · head_dim` need not be `width`.
    pub head_dim: usize,
    /// Width inside the feed-forward layers.
    pub feed_forward: usize,
    /// Added to the mean square before its root.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether every head of q and k has its own norm.
    pub qk_norm: bool,
    /// Whether the embedding serves as the head.
    pub tied_head: bool,
    /// The longest text, in tokens.
    pub context_length: usize,
    /// Positions that a row sees, itself included; `None` sees all.
    pub window: Option<usize>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// The token that begins a text, where the model has one.
    pub bos: Option<u32>,
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM_EPS: std::ops::RangeInclusive<f64> = 0.0..=1.0;

impl LlamaConfig {
    /// The angle per position of each pair of dimensions: `[head_dim / 2]`, in radians.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        self.rope_scaling.inverse_frequencies(self.rope_theta, self.head_dim)
    }

    pub(super) fn from_json(fields: &Fields, generation: Option<&Fields>, weights: &Weights) -> Result<Self> {
        let architecture = fields.text("model_type")?.to_owned();
        let vocabulary = fields.count("vocab_size", 1..=1 << 24)?;
        let width = fields.count("hidden_size", 1..=1 << 17)?;
        let layers = fields.count("num_hidden_layers", 1..=1024)?;
        let heads = fields.count("num_attention_heads", 1..=1024)?;
        let kv_heads = fields.optional_count("num_key_value_heads", 1..=1024)?.unwrap_or(heads);
        check_groups(fields, "num_key_value_heads", heads, kv_heads)?;
        let head_dim = match fields.optional_count("head_dim", 2..=1024)? {
            Some(head_dim) => head_dim,
            None => share(fields, "num_attention_heads", width, heads)?,
        };
        check_even(fields, "head_dim", head_dim)?;
        match fields.optional_text("hidden_act")?.unwrap_or("silu") {
            "silu" | "swish" => {}
            other => return Err(fields.unsupported("hidden_act", other, "silu")),
        }
        for bias in ["attention_bias", "mlp_bias"] {
            if fields.optional_flag(bias)?.unwrap_or(false) {
                return Err(fields.unsupported(bias, true, "false"));
            }
        }
        let (rope_theta, rope_scaling) = RopeScaling::from_json(fields)?;
        // Generation's list is the one that its authors stop by; the model's own is often shorter.
        let mut eos = generation.map_or(Ok(None), |it| it.tokens("eos_token_id", vocabulary))?;
        if eos.is_none() {
            eos = fields.tokens("eos_token_id", vocabulary)?;
        }
        let tied_head = match fields.optional_flag("tie_word_embeddings")? {
            Some(tied) => tied,
            None => !weights.has(HEAD),
        };
        Ok(Self {
            vocabulary,
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            feed_forward: fields.count("intermediate_size", 1..=1 << 20)?,
            norm_eps: fields.float("rms_norm_eps", NORM_EPS)? as f32,
            rope_theta,
            rope_scaling,
            qkv_bias: architecture == "qwen2",
            qk_norm: architecture == "qwen3",
            tied_head,
            context_length: fields.count("max_position_embeddings", 1..=1 << 30)?,
            window: window(fields, &architecture, layers)?,
            eos: eos.unwrap_or_default(),
            bos: fields.token("bos_token_id", vocabulary)?,
            architecture,
        })
    }

    pub(super) fn from_gguf(fields: &Fields, weights: &Weights) -> Result<Self> {
        let architecture = fields.text("general.architecture")?.to_owned();
        let key = |name: &str| format!("{architecture}.{name}");
        let width = fields.count(&key("embedding_length"), 1..=1 << 17)?;
        let heads = fields.count(&key("attention.head_count"), 1..=1024)?;
        let kv_key = key("attention.head_count_kv");
        let kv_heads = fields.optional_count(&kv_key, 1..=1024)?.unwrap_or(heads);
        check_groups(fields, &kv_key, heads, kv_heads)?;
        let (head_key, rotary_key) = (key("attention.key_length"), key("rope.dimension_count"));
        let head_dim = match fields.optional_count(&head_key, 2..=1024)? {
            Some(head_dim) => head_dim,
            None => share(fields, &key("attention.head_count"), width, heads)?,
        };
        check_even(fields, &head_key, head_dim)?;
        for same in [key("attention.value_length"), rotary_key] {
            if let Some(other) = fields.optional_count(&same, 0..=1 << 20)?
                && other != head_dim
            {
                return Err(fields.unsupported(&same, other, &format!("the head's dimensions, {head_dim}")));
            }
        }
        if let Some(experts) = fields.optional_count(&key("expert_count"), 0..=1 << 20)?
            && experts > 0
        {
            return Err(fields.unsupported(&key("expert_count"), experts, "0 (no mixture of experts)"));
        }
        let vocabulary = super::gguf_vocabulary(weights, EMBEDDING)?;
        let (rope_theta, rope_scaling) = RopeScaling::from_gguf(fields, &architecture, head_dim, weights)?;
        let window = match fields.optional_count(&key("attention.sliding_window"), 0..=1 << 30)? {
            Some(window) if window > 0 && architecture == "llama" => Some(window),
            _ => None,
        };
        Ok(Self {
            vocabulary,
            width,
            layers: fields.count(&key("block_count"), 1..=1024)?,
            heads,
            kv_heads,
            head_dim,
            feed_forward: fields.count(&key("feed_forward_length"), 1..=1 << 20)?,
            norm_eps: fields.float(&key("attention.layer_norm_rms_epsilon"), NORM_EPS)? as f32,
            rope_theta,
            rope_scaling,
            qkv_bias: architecture == "qwen2" || weights.has("model.layers.0.self_attn.q_proj.bias"),
            qk_norm: architecture == "qwen3",
            tied_head: !weights.has(HEAD),
            context_length: fields.count(&key("context_length"), 1..=1 << 30)?,
            window,
            eos: super::gguf_eos(fields, weights, vocabulary)?,
            bos: fields.token("tokenizer.ggml.bos_token_id", vocabulary)?,
            architecture,
        })
    }
}

fn check_groups(fields: &Fields, name: &str, heads: usize, kv_heads: usize) -> Result<()> {
    if heads.is_multiple_of(kv_heads) {
        return Ok(());
    }
    Err(fields.broken(name, &format!("divisors of the {heads} query heads")))
}

fn share(fields: &Fields, name: &str, width: usize, heads: usize) -> Result<usize> {
    if width.is_multiple_of(heads) && width / heads >= 2 {
        return Ok(width / heads);
    }
    Err(fields.broken(name, &format!("divisors of the width, {width}, that leave at least 2 dimensions")))
}

fn check_even(fields: &Fields, name: &str, head_dim: usize) -> Result<()> {
    if head_dim.is_multiple_of(2) {
        return Ok(());
    }
    Err(fields.unsupported(name, head_dim, "even numbers of dimensions a head"))
}

/// The sliding window that all layers share. Models that mix windows are not built.
fn window(fields: &Fields, architecture: &str, layers: usize) -> Result<Option<usize>> {
    let qwen = architecture.starts_with("qwen");
    if architecture == "llama" || (qwen && !fields.optional_flag("use_sliding_window")?.unwrap_or(false)) {
        return Ok(None);
    }
    let Some(window) = fields.optional_count("sliding_window", 1..=1 << 30)? else { return Ok(None) };
    let sliding = match fields.texts("layer_types")? {
        Some(types) => types.iter().take(layers).filter(|ty| **ty == "sliding_attention").count(),
        None if qwen => layers.saturating_sub(fields.count("max_window_layers", 0..=1 << 20)?),
        None => layers,
    };
    match sliding {
        0 => Ok(None),
        n if n == layers => Ok(Some(window)),
        n => Err(fields.unsupported(
            "sliding_window",
            n,
            &format!("a window on none or on all {layers} layers"),
        )),
    }
}
