//! A model on several devices writes what it writes on one. Here each is this CPU again, with weights and pages of its
//! own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, atomic::AtomicBool};

use trefoil_engine::{
    Device, Document, DraftSource, Engine, Event, GenerateOptions, Generation, LoadOptions, Prompt, Raw,
};

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The model on so many devices, with a draft model.
fn open(path: &str, devices: usize, draft: &DraftSource) -> Engine {
    let fields = vec![("threads".into(), Raw::Number(2.0))];
    let options = LoadOptions::resolve(root(path).to_str().unwrap(), Raw::Map(fields)).unwrap();
    let options = LoadOptions { devices: vec![Device::Cpu; devices], draft: Some(draft.clone()), ..options };
    Engine::open(options).unwrap()
}

fn options(decoding: &str, more: &[(&str, f64)]) -> GenerateOptions {
    let mut fields = vec![("decoding".into(), Raw::Text(decoding.into()))];
    fields.extend(more.iter().map(|&(name, value)| (name.into(), Raw::Number(value))));
    GenerateOptions::resolve(Raw::Map(fields)).unwrap()
}

fn read(engine: &Engine, text: &str) -> Document {
    let (sender, receiver) = sync_channel(1);
    engine.read(text.into(), Arc::new(AtomicBool::new(false)), move |read| sender.send(read).unwrap());
    receiver.recv().unwrap().unwrap()
}

/// The texts, tokens and steps of a generation.
fn finish(generation: &Generation) -> Vec<(String, Vec<u32>, usize)> {
    generation.unbound();
    loop {
        match generation.wait() {
            Some(Event::Chunk(_)) => {}
            Some(Event::Done(outcomes)) => {
                let each = outcomes.into_iter();
                return each.map(|outcome| (outcome.text, outcome.tokens, outcome.stats.steps)).collect();
            }
            Some(Event::Failed(error)) => panic!("{error}"),
            None => panic!("a generation without an end"),
        }
    }
}

const TEXT: &str = "The harbour wakes before the town does. Boats come in with the tide, and the first of the fish is \
                    sold on the quay while the lamps are still burning.";

fn write(engine: &Engine) -> Vec<(String, Vec<u32>, usize)> {
    let mut written = Vec::new();
    let sampled = [("maxTokens", 24.0), ("temperature", 0.9), ("seed", 3.0)];
    for decoding in ["plain", "lookahead", "jacobi", "speculative", "bild"] {
        for more in [&[("maxTokens", 24.0)][..], &sampled] {
            let options = options(decoding, more);
            let prompt = Prompt::Text(TEXT.into());
            written.extend(finish(&engine.generate(prompt, options.clone())));
            let document = read(engine, TEXT);
            let prompts = ["", " Who", " What is sold on the quay, and when is it sold there?"];
            let prompts = prompts.map(Into::into).to_vec();
            written.extend(finish(&engine.ask(&document, prompts, options)));
        }
    }
    written
}

#[test]
fn several_devices_write_what_one_does() {
    for (model, draft) in [
        ("fixtures/smollm2", DraftSource::Layers(1)),
        ("fixtures/t5", DraftSource::Layers(1)),
        ("models/de-en/large", DraftSource::Model(root("models/de-en/small"), Some(Device::Cpu))),
    ] {
        let one = open(model, 1, &draft);
        let expected = write(&one);
        for devices in [2, 3] {
            let several = open(model, devices, &draft);
            let (info, single) = (several.info(), one.info());
            assert_eq!(info.device, vec!["cpu"; devices].join(", "));
            assert_eq!(info.draft_device.as_deref(), Some("cpu"));
            assert!(info.bytes > single.bytes);
            assert!(write(&several) == expected, "{model} on {devices} devices");
        }
    }
}

#[test]
fn every_device_has_its_share_of_the_progress() {
    let options = LoadOptions::resolve(root("fixtures/smollm2").to_str().unwrap(), Raw::Absent).unwrap();
    let options = LoadOptions { devices: vec![Device::Cpu; 2], ..options };
    let (sender, receiver) = sync_channel(1024);
    let (done, loaded) = sync_channel(1);
    let hear = move |progress: trefoil_engine::Progress| sender.send(progress).unwrap();
    Engine::load(options, Arc::default(), hear, move |engine| done.send(engine.map(|_| ())).unwrap());
    loaded.recv().unwrap().unwrap();
    let heard: Vec<_> = receiver.iter().collect();
    assert!(heard.is_sorted_by_key(|progress| progress.done));
    assert!(heard.iter().any(|progress| progress.done == progress.total / 2));
    let last = heard.last().unwrap();
    assert_eq!(last.done, last.total);
}
