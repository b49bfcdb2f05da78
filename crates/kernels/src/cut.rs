//! A long text's keys in parts, which keep all threads busy with one row and few heads.
//!
//! Parts begin at multiples of 256 positions. A query weights the values of each part that it sees alone, and what it found is
//! joined in the order of positions: the same bits with any number of threads, with any other rows, and on a card, which walks
//! the same parts.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::Kernels;
use crate::elementwise::stretches;
use crate::error::Result;
use crate::exp::exp;
use crate::flat::{filled, room, written};
use crate::isa::Work;
use crate::kv::PAGE;
use crate::lanes::{LANES, Lanes};
use crate::pool::Parts;
use crate::tile::{Query, SUMS};

/// Tiles of a part.
pub(crate) const PART: usize = 8;

/// Some parts, one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Cut(Range<usize>);

impl Cut {
    /// The parts that have some of these positions.
    pub(crate) fn of(positions: Range<usize>) -> Self {
        Self(positions.start / (PART * PAGE)..positions.end.div_ceil(PART * PAGE))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The tiles of the part at `index` that have some of these positions.
    pub(crate) fn tiles(&self, index: usize, positions: Range<usize>) -> Range<usize> {
        let first = (self.0.start + index) * PART;
        first.max(positions.start / PAGE)..(first + PART).min(positions.end.div_ceil(PAGE))
    }

    /// Where other parts are among these.
    fn find(&self, others: &Self) -> Range<usize> {
        others.0.start - self.0.start..others.0.end - self.0.start
    }

    /// Lets queries see all of these parts, one after the other.
    #[inline(always)]
    pub(crate) fn walk<L: Lanes>(&self, l: L, walk: &impl Walk, mut queries: Vec<Query<'_>>) {
        let (Some(first), 2..) = (queries.first(), self.count()) else {
            walk.part(l, 0, &mut queries);
            queries.into_iter().for_each(Query::finish);
            return;
        };
        let (count, d) = (queries.len(), first.channels());
        let mut numbers = Vec::with_capacity(self.count() * count * (d + SUMS));
        for part in 0..self.count() {
            walk.part(l, part, &mut queries);
            for query in &mut queries {
                query.leave(&mut numbers);
            }
        }
        let found = Found { numbers: &numbers, queries: count, d };
        for (index, query) in queries.into_iter().enumerate() {
            found.join(l, index, self.find(&walk.seen(index)), query.out());
        }
    }
}

/// Some queries' keys and values.
pub(crate) trait Walk {
    /// Lets queries see what they do of a part.
    fn part<L: Lanes>(&self, l: L, part: usize, queries: &mut [Query<'_>]);
    /// The parts that a query sees.
    fn seen(&self, query: usize) -> Cut;
}

/// What queries have found in parts.
struct Found<'a> {
    /// `[parts, queries, d + SUMS]`.
    numbers: &'a [f32],
    queries: usize,
    d: usize,
}

impl Found<'_> {
    /// Makes `out` a query's result.
    #[inline(always)]
    fn join<L: Lanes>(&self, l: L, query: usize, parts: Range<usize>, out: &mut [f32]) {
        let width = self.d + SUMS;
        let found = |part: usize| {
            let at = (part * self.queries + query) * width;
            self.numbers[at..at + width].split_at(self.d)
        };
        let greatest = parts.clone().map(|part| found(part).1[0]).fold(f32::NEG_INFINITY, f32::max);
        // Added to nothing, a negative zero would lose its sign.
        let mut total = -0.0;
        out.fill(-0.0);
        for part in parts {
            let (values, sums) = found(part);
            let mut weight = [0.0; LANES];
            l.store(exp(l, l.splat(sums[0] - greatest)), &mut weight);
            total += sums[1] * weight[0];
            for (out, x) in out.iter_mut().zip(values) {
                *out += x * weight[0];
            }
        }
        for x in out {
            *x /= total;
        }
    }
}

struct Join<'a> {
    found: &'a Found<'a>,
    query: usize,
    parts: Range<usize>,
    out: &'a mut [MaybeUninit<f32>],
}

impl Work for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        self.found.join(l, self.query, self.parts, filled(self.out, 0.0));
    }
}

impl Kernels {
    /// The results of queries whose parts were seen by tasks of their own.
    ///
    /// * `numbers`: what they have found, `[parts, queries, d + SUMS]`; what a query does not see may be anything
    /// * `seen`: the parts that a query sees
    ///
    /// Returns `[queries, d]`.
    pub(crate) fn joined(
        &self,
        numbers: &[f32],
        cut: &Cut,
        [queries, d]: [usize; 2],
        seen: &(dyn Fn(usize) -> Cut + Sync),
    ) -> Result<Vec<f32>> {
        let mut out = room(queries * d)?;
        let parts = Parts::new(&mut out);
        let found = &Found { numbers, queries, d };
        let (count, step) = stretches(queries, d * cut.count(), self.threads());
        self.pool().run(count, &|i| {
            for query in i * step..queries.min((i + 1) * step) {
                // SAFETY: tasks own disjoint queries.
                let out = unsafe { parts.part(query * d, d) };
                self.found().run(Join { found, query, parts: cut.find(&seen(query)), out });
            }
        })?;
        // SAFETY: the tasks have every query.
        Ok(unsafe { written(out) })
    }
}
