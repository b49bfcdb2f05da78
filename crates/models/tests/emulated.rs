//! Whole models through the kernels of cards, run on this CPU: the recorded texts, and the CPU's own numbers.
#![cfg(feature = "emulate")]
#![allow(clippy::allow_attributes, reason = "not every test file needs each")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod fixture;

use fixture::{CAUSAL, Fixture, SEQ2SEQ, argmax};
use trefoil_kernels::{CacheType, Kernels, WeightType};
use trefoil_models::{Draft, RowId, Token};

fn names() -> impl Iterator<Item = &'static str> {
    CAUSAL.into_iter().chain(SEQ2SEQ)
}

#[test]
fn greedy_texts_are_the_recorded_ones() {
    let card = Kernels::emulated(&[]).unwrap();
    for name in names() {
        // In single precision, as they were recorded.
        let fixture = Fixture::open_as(name, &card, Some(WeightType::F32));
        for case in fixture.golden.cases.iter().take(2) {
            let (begin, source) = fixture.begin(&case.prompt);
            let mut kv = fixture.kv(begin.len() + case.tokens.len());
            let branch = kv.open(source);
            let (draft, rows) = fixture.chain(&mut kv, branch, &begin);
            kv.commit(branch, &(0..draft.len() as u32).map(RowId).collect::<Vec<_>>()).unwrap();
            let mut written = vec![argmax(rows.last().unwrap())];
            while written.len() < case.tokens.len().min(12) {
                let (_, rows) = fixture.chain(&mut kv, branch, &written[written.len() - 1..]);
                kv.commit(branch, &[RowId(0)]).unwrap();
                written.push(argmax(&rows[0]));
            }
            assert_eq!(written, case.tokens[..written.len()], "{name}, prompt {:?}", case.prompt);
        }
    }
}

