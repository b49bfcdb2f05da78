//! Tokenizers that ask for more memory, stack or time than any has use for are refused when they are loaded; and how
//! those that are rebuilt from GGUF keep spaces.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../../models/tests/files/mod.rs"]
mod files;

use std::path::Path;

use files::{Folder, Value as Entry, gguf};
use serde_json::{Value, json};
use trefoil_engine::text::Tokenizer;
use trefoil_engine::{ErrorKind, Result};
use trefoil_models::Weights;

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).join("tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn load(file: &Value) -> Result<Tokenizer> {
    let folder = Folder::new();
    folder.write("tokenizer.json", file.to_string());
    Tokenizer::from_folder(&folder.0)
}

fn load_gguf(entries: &[(&str, Entry)]) -> Result<Tokenizer> {
    let folder = Folder::new();
    let path = folder.write("model.gguf", gguf(entries, &[]));
    Tokenizer::from_gguf(Weights::open(&path).unwrap().metadata().unwrap())
}

/// What is said of a tokenizer that must not load.
fn refused(tokenizer: Result<Tokenizer>) -> String {
    let error = tokenizer.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ModelLoad, "{error}");
    assert!(error.message().len() < 500, "{error}");
    error.message().to_owned()
}

/// What is said of a fixture's tokenizer with one change.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut file = fixture(name);
    change(&mut file);
    refused(load(&file))
}

fn replacements(times: usize, to: usize) -> Vec<Value> {
    vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(to)}); times]
}

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": true, "special": false})
}

#[test]
fn decoders_that_grow_a_token_are_refused() {
    let grown = changed("smollm2", |file| {
        let mut decoders = replacements(3, 3000);
        decoders.push(json!({"type": "Fuse"}));
        file["decoder"] = json!({"type": "Sequence", "decoders": decoders});
    });
    assert!(grown.contains("too many bytes of token") && grown.contains("allowed are 65536"), "{grown}");
    // Every token within its own bound, all together not.
    let all = changed("smollm2", |file| {
        let vocabulary = file["model"]["vocab"].as_object().unwrap().len();
        for token in vocabulary..vocabulary + 2000 {
            file["model"]["vocab"][format!("a[{token}]")] = json!(token);
        }
        file["decoder"] = json!({"type": "Sequence", "decoders": replacements(1, 60_000)});
    });
    assert!(all.contains("bytes; allowed are 67108864"), "{all}");
}

#[test]
fn normalizers_that_grow_a_text_are_refused() {
    let grown = changed("smollm2", |file| {
        file["normalizer"] = json!({"type": "Sequence", "normalizers": replacements(3, 1000)});
    });
    assert!(grown.contains("1000000000 times longer; allowed are 64"), "{grown}");
    let prepended = changed("smollm2", |file| {
        file["normalizer"] = json!({"type": "Prepend", "prepend": "x".repeat(9_000_000)});
    });
    assert!(prepended.contains("9000001 times longer"), "{prepended}");
    // What may grow a text up to the bound takes shorter texts.
    let mut file = fixture("smollm2");
    file["normalizer"] = json!({"type": "Sequence", "normalizers": replacements(1, 64)});
    let tokenizer = load(&file).unwrap();
    assert!(!tokenizer.encode("a", true).unwrap().is_empty());
    let error = tokenizer.encode(&"a".repeat(3 << 20), true).unwrap_err();
    assert_eq!(error.message(), "the text has 3145728 bytes; allowed are 2097152");
}

#[test]
fn published_normalizers_are_taken() {
    let mut file = fixture("smollm2");
    file["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    load(&file).unwrap();
    file["normalizer"] = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                                "strip_accents": null, "lowercase": true});
    load(&file).unwrap();
}

#[test]
fn long_unigram_tokens_are_refused() {
    for length in [5000, 50_000, 1_000_000] {
        let message = changed("t5", |file| {
            let vocabulary = file["model"]["vocab"].as_array_mut().unwrap();
            vocabulary.last_mut().unwrap()[0] = json!("x".repeat(length));
        });
        assert!(message.contains(&format!("has {length} bytes; allowed are 4096")), "{message}");
    }
    let long = "x".repeat(100_000);
    let message = refused(load_gguf(&t5(&["<pad>", "</s>", "<unk>", &long], &charsmap())));
    assert!(message.contains("has 100000 bytes; allowed are 4096"), "{message}");
}

/// A table of characters that changes none.
fn charsmap() -> Vec<u8> {
    [1024u32.to_le_bytes().as_slice(), &[0; 1024]].concat()
}

