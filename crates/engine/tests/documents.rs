//! Documents: read once, asked many times, each answer as if its prompt were alone.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, atomic::AtomicBool};

use serde::Deserialize;
use trefoil_engine::{
    Document, Engine, Error, ErrorKind, Event, Finish, GenerateOptions, Generation, LoadOptions, Outcome,
    Raw, Result, Usage,
};

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn map(fields: &[(&str, f64)]) -> Raw {
    Raw::Map(fields.iter().map(|&(name, value)| (name.into(), Raw::Number(value))).collect())
}

fn open(path: &str, fields: &[(&str, f64)]) -> Engine {
    let options = LoadOptions::resolve(root(path).to_str().unwrap(), map(fields)).unwrap();
    Engine::open(options).unwrap()
}

fn options(fields: &[(&str, f64)]) -> GenerateOptions {
    GenerateOptions::resolve(map(fields)).unwrap()
}

/// Waits for what `call` hands to its callback.
fn wait<T: Send + 'static>(call: impl FnOnce(Box<dyn FnOnce(Result<T>) + Send>)) -> Result<T> {
    let (sender, receiver) = sync_channel(1);
    call(Box::new(move |value| sender.send(value).unwrap()));
    receiver.recv().unwrap()
}

fn read(engine: &Engine, text: &str) -> Result<Document> {
    wait(|reply| engine.read(text.into(), Arc::default(), reply))
}

fn usage(engine: &Engine) -> Usage {
    wait(|reply| engine.usage(reply)).unwrap()
}

fn finish(generation: &Generation) -> Result<Vec<Outcome>> {
    generation.unbound();
    loop {
        match generation.wait() {
            Some(Event::Chunk(_)) => {}
            Some(Event::Done(outcomes)) => return Ok(outcomes),
            Some(Event::Failed(error)) => return Err(error),
            None => panic!("a generation without an end"),
        }
    }
}

fn ask(
    engine: &Engine,
    document: &Document,
    prompts: &[&str],
    options: &GenerateOptions,
) -> Result<Vec<Outcome>> {
    finish(&engine.ask(document, prompts.iter().map(|&prompt| prompt.into()).collect(), options.clone()))
}

/// What must not depend on company.
fn said(outcomes: &[Outcome]) -> Vec<(String, Vec<u32>, Finish)> {
    outcomes.iter().map(|outcome| (outcome.text.clone(), outcome.tokens.clone(), outcome.finish)).collect()
}

fn kind<T>(result: Result<T>) -> (ErrorKind, String) {
    let error: Error = result.err().expect("an error");
    (error.kind(), error.message().into())
}

const FAMILIES: [&str; 2] = ["fixtures/t5", "fixtures/smollm2"];

const DOCUMENT: &str = "The harbour wakes before the town does. Boats come in with the tide, and the first of the fish is \
                        sold on the quay while the lamps are still burning.";

const PROMPTS: [&str; 9] = [
    "",
    " Who",
    " What is sold on the quay, and when is it sold there?",
    " a",
    " The boats come in with the tide and then the town wakes; the lamps, which had burned all night, go out one by one \
     and the fishwives carry their baskets up the hill to the market square. Where is it?",
    " Who",
    " Lamps:",
    "\n\n",
    " The first of",
];

#[test]
fn an_answer_is_the_same_alone_in_company_and_in_any_order() {
    for family in FAMILIES {
        let engine = open(family, &[]);
        let document = read(&engine, DOCUMENT).unwrap();
        let sampled = [("maxTokens", 24.0), ("temperature", 1.1), ("topP", 0.95), ("seed", 5.0)];
        let penalised = [("maxTokens", 17.0), ("repetitionPenalty", 1.3)];
        for fields in [&[("maxTokens", 24.0)][..], &sampled, &penalised] {
            let options = options(fields);
            let together = said(&ask(&engine, &document, &PROMPTS, &options).unwrap());
            for (prompt, together) in PROMPTS.iter().zip(&together) {
                assert_eq!(
                    said(&ask(&engine, &document, &[prompt], &options).unwrap()),
                    std::slice::from_ref(together)
                );
            }
            let mut reversed = PROMPTS;
            reversed.reverse();
            let mut backwards = said(&ask(&engine, &document, &reversed, &options).unwrap());
            backwards.reverse();
            assert_eq!(backwards, together, "{family}");
            assert!(
                together.iter().any(|(text, ..)| *text != together[0].0),
                "prompts make no difference: {family}"
            );
        }
    }
}