/// With weights of sixteen bits activations are rounded to them, and scores move a little.
#[test]
fn half_precision_stays_close() {
    let card = Kernels::emulated(&[]).unwrap();
    for (name, ty) in names().flat_map(|name| [(name, WeightType::F16), (name, WeightType::Bf16)]) {
        let rows = [&Kernels::cpu(1).unwrap(), &card].map(|kernels| {
            let fixture = Fixture::open_as(name, kernels, Some(ty));
            let (begin, source) = fixture.begin(&fixture.golden.cases[0].prompt);
            let mut kv = fixture.kv(begin.len());
            let branch = kv.open(source);
            fixture.chain(&mut kv, branch, &begin).1.concat()
        });
        let (lowest, highest) = rows[0].iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
        let worst = rows[0].iter().zip(&rows[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let allowed = (highest - lowest) * if ty == WeightType::F16 { 2e-3 } else { 2e-2 };
        assert!(worst <= allowed, "{name} in {ty:?}: off by {worst} of {}", highest - lowest);
    }
}

/// What a card says of a row without handing it over is what the CPU finds in it.
#[test]
fn scores_that_stay_away_are_the_rows_own() {
    let card = Kernels::emulated(&[]).unwrap();
    for name in names() {
        let fixture = Fixture::open_with(name, &card).keeping(CacheType::F16);
        let (begin, source) = fixture.begin(&fixture.golden.cases[0].prompt);
        let mut kv = fixture.kv(begin.len());
        let branch = kv.open(source);
        let mut draft = Draft::new();
        let mut row = draft.root(branch, begin[0]);
        for &token in begin.iter().cycle().take(4) {
            draft.score(row);
            draft.ask(row, token);
            row = draft.child(row, token);
        }
        let scores = fixture.lm().score(&draft, &mut kv).unwrap();
        for (at, row) in draft.rows().iter().enumerate().filter(|(_, row)| row.scored) {
            let away = scores.row(RowId(at as u32)).unwrap();
            let here = away.all().unwrap();
            let here: trefoil_models::Logits<'_> = here.as_ref().into();
            assert_eq!(away.best().unwrap(), here.best().unwrap(), "{name}");
            let [far, near] = [away.probabilities(), here.probabilities()];
            assert_eq!(far.best().to_bits(), near.best().to_bits(), "{name}");
            for least in [0.02, 0.1, 0.5] {
                let sorted = |mut found: Vec<(f64, Token)>| {
                    found.sort_unstable_by_key(|&(_, token)| token);
                    found
                };
                assert_eq!(sorted(far.from(least).unwrap()), sorted(near.from(least).unwrap()), "{name}");
            }
            for token in [row.asked.unwrap(), away.best().unwrap(), 0] {
                let [away, here] =
                    [away, here].map(|logits| logits.log_probability(token).unwrap().to_bits());
                assert_eq!(away, here, "{name}, token {token}");
            }
        }
    }
}

/// Quantised weights meet the same integers and the same sums on both.
#[test]
fn quantised_models_give_the_same_bits() {
    let card = Kernels::emulated(&[]).unwrap();
    for name in ["qwen2-gguf", "llama-spm-gguf"] {
        let bits = [&Kernels::cpu(1).unwrap(), &card].map(|kernels| {
            let fixture = Fixture::open_with(name, kernels);
            let (begin, source) = fixture.begin(&fixture.golden.cases[0].prompt);
            let mut kv = fixture.kv(begin.len());
            let branch = kv.open(source);
            let (_, rows) = fixture.chain(&mut kv, branch, &begin);
            rows.into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>()
        });
        assert!(bits[0] == bits[1], "{name}");
    }
}

/// A row of a tree, over pages and other rows, scores like its path alone, token by token.
#[test]
fn rows_are_exact() {
    let card = Kernels::emulated(&[]).unwrap();
    let types = [None, Some(WeightType::Bf16), Some(WeightType::F16)];
    let caches = [CacheType::F16, CacheType::Bf16];
    for (at, name) in ["mistral", "qwen3", "qwen2-gguf", "t5-v1.1"].into_iter().enumerate() {
        let dense = types[at % types.len()];
        let fixture = Fixture::open_as(name, &card, dense).keeping(caches[at % caches.len()]);
        let (text, source) = fixture.begin(&fixture.golden.cases[0].prompt);
        // Long enough for tiles that many rows see on tensor cores.
        let text: Vec<_> = text.into_iter().cycle().take(107).collect();
        let mut kv = fixture.kv(5 * 64);
        let branch = kv.open(source);
        let (draft, _) = fixture.chain(&mut kv, branch, &text);
        kv.commit(branch, &(0..draft.len() as u32).map(RowId).collect::<Vec<_>>()).unwrap();
        // Twenty rows, each under one of those before it.
        let mut draft = Draft::new();
        let root = draft.root(branch, 5);
        draft.score(root);
        for row in 1..20_u32 {
            let row = draft.child(RowId(row * 7 / 3 % row), row % 11 + 3);
            draft.score(row);
        }
        let together = fixture.score(&mut kv, &draft);
        for leaf in [RowId(0), RowId(9), RowId(18), RowId(19)] {
            let mut path = Vec::new();
            draft.path(leaf, &mut path);
            for &row in &path {
                let (_, alone) = fixture.chain(&mut kv, branch, &[draft.row(row).token]);
                kv.commit(branch, &[RowId(0)]).unwrap();
                let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(&alone[0]) == bits(&together[row.index()]), "{name} {dense:?}, row {row:?}");
            }
            kv.truncate(branch, text.len()).unwrap();
        }
    }
}

/// Steps whose launches start as one, over growing texts, borders of pages and of what attention walks at a time, and
/// forks: each row scores as it does in a chain that is too long for that.
#[test]
fn steps_that_start_as_one_are_exact() {
    let card = Kernels::emulated(&[]).unwrap();
    let fixtures = [
        ("mistral", CacheType::F32),
        ("mistral", CacheType::F16),
        ("smollm2-gguf", CacheType::Bf16),
        ("t5-v1.1", CacheType::F32),
        ("t5-v1.1", CacheType::F16),
    ];
    for (name, ty) in fixtures {
        let fixture = Fixture::open_with(name, &card).keeping(ty);
        let prompt = &fixture.golden.cases[0].prompt;
        let (begin, source) = fixture.begin(prompt);
        let text: Vec<_> = begin.iter().chain(prompt.iter().cycle()).copied().take(265).collect();
        let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let mut kv = fixture.kv(4 * 300);
        let branch = kv.open(source);
        let (draft, expected) = fixture.chain(&mut kv, branch, &text);
        let rows: Vec<RowId> = (0..draft.len() as u32).map(RowId).collect();
        let mut calls = Vec::new();
        for from in [25, 250] {
            // A fork writes on, beside the branch that it comes from, and alone.
            fixture.chain(&mut kv, branch, &text[..from]);
            kv.commit(branch, &rows[..from]).unwrap();
            let fork = kv.fork(branch).unwrap();
            for (at, &token) in text.iter().enumerate().skip(from).take(15) {
                let mut draft = Draft::new();
                let branches = if at % 5 == 0 { vec![fork] } else { vec![branch, fork] };
                for &branch in &branches {
                    let row = draft.root(branch, token);
                    draft.score(row);
                }
                let before = card.calls();
                let scores = fixture.lm().score(&draft, &mut kv).unwrap();
                calls.push(card.calls().launches - before.launches);
                for (row, branch) in branches.into_iter().enumerate() {
                    let row = RowId(row as u32);
                    let found = scores.row(row).unwrap().all().unwrap();
                    assert!(bits(&found) == bits(&expected[at]), "{name} {ty:?}, position {at}, {branch:?}");
                    kv.commit(branch, &[row]).unwrap();
                }
                if at % 5 == 0 {
                    // The other one catches up.
                    fixture.chain(&mut kv, branch, &[token]);
                    kv.commit(branch, &[RowId(0)]).unwrap();
                }
            }
            kv.close(fork);
            kv.truncate(branch, 0).unwrap();
        }
        // The writes of the step before, their pages' copies, and the step.
        let few = calls.iter().filter(|&&calls| calls <= 3).count();
        assert!(few > 12 && calls.iter().any(|&calls| calls > 10), "{name} {ty:?}: {calls:?}");
    }
}

/// What stands on a pass's memory is not written by the next one like it.
#[test]
fn scores_outlive_the_next_steps() {
    let card = Kernels::emulated(&[]).unwrap();
    let fixture = Fixture::open_with("qwen2-gguf", &card);
    let mut kv = fixture.kv(64);
    let branches = [kv.open(None), kv.open(None)];
    let mut kept = Vec::new();
    for token in 3..9 {
        let mut draft = Draft::new();
        let row = draft.root(branches[token as usize % 2], token);
        draft.score(row);
        kept.push(fixture.lm().score(&draft, &mut kv).unwrap());
    }
    for (scores, token) in kept.iter().zip(3..9) {
        let mut kv = fixture.kv(64);
        let branch = kv.open(None);
        let (_, expected) = fixture.chain(&mut kv, branch, &[token]);
        assert_eq!(*scores.row(RowId(0)).unwrap().all().unwrap(), expected[0], "token {token}");
    }
}
