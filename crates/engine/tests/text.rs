//! Tokenizers against what others made of the same texts, and against broken files.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trefoil_engine::ErrorKind;
use trefoil_engine::text::{Pieces, StopText, Template, Tokenizer};
use trefoil_models::Weights;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn open(source: &Path) -> Tokenizer {
    if source.is_dir() {
        return Tokenizer::from_folder(source).unwrap();
    }
    Tokenizer::from_gguf(Weights::open(source).unwrap().metadata().unwrap()).unwrap()
}

/// The fixtures that have a tokenizer, with what their goldens say of it.
fn fixtures() -> Vec<(String, Tokenizer, Vec<Value>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("fixtures")).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(golden) = fs::read(folder.join("golden.json")) else { continue };
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let Some(encodings) = golden["encodings"].as_array().cloned() else { continue };
        let file = folder.join("model.gguf");
        let source = if file.exists() { file } else { folder.clone() };
        found.push((folder.display().to_string(), open(&source), encodings));
    }
    assert!(found.len() >= 5, "{} fixtures", found.len());
    found
}

fn ids(case: &Value) -> Vec<u32> {
    serde_json::from_value(case["ids"].clone()).unwrap()
}

fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let mut pieces = Pieces::new(tokenizer);
    let mut text: String = tokens.iter().filter_map(|&token| pieces.push(token)).collect();
    text.push_str(&pieces.finish());
    text
}

#[test]
fn fixtures_are_encoded_and_decoded_as_recorded() {
    for (name, tokenizer, encodings) in fixtures() {
        for case in encodings {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case), "{name}: {text:?}");
            let decoded = case["decoded"].as_str().unwrap();
            assert_eq!(tokenizer.decode(&ids(&case)).unwrap(), decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn the_models_of_the_project_are_decoded_as_recorded() {
    for name in ["de-en/large", "de-en/small", "de-en/aligned", "dst"] {
        let folder = root().join("models").join(name);
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        let golden = fs::read_to_string(folder.join("golden.jsonl")).unwrap();
        for line in golden.lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            if let (Some(tokens), Some(text)) = (case["tokens"].as_array(), case["text"].as_str()) {
                let tokens: Vec<u32> = tokens.iter().map(|token| token.as_u64().unwrap() as u32).collect();
                assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
                assert_eq!(streamed(&tokenizer, &tokens), text);
            }
        }
    }
}

/// Expected: the `tokenizers` library, which llama.cpp agrees with on all of SmolLM2's and, but for composed letters,
/// on Qwen's.
#[test]
fn real_vocabularies_are_rebuilt_from_gguf() {
    let expected: Value = serde_json::from_str(include_str!("encodings.json")).unwrap();
    let cache = std::env::var_os("TREFOIL_MODELS").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        Some(cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("trefoil"))
    });
    for (file, cases) in expected.as_object().unwrap() {
        let Some(path) = cache.as_ref().map(|cache| cache.join(file)).filter(|path| path.exists()) else {
            eprintln!("{file} is not in the cache: skipped");
            continue;
        };
        let tokenizer = open(&path);
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(case), "{file}: {text:?}");
        }
    }
}

#[test]
fn streamed_text_is_decoded_text() {
    let mut seed = 3u64;
    let mut below = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    for (name, tokenizer, _) in fixtures() {
        for _ in 0..2000 {
            let tokens: Vec<u32> = (0..below(12)).map(|_| below(tokenizer.vocabulary()) as u32).collect();
            let whole = tokenizer.decode(&tokens).unwrap();
            assert_eq!(streamed(&tokenizer, &tokens), whole, "{name}: {tokens:?}");
            let bytes: Vec<u8> = tokens.iter().flat_map(|&token| tokenizer.piece(token)).copied().collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(text.ends_with(&whole), "{name}: {whole:?} is not the end of {text:?}");
            assert!(
                text.len() - whole.len() <= 16,
                "{name}: more than marks of a beginning went from {text:?}"
            );
        }
    }
}

#[test]
fn unfinished_characters_wait() {
    let tokenizer = open(&root().join("fixtures/smollm2"));
    let tokens = tokenizer.encode("a👍b", false).unwrap();
    assert!(tokens.len() > 4, "{tokens:?}");
    let mut pieces = Pieces::new(&tokenizer);
    let texts: Vec<_> = tokens.iter().filter_map(|&token| pieces.push(token)).collect();
    assert_eq!(texts, ["a", "👍", "b"]);
    assert_eq!(pieces.finish(), "");

    let mut pieces = Pieces::new(&tokenizer);
    let texts: Vec<_> = tokens[..3].iter().filter_map(|&token| pieces.push(token)).collect();
    assert_eq!((texts.concat(), pieces.finish()), ("a".to_owned(), "\u{fffd}".to_owned()));
}

#[test]
fn vocabularies_are_compared() {
    let (smol, again) =
        (open(&root().join("fixtures/smollm2")), open(&root().join("fixtures/smollm2-gguf/model.gguf")));
    assert_eq!(smol.same_vocabulary(&again), Ok(()));
    let t5 = open(&root().join("fixtures/t5"));
    assert!(smol.same_vocabulary(&t5).unwrap_err().contains("tokens, the other"));
    let (large, dst) = (open(&root().join("models/de-en/large")), open(&root().join("models/de-en/small")));
    assert_eq!(large.same_vocabulary(&dst), Ok(()));
}

