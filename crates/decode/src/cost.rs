//! What a step costs on this machine, by its number of rows.

use std::sync::Arc;
use std::time::Instant;

use trefoil_models::{CausalLm, CrossKv, Draft, Kv};

use crate::error::Result;

/// Numbers of rows that are timed.
const ROWS: [usize; 5] = [1, 2, 4, 8, 16];

/// Times that each is timed, at most; other programs only ever add.
const ROUNDS: usize = 5;

/// Seconds after which no further round begins.
const PATIENCE: f64 = 0.5;

/// Weight of one real step.
const HEARD: f64 = 0.1;

/// Seconds of a model's step by its rows, all of them scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Rows and seconds, both growing; at least two.
    points: Vec<(usize, f64)>,
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
        Some(Self { points })
    }

    /// Costs at which no draft pays, for a model that can't be timed: every row costs as much as the first.
    pub fn linear() -> Self {
        Self { points: vec![(1, 1.0), (2, 2.0)] }
    }

    /// Times steps of `model` on a branch of its own, which must find one free page in `kv`.
    ///
    /// * `source`: what the branch reads, for the decoder of an encoder-decoder model.
    ///
    /// # Errors
    /// Fails where the model or the cache does.
    pub fn measure(model: &dyn CausalLm, kv: &mut Kv, source: Option<&Arc<CrossKv>>) -> Result<Option<Self>> {
        let id = kv.open(source.cloned());
        let mut least = ROWS.map(|rows| (rows, f64::INFINITY));
        let mut draft = Draft::new();
        let begin = Instant::now();
        // The first round warms caches and threads.
        for round in 0..=ROUNDS {
            for (rows, least) in &mut least {
                draft.clear();
                let mut row = draft.root(id, 0);
                draft.score(row);
                for _ in 1..*rows {
                    row = draft.child(row, 0);
                    draft.score(row);
                }
                let start = Instant::now();
                let scored = model.score(&draft, kv);
                if scored.is_err() {
                    kv.close(id);
                    scored?;
                }
                if round > 0 {
                    *least = least.min(start.elapsed().as_secs_f64());
                }
            }
            if round > 0 && begin.elapsed().as_secs_f64() > PATIENCE {
                break;
            }
        }
        kv.close(id);
        Ok(Self::new(least.to_vec()))
    }

    /// Takes in what a real step took: machines get busy, and texts get long. A number of rows that was never tried
    /// since keeps its old cost and so looks cheap; it is tried, and corrected, in its turn.
    pub fn hear(&mut self, rows: usize, seconds: f64) {
        let expected = self.of(rows);
        let change = HEARD * ((seconds / expected).clamp(0.5, 2.0) - 1.0);
        let right = self.points.iter().position(|&(known, _)| known >= rows).unwrap_or(self.points.len());
        // Half of what lies between two points is heard by each.
        let near = if self.points.get(right).is_some_and(|&(known, _)| known == rows) {
            right
        } else {
            right.max(1) - 1
        };
        for at in near..=right.min(self.points.len() - 1) {
            self.points[at].1 *= 1.0 + change;
        }
        for at in 1..self.points.len() {
            self.points[at].1 = self.points[at].1.max(self.points[at - 1].1);
        }
    }

    /// The measured points: rows and seconds.
    pub fn points(&self) -> &[(usize, f64)] {
        &self.points
    }

    /// Seconds of a step of `rows` rows: on a line between neighbours, and on the last line beyond them.
    pub fn of(&self, rows: usize) -> f64 {
        let last = self.points.len() - 1;
        let right = self.points.iter().position(|&(known, _)| known >= rows).unwrap_or(last).max(1);
        let ((a, from), (b, to)) = (self.points[right - 1], self.points[right]);
        from + (to - from) * (rows as f64 - a as f64) / (b - a) as f64
    }
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
    fn real_steps_move_the_costs_near_them() {
        let mut costs = Costs::new(vec![(1, 1.0), (2, 1.5), (4, 3.5), (8, 9.0)]).unwrap();
        (0..200).for_each(|_| costs.hear(1, 3.0));
        let points: Vec<f64> = costs.points().iter().map(|point| point.1).collect();
        assert!((points[0] - 3.0).abs() < 0.01 && points[1] == points[0], "{points:?}");
        assert_eq!(points[2..], [3.5, 9.0]);
        (0..200).for_each(|_| costs.hear(3, 4.0));
        assert!((costs.of(3) - 4.0).abs() < 0.01 && costs.of(8) == 9.0);
    }

    #[test]
    fn nonsense_is_refused() {
        for points in [vec![], vec![(1, 1.0)], vec![(2, 1.0), (1, 2.0)], vec![(1, 0.0), (2, f64::NAN)]] {
            assert_eq!(Costs::new(points), None);
        }
    }
}
