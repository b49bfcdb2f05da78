//! Row invariance: a row's scores are the same bits whatever other rows share the step.

#![allow(clippy::allow_attributes, reason = "not every test file needs each")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod fixture;

use fixture::{CAUSAL, Fixture, SEQ2SEQ};
use trefoil_kernels::{Isa, Kernels, WeightType};
use trefoil_models::{BranchId, CacheType, Draft, Kv, RowId, Token};

/// A generator for test shapes.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|value| value.to_bits()).collect()
}

/// Scores `tokens` one step at a time.
fn singly(fixture: &Fixture, kv: &mut Kv, branch: BranchId, tokens: &[Token]) -> Vec<Vec<f32>> {
    let each = tokens.iter().map(|&token| {
        let (_, mut rows) = fixture.chain(kv, branch, &[token]);
        kv.commit(branch, &[RowId(0)]).unwrap();
        rows.remove(0)
    });
    each.collect()
}

/// Commits `tokens` to a new branch, in steps of at most `chunk` rows.
fn prefix(fixture: &Fixture, kv: &mut Kv, prompt: &[Token], tokens: &[Token], chunk: usize) -> BranchId {
    let branch = kv.open(fixture.begin(prompt).1);
    for part in tokens.chunks(chunk) {
        fixture.chain(kv, branch, part);
        kv.commit(branch, &(0..part.len() as u32).map(RowId).collect::<Vec<_>>()).unwrap();
    }
    branch
}

fn each(check: impl Fn(&Fixture, &mut Random)) {
    for name in CAUSAL.into_iter().chain(SEQ2SEQ) {
        for cache in CacheType::ALL {
            check(&Fixture::open(name).keeping(cache), &mut Random(7));
        }
        let kernels = Kernels::cpu(2).unwrap();
        for (kernels, ty) in [(&kernels, WeightType::Q8_0), (&kernels.rounding(), WeightType::Bf16)] {
            check(&Fixture::open_as(name, kernels, Some(ty)), &mut Random(7));
        }
    }
}

#[test]
fn a_chain_scores_like_single_steps() {
    each(|fixture, _| {
        let case = fixture.golden.cases.last().unwrap();
        let (mut tokens, source) = fixture.begin(&case.prompt);
        tokens.extend(&case.tokens);
        let mut kv = fixture.kv(2 * tokens.len());
        let branch = kv.open(source.clone());
        let alone = singly(fixture, &mut kv, branch, &tokens);
        let branch = kv.open(source);
        let (_, together) = fixture.chain(&mut kv, branch, &tokens);
        for (at, (alone, together)) in alone.iter().zip(&together).enumerate() {
            assert_eq!(bits(alone), bits(together), "{}, row {at}", fixture.name);
        }
    });
}

#[test]
fn a_row_of_a_random_tree_scores_like_its_path_alone() {
    each(|fixture, random| {
        let vocabulary = fixture.lm().vocabulary();
        for round in 0..6 {
            let case = &fixture.golden.cases[round];
            let committed: Vec<Token> =
                (0..random.below(70)).map(|_| random.below(vocabulary) as Token).collect();
            let mut kv = fixture.kv(8 * 128);
            let branch = prefix(fixture, &mut kv, &case.prompt, &committed, 1 + random.below(50));
            let mut draft = Draft::new();
            let root = draft.root(branch, random.below(vocabulary) as Token);
            draft.score(root);
            for size in 1..24 {
                let row = draft.child(RowId(random.below(size) as u32), random.below(vocabulary) as Token);
                draft.score(row);
            }
            let together = fixture.score(&mut kv, &draft);
            let mut path = Vec::new();
            for (row, together) in together.iter().enumerate() {
                draft.path(RowId(row as u32), &mut path);
                let tokens: Vec<Token> = path.iter().map(|&row| draft.row(row).token).collect();
                let alone = singly(fixture, &mut kv, branch, &tokens);
                kv.truncate(branch, committed.len()).unwrap();
                assert_eq!(bits(alone.last().unwrap()), bits(together), "{}, row {row}", fixture.name);
            }
        }
    });
}

