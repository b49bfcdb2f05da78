//! One tile of attention: 32 keys and values against any number of queries.
//!
//! The softmax runs online: each query keeps the greatest score so far, the sum of exponentials
//! under it, and the weighted values. A tile updates them in a fixed order — scores channel by
//! channel, even and odd channels apart; the sum as a tree over the tile; values key by key — so
//! a query's result depends on its own tiles alone.
//!
//! # Source
//! Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

use std::mem::MaybeUninit;

use crate::exp::exp;
use crate::flat::filled;
use crate::kv::PAGE;
use crate::lanes::{LANES, LINE, Lanes};
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
    /// Adds its numbers for the keys from `first` on.
    fn add_to(&self, first: usize, scores: &mut [f32]) {
        let Some(steps) = scores.len().checked_sub(1) else { return };
        let last = self.table.len() as i64 - 1;
        let from = self.origin + self.step * first as i64;
        let to = from + self.step * steps as i64;
        let (low, high) = (from.min(to), from.max(to));
        if high <= 0 || low >= last {
            // All of them beyond the same end.
            let end = self.table[low.clamp(0, last) as usize];
            for score in scores {
                *score += end;
            }
        } else if low >= 0 && high <= last && self.step == 1 {
            for (score, bias) in scores.iter_mut().zip(&self.table[low as usize..]) {
                *score += bias;
            }
        } else if low >= 0 && high <= last && self.step == -1 {
            for (score, bias) in scores.iter_mut().zip(self.table[..=high as usize].iter().rev()) {
                *score += bias;
            }
        } else {
            for (i, score) in scores.iter_mut().enumerate() {
                *score += self.table[(from + self.step * i as i64).clamp(0, last) as usize];
            }
        }
    }
}

/// Numbers that a query leaves beside its weighted values where they are joined with those of other keys: the greatest score,
/// the total of exponentials under it, and zeros, so that the next query's values begin a cache line too.
pub(crate) const SUMS: usize = LANES;

/// One head of one row while it walks the tiles.
pub(crate) struct Query<'a> {
    q: &'a [f32],
    /// Values weighted so far; the result after [`Query::finish`].
    out: &'a mut [f32],
    sums: &'a mut [MaybeUninit<f32>],
    bias: Option<Bias<'a>>,
    greatest: f32,
    total: f32,
    /// The keys of the next tile that it sees, `from..to` below [`PAGE`].
    pub(crate) from: usize,
    pub(crate) to: usize,
}

impl<'a> Query<'a> {
    /// * `out`: what becomes the result, `[d]`, or its values and [`SUMS`]; it may hold anything yet
    pub(crate) fn new(q: &'a [f32], out: &'a mut [MaybeUninit<f32>], bias: Option<Bias<'a>>) -> Self {
        let (out, sums) = out.split_at_mut(q.len());
        let (greatest, total) = (f32::NEG_INFINITY, 0.0);
        Self { q, out: filled(out, 0.0), sums, bias, greatest, total, from: 0, to: 0 }
    }

    pub(crate) fn channels(&self) -> usize {
        self.q.len()
    }

    /// Leaves what it has found so far, and begins anew.
    pub(crate) fn leave(&mut self, numbers: &mut Vec<f32>) {
        numbers.extend_from_slice(self.out);
        numbers.extend([self.greatest, self.total]);
        numbers.extend([0.0; SUMS - 2]);
        self.out.fill(0.0);
        (self.greatest, self.total) = (f32::NEG_INFINITY, 0.0);
    }

    /// Where its result goes, which is made of what it has left.
    pub(crate) fn out(self) -> &'a mut [f32] {
        self.out
    }

    pub(crate) fn finish(self) {
        if let [greatest, total, ..] = filled(self.sums, 0.0) {
            (*greatest, *total) = (self.greatest, self.total);
            return;
        }
        for x in self.out {
            *x /= self.total;
        }
    }
}

