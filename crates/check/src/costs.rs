//! What steps cost at the shapes of published models: c(m), batches, the share of the bandwidth, memory.

use std::time::Instant;

use trefoil_decode::fill;
use trefoil_kernels::{Kernels, WeightType};
use trefoil_models::{BranchId, Draft, Kv, ModelConfig, RowId, Token};

use crate::Result;
use crate::exact;
use crate::report::{Goal, Report};
use crate::subject::Subject;

const SECTION: &str = "costs";

/// Rows of a step whose cost is measured against one row's; 56 and 120 are those of lookahead's published windows.
const ROWS: [usize; 10] = [1, 2, 4, 8, 16, 32, 56, 64, 120, 128];

/// Texts that are written at once.
const BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Tokens of the text behind which steps are timed.
const PREFIX: usize = 512;

/// Times that a step is timed, at least and at most, and seconds after which no further round begins.
const ROUNDS: (usize, usize) = (5, 40);
const PATIENCE: f64 = 0.4;

/// Steps of so many rows, of which a profiler sees the last: a step's launches are known from the second on.
const STEPS: usize = 16;

/// Runs a step while a card's profiler, if there is one, listens.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only cards have a profiler"))]
fn profiled<T>(kernels: &Kernels, step: impl FnOnce() -> Result<T>) -> Result<T> {
    #[cfg(feature = "cuda")]
    let _listening = match kernels.device() {
        candle_core::Device::Cuda(_) => Some(candle_core::cuda_backend::cudarc::driver::Profiler::new()?),
        _ => None,
    };
    step()
}

/// What a device is measured against.
#[derive(Clone, Copy)]
pub(crate) struct Bench<'a> {
    pub(crate) kernels: &'a Kernels,
    /// Bytes a second between the device and its memory, where that is known.
    pub(crate) bandwidth: Option<f64>,
    pub(crate) short: bool,
}

