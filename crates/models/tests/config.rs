//! `config.json`: what is read from sound ones, and what is said of broken ones.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod files;

use files::{Folder, f32s, safetensors};
use serde_json::{Value, json};
use trefoil_models::{ErrorKind, LlamaConfig, ModelConfig, Result, RopeScaling, T5Config, Weights};

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 96, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false,
    })
}

fn t5() -> Value {
    json!({"model_type": "t5", "vocab_size": 100, "d_model": 64, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_heads": 4})
}

fn read_with(config: &Value, generation: Option<&Value>) -> Result<ModelConfig> {
    let folder = Folder::new();
    let header = r#"{"lm_head.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    folder.write("model.safetensors", safetensors(header, &f32s([1.0])));
    folder.write("config.json", config.to_string());
    if let Some(generation) = generation {
        folder.write("generation_config.json", generation.to_string());
    }
    ModelConfig::read(&folder.0, &Weights::open(&folder.0)?)
}

fn changed(mut config: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn read_llama(changes: &Value) -> LlamaConfig {
    match read_with(&changed(llama(), changes), None).unwrap() {
        ModelConfig::Llama(config) => config,
        ModelConfig::T5(_) => panic!("a T5"),
    }
}

fn read_t5(changes: &Value) -> T5Config {
    match read_with(&changed(t5(), changes), None).unwrap() {
        ModelConfig::T5(config) => config,
        ModelConfig::Llama(_) => panic!("a Llama"),
    }
}

#[test]
fn llama_family() {
    let config = read_llama(&json!({}));
    assert_eq!((config.head_dim, config.kv_heads, config.tied_head, config.qkv_bias), (8, 2, false, false));
    assert_eq!((config.eos, config.bos, config.rope_theta), (vec![2], Some(1), 10_000.0));
    assert_eq!(config.rope_scaling, RopeScaling::None);

    let generation = json!({"eos_token_id": [2, 5]});
    let ModelConfig::Llama(config) = read_with(&llama(), Some(&generation)).unwrap() else {
        panic!("a Llama")
    };
    assert_eq!(config.eos, [2, 5]);

    let config = read_llama(&json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}));
    assert_eq!((config.rope_theta, config.rope_scaling), (5e5, RopeScaling::Linear { factor: 4.0 }));
    let config = read_llama(&json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}));
    assert_eq!((config.rope_theta, config.rope_scaling), (1e6, RopeScaling::None));

    let config = read_llama(&json!({"model_type": "qwen2", "sliding_window": 32, "max_window_layers": 2}));
    assert!(config.qkv_bias && config.window.is_none());
    let config = read_llama(&json!({"model_type": "mistral", "sliding_window": 32}));
    assert_eq!(config.window, Some(32));
    let config = read_llama(&json!({"model_type": "qwen3", "head_dim": 16}));
    assert!(config.qk_norm && config.head_dim == 16);
}

#[test]
fn t5_family() {
    let config = read_t5(&json!({}));
    assert_eq!(
        (config.decoder_layers, config.buckets, config.max_distance, config.gated),
        (2, 32, 128, false)
    );
    assert_eq!((config.start, config.pad, config.eos, config.scale_outputs), (0, 0, vec![1], true));
    assert!(!read_t5(&json!({"tie_word_embeddings": false})).scale_outputs);
    assert!(!read_t5(&json!({"tie_word_embeddings": true, "scale_decoder_outputs": false})).scale_outputs);
    assert!(!read_t5(&json!({"model_type": "mt5"})).scale_outputs);
    assert!(read_t5(&json!({"model_type": "mt5"})).gated);
    assert_eq!(read_t5(&json!({"num_decoder_layers": 1, "decoder_start_token_id": 3})).start, 3);
}