/// Asks for keys or values that will be read soon.
#[inline(always)]
pub(crate) fn fetch<L: Lanes, T: Stored>(l: L, side: &[T]) {
    for line in side.chunks(LINE / size_of::<T>()) {
        l.prefetch(line.as_ptr().cast());
    }
}

/// Lets every query see its part of the tile.
#[inline(always)]
pub(crate) fn see<L: Lanes, T: Stored>(l: L, tile: Tile<'_, T>, scale: f32, queries: &mut [Query<'_>]) {
    let (fours, rest) = queries.as_chunks_mut::<4>();
    for four in fours {
        see_some(l, tile, scale, four);
    }
    // Together too: what widens a key widens it for all of them.
    if let Some(three) = rest.first_chunk_mut::<3>() {
        see_some(l, tile, scale, three);
    } else if let Some(two) = rest.first_chunk_mut::<2>() {
        see_some(l, tile, scale, two);
    } else if let Some(one) = rest.first_chunk_mut::<1>() {
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
    let mut weights = [[[0.0; LANES]; SPAN]; H];
    // What the old sums shrink by, once their logarithm is known: one exponential for all queries.
    let mut shrinks = [0.0; LANES];
    for (h, (query, scores)) in queries.iter_mut().zip(scores).enumerate() {
        if query.from >= query.to {
            continue;
        }
        for (weights, score) in weights[h].iter_mut().zip(scores) {
            l.store(l.mul(score, l.splat(scale)), weights);
        }
        let flat = weights[h].as_flattened_mut();
        if let Some(bias) = query.bias {
            bias.add_to(tile.start + query.from, &mut flat[query.from..query.to]);
        }
        flat[..query.from].fill(f32::NEG_INFINITY);
        flat[query.to..].fill(f32::NEG_INFINITY);
        let here = l.highest(l.max(l.load(&weights[h][0]), l.load(&weights[h][1])));
        let greatest = if here > query.greatest { here } else { query.greatest };
        shrinks[h] = query.greatest - greatest;
        query.greatest = greatest;
    }
    l.store(exp(l, l.load(&shrinks)), &mut shrinks);
    for (h, query) in queries.iter_mut().enumerate() {
        if query.from >= query.to {
            continue;
        }
        let mut sum = l.splat(0.0);
        for weights in &mut weights[h] {
            let weight = exp(l, l.sub(l.load(weights), l.splat(query.greatest)));
            l.store(weight, weights);
            sum = l.add(sum, weight);
        }
        query.total = query.total * shrinks[h] + l.sum(sum);
    }
    let (from, to) = (queries[0].from, queries[0].to);
    if queries.iter().all(|query| (query.from, query.to) == (from, to)) {
        blend(l, tile.v, &weights, &shrinks, queries);
    } else {
        for (h, query) in queries.iter_mut().enumerate() {
            blend(l, tile.v, &[weights[h]], &[shrinks[h]], std::array::from_mut(query));
        }
    }
}

/// Dot products with all keys of the tile, unscaled.
#[inline(always)]
fn scores<L: Lanes, T: Stored, const H: usize>(l: L, k: &[T], queries: &[Query<'_>; H]) -> [[L::F; SPAN]; H] {
    let (mut even, mut odd) = ([[l.splat(0.0); SPAN]; H], [[l.splat(0.0); SPAN]; H]);
    let (channels, _) = k.as_chunks::<PAGE>();
    // Here once, and not for every number in the loop.
    assert!(queries.iter().all(|query| query.q.len() >= channels.len()), "{} channels", channels.len());
    let (pairs, rest) = channels.as_chunks::<2>();
    for (i, [first, second]) in pairs.iter().enumerate() {
        // SAFETY: queries have all channels, as was seen above.
        unsafe {
            add_channel(l, first, 2 * i, queries, &mut even);
            add_channel(l, second, 2 * i + 1, queries, &mut odd);
        }
    }
    for channel in rest {
        // SAFETY: as above; this is the last one.
        unsafe { add_channel(l, channel, channels.len() - 1, queries, &mut even) };
    }
    for (even, odd) in even.iter_mut().zip(odd) {
        for (even, odd) in even.iter_mut().zip(odd) {
            *even = l.add(*even, odd);
        }
    }
    even
}

/// Adds channel `i` of every product.
///
/// # Safety
/// Every query has it.
#[inline(always)]
unsafe fn add_channel<L: Lanes, T: Stored, const H: usize>(
    l: L,
    channel: &[T; PAGE],
    i: usize,
    queries: &[Query<'_>; H],
    sums: &mut [[L::F; SPAN]; H],
) {
    let (vectors, _) = channel.as_chunks::<LANES>();
    let keys = [T::lanes(l, &vectors[0]), T::lanes(l, &vectors[1])];
    for (query, sums) in queries.iter().zip(sums) {
        // SAFETY: the caller's promise.
        let q = l.splat(unsafe { *query.q.get_unchecked(i) });
        for (sum, key) in sums.iter_mut().zip(keys) {
            *sum = l.fma(q, key, *sum);
        }
    }
}

/// `out = out · shrink + Σ weight · value`, key by key, for queries that see the same keys of the tile.
#[inline(always)]
fn blend<L: Lanes, T: Stored, const H: usize>(
    l: L,
    v: &[T],
    weights: &[[[f32; LANES]; SPAN]; H],
    shrinks: &[f32],
    queries: &mut [Query<'_>; H],
) {
    if queries[0].from >= queries[0].to {
        return;
    }
    let d = queries[0].out.len();
    let mut at = 0;
    // A sum waits for the one before it, and a weight is spread out once for as many vectors as have registers.
    while L::WIDE && at + 4 * LANES <= d {
        blend_some::<L, T, 4, H>(l, v, weights, shrinks, at, queries);
        at += 4 * LANES;
    }
    while L::WIDE && at + 2 * LANES <= d {
        blend_some::<L, T, 2, H>(l, v, weights, shrinks, at, queries);
        at += 2 * LANES;
    }
    while at + LANES <= d {
        blend_some::<L, T, 1, H>(l, v, weights, shrinks, at, queries);
        at += LANES;
    }
    for ((query, weights), shrink) in queries.iter_mut().zip(weights).zip(shrinks) {
        let weights = weights.as_flattened();
        for (i, out) in query.out.iter_mut().enumerate().skip(at) {
            *out *= shrink;
            for key in query.from..query.to {
                *out = weights[key].mul_add(v[key * d + i].wide(), *out);
            }
        }
    }
}

/// `C` vectors of channels from channel `at` on.
#[inline(always)]
fn blend_some<L: Lanes, T: Stored, const C: usize, const H: usize>(
    l: L,
    v: &[T],
    weights: &[[[f32; LANES]; SPAN]; H],
    shrinks: &[f32],
    at: usize,
    queries: &mut [Query<'_>; H],
) {
    let (d, from, to) = (queries[0].out.len(), queries[0].from, queries[0].to.min(PAGE));
    let mut sums = [[l.splat(0.0); C]; H];
    for ((sums, query), shrink) in sums.iter_mut().zip(queries.iter()).zip(shrinks) {
        let (chunks, _) = query.out[at..at + C * LANES].as_chunks::<LANES>();
        for (sum, chunk) in sums.iter_mut().zip(chunks) {
            *sum = l.mul(l.load(chunk), l.splat(*shrink));
        }
    }
    for key in from..to {
        let (values, _) = v[key * d + at..key * d + at + C * LANES].as_chunks::<LANES>();
        let mut vectors = [l.splat(0.0); C];
        for (vector, values) in vectors.iter_mut().zip(values) {
            *vector = T::lanes(l, values);
        }
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = l.splat(weights.as_flattened()[key]);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = l.fma(weight, vector, *sum);
            }
        }
    }
    for (sums, query) in sums.iter().zip(queries) {
        let (chunks, _) = query.out[at..at + C * LANES].as_chunks_mut::<LANES>();
        for (sum, chunk) in sums.iter().zip(chunks) {
            l.store(*sum, chunk);
        }
    }
}
