//! One tile of attention: 32 keys and values against any number of queries.
//!
//! The softmax runs online: each query keeps the greatest score so far, the sum of exponentials
//! under it, and the weighted values. A tile updates them in a fixed order — scores channel by
//! channel, even and odd channels apart; the sum as a tree over the tile; values key by key — so
//! a query's result depends on its own tiles alone.
//!
//! # Source
//! Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

use crate::exp::{exp, exp_one};
use crate::kv::PAGE;
use crate::lanes::{LANES, Lanes};
use crate::stored::Stored;

/// Vectors of a tile's scores.
const SPAN: usize = PAGE / LANES;

/// Keys `[d, PAGE]` and values `[PAGE, d]`.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a, T = f32> {
    pub(crate) k: &'a [T],
    pub(crate) v: &'a [T],
    /// The logical position of the first key.
    pub(crate) start: usize,
}

/// A number added to a score: `table[origin + step · key]`, with the index kept inside the table.
#[derive(Clone, Copy)]
pub(crate) struct Bias<'a> {
    pub(crate) table: &'a [f32],
    pub(crate) origin: i64,
    pub(crate) step: i64,
}

impl Bias<'_> {
    fn at(&self, key: usize) -> f32 {
        let index = (self.origin + self.step * key as i64).clamp(0, self.table.len() as i64 - 1);
        self.table[index as usize]
    }
}

/// One head of one row while it walks the tiles.
pub(crate) struct Query<'a> {
    q: &'a [f32],
    /// Values weighted so far; the result after [`Query::finish`].
    out: &'a mut [f32],
    bias: Option<Bias<'a>>,
    greatest: f32,
    total: f32,
    /// The keys of the next tile that it sees, `from..to` below [`PAGE`].
    pub(crate) from: usize,
    pub(crate) to: usize,
}

impl<'a> Query<'a> {
    /// `out` must hold zeros.
    pub(crate) fn new(q: &'a [f32], out: &'a mut [f32], bias: Option<Bias<'a>>) -> Self {
        Self { q, out, bias, greatest: f32::NEG_INFINITY, total: 0.0, from: 0, to: 0 }
    }

    pub(crate) fn finish(self) {
        for x in self.out {
            *x /= self.total;
        }
    }
}

/// Lets every query see its part of the tile.
#[inline(always)]
pub(crate) fn see<L: Lanes, T: Stored>(l: L, tile: Tile<'_, T>, scale: f32, queries: &mut [Query<'_>]) {
    let (fours, rest) = queries.as_chunks_mut::<4>();
    for four in fours {
        see_some(l, tile, scale, four);
    }
    for one in rest.as_chunks_mut::<1>().0 {
        see_some(l, tile, scale, one);
    }
}

#[inline(always)]
fn see_some<L: Lanes, T: Stored, const H: usize>(
    l: L,
    tile: Tile<'_, T>,
    scale: f32,
    queries: &mut [Query<'_>; H],
) {
    let scores = scores(l, tile.k, queries);
    for (query, scores) in queries.iter_mut().zip(scores) {
        if query.from >= query.to {
            continue;
        }
        let mut weights = [[0.0; LANES]; SPAN];
        for (weights, score) in weights.iter_mut().zip(scores) {
            l.store(l.mul(score, l.splat(scale)), weights);
        }
        let flat = weights.as_flattened_mut();
        if let Some(bias) = query.bias {
            for (i, score) in flat[query.from..query.to].iter_mut().enumerate() {
                *score += bias.at(tile.start + query.from + i);
            }
        }
        flat[..query.from].fill(f32::NEG_INFINITY);
        flat[query.to..].fill(f32::NEG_INFINITY);
        let mut vectors = [l.load(&weights[0]), l.load(&weights[1])];
        let here = l.highest(l.max(vectors[0], vectors[1]));
        let greatest = if here > query.greatest { here } else { query.greatest };
        let shrink = exp_one(l, query.greatest - greatest);
        for (vector, weights) in vectors.iter_mut().zip(&mut weights) {
            *vector = exp(l, l.sub(*vector, l.splat(greatest)));
            l.store(*vector, weights);
        }
        query.total = query.total * shrink + l.sum(l.add(vectors[0], vectors[1]));
        query.greatest = greatest;
        blend(l, tile.v, weights.as_flattened(), shrink, query);
    }
}

/// Dot products with all keys of the tile, unscaled.
#[inline(always)]
fn scores<L: Lanes, T: Stored, const H: usize>(l: L, k: &[T], queries: &[Query<'_>; H]) -> [[L::F; SPAN]; H] {
    let mut sums = [[[l.splat(0.0); SPAN]; H]; 2];
    let (channels, _) = k.as_chunks::<PAGE>();
    for (i, channel) in channels.iter().enumerate() {
        let (vectors, _) = channel.as_chunks::<LANES>();
        let keys = [T::lanes(l, &vectors[0]), T::lanes(l, &vectors[1])];
        for (query, sums) in queries.iter().zip(&mut sums[i % 2]) {
            let q = l.splat(query.q[i]);
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = l.fma(q, key, *sum);
            }
        }
    }
    let mut whole = sums[0];
    for (whole, odd) in whole.iter_mut().zip(sums[1]) {
        for (whole, odd) in whole.iter_mut().zip(odd) {
            *whole = l.add(*whole, odd);
        }
    }
    whole
}

/// `out = out · shrink + Σ weight · value`, key by key.
#[inline(always)]
fn blend<L: Lanes, T: Stored>(l: L, v: &[T], weights: &[f32], shrink: f32, query: &mut Query<'_>) {
    let d = query.out.len();
    let seen = query.from..query.to;
    let mut at = 0;
    while at + 4 * LANES <= d {
        blend_some::<L, T, 4>(l, v, weights, shrink, seen.clone(), at, query.out);
        at += 4 * LANES;
    }
    while at + LANES <= d {
        blend_some::<L, T, 1>(l, v, weights, shrink, seen.clone(), at, query.out);
        at += LANES;
    }
    for (i, out) in query.out.iter_mut().enumerate().skip(at) {
        *out *= shrink;
        for key in seen.clone() {
            *out = weights[key].mul_add(v[key * d + i].wide(), *out);
        }
    }
}

#[inline(always)]
fn blend_some<L: Lanes, T: Stored, const C: usize>(
    l: L,
    v: &[T],
    weights: &[f32],
    shrink: f32,
    seen: std::ops::Range<usize>,
    at: usize,
    out: &mut [f32],
) {
    let d = out.len();
    let (chunks, _) = out[at..at + C * LANES].as_chunks_mut::<LANES>();
    let mut sums = [l.splat(0.0); C];
    for (sum, chunk) in sums.iter_mut().zip(chunks.iter()) {
        *sum = l.mul(l.load(chunk), l.splat(shrink));
    }
    for key in seen {
        let weight = l.splat(weights[key]);
        let (values, _) = v[key * d + at..key * d + at + C * LANES].as_chunks::<LANES>();
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = l.fma(weight, T::lanes(l, value), *sum);
        }
    }
    for (sum, chunk) in sums.iter().zip(chunks) {
        l.store(*sum, chunk);
    }
}
