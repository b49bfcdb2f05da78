//! GGUF's tensor names as the names that models are published under.
//!
//! # Source
//! `gguf-py/gguf/constants.py` and `tensor_mapping.py` of llama.cpp, for the architectures llama, qwen2, qwen3 and t5.

use super::metadata::{Metadata, Value};
use crate::weights::Rows;

/// The published name of a GGUF tensor; a name that is not known stays as it is.
///
/// * `gated`: whether the feed-forward layers of a T5 have a gate, which decides what `ffn_up` is.
pub(super) fn published(name: &str, gated: bool) -> String {
    known(name, gated).unwrap_or_else(|| name.to_owned())
}

fn known(name: &str, gated: bool) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.')?;
    if !matches!(suffix, "weight" | "bias") {
        return None;
    }
    let stem = if let Some(rest) = stem.strip_prefix("blk.") {
        let (layer, part) = index(rest)?;
        format!("model.layers.{layer}.{}", llama_part(part)?)
    } else if let Some(rest) = stem.strip_prefix("enc.blk.") {
        let (layer, part) = index(rest)?;
        format!("encoder.block.{layer}.layer.{}", encoder_part(part, gated)?)
    } else if let Some(rest) = stem.strip_prefix("dec.blk.") {
        let (layer, part) = index(rest)?;
        format!("decoder.block.{layer}.layer.{}", decoder_part(part, gated)?)
    } else {
        match stem {
            "output_norm" => "model.norm",
            "output" => "lm_head",
            "enc.output_norm" => "encoder.final_layer_norm",
            "dec.output_norm" => "decoder.final_layer_norm",
            _ => return None,
        }
        .to_owned()
    };
    Some(format!("{stem}.{suffix}"))
}

/// The published name of the token embedding, which GGUF calls the same in every architecture.
pub(super) fn embedding(architecture: &str) -> &'static str {
    if architecture == "t5" { "shared.weight" } else { "model.embed_tokens.weight" }
}

/// The order of a tensor's rows: the llama architecture alone stores q and k for interleaved rotary embeddings.
pub(super) fn rows(architecture: &str, published: &str, metadata: &Metadata) -> Rows {
    let part = published.rsplit_once('.').map_or(published, |(stem, _)| stem);
    let heads = |key| metadata.get(key).and_then(Value::unsigned);
    let query_heads = heads("llama.attention.head_count");
    let heads = match part.rsplit_once('.') {
        Some((_, "q_proj")) if architecture == "llama" => query_heads,
        Some((_, "k_proj")) if architecture == "llama" => {
            heads("llama.attention.head_count_kv").or(query_heads)
        }
        _ => return Rows::Straight,
    };
    Rows::Interleaved { heads: heads.and_then(|heads| usize::try_from(heads).ok()).unwrap_or(0) }
}

/// Splits `12.attn_q` into its layer and its part.
fn index(name: &str) -> Option<(u32, &str)> {
    let (layer, part) = name.split_once('.')?;
    let number: u32 = layer.parse().ok()?;
    // "+1" and "01" parse too, and would give two tensors one name.
    (number.to_string() == layer).then_some((number, part))
}

fn llama_part(part: &str) -> Option<&'static str> {
    Some(match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    })
}

fn encoder_part(part: &str, gated: bool) -> Option<String> {
    attention_part(part, 0, "SelfAttention").or_else(|| feed_forward_part(part, 1, gated))
}

fn decoder_part(part: &str, gated: bool) -> Option<String> {
    if let Some(part) = part.strip_prefix("cross_") {
        return attention_part(part, 1, "EncDecAttention");
    }
    attention_part(part, 0, "SelfAttention").or_else(|| feed_forward_part(part, 2, gated))
}

fn attention_part(part: &str, layer: u32, attention: &str) -> Option<String> {
    let part = match part {
        "attn_norm" => return Some(format!("{layer}.layer_norm")),
        "attn_q" => "q",
        "attn_k" => "k",
        "attn_v" => "v",
        "attn_o" => "o",
        "attn_rel_b" => "relative_attention_bias",
        _ => return None,
    };
    Some(format!("{layer}.{attention}.{part}"))
}

fn feed_forward_part(part: &str, layer: u32, gated: bool) -> Option<String> {
    let part = match part {
        "ffn_norm" => return Some(format!("{layer}.layer_norm")),
        "ffn_gate" => "wi_0",
        "ffn_up" if gated => "wi_1",
        "ffn_up" => "wi",
        "ffn_down" => "wo",
        _ => return None,
    };
    Some(format!("{layer}.DenseReluDense.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_families() {
        let cases = [
            ("blk.7.attn_q.weight", "model.layers.7.self_attn.q_proj.weight"),
            ("blk.7.attn_q.bias", "model.layers.7.self_attn.q_proj.bias"),
            ("blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm.weight"),
            ("blk.11.ffn_norm.weight", "model.layers.11.post_attention_layernorm.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("enc.blk.3.attn_o.weight", "encoder.block.3.layer.0.SelfAttention.o.weight"),
            (
                "enc.blk.0.attn_rel_b.weight",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            ),
            ("enc.blk.3.ffn_norm.weight", "encoder.block.3.layer.1.layer_norm.weight"),
            ("dec.blk.3.attn_norm.weight", "decoder.block.3.layer.0.layer_norm.weight"),
            ("dec.blk.3.cross_attn_norm.weight", "decoder.block.3.layer.1.layer_norm.weight"),
            ("dec.blk.3.cross_attn_v.weight", "decoder.block.3.layer.1.EncDecAttention.v.weight"),
            ("dec.blk.3.ffn_gate.weight", "decoder.block.3.layer.2.DenseReluDense.wi_0.weight"),
            ("dec.blk.3.ffn_up.weight", "decoder.block.3.layer.2.DenseReluDense.wi_1.weight"),
            ("dec.output_norm.weight", "decoder.final_layer_norm.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
            ("blk.01.attn_q.weight", "blk.01.attn_q.weight"),
        ];
        for (gguf, expected) in cases {
            assert_eq!(published(gguf, true), expected);
        }
        assert_eq!(
            published("enc.blk.3.ffn_up.weight", false),
            "encoder.block.3.layer.1.DenseReluDense.wi.weight"
        );
    }
}
