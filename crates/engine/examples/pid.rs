//! Prompt-in-decoder beside its baselines, on the same kernels, cache and session: what `npm run bench -- pid` runs.
//!
//! `cargo run --release -p trefoil-engine --example pid -- MODEL THREADS` reads a [`Task`] as JSON from each line of its
//! input and answers with a line of [`Figures`].
//!
//! * *PiD*: every document is encoded once, and its prompts decode together over the one copy of keys and values.
//! * *Expanded*: the same, but every prompt reads its own copy. The kernel, its job and its arithmetic are the same.
//! * *PIE*: the prompt is the document's last part, so that each has an encoding, and an answer, of its own.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use trefoil_decode::{Plain, Sampling, Session};
use trefoil_kernels::{Kernels, PAGE};
use trefoil_models::{
    CacheType, CausalLm, CrossKv, Kv, ModelConfig, Seq2SeqLm, T5, T5Config, Token, Weights,
};

/// The addon's allocator: what is timed here is timed as users have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What to measure.
#[derive(Deserialize)]
struct Task {
    documents: Vec<Vec<Token>>,
    /// Asked of every document.
    prompts: Vec<Vec<Token>>,
    /// Tokens of an answer; nothing ends it before.
    tokens: usize,
    rounds: usize,
    /// Encodings and answers of PIE that are timed a round; they do not depend on each other, so the others take as long.
    pie: usize,
    /// Whether there is memory for the expanded form.
    expanded: bool,
}

/// Seconds of each round, and what was counted.
#[derive(Default, Serialize)]
struct Figures {
    /// Encoding all documents once.
    encode: Vec<f64>,
    pid: Form,
    expanded: Option<Form>,
    /// All of PIE's encodings, and all of its answers.
    pie_encode: Vec<f64>,
    pie_decode: Vec<f64>,
    /// Tokens through the encoder, with every document encoded once and by PIE.
    encoded: usize,
    pie_encoded: usize,
}

/// Decoding all answers.
#[derive(Default, Serialize)]
struct Form {
    /// Copying keys and values.
    copy: Vec<f64>,
    /// Prompts and answers.
    decode: Vec<f64>,
    /// One step after the prompts.
    step: Vec<f64>,
    /// Bytes of keys and values that the branches' cross-attention reads, each copy counted.
    cross_bytes: usize,
}

/// All answers, written once.
struct Run {
    copy: f64,
    decode: f64,
    step: f64,
    cross_bytes: usize,
    answers: Vec<Vec<Token>>,
}

/// Times that all answers are written a round; the least time of each part counts.
const TURNS: usize = 3;

struct Bench {
    model: T5,
    kernels: Kernels,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: pid MODEL THREADS";
    let folder = arguments.next().ok_or(usage)?;
    let threads = arguments.next().ok_or(usage)?.parse()?;
    let bench = Bench::open(Path::new(&folder), threads)?;
    for line in std::io::stdin().lock().lines() {
        let task: Task = serde_json::from_str(&line?)?;
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &bench.measure(&task)?)?;
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

impl Bench {
    fn open(folder: &Path, threads: usize) -> Result<Self> {
        let weights = Weights::open(folder)?;
        let ModelConfig::T5(config) = ModelConfig::read(folder, &weights)? else {
            return Err("the model has no encoder".into());
        };
        let kernels = Kernels::cpu(threads)?;
        let model = T5::load(config, &weights, &kernels, &mut |_| Ok(()))?;
        Ok(Self { model, kernels })
    }

    fn config(&self) -> &T5Config {
        self.model.config()
    }

    fn measure(&self, task: &Task) -> Result<Figures> {
        let Task { documents, prompts, tokens, rounds, .. } = task;
        let branches = documents.len() * prompts.len();
        let mut figures = Figures { expanded: task.expanded.then(Form::default), ..Figures::default() };
        // The first round warms up.
        for round in 0..=*rounds {
            let mut now = Figures::default();
            let start = Instant::now();
            let sources = self.encode(documents)?;
            now.encode.push(start.elapsed().as_secs_f64());
            let (mut shared, mut own): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
            for turn in 0..TURNS {
                // Who begins alternates, so that neither has the warmer machine.
                for copies in [turn % 2 == 0, turn % 2 != 0] {
                    if !copies {
                        shared.push(self.decode(&sources, prompts, *tokens, false)?);
                    } else if task.expanded {
                        own.push(self.decode(&sources, prompts, *tokens, true)?);
                    }
                }
            }
            for own in &own {
                if own.answers != shared[0].answers {
                    return Err("the expanded form answers otherwise".into());
                }
            }
            now.pid.add(&shared);
            now.expanded = task.expanded.then(Form::default);
            if let Some(expanded) = &mut now.expanded {
                expanded.add(&own);
            }
            self.pie(task, branches, &mut now)?;
            now.encoded = documents.iter().map(Vec::len).sum();
            if round > 0 {
                figures.add(now);
            }
        }
        Ok(figures)
    }