#[test]
fn every_decoding_writes_in_company_what_it_writes_alone() {
    let draft = Raw::Map(vec![("draft".into(), Raw::Map(vec![("layers".into(), Raw::Number(1.0))]))]);
    for family in FAMILIES {
        let options = LoadOptions::resolve(root(family).to_str().unwrap(), draft.clone()).unwrap();
        let engine = Engine::open(options).unwrap();
        let document = read(&engine, DOCUMENT).unwrap();
        let greedy = vec![("maxTokens", Raw::Number(24.0))];
        let drawn = [("temperature", 1.1), ("topK", 40.0), ("repetitionPenalty", 1.2), ("seed", 3.0)];
        let drawn = greedy.iter().cloned().chain(drawn.map(|(name, value)| (name, Raw::Number(value))));
        for fields in [greedy.clone(), drawn.collect()] {
            let options = |decoding: &str| {
                let decoding = Raw::Map(vec![("type".into(), Raw::Text(decoding.into()))]);
                let fields = fields.iter().cloned().chain([("decoding", decoding)]);
                let fields = fields.map(|(name, value)| (name.to_owned(), value)).collect();
                GenerateOptions::resolve(Raw::Map(fields)).unwrap()
            };
            let plain = said(&ask(&engine, &document, &PROMPTS, &options("plain")).unwrap());
            for decoding in ["jacobi", "lookahead", "speculative", "bild"] {
                let options = options(decoding);
                let together = said(&ask(&engine, &document, &PROMPTS, &options).unwrap());
                for (prompt, together) in PROMPTS.iter().zip(&together) {
                    let alone = said(&ask(&engine, &document, &[prompt], &options).unwrap());
                    assert_eq!(alone, std::slice::from_ref(together), "{family}, {decoding}");
                }
                assert!(decoding == "bild" || together == plain, "{family}, {decoding}");
            }
        }
        drop(document);
    }
}

#[test]
fn an_empty_prompt_continues_as_generate_does() {
    for family in FAMILIES {
        let engine = open(family, &[]);
        let options = options(&[("maxTokens", 20.0), ("temperature", 0.8)]);
        let document = read(&engine, DOCUMENT).unwrap();
        let alone =
            finish(&engine.generate(trefoil_engine::Prompt::Text(DOCUMENT.into()), options.clone())).unwrap();
        assert_eq!(said(&ask(&engine, &document, &[""], &options).unwrap()), said(&alone), "{family}");
    }
}

#[test]
fn branches_that_were_sent_back_write_the_same() {
    for family in FAMILIES {
        // The smallest cache that one text of full length needs, and no limit to the answers.
        let fields = [("contextLength", 288.0), ("memoryLimit", smallest(family, 288.0))];
        let engine = open(family, &fields);
        let options = options(&[("temperature", 1.0), ("seed", 11.0)]);
        let document = read(&engine, DOCUMENT).unwrap();
        let together = said(&ask(&engine, &document, &PROMPTS, &options).unwrap());
        for (prompt, together) in PROMPTS.iter().zip(together) {
            assert_eq!(said(&ask(&engine, &document, &[prompt], &options).unwrap()), [together]);
        }
    }
}

/// The least memory that a model loads with.
fn smallest(path: &str, context: f64) -> f64 {
    let fields = [("contextLength", context), ("memoryLimit", 1.0)];
    let options = LoadOptions::resolve(root(path).to_str().unwrap(), map(&fields)).unwrap();
    let (found, message) = kind(Engine::open(options));
    assert_eq!(found, ErrorKind::OutOfMemory);
    let needed = message.split_whitespace().nth(3).unwrap();
    needed.parse().unwrap()
}

#[test]
fn every_prompt_stops_for_itself() {
    for family in FAMILIES {
        let engine = open(family, &[]);
        let document = read(&engine, DOCUMENT).unwrap();
        let plain = ask(&engine, &document, &PROMPTS, &options(&[("maxTokens", 30.0)])).unwrap();
        let text = &plain[2].text;
        let stop: String = text.chars().skip(text.chars().count() / 2).take(3).collect();
        let mut stopping = options(&[("maxTokens", 30.0)]);
        stopping.stop = vec![stop.clone()];
        let stopped = ask(&engine, &document, &PROMPTS, &stopping).unwrap();
        for (plain, stopped) in plain.iter().zip(&stopped) {
            let end = plain.text.find(&stop);
            assert_eq!(stopped.text, plain.text[..end.unwrap_or(plain.text.len())]);
            assert_eq!(stopped.finish, if end.is_some() { Finish::Stop } else { plain.finish });
        }
        assert!(stopped.iter().any(|outcome| outcome.finish == Finish::Stop));
    }
}

