//! GGUF files: what is read from sound ones, and that broken ones are errors and nothing worse.

#![expect(clippy::unwrap_used, reason = "a test")]

mod files;

use std::fs;
use std::path::Path;

use files::{Folder, Random, Tensor, Value, f32s, gguf, gguf_at};
use trefoil_models::{ErrorKind, ModelConfig, Result, RopeScaling, Weights};

const HEADS: u64 = 2;
const HEAD_DIM: u64 = 4;
const WIDTH: u64 = HEADS * HEAD_DIM;
const VOCABULARY: u64 = 5;

fn metadata() -> Vec<(&'static str, Value<'static>)> {
    vec![
        ("general.architecture", Value::Text("llama")),
        ("general.alignment", Value::U32(32)),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U32(64)),
        ("llama.embedding_length", Value::U32(WIDTH as u32)),
        ("llama.feed_forward_length", Value::U32(16)),
        ("llama.attention.head_count", Value::U32(HEADS as u32)),
        ("llama.attention.head_count_kv", Value::U32(1)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.tokens", Value::Texts(&["<s>", "</s>", "<|im_end|>", "a", "b"])),
        ("tokenizer.ggml.token_type", Value::I32s(&[3, 3, 3, 1, 1])),
        ("tokenizer.ggml.eos_token_id", Value::U32(1)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
    ]
}

fn tensors() -> Vec<Tensor<'static>> {
    let plain = |name, dims: &'static [u64]| {
        let len = dims.iter().product::<u64>();
        Tensor { name, dims, ty: 0, bytes: f32s((0..len).map(|n| n as f32)) }
    };
    vec![
        plain("token_embd.weight", &[WIDTH, VOCABULARY]),
        plain("blk.0.attn_norm.weight", &[WIDTH]),
        plain("blk.0.attn_q.weight", &[WIDTH, WIDTH]),
        plain("blk.0.attn_k.weight", &[WIDTH, HEAD_DIM]),
        // Two rows of one Q8_0 block each, with the scale 1.0.
        Tensor { name: "blk.0.ffn_up.weight", dims: &[32, 2], ty: 8, bytes: q8_0(2) },
        plain("output_norm.weight", &[WIDTH]),
    ]
}

fn q8_0(blocks: usize) -> Vec<u8> {
    let mut block = vec![0x00, 0x3c];
    block.extend([7; 32]);
    block.repeat(blocks)
}

/// Opens the file and does with it all that a program would.
fn use_all(path: &Path) -> Result<()> {
    let weights = Weights::open(path)?;
    ModelConfig::read(path, &weights)?;
    for name in weights.names() {
        weights.read(name, weights.shape(name).unwrap())?;
    }
    Ok(())
}

fn failure(metadata: &[(&str, Value)], tensors: &[Tensor]) -> String {
    failure_of(gguf(metadata, tensors))
}

fn failure_of(bytes: Vec<u8>) -> String {
    let folder = Folder::new();
    use_all(&folder.write("model.gguf", bytes)).unwrap_err().to_string()
}

fn with(key: &'static str, value: Value<'static>) -> Vec<(&'static str, Value<'static>)> {
    let mut changed = metadata();
    changed.retain(|(name, _)| *name != key);
    changed.push((key, value));
    changed
}

#[test]
fn reads_by_published_names() {
    let folder = Folder::new();
    let path = folder.write("model.gguf", gguf(&metadata(), &tensors()));
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.shape("model.embed_tokens.weight"), Some(&[5, 8][..]));
    assert_eq!(weights.shape("model.layers.0.mlp.up_proj.weight"), Some(&[2, 32][..]));
    assert!(weights.has("model.norm.weight") && !weights.has("lm_head.weight"));
    let up = weights.read("model.layers.0.mlp.up_proj.weight", &[2, 32]).unwrap();
    assert_eq!(up.bytes, q8_0(2));
    let error = weights.read("model.norm.weight", &[9]).unwrap_err();
    assert_eq!(error.to_string(), "tensor model.norm.weight has shape [8]; expected [9]");
    let error = weights.read("lm_head.weight", &[5, 8]).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Load, "tensor lm_head.weight is missing")
    );

    let ModelConfig::Llama(config) = ModelConfig::read(&path, &weights).unwrap() else { panic!("a llama") };
    assert_eq!((config.vocabulary, config.heads, config.kv_heads, config.head_dim), (5, 2, 1, 4));
    assert!(config.tied_head);
    assert_eq!(config.eos, [1, 2]);
}

