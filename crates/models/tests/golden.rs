//! Every architecture against what transformers answers with the same weights.

#![allow(clippy::allow_attributes, reason = "not every test file needs each")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod fixture;

use fixture::{CAUSAL, Fixture, SEQ2SEQ, argmax};
use trefoil_models::RowId;

fn names() -> impl Iterator<Item = &'static str> {
    CAUSAL.into_iter().chain(SEQ2SEQ)
}

#[test]
fn greedy_texts_are_the_recorded_ones() {
    for name in names() {
        let fixture = Fixture::open(name);
        for case in &fixture.golden.cases {
            let (begin, source) = fixture.begin(&case.prompt);
            let mut kv = fixture.kv(begin.len() + case.tokens.len());
            let branch = kv.open(source);
            let (draft, rows) = fixture.chain(&mut kv, branch, &begin);
            kv.commit(branch, &(0..draft.len() as u32).map(RowId).collect::<Vec<_>>()).unwrap();
            let mut written = vec![argmax(rows.last().unwrap())];
            while written.len() < case.tokens.len() {
                let (_, rows) = fixture.chain(&mut kv, branch, &written[written.len() - 1..]);
                kv.commit(branch, &[RowId(0)]).unwrap();
                written.push(argmax(&rows[0]));
            }
            assert_eq!(written, case.tokens, "{name}, prompt {:?}", case.prompt);
        }
    }
}

#[test]
fn logits_are_the_recorded_ones_within_1e_4() {
    // Quantised weights meet quantised activations here, and f32 ones in the recording.
    for name in names().filter(|&name| !["qwen2-gguf", "llama-spm-gguf"].contains(&name)) {
        let fixture = Fixture::open(name);
        let mut compared = 0;
        for case in &fixture.golden.cases {
            let Some(logits) = &case.logits else { continue };
            let (mut tokens, source) = fixture.begin(&case.prompt);
            tokens.extend(&case.tokens);
            let mut kv = fixture.kv(tokens.len());
            let branch = kv.open(source);
            let (_, rows) = fixture.chain(&mut kv, branch, &tokens);
            let expected = logits.values();
            let vocabulary = expected.len() / logits.positions.len();
            for (&position, expected) in logits.positions.iter().zip(expected.chunks(vocabulary)) {
                for (token, (found, expected)) in rows[position].iter().zip(expected).enumerate() {
                    let off = (found - expected).abs();
                    assert!(
                        off <= 1e-4,
                        "{name}: position {position}, token {token}: {found} for {expected}"
                    );
                }
                compared += 1;
            }
        }
        assert!(compared > 0, "{name} has no recorded logits");
    }
}