#[test]
fn ten_thousand_prompts_are_answered_in_order() {
    for family in FAMILIES {
        let engine = open(family, &[("contextLength", 512.0)]);
        let document = read(&engine, DOCUMENT).unwrap();
        let options = options(&[("maxTokens", 3.0)]);
        let alone = said(&ask(&engine, &document, &PROMPTS, &options).unwrap());
        let many: Vec<&str> = PROMPTS.iter().copied().cycle().take(10_000).collect();
        let answers = said(&ask(&engine, &document, &many, &options).unwrap());
        assert_eq!(answers.len(), 10_000);
        assert!(answers.iter().zip(alone.iter().cycle()).all(|(one, other)| one == other));
    }
}

#[test]
fn keys_and_values_are_there_once() {
    let engine = open("fixtures/t5", &[("documentCache", 0.0)]);
    assert_eq!(usage(&engine).cross_bytes, 0);
    let document = read(&engine, DOCUMENT).unwrap();
    let alone = usage(&engine);
    let expected = document.tokens().div_ceil(32) * alone.page_bytes;
    assert_eq!((alone.documents, alone.cross_bytes, alone.pages), (1, expected, 0));

    let answers = engine.ask(&document, vec![" Who".into(); 30], options(&[("maxTokens", 200.0)]));
    assert!(matches!(answers.wait(), Some(Event::Chunk(_))));
    let writing = usage(&engine);
    assert_eq!(writing.cross_bytes, expected);
    assert!(writing.pages >= 30, "{writing:?}");
    answers.cancel();
    let outcomes = finish(&answers).unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.finish == Finish::Abort) && outcomes.len() == 30);
    assert_eq!(usage(&engine), alone);

    drop(document);
    assert_eq!(usage(&engine), Usage { documents: 0, cross_bytes: 0, ..alone });
}

#[test]
fn a_prefix_is_there_once() {
    let engine = open("fixtures/smollm2", &[("documentCache", 0.0), ("contextLength", 4096.0)]);
    let document = read(&engine, &format!("{DOCUMENT} {DOCUMENT}")).unwrap();
    let alone = usage(&engine);
    assert_eq!(alone.pages, (document.tokens() - 1).div_ceil(32));
    let answers = engine.ask(&document, vec![" Who".into(); 30], options(&[("maxTokens", 8.0)]));
    assert!(matches!(answers.wait(), Some(Event::Chunk(_))));
    // A copy of the last page and at most three of its own for each branch.
    assert!(usage(&engine).pages <= alone.pages + 30 * 4 + 8, "{:?}", usage(&engine));
    answers.cancel();
    finish(&answers).unwrap();
    drop(document);
    assert_eq!((usage(&engine).documents, usage(&engine).pages), (0, 0));
}

#[test]
fn the_same_text_is_read_once() {
    let engine = open("fixtures/t5", &[]);
    let options = options(&[("maxTokens", 2.0)]);
    let first = read(&engine, DOCUMENT).unwrap();
    let again = read(&engine, DOCUMENT).unwrap();
    assert_eq!((first.encoder_forwards(), again.encoder_forwards()), (1, 0));
    let forwards = |document: &Document| -> Vec<usize> {
        let answers = ask(&engine, document, &PROMPTS[..3], &options).unwrap();
        answers.iter().map(|outcome| outcome.stats.encoder_forwards).collect()
    };
    assert_eq!(forwards(&first), [1, 0, 0]);
    assert_eq!(forwards(&first), [0, 0, 0]);
    drop((first, again));
    let later = read(&engine, DOCUMENT).unwrap();
    assert_eq!(later.encoder_forwards(), 0, "the cache forgot it");
    assert_eq!(forwards(&later), [0, 0, 0]);
}

#[test]
fn the_least_recently_used_document_goes_first() {
    let page = usage(&open("fixtures/t5", &[])).page_bytes as f64;
    let engine = open("fixtures/t5", &[("documentCache", 2.5 * page * 3.0)]);
    let text = |at: usize| format!("{at} {DOCUMENT}");
    let pages = read(&engine, &text(0)).unwrap().tokens().div_ceil(32);
    assert_eq!(pages, 3, "the budget is for two and a half documents of three pages");
    read(&engine, &text(1)).unwrap();
    assert_eq!(read(&engine, &text(0)).unwrap().encoder_forwards(), 0);
    read(&engine, &text(2)).unwrap();
    assert_eq!(usage(&engine).documents, 2);
    assert_eq!(read(&engine, &text(0)).unwrap().encoder_forwards(), 0);
    assert_eq!(read(&engine, &text(1)).unwrap().encoder_forwards(), 1);
}

