//! Times a whole model's steps on request, so that another program's can be timed in between.
//!
//! `cargo run --release -p trefoil-models --example steps -- MODEL.gguf [threads] [prefix]` reads a number of rows a
//! line and answers with the milliseconds of one step of so many rows, all of them scored, behind a prefix.
//! `prefill N` answers with the milliseconds of caching N tokens.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use trefoil_kernels::{Kernels, PAGE};
use trefoil_models::{BranchId, CacheType, CausalLm, Draft, Kv, Llama, ModelConfig, RowId, Token, Weights};

type Failure = Box<dyn std::error::Error>;

/// Rows of one pass of prefill, as sessions have them.
const PASS: usize = 256;

/// Positions that the cache has room for.
const ROOM: usize = 4096;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let source = args.next().ok_or("usage: steps MODEL.gguf [threads] [prefix]")?;
    let threads = args.next().map_or(Ok(2), |n| n.parse())?;
    let prefix: usize = args.next().map_or(Ok(64), |n| n.parse())?;

    let source = Path::new(&source);
    let weights = Weights::open(source)?;
    let kernels = Kernels::cpu(threads)?;
    let ModelConfig::Llama(config) = ModelConfig::read(source, &weights)? else {
        return Err("only models of the Llama family are timed here".into());
    };
    let model = Llama::load(config, &weights, &kernels, &mut |_| Ok(()))?;
    let mut kv = Kv::new(&kernels, model.kv_shape(), CacheType::F16, ROOM / PAGE)?;
    let branch = kv.open(None);
    fill(&model, &mut kv, branch, prefix)?;

    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let start = Instant::now();
        if let Some(count) = line.strip_prefix("prefill ") {
            let other = kv.open(None);
            fill(&model, &mut kv, other, count.parse()?)?;
            kv.close(other);
        } else {
            let (draft, _) = chain(branch, line.parse()?, true);
            model.score(&draft, &mut kv)?;
        }
        writeln!(out, "{}", start.elapsed().as_secs_f64() * 1e3)?;
        out.flush()?;
    }
    Ok(())
}

/// A chain of `rows` tokens that are not all the same.
fn chain(branch: BranchId, rows: usize, scored: bool) -> (Draft, Vec<RowId>) {
    let mut draft = Draft::new();
    let mut path: Vec<RowId> = Vec::new();
    for row in 0..rows {
        let token = (100 + row * 7 % 1000) as Token;
        let row = match path.last() {
            None => draft.root(branch, token),
            Some(&above) => draft.child(above, token),
        };
        if scored {
            draft.score(row);
        }
        path.push(row);
    }
    (draft, path)
}

fn fill(model: &Llama, kv: &mut Kv, branch: BranchId, count: usize) -> Result<(), Failure> {
    let mut left = count;
    while left > 0 {
        let (draft, path) = chain(branch, left.min(PASS), false);
        model.score(&draft, kv)?;
        kv.commit(branch, &path)?;
        left -= path.len();
    }
    Ok(())
}