impl Bench<'_> {
    /// All of it for one shape with weights of one type. `goals`: whether the project's goals are set for this shape.
    pub(crate) fn measure(
        self,
        report: &mut Report,
        (name, config): (&str, &ModelConfig),
        ty: WeightType,
        goals: bool,
    ) -> Result<()> {
        let before = self.free()?;
        let gathered = gathered(config, ty);
        let subject = Subject::random(name, config, ty, self.kernels)?;
        let name = subject.name.clone();
        report.figure(SECTION, format!("{name}: weights"), subject.bytes() as f64 / 1e9, "GB", None);
        if let (Some(before), Some(after)) = (before, self.free()?) {
            let taken = before.saturating_sub(after) as f64 / 1e9;
            report.figure(SECTION, format!("{name}: memory that they take"), taken, "GB", None);
        }
        let one = self.rows(report, &subject, goals)?;
        if let Some(bandwidth) = self.bandwidth {
            let share = (subject.bytes() - gathered) as f64 / one / bandwidth;
            let goal = goals.then_some(Goal::AtLeast(0.8));
            report.figure(SECTION, format!("{name}: plain, share of bandwidth"), share, "", goal);
        }
        self.batches(report, &subject)?;
        let (tokens, long) = if self.short { (8, 80) } else { (32, 300) };
        exact::decodings(report, &subject, &[text(24), text(long)], tokens);
        Ok(())
    }

    /// Nothing but some steps of so many rows each.
    pub(crate) fn steps(
        self,
        report: &mut Report,
        (name, config): (&str, &ModelConfig),
        ty: WeightType,
        rows: &[usize],
    ) -> Result<()> {
        let subject = Subject::random(name, config, ty, self.kernels)?;
        let (mut kv, branches) = self.filled(&subject, 1)?;
        for &rows in rows {
            let draft = comb(branches[0], rows);
            let mut seconds = Vec::new();
            for _ in 1..STEPS {
                let start = Instant::now();
                subject.step(&draft, &mut kv)?;
                seconds.push(start.elapsed().as_secs_f64());
            }
            // A profiler that was told to wait for it sees one step, which starts as others of its kind do.
            profiled(self.kernels, || subject.step(&draft, &mut kv))?;
            let name = format!("{}: a step of {rows} rows", subject.name);
            // The first ones make what the others stand on.
            report.figure("steps", name, median(seconds.split_off(STEPS / 4)) * 1e3, "ms", None);
        }
        Ok(())
    }

    /// c(m), the cost of m rows in steps of one; gives the seconds of one.
    fn rows(self, report: &mut Report, subject: &Subject, goals: bool) -> Result<f64> {
        let (mut kv, branches) = self.filled(subject, 1)?;
        let mut one = f64::NAN;
        for rows in ROWS {
            let draft = comb(branches[0], rows);
            let seconds = self.time(|| subject.step(&draft, &mut kv).map(drop))?;
            if rows == 1 {
                one = seconds;
                report.figure(
                    SECTION,
                    format!("{}: a step of one row", subject.name),
                    seconds * 1e3,
                    "ms",
                    None,
                );
                continue;
            }
            let goal = match rows {
                56 if goals => Some(Goal::AtMost(1.06)),
                120 if goals => Some(Goal::AtMost(1.10)),
                _ => None,
            };
            report.figure(SECTION, format!("{}: c({rows})", subject.name), seconds / one, "", goal);
        }
        Ok(one)
    }

    fn batches(self, report: &mut Report, subject: &Subject) -> Result<()> {
        let (mut kv, branches) = self.filled(subject, BATCHES[BATCHES.len() - 1])?;
        for batch in BATCHES {
            let mut draft = Draft::new();
            for &branch in &branches[..batch] {
                let row = draft.root(branch, 7);
                draft.score(row);
            }
            let seconds = self.time(|| subject.step(&draft, &mut kv).map(drop))?;
            let name = format!("{}: plain, {batch} at once", subject.name);
            report.figure(SECTION, name, batch as f64 / seconds, "tokens/s", None);
        }
        Ok(())
    }

    /// A cache with so many branches, each behind a text.
    fn filled(self, subject: &Subject, branches: usize) -> Result<(Kv, Vec<BranchId>)> {
        let prefix = text(if self.short { 40 } else { PREFIX });
        let mut kv = subject.kv(branches, prefix.len())?;
        let source = subject.encode(&prefix)?;
        let first = kv.open(source);
        let mut draft = Draft::new();
        while !fill(subject.decoder().as_ref(), &mut kv, &mut draft, &[(first, &prefix)])?.is_empty() {}
        let mut opened = vec![first];
        for _ in 1..branches {
            // A branch of its own, pages included: texts have nothing in common.
            let branch = kv.open(kv.source(first)?.cloned());
            while !fill(subject.decoder().as_ref(), &mut kv, &mut draft, &[(branch, &prefix)])?.is_empty() {}
            opened.push(branch);
        }
        Ok((kv, opened))
    }

    /// The median of a step's seconds; the first warms the device.
    pub(crate) fn time(self, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
        step()?;
        let (least, most) = if self.short { (1, 2) } else { ROUNDS };
        let (begin, mut seconds) = (Instant::now(), Vec::new());
        while seconds.len() < least || (seconds.len() < most && begin.elapsed().as_secs_f64() < PATIENCE) {
            let start = Instant::now();
            step()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(median(seconds))
    }

    /// Free bytes of the device's own memory.
    pub(crate) fn free(self) -> Result<Option<usize>> {
        Ok(self.kernels.memory()?.map(|(free, _)| free))
    }
}

pub(crate) fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Bytes of weights of which a step reads some rows only: the embedding, where it is not the head too.
fn gathered(config: &ModelConfig, ty: WeightType) -> usize {
    match config {
        ModelConfig::Llama(config) if !config.tied_head => {
            ty.bytes(config.vocabulary, config.width).unwrap_or(0)
        }
        _ => 0,
    }
}

/// Tokens that are not all the same.
pub(crate) fn text(len: usize) -> Vec<Token> {
    (0..len).map(|at| (11 + at * 37 % 900) as Token).collect()
}

/// So many rows in chains of four under one root, as guesses are, all of them scored.
pub(crate) fn comb(branch: BranchId, rows: usize) -> Draft {
    let mut draft = Draft::new();
    let root = draft.root(branch, 7);
    let mut above = root;
    for row in 1..rows {
        above = draft.child(if row % 4 == 1 { root } else { above }, (row % 900) as Token);
    }
    (0..rows as u32).for_each(|row| draft.score(RowId(row)));
    draft
}
