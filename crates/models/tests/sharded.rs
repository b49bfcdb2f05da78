//! A step on several workers gives the bits of a step on one, whether they share one device's pages or have their own.

#![allow(clippy::allow_attributes, reason = "not every test file needs each")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod fixture;

use std::sync::Arc;

use candle_core::{DType, Tensor};
use fixture::{CAUSAL, Fixture, Model, SEQ2SEQ};
use trefoil_kernels::{CacheType, Devices, Kernels};
use trefoil_models::{BranchId, CausalLm, CrossKv, Draft, Kv, RowId, Sharded, Token, encode};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// The fixture's model on other threads, over the same weights.
fn on(fixture: &Fixture, kernels: &Kernels) -> Arc<dyn CausalLm> {
    match &fixture.model {
        Model::Causal(model) => Arc::new(model.on(kernels)),
        Model::Seq2Seq(model) => Arc::new(model.on(kernels)),
    }
}

/// A model on one worker or several, and where its caches are.
struct Subject {
    model: Arc<dyn CausalLm>,
    devices: Devices,
    /// The fixture on each device, with weights of its own.
    fixtures: Vec<Fixture>,
}

impl Subject {
    /// On so many workers of one device; none at all is the model itself.
    fn workers(name: &'static str, workers: usize) -> Self {
        let fixture = Fixture::open(name);
        let whole = on(&fixture, &fixture.kernels);
        let workers: Vec<_> = (0..workers).map(|_| on(&fixture, &Kernels::cpu(1).unwrap())).collect();
        let model = if workers.is_empty() { whole } else { Arc::new(Sharded::new(whole, workers)) };
        Self { model, devices: (&fixture.kernels).into(), fixtures: vec![fixture] }
    }

    /// On devices that work together.
    fn devices(name: &'static str, kernels: &[Kernels]) -> Self {
        let devices = Devices::join(kernels).unwrap();
        let fixtures: Vec<_> =
            devices.each().iter().map(|kernels| Fixture::open_with(name, kernels)).collect();
        let models = fixtures.iter().map(|fixture| on(fixture, &fixture.kernels)).collect();
        Self { model: Arc::new(Sharded::over(models, 1)), devices, fixtures }
    }

    /// What a branch about `prompt` reads, on every device.
    fn source(&self, prompt: &[Token]) -> Option<Arc<CrossKv>> {
        let encoders = self.fixtures.iter().map(|fixture| match &fixture.model {
            Model::Causal(_) => None,
            Model::Seq2Seq(model) => Some(Arc::new(model.clone())),
        });
        let encoders: Option<Vec<_>> = encoders.collect();
        encoders.map(|encoders| encode(&encoders, prompt).unwrap())
    }

