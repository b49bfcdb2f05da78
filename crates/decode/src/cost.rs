//! What a step costs on this machine, by its number of rows.

use std::sync::Arc;
use std::time::Instant;

use trefoil_kernels::PAGE;
use trefoil_models::{BranchId, CausalLm, CrossKv, Draft, Kv};

use crate::error::Result;
use crate::prefill::{chain, fill};

/// Numbers of rows that are timed.
const ROWS: [usize; 5] = [1, 2, 4, 8, 16];

/// Tokens of the text behind which steps are timed.
const PREFIX: usize = 128;

/// Times that each is timed; other programs only ever add.
const ROUNDS: usize = 5;

/// Seconds that the rounds take at least: a short disturbance must not outlast all rounds of a small model.
const LEAST: f64 = 0.05;

/// Seconds after which no further round begins.
const PATIENCE: f64 = 0.5;

/// Weight of one real step of one row, of which there are many.
const HEARD: f64 = 0.1;

/// Weight of a larger one: a machine that others use makes rows dearer long before it makes steps slower.
const HEARD_MORE: f64 = 0.25;

/// Steps after which nothing was heard of some rows for so long that half of what they cost beyond one is doubted: what was
/// timed or heard in a busy moment would else keep them from being tried ever again.
const SILENT: u32 = 100;
const DOUBT: f64 = 0.5;

/// Weight of a step of rows that were silent for as long.
const HEARD_ANEW: f64 = 0.75;

/// Seconds of a model's step by its rows, all of them scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Rows and seconds, both growing; at least two.
    points: Vec<(usize, f64)>,
    /// Steps since a real one spoke of each.
    silent: Vec<u32>,
}

impl Costs {
    /// Costs from what has been measured: rows and seconds. Nothing where they don't make sense: fewer than two, rows
    /// that don't grow, seconds that are not positive numbers.
    pub fn new(mut points: Vec<(usize, f64)>) -> Option<Self> {
        let grow = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let positive = points.iter().all(|&(rows, seconds)| rows > 0 && seconds > 0.0 && seconds.is_finite());
        if points.len() < 2 || !grow || !positive {
            return None;
        }
        // A row more is never a gain; where the clock says so it was disturbed.
        for at in (1..points.len()).rev() {
            points[at - 1].1 = points[at - 1].1.min(points[at].1);
        }
        Some(Self { silent: vec![0; points.len()], points })
    }

    /// Costs at which no draft pays, for a model that can't be timed: every row costs as much as the first.
    pub fn linear() -> Self {
        Self { points: vec![(1, 1.0), (2, 2.0)], silent: vec![0; 2] }
    }

    /// Times steps of `model` on a branch of its own, behind a text as long as `kv` has free pages for, up to
    /// [`PREFIX`] tokens.
    ///
    /// * `source`: what the branch reads, for the decoder of an encoder-decoder model.
    ///
    /// # Errors
    /// Fails where the model or the cache does.
    pub fn measure(model: &dyn CausalLm, kv: &mut Kv, source: Option<&Arc<CrossKv>>) -> Result<Option<Self>> {
        let id = kv.open(source.cloned());
        let points = time(model, kv, id);
        kv.close(id);
        Ok(Self::new(points?))
    }

    /// Takes in what a real step took. A step of one row says how fast the machine is now, and how long the text: all
    /// costs follow it. A larger one says what its rows cost beyond that, the more so the longer nothing was heard of them.
    pub fn hear(&mut self, rows: usize, seconds: f64) {
        let first = self.points[0].0;
        let right = self.points.iter().position(|&(known, _)| known >= rows).unwrap_or(self.points.len() - 1);
        let exact = self.points[right].0 == rows;
        let anew = HEARD_MORE + (HEARD_ANEW - HEARD_MORE) * self.silence(right);
        let weight = if rows <= first { HEARD } else { anew };
        let known = self.line(rows, |at| self.points[at].1);
        let change = 1.0 + weight * ((seconds / known).clamp(0.5, 2.0) - 1.0);
        for (at, (known, cost)) in self.points.iter_mut().enumerate() {
            let near = at == right || (!exact && at + 1 == right);
            if rows <= first || (near && *known > first) {
                *cost *= change;
            }
            self.silent[at] = if near { 0 } else { SILENT.min(self.silent[at] + 1) };
        }
        for at in 1..self.points.len() {
            self.points[at].1 = self.points[at].1.max(self.points[at - 1].1);
        }
    }