#[test]
fn query_rows_leave_their_interleaved_order() {
    let folder = Folder::new();
    let weights = Weights::open(&folder.write("model.gguf", gguf(&metadata(), &tensors()))).unwrap();
    // Row r of the file holds 8r, 8r + 1, …; a head's rows are stored as 0, 2, 1, 3.
    let first = |name: &str, shape: &[usize]| -> Vec<f32> {
        let bytes = weights.read(name, shape).unwrap().bytes;
        bytes.chunks_exact(4).step_by(8).map(|b| f32::from_le_bytes(b.try_into().unwrap()) / 8.0).collect()
    };
    let q = first("model.layers.0.self_attn.q_proj.weight", &[8, 8]);
    assert_eq!(q, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(first("model.layers.0.self_attn.k_proj.weight", &[4, 8]), [0.0, 2.0, 1.0, 3.0]);

    let path =
        folder.write("straight.gguf", gguf(&with("general.architecture", Value::Text("qwen2")), &tensors()));
    let weights = Weights::open(&path).unwrap();
    let bytes = weights.read("model.layers.0.self_attn.k_proj.weight", &[4, 8]).unwrap().bytes;
    assert_eq!(bytes, f32s((0..32).map(|n| n as f32)));
}

#[test]
fn a_rotary_factor_without_a_type_is_linear() {
    let read = |more: Vec<(&'static str, Value<'static>)>, stored: bool| {
        let (mut metadata, mut tensors) = (metadata(), tensors());
        metadata.extend(more);
        if stored {
            let bytes = f32s([1.0, 8.0]);
            tensors.push(Tensor { name: "rope_freqs.weight", dims: &[2], ty: 0, bytes });
        }
        let folder = Folder::new();
        let path = folder.write("model.gguf", gguf(&metadata, &tensors));
        ModelConfig::read(&path, &Weights::open(&path).unwrap()).map(|config| match config {
            ModelConfig::Llama(config) => config.rope_scaling,
            ModelConfig::T5(_) => panic!("a T5"),
        })
    };
    let factor = |factor| ("llama.rope.scaling.factor", Value::F32(factor));
    let old = |factor| ("llama.rope.scale_linear", Value::F32(factor));
    let ty = |name| ("llama.rope.scaling.type", Value::Text(name));
    for (more, stored, expected) in [
        (vec![], false, RopeScaling::None),
        (vec![factor(8.0)], false, RopeScaling::Linear { factor: 8.0 }),
        (vec![old(4.0)], false, RopeScaling::Linear { factor: 4.0 }),
        (vec![factor(8.0), old(4.0)], false, RopeScaling::Linear { factor: 8.0 }),
        (vec![factor(8.0), ty("linear")], false, RopeScaling::Linear { factor: 8.0 }),
        (vec![factor(8.0), ty("none")], false, RopeScaling::None),
        (vec![factor(0.0)], false, RopeScaling::None),
        (vec![ty("none")], true, RopeScaling::Factors(vec![1.0, 8.0])),
        (vec![factor(2.0), ty("linear")], true, RopeScaling::Factors(vec![2.0, 16.0])),
    ] {
        assert_eq!(read(more, stored).unwrap(), expected);
    }
    for (more, stored, expected) in [
        (vec![factor(8.0), ty("yarn")], true, "scaling.type \"yarn\" is not supported"),
        (vec![ty("linear")], false, "scaling.factor is missing"),
        (vec![old(-1.0)], false, "scale_linear is -1"),
        (vec![factor(1e30)], false, "scaling.factor is"),
    ] {
        let error = read(more, stored).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let folder = Folder::new();
    let whole = gguf(&metadata(), &tensors());
    let path = folder.write("model.gguf", &whole);
    use_all(&path).unwrap();
    for len in 0..whole.len() {
        folder.write("model.gguf", &whole[..len]);
        let error = use_all(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load, "at {len}: {error}");
    }
}

#[test]
fn a_file_that_shrinks_while_open_is_an_error() {
    let folder = Folder::new();
    let whole = gguf(&metadata(), &tensors());
    let path = folder.write("model.gguf", &whole);
    let weights = Weights::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(whole.len() as u64 - 8).unwrap();
    assert_eq!(weights.read("model.norm.weight", &[8]).unwrap_err().kind(), ErrorKind::Load);
}

#[test]
fn damage_is_never_more_than_an_error() {
    let folder = Folder::new();
    let whole = gguf(&metadata(), &tensors());
    let path = folder.0.join("model.gguf");
    let mut random = Random(7);
    let before = peak_memory();
    let mut sound = 0;
    for case in 0..6000 {
        let mut damaged = whole.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(damaged.len());
            match case % 3 {
                0 => damaged[at] ^= 1 << random.below(8),
                1 => damaged[at] = random.next() as u8,
                // Counts and lengths are where damage could hurt most.
                _ => {
                    let number = [u64::MAX, 1 << 63, 1 << 62, 1 << 40, 1 << 32, 0][random.below(6)];
                    let at = at.min(damaged.len() - 8);
                    damaged[at..at + 8].copy_from_slice(&number.to_le_bytes());
                }
            }
        }
        folder.write("model.gguf", &damaged);
        sound += usize::from(use_all(&path).is_ok());
    }
    assert!(sound < 6000, "damage was noticed");
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        assert!(after - before < 256 << 10, "the peak grew by {} kB", after - before);
    }
}