    fn kv(&self, cache: CacheType, pages: usize) -> Kv {
        Kv::new(&self.devices, self.model.kv_shape(), cache, pages).unwrap()
    }
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

/// The bits of all scores of a step.
fn scored(subject: &Subject, draft: &Draft, kv: &mut Kv) -> Vec<Option<Vec<u32>>> {
    let scores = subject.model.score(draft, kv).unwrap();
    let rows = (0..draft.len() as u32).map(|row| {
        let logits = scores.row(RowId(row));
        assert_eq!(logits.is_some(), draft.row(RowId(row)).scored);
        logits.map(|logits| logits.all().unwrap().iter().map(|x| x.to_bits()).collect())
    });
    rows.collect()
}

/// Keeps the path to a random row of `branch`.
fn keep(random: &mut Random, draft: &Draft, branch: BranchId, kv: &mut Kv) {
    let own: Vec<u32> =
        (0..draft.len() as u32).filter(|&row| draft.row(RowId(row)).branch == branch).collect();
    let mut path = Vec::new();
    draft.path(RowId(own[random.below(own.len())]), &mut path);
    kv.commit(branch, &path).unwrap();
}

/// Steps over chains and random forests, of branches that are forked and cut back in between; gives the bits of all
/// scores, and of all that is in the cache.
fn write(subject: &Subject, cache: CacheType, steps: usize) -> (Vec<Option<Vec<u32>>>, Vec<Vec<u32>>) {
    let mut random = Random(5);
    let mut kv = subject.kv(cache, 64);
    let vocabulary = subject.model.vocabulary();
    let mut seen = Vec::new();
    let cases = &subject.fixtures[0].golden.cases[..3];
    let mut branches: Vec<BranchId> =
        cases.iter().map(|case| kv.open(subject.source(&case.prompt))).collect();
    // A prompt goes in as one chain, and none of its rows is scored.
    let mut draft = Draft::new();
    let mut row = draft.root(branches[0], 1);
    for _ in 1..37 {
        row = draft.child(row, random.below(vocabulary) as Token);
    }
    seen.extend(scored(subject, &draft, &mut kv));
    kv.commit(branches[0], &(0..37).map(RowId).collect::<Vec<_>>()).unwrap();
    for step in 0..steps {
        // A fork shares pages until it writes; the last of them is not full and is copied.
        if step % 3 == 1 {
            let at = random.below(branches.len());
            branches.push(kv.fork(branches[at]).unwrap());
        }
        if step % 4 == 3 {
            let at = random.below(branches.len());
            let len = kv.len(branches[at]).unwrap();
            kv.truncate(branches[at], len - random.below(len.min(9) + 1)).unwrap();
        }
        let live = &branches[random.below(branches.len())..];
        let rows = 1 + random.below(30);
        let draft = forest(&mut random, live, rows, vocabulary);
        seen.extend(scored(subject, &draft, &mut kv));
        for &branch in live {
            keep(&mut random, &draft, branch, &mut kv);
        }
    }
    let bits = |store: &Tensor| -> Vec<u32> {
        let numbers = store.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        numbers.into_iter().map(f32::to_bits).collect()
    };
    let mut cached = Vec::new();
    for kernels in subject.devices.each() {
        kernels.settle().unwrap();
        let stores = (0..subject.model.kv_shape().layers).map(|layer| kv.store(kernels, layer).unwrap());
        cached.push(stores.flat_map(|store| [bits(&store.k), bits(&store.v)].concat()).collect());
    }
    (seen, cached)
}

/// Rows on several devices are those of one, and so are all pages on each of them.
fn agree(name: &'static str, what: &str, cache: CacheType, steps: usize, one: &Subject, several: &Subject) {
    let (expected, pages) = write(one, cache, steps);
    let (found, cached) = write(several, cache, steps);
    assert!(found == expected, "{name}, {what}: other scores");
    for (rank, theirs) in cached.iter().enumerate() {
        assert!(*theirs == pages[0], "{name}, {what}: other pages on device {rank}");
    }
}

#[test]
fn workers_give_the_bits_of_one() {
    for name in CAUSAL.into_iter().chain(SEQ2SEQ) {
        let one = Subject::workers(name, 0);
        for workers in 1..=4 {
            let several = Subject::workers(name, workers);
            agree(name, &format!("{workers} workers"), CacheType::F32, 12, &one, &several);
        }
    }
}

#[test]
fn devices_give_the_bits_of_one() {
    for (at, name) in CAUSAL.into_iter().chain(SEQ2SEQ).enumerate() {
        let one = Subject::workers(name, 0);
        let cache = CacheType::ALL[at % 3];
        for devices in 1..=3 {
            let kernels: Vec<_> = (0..devices).map(|at| Kernels::cpu(1 + at % 2).unwrap()).collect();
            let several = Subject::devices(name, &kernels);
            agree(name, &format!("{devices} devices"), cache, 12, &one, &several);
        }
    }
}

#[cfg(feature = "emulate")]
#[test]
fn cards_give_the_bits_of_one() {
    for name in ["llama3", "qwen2-gguf", "t5-v1.1"] {
        let card = || Kernels::emulated(&[]).unwrap();
        let one = Subject::devices(name, &[card()]);
        for devices in [2, 3] {
            let several = Subject::devices(name, &(0..devices).map(|_| card()).collect::<Vec<_>>());
            agree(name, &format!("{devices} cards"), CacheType::F16, 5, &one, &several);
        }
    }
}

#[test]
fn devices_that_cannot_work_together_are_refused() {
    let refused = |kernels: &[Kernels]| Devices::join(kernels).unwrap_err().to_string();
    let cpu = Kernels::cpu(1).unwrap();
    assert_eq!(refused(&[]), "0 devices; 1 to 64 can work together");
    assert_eq!(refused(&vec![cpu.clone(); 65]), "65 devices; 1 to 64 can work together");
    #[cfg(feature = "emulate")]
    assert_eq!(
        refused(&[cpu, Kernels::emulated(&[]).unwrap()]),
        "cpu and emulated; cards work with cards only"
    );
}

#[test]
fn a_model_and_a_cache_of_other_devices_do_not_meet() {
    let subject = Subject::devices("smollm2", &vec![Kernels::cpu(1).unwrap(); 2]);
    let mut kv = subject.fixtures[0].kv(64);
    let branch = kv.open(None);
    let mut draft = Draft::new();
    draft.root(branch, 1);
    assert!(subject.model.score(&draft, &mut kv).is_err());
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