/// The tokenizer of a T5 in GGUF.
fn t5<'a>(tokens: &'a [&'a str], charsmap: &[u8]) -> Vec<(&'static str, Entry<'a>)> {
    let array = |ty: u32, count: usize, bytes: &[u8]| -> &'static [u8] {
        [&ty.to_le_bytes(), (count as u64).to_le_bytes().as_slice(), bytes].concat().leak()
    };
    let scores: Vec<u8> = (0..tokens.len()).flat_map(|id| (-(id as f32)).to_le_bytes()).collect();
    vec![
        ("general.architecture", Entry::Text("t5")),
        ("tokenizer.ggml.model", Entry::Text("t5")),
        ("tokenizer.ggml.tokens", Entry::Texts(tokens)),
        ("tokenizer.ggml.scores", Entry::Raw(9, array(6, tokens.len(), &scores))),
        ("tokenizer.ggml.precompiled_charsmap", Entry::Raw(9, array(0, charsmap.len(), charsmap))),
        ("tokenizer.ggml.eos_token_id", Entry::U32(1)),
        ("tokenizer.ggml.unknown_token_id", Entry::U32(2)),
    ]
}

#[test]
fn tables_of_characters_hold_what_they_announce() {
    let tokens = ["<pad>", "</s>", "<unk>", "▁", "a"];
    let tokenizer = load_gguf(&t5(&tokens, &charsmap())).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [3, 4, 1]);
    let message = refused(load_gguf(&t5(&tokens, &[255; 4000])));
    assert!(message.contains("a tree of 4294967295 bytes; allowed are the 3996"), "{message}");
    let message = changed("t5", |file| {
        // Base64 of [255; 12].
        file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "/".repeat(16)});
    });
    assert!(message.contains("allowed are the 8 that follow"), "{message}");
}

/// Expected: sentencepiece.
#[test]
fn spaces_are_kept_as_the_model_says() {
    let mut entries = t5(&["<pad>", "</s>", "<unk>", "▁", "a", "b", "▁b"], &charsmap());
    entries.push(("tokenizer.ggml.add_space_prefix", Entry::Bool(false)));
    let tokenizer = load_gguf(&entries).unwrap();
    for (text, expected, decoded) in
        [("a b", vec![4, 6, 1], "a b"), ("  a   b a ", vec![4, 6, 3, 4, 1], "a b a"), (" ", vec![1], "")]
    {
        let tokens = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokens, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens[..tokens.len() - 1]).unwrap(), decoded);
    }
    entries.pop();
    assert_eq!(load_gguf(&entries).unwrap().encode(" b  b a", true).unwrap(), [6, 6, 3, 4, 1]);
    entries.push(("tokenizer.ggml.remove_extra_whitespaces", Entry::Bool(false)));
    let tokenizer = load_gguf(&entries).unwrap();
    for (text, expected) in [(" b a", vec![3, 6, 3, 4]), ("b  a ", vec![6, 3, 3, 4, 3]), ("", vec![])] {
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokens, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    }
}

#[test]
fn ids_and_added_tokens_have_bounds() {
    let far = changed("smollm2", |file| file["model"]["vocab"]["zzz"] = json!(16_000_000));
    assert!(far.contains("token ids up to 16000001; allowed are 1 to 2097152"), "{far}");
    let huge = changed("smollm2", |file| {
        file["added_tokens"].as_array_mut().unwrap().push(added(321, &"x".repeat(20_000_000)));
    });
    assert!(huge.contains("has 20000000 bytes; allowed are 65536"), "{huge}");
    let many = changed("smollm2", |file| {
        let tokens = (0..200_000).map(|n| added(1000 + n, &format!("<{n}>"))).collect();
        file["added_tokens"] = Value::Array(tokens);
    });
    assert!(many.contains("than allowed, 131072"), "{many}");
    let long = changed("smollm2", |file| {
        let tokens = (0..300).map(|n| added(1000 + n, &format!("{n}{}", "x".repeat(60_000)))).collect();
        file["added_tokens"] = Value::Array(tokens);
    });
    assert!(long.contains("bytes when normalized; allowed are 16777216"), "{long}");
}

#[test]
fn faults_that_encoding_finds_are_found_at_load() {
    let frame = |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
    for (what, post_processor) in [
        ("the second text", frame(json!([{"Sequence": {"id": "B", "type_id": 0}}]))),
        ("an unknown token", frame(json!([{"SpecialToken": {"id": "nope", "type_id": 0}}]))),
    ] {
        let message = changed("smollm2", |file| file["post_processor"] = post_processor);
        assert!(message.contains("tokenize"), "{what}: {message}");
    }
    let message = changed("smollm2", |file| {
        file["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0});
    });
    assert!(message.contains("cannot be tokenized"), "{message}");
}