/// The largest address space so far, in kB, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn hostile_tensors() {
    let one = |dims: &'static [u64], ty| Tensor { name: "output.weight", dims, ty, bytes: vec![0; 32] };
    for dims in [&[1 << 32, 1 << 32][..], &[1 << 62, 4], &[1 << 63, 2], &[0, 8], &[1 << 40, 1 << 40, 1 << 40]]
    {
        for ty in [0, 1, 8, 12] {
            let message = failure(&metadata(), &[one(dims, ty)]);
            assert!(message.contains("impossible shape"), "{message}");
        }
    }
    let message = failure(&metadata(), &[one(&[256, 1 << 45], 8)]);
    assert!(message.contains("the file has"), "{message}");
    let message = failure(&metadata(), &[one(&[1; 5], 0)]);
    assert!(message.contains("5 dimensions; allowed are 1 to 4"), "{message}");
    let message = failure(&metadata(), &[one(&[8], 20)]);
    assert!(message.contains("type IQ4_NL; allowed are F32"), "{message}");
    let message = failure(&metadata(), &[one(&[8], 77)]);
    assert!(message.contains("type number 77; allowed are F32"), "{message}");
    let message = failure(&metadata(), &[one(&[24, 4], 8)]);
    assert!(message.contains("rows of 24 elements"), "{message}");

    let message = failure(&metadata(), &[one(&[8], 0), one(&[8], 0)]);
    assert!(message.contains("appears twice"), "{message}");
    let alias = Tensor { name: "lm_head.weight", dims: &[8], ty: 0, bytes: vec![0; 32] };
    let message = failure(&metadata(), &[one(&[8], 0), alias]);
    assert!(message.contains("appears twice"), "{message}");

    let two = || [one(&[8], 0), Tensor { name: "output_norm.weight", dims: &[8], ty: 0, bytes: vec![0; 32] }];
    for (offsets, expected) in [
        ([0, 0], "overlaps"),
        ([0, 7], "multiples of 32"),
        ([0, 1 << 40], "the file has"),
        ([0, u64::MAX - 31], "the file has"),
    ] {
        let message = failure_of(gguf_at(&metadata(), &two(), &offsets));
        assert!(message.contains(expected), "{message}");
    }

    let nan = Tensor { name: "output.weight", dims: &[8, 1], ty: 0, bytes: f32s([f32::NAN; 8]) };
    assert!(failure(&metadata(), &[nan]).contains("missing"));
    let mut broken = tensors();
    broken[5].bytes = f32s([f32::INFINITY; 8]);
    assert!(failure(&metadata(), &broken).contains("model.norm.weight holds NaN or infinite values"));
    let mut broken = tensors();
    broken[4].bytes[35] = 0x7c;
    assert!(failure(&metadata(), &broken).contains("holds NaN or infinite values"));
}