    /// The measured points: rows and seconds.
    pub fn points(&self) -> &[(usize, f64)] {
        &self.points
    }

    /// Seconds of a step of `rows` rows as far as they are believed: on a line between neighbours, and on the last line beyond
    /// them.
    pub fn of(&self, rows: usize) -> f64 {
        let one = self.points[0].1;
        self.line(rows, |at| one + (self.points[at].1 - one) * (1.0 - DOUBT * self.silence(at)))
    }

    fn line(&self, rows: usize, cost: impl Fn(usize) -> f64) -> f64 {
        let last = self.points.len() - 1;
        let right = self.points.iter().position(|&(known, _)| known >= rows).unwrap_or(last).max(1);
        let (a, b) = (self.points[right - 1].0, self.points[right].0);
        let from = cost(right - 1);
        let to = cost(right).max(from);
        from + (to - from) * (rows as f64 - a as f64) / (b - a) as f64
    }

    /// How long nothing was heard of a point, as a share of what is long.
    fn silence(&self, at: usize) -> f64 {
        f64::from(self.silent[at]) / f64::from(SILENT)
    }
}

/// The least seconds of steps on branch `id`, by rows.
fn time(model: &dyn CausalLm, kv: &mut Kv, id: BranchId) -> Result<Vec<(usize, f64)>> {
    let mut draft = Draft::new();
    let pages = kv.available().saturating_sub(1).min(PREFIX / PAGE);
    let text = [0; PREFIX];
    while !fill(model, kv, &mut draft, &[(id, &text[..pages * PAGE])])?.is_empty() {}
    let mut least = ROWS.map(|rows| (rows, f64::INFINITY));
    let begin = Instant::now();
    // The first round warms caches and threads.
    for round in 0.. {
        for (rows, least) in &mut least {
            draft.clear();
            for row in chain(&mut draft, id, &text[..*rows]) {
                draft.score(row);
            }
            let start = Instant::now();
            model.score(&draft, kv)?;
            if round > 0 {
                *least = least.min(start.elapsed().as_secs_f64());
            }
        }
        let spent = begin.elapsed().as_secs_f64();
        if round > 0 && (spent > PATIENCE || (round >= ROUNDS && spent > LEAST)) {
            break;
        }
    }
    Ok(least.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_on_lines_between_what_was_measured() {
        let costs = Costs::new(vec![(1, 1.0), (2, 1.5), (4, 3.5)]).unwrap();
        let found = [1, 2, 3, 4, 6].map(|rows| costs.of(rows));
        assert_eq!(found, [1.0, 1.5, 2.5, 3.5, 5.5]);
    }

    #[test]
    fn more_rows_never_cost_less() {
        let costs = Costs::new(vec![(1, 2.0), (2, 1.0), (4, 3.0)]).unwrap();
        assert_eq!(costs.points(), [(1, 1.0), (2, 1.0), (4, 3.0)]);
    }

    #[test]
    fn real_steps_move_the_costs() {
        let mut costs = Costs::new(vec![(1, 1.0), (2, 1.5), (4, 3.5), (8, 9.0)]).unwrap();
        let close =
            |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.01, "{found}, {expected}");
        (0..200).for_each(|_| costs.hear(1, 2.0));
        for (&(rows, cost), (known, more)) in
            costs.points().iter().zip([(1, 0.0), (2, 0.5), (4, 2.5), (8, 8.0)])
        {
            assert_eq!(rows, known);
            close(cost, 2.0 * (1.0 + more));
            close(costs.of(rows), 2.0 * (1.0 + more * DOUBT));
        }
        costs.hear(8, costs.points()[3].1);
        close(costs.of(8), 18.0);
        (0..200).for_each(|_| costs.hear(3, 6.0));
        close(costs.of(3), 6.0);
        close(costs.of(1), 2.0);
        close(costs.points()[3].1, 18.0);
        (0..200).for_each(|_| costs.hear(2, 9.0));
        assert!(costs.of(4) >= costs.of(2), "a row more is never a gain");
    }

    #[test]
    fn nonsense_is_refused() {
        for points in [vec![], vec![(1, 1.0)], vec![(2, 1.0), (1, 2.0)], vec![(1, 0.0), (2, f64::NAN)]] {
            assert_eq!(Costs::new(points), None);
        }
    }
}