#[test]
fn a_committed_path_continues_like_the_same_text_written_singly() {
    each(|fixture, random| {
        let vocabulary = fixture.lm().vocabulary();
        let case = &fixture.golden.cases[1];
        let mut token = || random.below(vocabulary) as Token;
        let committed: Vec<Token> = (0..30).map(|_| token()).collect();
        let mut kv = fixture.kv(4 * 64);
        let branch = prefix(fixture, &mut kv, &case.prompt, &committed, 30);
        let mut draft = Draft::new();
        let root = draft.root(branch, token());
        let dropped = draft.child(root, token());
        let kept = draft.child(root, token());
        draft.child(dropped, token());
        let leaf = draft.child(kept, token());
        fixture.lm().score(&draft, &mut kv).unwrap();
        kv.commit(branch, &[root, kept, leaf]).unwrap();
        let next = [token(), token()];
        let after = singly(fixture, &mut kv, branch, &next);

        let mut text = committed;
        text.extend([root, kept, leaf].map(|row| draft.row(row).token));
        let other = prefix(fixture, &mut kv, &case.prompt, &text, 1);
        let expected = singly(fixture, &mut kv, other, &next);
        assert_eq!(bits(&after[1]), bits(&expected[1]), "{}", fixture.name);
    });
}

#[test]
fn branches_of_a_step_do_not_see_each_other() {
    each(|fixture, random| {
        let vocabulary = fixture.lm().vocabulary();
        let mut kv = fixture.kv(16 * 64);
        let mut alone = Vec::new();
        let mut draft = Draft::new();
        for case in &fixture.golden.cases[..5] {
            let committed: Vec<Token> =
                (0..random.below(60)).map(|_| random.below(vocabulary) as Token).collect();
            let branch = prefix(fixture, &mut kv, &case.prompt, &committed, 7);
            let token = random.below(vocabulary) as Token;
            alone.extend(singly(fixture, &mut kv, branch, &[token]));
            kv.truncate(branch, committed.len()).unwrap();
            let root = draft.root(branch, token);
            draft.score(root);
        }
        let together = fixture.score(&mut kv, &draft);
        for (alone, together) in alone.iter().zip(&together) {
            assert_eq!(bits(alone), bits(together), "{}", fixture.name);
        }
    });
}

#[test]
fn a_fork_shares_its_origin_and_then_goes_its_own_way() {
    each(|fixture, random| {
        let vocabulary = fixture.lm().vocabulary();
        let case = &fixture.golden.cases[0];
        let mut token = || random.below(vocabulary) as Token;
        let text: Vec<Token> = (0..45).map(|_| token()).collect();
        let (left, right) = ([token(), token()], [token(), token()]);
        let mut kv = fixture.kv(8 * 64);
        let origin = prefix(fixture, &mut kv, &case.prompt, &text, 45);
        let before = kv.available();
        let fork = kv.fork(origin).unwrap();
        assert_eq!(kv.available(), before, "a fork takes no page until it writes");
        let ours = singly(fixture, &mut kv, fork, &left);
        let theirs = singly(fixture, &mut kv, origin, &right);
        for (branch, tokens, found) in [(fork, left, ours), (origin, right, theirs)] {
            kv.close(branch);
            let fresh = prefix(fixture, &mut kv, &case.prompt, &text, 45);
            let expected = singly(fixture, &mut kv, fresh, &tokens);
            assert_eq!(bits(&found[1]), bits(&expected[1]), "{}", fixture.name);
            kv.close(fresh);
        }
        assert_eq!(kv.available(), kv.capacity(), "every page came back");
    });
}

#[test]
fn threads_and_instruction_sets_do_not_change_a_bit() {
    for name in ["smollm2", "qwen2-gguf", "t5"] {
        let mut seen: Option<Vec<u32>> = None;
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512Vnni, Isa::Neon] {
            for threads in [1, 2, 3] {
                // Not every machine has every instruction set.
                let Ok(kernels) = Kernels::cpu_with(threads, isa) else { continue };
                let fixture = Fixture::open_with(name, &kernels);
                let case = fixture.golden.cases.last().unwrap();
                let (begin, source) = fixture.begin(&case.prompt);
                let mut kv = fixture.kv(64);
                let branch = kv.open(source);
                let (_, rows) = fixture.chain(&mut kv, branch, &begin);
                let found = bits(rows.last().unwrap());
                assert_eq!(
                    *seen.get_or_insert_with(|| found.clone()),
                    found,
                    "{name}, {isa:?}, {threads} threads"
                );
            }
        }
    }
}