#[test]
fn limits() {
    let tokenizer = open(&root().join("fixtures/smollm2"));
    assert_eq!(tokenizer.encode("", true).unwrap(), Vec::<u32>::new());
    assert_eq!(tokenizer.decode(&[]).unwrap(), "");
    let size = tokenizer.vocabulary();
    let error = tokenizer.decode(&[size as u32]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption);
    let error = tokenizer.encode(&"x".repeat(10_000_000), true).unwrap_err();
    assert_eq!(error.message(), "the text has 10000000 bytes; allowed are 8388608");
    let error = tokenizer.encode_within(&"one ".repeat(1_000_000), true, 500).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert!(error.message().starts_with("the text has more than "), "{}", error.message());
    let tokens = tokenizer.encode("one two three", true).unwrap();
    assert_eq!(tokenizer.encode_within("one two three", true, tokens.len()).unwrap(), tokens);
    let error = tokenizer.encode_within("one two three", true, tokens.len() - 1).unwrap_err();
    assert!(error.message().ends_with(&format!("{} tokens; allowed are {}", tokens.len(), tokens.len() - 1)));
}

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn with(name: &str, files: &[(&str, String)]) -> Self {
        let path = std::env::temp_dir().join(format!("trefoil-text-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        for (file, text) in files {
            fs::write(path.join(file), text).unwrap();
        }
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn broken(name: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut file = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    });
    change(&mut file);
    let folder = Folder::with(name, &[("tokenizer.json", file.to_string())]);
    match Tokenizer::from_folder(&folder.0) {
        Ok(tokenizer) => {
            let text = "ab".repeat(40) + "!";
            format!("{:?}", tokenizer.encode(&text, true).map(|tokens| tokens.len()))
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ModelLoad);
            error.message().to_owned()
        }
    }
}

#[test]
fn hostile_tokenizers() {
    assert_eq!(broken("sound", |_| ()), "Ok(40)");
    let long = broken("merge", |file| {
        file["model"]["vocab"] = json!({"aaaa": 0, "bbbb": 1});
        file["model"]["merges"] = json!([["aaaa", "bbbb"]]);
    });
    assert!(long.contains("longer than every token (4 bytes)"), "{long}");
    let cut = broken("prefix", |file| {
        file["model"]["continuing_subword_prefix"] = json!("##");
        file["model"]["vocab"] = json!({"a": 0, "é": 1, "aé": 2});
        file["model"]["merges"] = json!([["a", "é"]]);
    });
    assert!(cut.contains("lacks the prefix"), "{cut}");
    assert!(broken("dropout", |file| file["model"]["dropout"] = json!(0.5)).contains("dropout"));
    let empty = broken("empty", |file| {
        file["model"]["vocab"] = json!({});
        file["model"]["merges"] = json!([]);
    });
    assert!(empty.contains("token ids up to 0"), "{empty}");
    assert!(broken("ids", |file| file["model"]["vocab"]["c"] = json!(u32::MAX)).contains("token ids up to"));
    assert!(broken("kind", |file| file["model"] = json!("BPE")).contains("is not a tokenizer"));
    assert!(
        broken("decoder", |file| file["decoder"] =
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": false}))
        .contains("decoder CTC is not supported")
    );
    let nested = broken("regex", |file| {
        file["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(?:(?:a|b)+)+c(?!d)"}, "behavior": "Isolated", "invert": false});
    });
    assert!(nested.starts_with("Ok"), "{nested}");
    let added = broken("added", |file| {
        let token = |id: u32, content: String| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        file["added_tokens"] =
            json!([token(3, "x".repeat(1 << 20)), token(3, "y".into()), token(0, "z".into())]);
    });
    assert!(!added.is_empty());

    let folder = Folder::with("none", &[]);
    assert!(Tokenizer::from_folder(&folder.0).is_err());
    let folder = Folder::with("text", &[("tokenizer.json", "{\"model\"".into())]);
    assert!(Tokenizer::from_folder(&folder.0).is_err());
}

#[test]
fn templates_are_found() {
    let messages = [("user".to_owned(), "hi".to_owned())];
    let config =
        json!({"chat_template": "{{ bos_token }}{{ messages[0].content }}", "bos_token": {"content": "<s>"}});
    let folder = Folder::with("config", &[("tokenizer_config.json", config.to_string())]);
    let template = Template::from_folder(&folder.0).unwrap().unwrap();
    assert_eq!(template.render(&messages, true).unwrap(), "<s>hi");

    fs::write(folder.0.join("chat_template.jinja"), "own {{ messages[0].content }}").unwrap();
    assert_eq!(Template::from_folder(&folder.0).unwrap().unwrap().render(&messages, true).unwrap(), "own hi");

    let several = json!({"chat_template": [
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]});
    let folder = Folder::with("several", &[("tokenizer_config.json", several.to_string())]);
    assert_eq!(Template::from_folder(&folder.0).unwrap().unwrap().render(&messages, true).unwrap(), "plain");

    assert!(Template::from_folder(&Folder::with("without", &[]).0).unwrap().is_none());
    let folder = Folder::with("broken", &[("tokenizer_config.json", "{".into())]);
    assert!(Template::from_folder(&folder.0).is_err());
}

#[test]
fn stop_strings_end_streamed_text() {
    let tokenizer = open(&root().join("fixtures/smollm2"));
    let tokens = tokenizer.encode("one two END three", false).unwrap();
    let (mut pieces, mut stop) = (Pieces::new(&tokenizer), StopText::new(vec!["END".into()]));
    let mut text = String::new();
    for token in tokens {
        let (fresh, stopped) = stop.push(&pieces.push(token).unwrap_or_default());
        text.push_str(&fresh);
        if stopped {
            break;
        }
    }
    assert_eq!(text, "one two ");
}