#[test]
fn several_documents_are_asked_at_once() {
    for family in FAMILIES {
        let engine = open(family, &[]);
        let options = options(&[("maxTokens", 12.0), ("temperature", 1.0)]);
        let texts: Vec<String> = (0..4).map(|at| format!("Part {at}. {}", &DOCUMENT[at * 10..])).collect();
        let documents: Vec<Document> = texts.iter().map(|text| read(&engine, text).unwrap()).collect();
        let prompts: Vec<String> = PROMPTS.iter().map(|&prompt| prompt.into()).collect();
        let running: Vec<Generation> =
            documents.iter().map(|document| engine.ask(document, prompts.clone(), options.clone())).collect();
        for (document, running) in documents.iter().zip(&running) {
            let later = ask(&engine, document, &PROMPTS, &options).unwrap();
            assert_eq!(said(&finish(running).unwrap()), said(&later));
        }
    }
}

#[test]
fn what_can_not_be_read_or_asked_is_a_typed_error() {
    for family in FAMILIES {
        let engine = open(family, &[("contextLength", 64.0)]);
        let plain = options(&[("maxTokens", 4.0)]);
        let (found, message) = kind(read(&engine, &DOCUMENT.repeat(40)).map(|_| ()));
        assert_eq!(found, ErrorKind::ContextOverflow);
        assert!(message.contains("64"), "{message}");
        let document = read(&engine, "The harbour").unwrap();

        let long = DOCUMENT.repeat(9);
        let (found, message) = kind(ask(&engine, &document, &["", &long], &plain));
        assert_eq!(found, ErrorKind::ContextOverflow, "{message}");
        let (found, message) =
            kind(finish(&engine.ask(&document, vec![String::new(); 100_000], plain.clone())));
        assert_eq!(found, ErrorKind::InvalidOption);
        assert!(message.contains("100000") && message.contains("65536"), "{message}");
        assert_eq!(ask(&engine, &document, &[], &plain).unwrap(), []);
        let none = ask(&engine, &document, &["", " Who"], &options(&[("maxTokens", 0.0)])).unwrap();
        assert!(none.iter().all(|outcome| outcome.finish == Finish::Length && outcome.tokens.is_empty()));

        let other = open(family, &[]);
        assert_eq!(kind(ask(&other, &document, &[""], &plain)).0, ErrorKind::InvalidOption);
        let cancelled = wait(|reply| engine.read("Long".into(), Arc::new(AtomicBool::new(true)), reply));
        assert_eq!(kind(cancelled.map(|_| ())).0, ErrorKind::Aborted);
        assert!(ask(&engine, &document, &[""], &plain).is_ok());
    }
}

#[test]
fn documents_that_fill_the_memory_are_a_typed_error() {
    for family in FAMILIES {
        let fields = [("contextLength", 256.0), ("memoryLimit", (smallest(family, 256.0) * 1.01).round())];
        let engine = open(family, &fields);
        let mut held = Vec::new();
        let (found, message) = loop {
            match read(&engine, &format!("{} {DOCUMENT}{DOCUMENT}", held.len())) {
                Ok(document) => held.push(document),
                Err(error) => break kind::<()>(Err(error)),
            }
            assert!(held.len() < 1000, "{family} never fills");
        };
        assert_eq!(found, ErrorKind::OutOfMemory, "{message}");
        held.clear();
        read(&engine, &format!("again {DOCUMENT}{DOCUMENT}")).unwrap();
    }
}

#[derive(Deserialize)]
struct Dialogue {
    context: String,
    source: Vec<u32>,
    prompts: Vec<String>,
    answers: Vec<Vec<u32>>,
    texts: Vec<String>,
}

#[test]
fn the_dialogue_model_fills_slots_as_recorded() {
    let engine = open("models/dst", &[]);
    let options = options(&[("maxTokens", 16.0)]);
    let golden = std::fs::read_to_string(root("models/dst/golden.jsonl")).unwrap();
    assert!(golden.lines().count() >= 20);
    for line in golden.lines() {
        let dialogue: Dialogue = serde_json::from_str(line).unwrap();
        let document = read(&engine, &dialogue.context).unwrap();
        assert_eq!(document.tokens(), dialogue.source.len());
        let prompts: Vec<&str> = dialogue.prompts.iter().map(String::as_str).collect();
        let answers = ask(&engine, &document, &prompts, &options).unwrap();
        assert_eq!((answers.len(), dialogue.texts.len()), (30, 30));
        for (answer, (tokens, text)) in answers.iter().zip(dialogue.answers.iter().zip(&dialogue.texts)) {
            assert_eq!((&answer.tokens, &answer.text), (tokens, text), "{}", dialogue.context);
        }
    }
}