#[test]
fn broken_fields_are_named() {
    let llamas = [
        (
            json!({"num_attention_heads": 0}),
            "num_attention_heads is 0; allowed are whole numbers from 1 to 1024",
        ),
        (json!({"num_attention_heads": 7, "num_key_value_heads": 7}), "divisors of the width, 64"),
        (
            json!({"num_key_value_heads": 3}),
            "num_key_value_heads is 3; allowed are divisors of the 8 query heads",
        ),
        (json!({"num_hidden_layers": 1u64 << 31}), "num_hidden_layers is 2147483648"),
        (json!({"hidden_size": -64}), "hidden_size is -64"),
        (json!({"hidden_size": 64.5}), "hidden_size is 64.5"),
        (json!({"hidden_size": "64"}), "hidden_size is \"64\""),
        (json!({"hidden_size": [64]}), "hidden_size is a list"),
        (json!({"vocab_size": 0}), "vocab_size is 0"),
        (json!({"vocab_size": null}), "vocab_size is missing"),
        (json!({"head_dim": 0}), "head_dim is 0"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps is -1"),
        (json!({"rope_theta": 0}), "rope_theta is 0"),
        (json!({"eos_token_id": 100}), "eos_token_id is 100; allowed are tokens below 100"),
        (json!({"eos_token_id": [2, -1]}), "eos_token_id is a list"),
        (json!({"max_position_embeddings": 0}), "max_position_embeddings is 0"),
        (json!({"rope_scaling": {"type": "linear"}}), "factor is missing"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "factor is 0"),
        (json!({"model_type": null}), "model_type is missing"),
    ];
    for (changes, expected) in &llamas {
        let error = read_with(&changed(llama(), changes), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load, "{error}");
        assert!(error.to_string().contains(expected) && error.to_string().contains("config.json"), "{error}");
    }
    for (changes, expected) in [
        (json!({"num_heads": 0}), "num_heads is 0"),
        (json!({"relative_attention_max_distance": 16}), "above half of the 32 buckets"),
        (
            json!({"relative_attention_max_distance": 1 << 20}),
            "relative_attention_max_distance is 1048576; allowed are whole numbers from 1 to 16384",
        ),
        (json!({"d_ff": 1u64 << 40}), "d_ff is 1099511627776"),
    ] {
        let error = read_with(&changed(t5(), &changes), None).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_in_a_circle_is_not_a_missing_file() {
    let folder = Folder::new();
    let header = r#"{"lm_head.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    folder.write("model.safetensors", safetensors(header, &f32s([1.0])));
    folder.write("config.json", llama().to_string());
    std::os::unix::fs::symlink("generation_config.json", folder.0.join("generation_config.json")).unwrap();
    let error = ModelConfig::read(&folder.0, &Weights::open(&folder.0).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Load);
    assert!(error.to_string().contains("generation_config.json cannot be read"), "{error}");
}

#[test]
fn what_is_not_built_is_named() {
    for (config, expected) in [
        (changed(llama(), &json!({"model_type": "gpt_neox"})), "model_type \"gpt_neox\" is not supported"),
        (changed(t5(), &json!({"model_type": "umt5"})), "model_type \"umt5\" is not supported"),
        (
            changed(llama(), &json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}})),
            "rope_type \"yarn\"",
        ),
        (changed(llama(), &json!({"rope_scaling": {"type": "dynamic", "factor": 4}})), "type \"dynamic\""),
        (changed(llama(), &json!({"attention_bias": true})), "attention_bias true"),
        (changed(llama(), &json!({"hidden_act": "gelu"})), "hidden_act \"gelu\""),
        (changed(llama(), &json!({"head_dim": 9})), "head_dim 9"),
        (changed(llama(), &json!({"quantization_config": {"bits": 4}})), "quantization_config"),
        (changed(t5(), &json!({"feed_forward_proj": "gated-tanh"})), "feed_forward_proj \"gated-tanh\""),
    ] {
        let error = read_with(&config, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let folder = Folder::new();
    folder.write("model.safetensors", safetensors("{}", &[]));
    let weights = Weights::open(&folder.0).unwrap();
    assert!(
        ModelConfig::read(&folder.0, &weights)
            .unwrap_err()
            .to_string()
            .contains("config.json cannot be read")
    );
    for text in ["", "[]", "{\"a\": NaN}", "{\"model_type\": \"llama\""] {
        folder.write("config.json", text);
        let error = ModelConfig::read(&folder.0, &weights).unwrap_err();
        assert!(error.to_string().contains("is not a JSON object"), "{error}");
    }
}
