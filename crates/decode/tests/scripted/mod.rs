//! A model without floats: its next token is a hash of the tokens that a row may see.
//!
//! It keeps its tokens in a real cache, as keys, and reads them back through the step's real sight. A row that sees one
//! token too many or too few, or in another order, writes another text at once.

#![allow(clippy::allow_attributes, reason = "shared by test files that each use a part of it")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(dead_code, reason = "shared by test files that each use a part of it")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use trefoil_decode::{Counters, Finish, Little, Sampling, Session, Strategy, Tally};
use trefoil_kernels::{CacheType, Kernels, PAGE};
use trefoil_models::{CausalLm, Draft, Kv, KvShape, Result, Scores, Staged, Token};

pub const VOCABULARY: usize = 13;

/// A mask broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// A draft row does not see its parent.
    MissesParent,
    /// A draft row sees the row before it, whether it is an ancestor or not.
    SeesNeighbour,
    /// A draft row does not see the last token of its branch's prefix.
    MissesPrefix,
    /// A draft row sees its ancestors in the wrong order.
    TurnsPath,
}

#[derive(Clone)]
pub struct Scripted {
    pub kernels: Kernels,
    pub broken: Option<Break>,
    /// Share of tokens, of 8, that depend on the last token alone: texts with some use for n-grams.
    pub habit: u64,
}

impl Scripted {
    pub fn new(habit: u64) -> Self {
        Self { kernels: Kernels::cpu(1).unwrap(), broken: None, habit }
    }

    pub fn kv(&self, pages: usize) -> Kv {
        Kv::new(&self.kernels, self.kv_shape(), CacheType::F32, pages).unwrap()
    }

    /// A draft model with this habit, and its cache.
    pub fn little(habit: u64, pages: usize) -> (Little, Arc<Mutex<Kv>>) {
        let model = Self::new(habit);
        let kv = Arc::new(Mutex::new(model.kv(pages)));
        (Little::new(Arc::new(model), Arc::clone(&kv), None), kv)
    }

    /// The scores after a row that sees `tokens`.
    pub fn logits(&self, tokens: &[Token]) -> Vec<f32> {
        let all = tokens.iter().fold(17, |hash, &token| mix(hash ^ u64::from(token)));
        let last = tokens.last().map_or(3, |&token| mix(u64::from(token)));
        let key = if all % 8 < self.habit { last } else { all };
        (0..VOCABULARY as u64).map(|token| (mix(key ^ (token << 32)) % 1000) as f32 / 250.0).collect()
    }

    fn see(&self, row: usize, mut tokens: Vec<(Token, bool)>, before: Option<Token>) -> Vec<Token> {
        let drafted = tokens.iter().filter(|(_, staged)| *staged).count();
        let own = tokens.len() - drafted;
        match self.broken {
            Some(Break::MissesParent) if drafted > 1 => drop(tokens.remove(tokens.len() - 2)),
            Some(Break::SeesNeighbour) if drafted > 1 && row > 0 => {
                tokens.insert(tokens.len() - 1, (before.unwrap(), true));
            }
            Some(Break::MissesPrefix) if drafted > 1 && own > 0 => drop(tokens.remove(own - 1)),
            Some(Break::TurnsPath) if drafted > 2 => tokens.swap(own, own + 1),
            _ => {}
        }
        tokens.into_iter().map(|(token, _)| token).collect()
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9).wrapping_add(0x9E37_79B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl CausalLm for Scripted {
    fn kv_shape(&self) -> KvShape {
        KvShape { layers: 1, kv_heads: 1, head_dim: 1 }
    }

    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn forward(&self, draft: &Draft, kv: &Kv) -> Result<(Scores, Staged)> {
        let sight = kv.sight(draft)?;
        let cached = kv.store(&self.kernels, 0)?.k.flatten_all()?.to_vec1::<f32>()?;
        let tokens: Vec<f32> = draft.rows().iter().map(|row| row.token as f32).collect();
        let staged = Tensor::from_vec(tokens.clone(), (draft.len(), 1, 1), self.kernels.device())?;
        let mut logits = Vec::new();
        for row in 0..draft.len() {
            let prefix = (0..sight.committed(row)).map(|position| {
                let page = sight.page(row, position / PAGE);
                (cached[page * PAGE + position % PAGE] as Token, false)
            });
            let path = sight.path(row).iter().map(|&row| (tokens[row as usize] as Token, true));
            let before = row.checked_sub(1).map(|row| tokens[row] as Token);
            let seen = self.see(row, prefix.chain(path).collect(), before);
            if draft.rows()[row].scored {
                logits.extend(self.logits(&seen));
            }
        }
        Ok((
            Scores::new(draft, VOCABULARY, logits),
            Staged::new(&self.kernels, draft, vec![(staged.clone(), staged)]),
        ))
    }
}

/// A branch to be written.
#[derive(Clone, Debug)]
pub struct Task {
    pub prompt: Vec<Token>,
    pub limit: usize,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub tokens: Vec<Token>,
    pub logprobs: Vec<Option<f32>>,
    pub finish: Finish,
}

/// What it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Took {
    pub tally: Tally,
    pub counters: Counters,
}

/// Writes all tasks as branches of one session; gives the texts and what each took.
pub fn write(
    model: &dyn CausalLm,
    kv: &mut Kv,
    strategy: Box<dyn Strategy>,
    sampling: Sampling,
    tasks: &[Task],
    ends: &[Token],
) -> (Vec<Written>, Vec<Took>) {
    let mut session = Session::new(strategy, ends.into());
    for (key, task) in tasks.iter().enumerate() {
        let id = kv.open(None);
        session.add(id, task.prompt.clone(), task.limit, sampling, key as u64);
    }
    let mut logprobs = vec![Vec::new(); tasks.len()];
    while !session.is_done() {
        let before: Vec<_> = (0..tasks.len()).map(|branch| session.text(branch).tokens().to_vec()).collect();
        for kept in session.step(model, kv).unwrap() {
            assert!(
                session.text(kept.branch).tokens().starts_with(&before[kept.branch]),
                "a token was taken back"
            );
            logprobs[kept.branch].extend(kept.picks.iter().map(|pick| pick.logprob));
        }
    }
    assert_eq!(kv.available(), kv.capacity(), "every page came back");
    let texts = logprobs.into_iter().enumerate().map(|(branch, logprobs)| Written {
        tokens: session.text(branch).written().to_vec(),
        logprobs,
        finish: session.finish(branch).unwrap(),
    });
    let took = |branch| Took { tally: session.tally(branch), counters: session.strategy().counters(branch) };
    (texts.collect(), (0..tasks.len()).map(took).collect())
}

/// A scripted model that counts the rows it has processed.
pub struct Counted {
    model: Scripted,
    rows: AtomicUsize,
}

impl Counted {
    pub fn new(habit: u64) -> Self {
        Self { model: Scripted::new(habit), rows: AtomicUsize::new(0) }
    }

    pub fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }
}

impl CausalLm for Counted {
    fn kv_shape(&self) -> KvShape {
        self.model.kv_shape()
    }

    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }

    fn forward(&self, draft: &Draft, kv: &Kv) -> Result<(Scores, Staged)> {
        self.rows.fetch_add(draft.len(), Ordering::Relaxed);
        self.model.forward(draft, kv)
    }
}