#[test]
fn hostile_metadata() {
    for alignment in [0, 3, 48, 1 << 20, u32::MAX] {
        let message = failure(&with("general.alignment", Value::U32(alignment)), &tensors());
        assert!(
            message.contains(&format!("general.alignment is {alignment}; allowed are powers")),
            "{message}"
        );
    }
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let nested: &'static [u8] = Box::leak(nested.into_boxed_slice());
    assert!(failure(&with("x", Value::Raw(9, nested)), &[]).contains("an array of arrays"));
    let long = [&4u32.to_le_bytes()[..], &(1u64 << 62).to_le_bytes()].concat();
    let long: &'static [u8] = Box::leak(long.into_boxed_slice());
    assert!(failure(&with("x", Value::Raw(9, long)), &[]).contains("are left"));
    assert!(failure(&with("x", Value::Raw(13, &[0; 8])), &[]).contains("type 13; allowed are 0 to 12"));
    assert!(failure(&with("x", Value::Raw(8, &[255; 8])), &[]).contains("are left"));

    let mut twice = metadata();
    twice.extend(metadata().into_iter().take(1));
    assert!(failure(&twice, &tensors()).contains("\"general.architecture\" appears twice"));

    let whole = gguf(&metadata(), &tensors());
    for at in [8, 16] {
        let mut many = whole.clone();
        many[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(failure_of(many).contains("are left"));
    }
    let mut old = whole.clone();
    old[4] = 1;
    assert!(failure_of(old).contains("GGUF version 1; allowed are 2 and 3"));
    let mut swapped = whole;
    swapped[4..8].reverse();
    assert!(failure_of(swapped).contains("big-endian"));
}

#[test]
fn hostile_shapes() {
    let cases = [
        ("llama.attention.head_count", 0, "head_count is 0; allowed are whole numbers from 1 to 1024"),
        ("llama.attention.head_count", 3, "allowed are divisors of the width, 8"),
        ("llama.attention.head_count_kv", 0, "head_count_kv is 0"),
        ("llama.attention.head_count_kv", 5, "divisors of the 2 query heads"),
        ("llama.block_count", 1 << 31, "block_count is 2147483648; allowed are whole numbers from 1 to 1024"),
        ("llama.attention.key_length", 0, "key_length is 0"),
        ("llama.attention.key_length", 5, "even numbers"),
        ("llama.rope.dimension_count", 2, "not supported"),
        ("llama.expert_count", 8, "mixture of experts"),
        ("llama.context_length", 0, "context_length is 0"),
        ("tokenizer.ggml.eos_token_id", 5, "eos_token_id is 5"),
    ];
    for (key, value, expected) in cases {
        let message = failure(&with(key, Value::U32(value)), &tensors());
        assert!(message.contains(expected), "{message}");
    }
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    assert!(failure(&with(epsilon, Value::F32(f32::NAN)), &tensors()).contains(epsilon));
    assert!(failure(&with("llama.embedding_length", Value::Text("8")), &tensors()).contains("is \"8\""));
    assert!(
        failure(&with("llama.rope.scaling.type", Value::Text("yarn")), &tensors())
            .contains("none and linear")
    );
    assert!(
        failure(&with("general.architecture", Value::Text("gpt2")), &tensors()).contains("allowed are llama")
    );
}
