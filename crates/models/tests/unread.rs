//! Tensors of a model's layers that nothing reads: refused, but for those that are known to mean nothing.

#![expect(clippy::unwrap_used, reason = "a test")]

mod files;

use std::path::{Path, PathBuf};

use files::{Folder, Tensor, Value, f32s, gguf, safetensors};
use serde_json::json;
use trefoil_kernels::Kernels;
use trefoil_models::{ErrorKind, Llama, ModelConfig, Result, T5, Weights};

fn load(source: &Path) -> Result<()> {
    let (weights, kernels) = (Weights::open(source)?, Kernels::cpu(1).unwrap());
    match ModelConfig::read(source, &weights)? {
        ModelConfig::Llama(config) => Llama::load(config, &weights, &kernels, &mut |_| Ok(())).map(|_| ()),
        ModelConfig::T5(config) => T5::load(config, &weights, &kernels, &mut |_| Ok(())).map(|_| ()),
    }
}

/// Loads a fixture of safetensors with one more tensor.
fn with_tensor(fixture: &str, name: &str) -> Result<()> {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(fixture);
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let end = data.len();
    header[name] = json!({"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]});
    let folder = Folder::new();
    folder.write("model.safetensors", safetensors(&header.to_string(), &[data, &f32s([1.0; 2])].concat()));
    folder.write("config.json", std::fs::read(source.join("config.json")).unwrap());
    load(&folder.0)
}

/// Loads a small Llama of one layer in GGUF with more tensors of eight numbers.
fn with_gguf(more: &[&'static str]) -> Result<()> {
    let metadata = [
        ("general.architecture", Value::Text("llama")),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U32(64)),
        ("llama.embedding_length", Value::U32(8)),
        ("llama.feed_forward_length", Value::U32(8)),
        ("llama.attention.head_count", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ];
    let tensor = |name, dims: &'static [u64]| {
        let len = dims.iter().product::<u64>();
        Tensor { name, dims, ty: 0, bytes: f32s((0..len).map(|n| n as f32)) }
    };
    let vectors = ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"];
    let matrices = [
        "token_embd.weight",
        "blk.0.attn_q.weight",
        "blk.0.attn_k.weight",
        "blk.0.attn_v.weight",
        "blk.0.attn_output.weight",
        "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight",
        "blk.0.ffn_down.weight",
    ];
    let vectors = vectors.iter().chain(more).map(|name| tensor(*name, &[8]));
    let tensors: Vec<_> = vectors.chain(matrices.map(|name| tensor(name, &[8, 8]))).collect();
    let folder = Folder::new();
    load(&folder.write("model.gguf", gguf(&metadata, &tensors)))
}

#[test]
fn tensors_without_a_place_are_named() {
    for (more, named) in [
        (&["blk.0.attn_output.bias"][..], "model.layers.0.self_attn.o_proj.bias"),
        (&["blk.0.attn_k.bias"], "model.layers.0.self_attn.k_proj.bias"),
        (&["blk.0.ffn_up.bias", "blk.0.ffn_down.bias"], "model.layers.0.mlp.down_proj.bias"),
        (&["blk.0.post_attention_norm.weight"], "blk.0.post_attention_norm.weight"),
    ] {
        let error = with_gguf(more).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load, "{error}");
        assert!(error.to_string().starts_with(&format!("tensor {named} has no place")), "{error}");
    }
    for (fixture, name) in [
        ("smollm2", "model.layers.1.self_attn.q_proj.bias"),
        ("qwen2", "model.layers.0.self_attn.o_proj.bias"),
        ("t5-v1.1", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("t5", "decoder.block.0.layer.2.DenseReluDense.wo.bias"),
    ] {
        let error = with_tensor(fixture, name).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn harmless_tensors_are_left_alone() {
    with_gguf(&[]).unwrap();
    with_gguf(&["blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"]).unwrap();
    with_gguf(&["blk.0.attn_rot_embd.weight", "a_table", "blk.1.attn_k.bias"]).unwrap();
    for (fixture, name) in [
        ("smollm2", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("smollm2", "lm_head.weight"),
        ("t5-v1.1", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
        ("t5", "encoder.embed_tokens.weight"),
    ] {
        with_tensor(fixture, name).unwrap();
    }
}
