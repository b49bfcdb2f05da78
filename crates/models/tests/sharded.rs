//! A step on several workers gives the bits of a step on one.

#![allow(clippy::allow_attributes, reason = "not every test file needs each")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod fixture;

use std::sync::Arc;

use fixture::{CAUSAL, Fixture, Model, SEQ2SEQ};
use trefoil_kernels::Kernels;
use trefoil_models::{BranchId, CausalLm, Draft, Kv, RowId, Sharded, Token};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// The fixture's model over so many workers.
fn sharded(fixture: &Fixture, workers: usize) -> Sharded {
    let on = |kernels: &Kernels| -> Arc<dyn CausalLm> {
        match &fixture.model {
            Model::Causal(model) => Arc::new(model.on(kernels)),
            Model::Seq2Seq(model) => Arc::new(model.on(kernels)),
        }
    };
    let workers = (0..workers).map(|_| on(&Kernels::cpu(1).unwrap())).collect();
    Sharded::new(on(&fixture.kernels), workers)
}

/// A random forest over `branches`, every third row without scores; no root is.
fn forest(random: &mut Random, branches: &[BranchId], rows: usize, vocabulary: usize) -> Draft {
    let mut draft = Draft::new();
    for &branch in branches {
        let root = draft.root(branch, random.below(vocabulary) as Token);
        draft.score(root);
    }
    while draft.len() < rows {
        let parent = RowId(random.below(draft.len()) as u32);
        let row = draft.child(parent, random.below(vocabulary) as Token);
        if random.below(3) > 0 {
            draft.score(row);
        }
    }
    draft
}

/// Steps over random forests, each of which keeps the path to a random row a branch; gives the bits of all scores.
fn write(fixture: &Fixture, model: &dyn CausalLm) -> Vec<Option<Vec<u32>>> {
    let mut random = Random(5);
    let mut kv: Kv = fixture.kv(1024);
    let mut seen = Vec::new();
    let branches: Vec<BranchId> =
        fixture.golden.cases[..3].iter().map(|case| kv.open(fixture.begin(&case.prompt).1)).collect();
    for step in 0..8 {
        let live = &branches[..=step % branches.len()];
        let rows = 1 + random.below(40);
        let draft = forest(&mut random, live, rows, model.vocabulary());
        let scores = model.score(&draft, &mut kv).unwrap();
        for row in 0..draft.len() as u32 {
            let bits = scores
                .row(RowId(row))
                .map(|logits| logits.all().unwrap().iter().map(|x| x.to_bits()).collect());
            assert_eq!(bits.is_some(), draft.row(RowId(row)).scored);
            seen.push(bits);
        }
        for &branch in live {
            let own: Vec<u32> =
                (0..draft.len() as u32).filter(|&row| draft.row(RowId(row)).branch == branch).collect();
            let mut path = Vec::new();
            draft.path(RowId(own[random.below(own.len())]), &mut path);
            kv.commit(branch, &path).unwrap();
        }
    }
    seen
}

#[test]
fn workers_give_the_bits_of_one() {
    for name in CAUSAL.into_iter().chain(SEQ2SEQ) {
        let fixture = Fixture::open(name);
        let expected = write(&fixture, fixture.lm());
        for workers in 1..=4 {
            let found = write(&fixture, &sharded(&fixture, workers));
            assert!(found == expected, "{name}, {workers} workers");
        }
    }
}

#[test]
fn a_row_that_was_not_staged_cannot_be_committed() {
    let fixture = Fixture::open("smollm2");
    let mut kv = fixture.kv(64);
    let branch = kv.open(None);
    assert!(kv.commit(branch, &[RowId(0)]).is_err());
    fixture.chain(&mut kv, branch, &[1, 2]);
    assert!(kv.commit(branch, &[RowId(0), RowId(7)]).is_err());
}