    fn encode(&self, documents: &[Vec<Token>]) -> Result<Vec<Arc<CrossKv>>> {
        documents.iter().map(|document| Ok(self.model.encode(document)?)).collect()
    }

    /// Answers all prompts about all documents in one session.
    ///
    /// * `own`: whether every prompt has a copy of its document's keys and values.
    fn decode(
        &self,
        sources: &[Arc<CrossKv>],
        prompts: &[Vec<Token>],
        tokens: usize,
        own: bool,
    ) -> Result<Run> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or_default() + 1 + tokens;
        let pages = sources.len() * prompts.len() * longest.div_ceil(PAGE);
        let mut kv = Kv::new(&self.kernels, self.model.kv_shape(), CacheType::F32, pages)?;
        // No token ends a text, so that all answers are equally long.
        let mut session = Session::new(Box::new(Plain), Arc::new([]));
        let start = Instant::now();
        for source in sources {
            for prompt in prompts {
                let source = if own { Arc::new(CrossKv::clone(source)) } else { Arc::clone(source) };
                let text = [self.config().start].into_iter().chain(prompt.iter().copied()).collect();
                session.add(kv.open(Some(source)), text, tokens, Sampling::default(), 0);
            }
        }
        let copy = start.elapsed().as_secs_f64();
        let cross_bytes = kv.sources().iter().map(|source| source.bytes()).sum();
        let (start, mut steps) = (Instant::now(), Vec::new());
        while !session.is_done() {
            let start = Instant::now();
            if !session.step(&self.model, &mut kv)?.is_empty() {
                steps.push(start.elapsed().as_secs_f64());
            }
        }
        let decode = start.elapsed().as_secs_f64();
        let step = steps.iter().sum::<f64>() / steps.len() as f64;
        let answers = (0..session.len()).map(|branch| session.text(branch).tokens().to_vec()).collect();
        Ok(Run { copy, decode, step, cross_bytes, answers })
    }

    /// Encodes and answers prompt after prompt, `task.pie` of them, evenly spread.
    fn pie(&self, task: &Task, branches: usize, figures: &mut Figures) -> Result<()> {
        let timed = task.pie.clamp(1, branches);
        let (mut encode, mut decode) = (0.0, 0.0);
        for at in 0..timed {
            let at = at * branches / timed;
            let document = &task.documents[at / task.prompts.len()];
            let prompt = &task.prompts[at % task.prompts.len()];
            let source =
                [[&document[..document.len() - 1], prompt, &document[document.len() - 1..]].concat()];
            let start = Instant::now();
            let encoded = self.encode(&source)?;
            encode += start.elapsed().as_secs_f64();
            let mut runs = Form::default();
            let turns = (0..TURNS).map(|_| self.decode(&encoded, &[Vec::new()], task.tokens, false));
            runs.add(&turns.collect::<Result<Vec<_>>>()?);
            decode += runs.decode.iter().sum::<f64>();
        }
        let scale = branches as f64 / timed as f64;
        figures.pie_encode.push(encode * scale);
        figures.pie_decode.push(decode * scale);
        let lengths = task
            .documents
            .iter()
            .flat_map(|document| task.prompts.iter().map(|prompt| document.len() + prompt.len()));
        figures.pie_encoded = lengths.sum();
        Ok(())
    }
}

impl Figures {
    /// Takes a round in.
    fn add(&mut self, round: Self) {
        self.encode.extend(round.encode);
        self.pie_encode.extend(round.pie_encode);
        self.pie_decode.extend(round.pie_decode);
        (self.encoded, self.pie_encoded) = (round.encoded, round.pie_encoded);
        self.pid.extend(round.pid);
        if let (Some(all), Some(expanded)) = (&mut self.expanded, round.expanded) {
            all.extend(expanded);
        }
    }
}

impl Form {
    /// Takes the runs of a round in.
    fn add(&mut self, runs: &[Run]) {
        let least = |part: fn(&Run) -> f64| runs.iter().map(part).fold(f64::INFINITY, f64::min);
        self.copy.push(least(|run| run.copy));
        self.decode.push(least(|run| run.decode));
        self.step.push(least(|run| run.step));
        self.cross_bytes = runs.iter().map(|run| run.cross_bytes).max().unwrap_or_default();
    }

    fn extend(&mut self, round: Self) {
        self.copy.extend(round.copy);
        self.decode.extend(round.decode);
        self.step.extend(round.step);
        self.cross_bytes = round.cross_bytes;
    }
}
