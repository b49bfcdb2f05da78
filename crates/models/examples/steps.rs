//! Times a whole model's steps on request, so that another program's can be timed in between.
//!
//! `cargo run --release -p trefoil-models --example steps -- MODEL [threads] [prefix] [dtype]` reads a number of rows a line and
//! answers with the milliseconds of one step of so many rows, all of them scored, behind a prefix; a model with an
//! encoder also sees a source of as many tokens. `prefill N` answers with the milliseconds of caching N tokens, or of
//! encoding them.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use trefoil_kernels::{Kernels, PAGE, WeightType};
use trefoil_models::{
    BranchId, CacheType, CausalLm, Draft, Kv, Llama, ModelConfig, RowId, Seq2SeqLm, T5, Token, Weights,
};

/// The addon's allocator: what is timed here is timed as users have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

/// Rows of one pass of prefill, as sessions have them.
const PASS: usize = 256;

/// Positions that the cache has room for.
const ROOM: usize = 4096;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let source = args.next().ok_or("usage: steps MODEL [threads] [prefix] [dtype]")?;
    let threads = args.next().map_or(Ok(2), |n| n.parse())?;
    let prefix: usize = args.next().map_or(Ok(64), |n| n.parse())?;

    let source = Path::new(&source);
    let mut weights = Weights::open(source)?;
    let mut kernels = Kernels::cpu(threads)?;
    // What the engine makes of `dtype`.
    match args.next().as_deref() {
        None | Some("auto") => {}
        Some("f32") => weights.read_dense_as(WeightType::F32),
        Some("q8_0") => weights.read_dense_as(WeightType::Q8_0),
        Some("bf16") => {
            weights.read_dense_as(WeightType::Bf16);
            kernels = kernels.rounding();
        }
        Some(other) => return Err(format!("dtype is {other}; auto, f32, bf16 or q8_0 is needed").into()),
    }
    let model = match ModelConfig::read(source, &weights)? {
        ModelConfig::Llama(config) => {
            Model::Causal(Llama::load(config, &weights, &kernels, &mut |_| Ok(()))?)
        }
        ModelConfig::T5(config) => Model::Seq2Seq(T5::load(config, &weights, &kernels, &mut |_| Ok(()))?),
    };
    let mut kv = Kv::new(&kernels, model.decoder().kv_shape(), CacheType::F16, ROOM / PAGE)?;
    let branch = model.open(&mut kv, prefix)?;
    fill(model.decoder(), &mut kv, branch, prefix)?;

    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let start = Instant::now();
        if let Some(count) = line.strip_prefix("prefill ") {
            let count = count.parse()?;
            let other = model.open(&mut kv, count)?;
            if let Model::Causal(model) = &model {
                fill(model, &mut kv, other, count)?;
            }
            kv.close(other);
        } else {
            let (draft, _) = chain(branch, line.parse()?, true);
            model.decoder().score(&draft, &mut kv)?;
        }
        writeln!(out, "{}", start.elapsed().as_secs_f64() * 1e3)?;
        out.flush()?;
    }
    Ok(())
}

enum Model {
    Causal(Llama),
    Seq2Seq(T5),
}

impl Model {
    fn decoder(&self) -> &dyn CausalLm {
        match self {
            Self::Causal(model) => model,
            Self::Seq2Seq(model) => model,
        }
    }

    /// A branch; with an encoder, about a source of `count` tokens.
    fn open(&self, kv: &mut Kv, count: usize) -> Result<BranchId, Failure> {
        let source = match self {
            Self::Causal(_) => None,
            Self::Seq2Seq(model) => Some(model.encode(&(0..count).map(token).collect::<Vec<_>>())?),
        };
        Ok(kv.open(source))
    }
}

/// Tokens that are not all the same.
fn token(at: usize) -> Token {
    (100 + at * 7 % 1000) as Token
}

/// A chain of `rows` tokens.
fn chain(branch: BranchId, rows: usize, scored: bool) -> (Draft, Vec<RowId>) {
    let mut draft = Draft::new();
    let mut path: Vec<RowId> = Vec::new();
    for row in 0..rows {
        let row = match path.last() {
            None => draft.root(branch, token(row)),
            Some(&above) => draft.child(above, token(row)),
        };
        if scored {
            draft.score(row);
        }
        path.push(row);
    }
    (draft, path)
}

fn fill(model: &dyn CausalLm, kv: &mut Kv, branch: BranchId, count: usize) -> Result<(), Failure> {
    let mut left = count;
    while left > 0 {
        let (draft, path) = chain(branch, left.min(PASS), false);
        model.score(&draft, kv)?;
        kv.commit(branch, &path)?;
        left -= path.len();
    }
    Ok(())
}
