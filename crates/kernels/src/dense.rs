//! The product with dense weights, in f32: one fused multiply-add for each input, in order.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::Kernels;
use crate::error::Result;
use crate::flat::{room, written};
use crate::formats::WeightType;
use crate::isa::{Found, Work};
use crate::lanes::{LANES, Lanes};
use crate::linear::Product;
use crate::pool::Parts;

/// Panels that are walked side by side at most.
const SIDE: usize = 4;

/// Panels that are walked side by side where there are many rows.
const PAIR: usize = 2;

/// Inputs that are walked at a time for one tile after the other: their weights stay in a first-level cache.
const DEEP: usize = 384;

/// Rows of tiles that are walked in turn: their sums stay there too.
const BAND: usize = 64;

/// Bytes that are fetched together.
const LINE: usize = 64;

/// Activations as the kernel walks them.
pub(crate) enum Rows<'a> {
    /// So few that all their sums stay in registers: `[m, k]`.
    Few { x: &'a [f32], m: usize },
    /// Tiles of about as many rows each, of which a tile is `[k, rows]`: what is multiplied together lies together, and
    /// so do the tiles' parts of every [`DEEP`] inputs, which are walked in turn.
    Many { x: Vec<f32>, m: usize, tiles: usize },
}

impl Rows<'_> {
    /// Panels that are walked side by side, at most: tasks have whole groups of so many.
    pub(crate) fn side(&self) -> usize {
        match self {
            Self::Few { m: 1..=4, .. } => SIDE,
            _ => PAIR,
        }
    }
}

/// Rows whose sums stay in registers.
const fn tall<L: Lanes>() -> usize {
    if L::WIDE { 8 } else { 4 }
}

/// [`tall`], of what this CPU has.
struct Tall;

impl Work for Tall {
    type Output = usize;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) -> usize {
        tall::<L>()
    }
}

/// The rows of a tile.
fn tile(m: usize, tiles: usize, tile: usize) -> Range<usize> {
    tile * m / tiles..(tile + 1) * m / tiles
}

impl Kernels {
    /// `x`, `[m, k]`, for products with dense weights.
    pub(crate) fn rows<'a>(&self, x: &'a [f32], m: usize, k: usize) -> Result<Rows<'a>> {
        let tiles = m.div_ceil(self.found().run(Tall));
        if tiles <= 1 {
            return Ok(Rows::Few { x, m });
        }
        let mut packed = room(x.len())?;
        let parts = Parts::new(&mut packed);
        self.pool().run(tiles, &|at| {
            let rows = tile(m, tiles, at);
            let x = &x[rows.start * k..rows.end * k];
            match rows.len() {
                2 => interleave::<2>(x, &parts, rows.start, m),
                3 => interleave::<3>(x, &parts, rows.start, m),
                4 => interleave::<4>(x, &parts, rows.start, m),
                5 => interleave::<5>(x, &parts, rows.start, m),
                6 => interleave::<6>(x, &parts, rows.start, m),
                7 => interleave::<7>(x, &parts, rows.start, m),
                _ => interleave::<8>(x, &parts, rows.start, m),
            }
        })?;
        // SAFETY: the tiles have every row, and each writes all of its inputs.
        Ok(Rows::Many { x: unsafe { written(packed) }, m, tiles })
    }
}

/// Where a tile's part of the inputs from `first` on begins, `depth` of them; `start` is its first row of `m`.
fn place(first: usize, depth: usize, start: usize, m: usize) -> usize {
    first * m + start * depth
}

/// A tile, `[R, k]`, whose first row is `start`, into its parts, each `[depth, R]`.
fn interleave<const R: usize>(x: &[f32], parts: &Parts<'_, MaybeUninit<f32>>, start: usize, m: usize) {
    let k = x.len() / R;
    for first in (0..k).step_by(DEEP) {
        let depth = DEEP.min(k - first);
        let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * k + first..][..depth]);
        // SAFETY: tiles have disjoint parts.
        let out = unsafe { parts.part(place(first, depth, start, m), depth * R) };
        for (i, out) in out.as_chunks_mut::<R>().0[..depth].iter_mut().enumerate() {
            for (to, row) in out.iter_mut().zip(rows) {
                to.write(row[i]);
            }
        }
    }
}

/// Panels `first..first + count` for all rows.
struct Dense<'a, const TY: usize> {
    product: &'a Product<'a>,
    rows: &'a Rows<'a>,
    first: usize,
    count: usize,
}

impl<const TY: usize> Work for Dense<'_, TY> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match *self.rows {
            // A sum waits some four cycles for the one before it while a core starts two each cycle, so that few rows
            // need panels side by side, as many as there are registers for.
            Rows::Few { x, m } => match (m, L::WIDE) {
                (0, _) => {}
                (1, true) => self.few::<L, 1, 4>(l, x),
                (1, false) => self.few::<L, 1, 2>(l, x),
                (2, true) => self.few::<L, 2, 4>(l, x),
                (2, false) => self.few::<L, 2, 2>(l, x),
                (3, true) => self.few::<L, 3, 4>(l, x),
                (3, false) => self.few::<L, 3, 1>(l, x),
                (4, true) => self.few::<L, 4, 4>(l, x),
                (4, false) => self.few::<L, 4, 1>(l, x),
                (5, _) => self.few::<L, 5, 2>(l, x),
                (6, _) => self.few::<L, 6, 2>(l, x),
                (7, _) => self.few::<L, 7, 2>(l, x),
                _ => self.few::<L, 8, 2>(l, x),
            },
            Rows::Many { ref x, m, tiles } => {
                let whole = self.count / PAIR * PAIR;
                for at in (0..whole).step_by(PAIR) {
                    self.many::<L, PAIR>(l, x, [m, tiles], self.first + at);
                }
                if whole < self.count {
                    self.many::<L, 1>(l, x, [m, tiles], self.first + whole);
                }
            }
        }
    }
}

impl<const TY: usize> Dense<'_, TY> {
    /// All panels, `S` at a time, for `R` rows whose sums stay in registers.
    #[inline(always)]
    fn few<L: Lanes, const R: usize, const S: usize>(&self, l: L, x: &[f32]) {
        const { assert!(S <= SIDE) };
        let whole = self.count / S * S;
        for at in (0..whole).step_by(S) {
            self.walk::<L, R, S>(l, x, self.first + at);
        }
        for at in whole..self.count {
            self.walk::<L, R, 1>(l, x, self.first + at);
        }
    }

    /// `S` panels from panel `at` on.
    #[inline(always)]
    fn walk<L: Lanes, const R: usize, const S: usize>(&self, l: L, x: &[f32], at: usize) {
        let k = self.product.weight.k();
        let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * k..(r + 1) * k]);
        let sides = self.sides::<S>(at);
        // What comes next, in this task or the thread's next one, is fetched while these are multiplied: with several
        // rows the hardware's own look-ahead is too short. With few it does the most, and wants a hint.
        let lines = const { if R > 4 { (S * unit::<TY>()).div_ceil(LINE) } else { 1 } };
        let next = self.next(at, S);
        let mut sums = [[l.splat(0.0); S]; R];
        let unit = const { unit::<TY>() };
        for i in 0..k {
            for line in 0..lines {
                if let Some(next) = next.get(i * S * unit + line * LINE..) {
                    l.prefetch(next);
                }
            }
            let mut w = [l.splat(0.0); S];
            for (w, side) in w.iter_mut().zip(sides) {
                *w = load::<L, TY>(l, &side[i * unit..(i + 1) * unit]);
            }
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = l.splat(row[i]);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = l.fma(w, x, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (s, sum) in sums.iter().enumerate() {
                let mut lanes = [0.0; LANES];
                l.store(*sum, &mut lanes);
                // SAFETY: tasks own disjoint panels.
                unsafe { self.product.store(r, at + s, &lanes) };
            }
        }
    }

    /// `S` panels from panel `at` on: some inputs' weights are multiplied with one tile of a band after the other. Sums
    /// rest in memory between, which rounds nothing. Each tile unpacks the weights anew: to keep them unpacked would cost
    /// a store a vector, which is more.
    #[inline(always)]
    fn many<L: Lanes, const S: usize>(&self, l: L, x: &[f32], [m, tiles]: [usize; 2], at: usize) {
        let k = self.product.weight.k();
        let unit = const { unit::<TY>() };
        let sides = self.sides::<S>(at);
        let band = BAND / const { tall::<L>() };
        for low in (0..tiles).step_by(band) {
            let band = low..tiles.min(low + band);
            let (start, end) = (tile(m, tiles, low).start, tile(m, tiles, band.end - 1).end);
            let mut sums = [[[0.0; LANES]; S]; BAND];
            let sums = &mut sums[..end - start];
            for first in (0..k).step_by(DEEP) {
                let depth = DEEP.min(k - first);
                // The next block of weights is fetched meanwhile, each tile its share.
                let soon = first + depth;
                let (ahead, length): ([&[u8]; S], _) = match low {
                    0 if soon < k => (sides.map(|side| &side[soon * unit..]), DEEP.min(k - soon)),
                    0 => {
                        let next = self.next(at, S);
                        let place = |s| s * self.product.weight.panel_bytes();
                        (std::array::from_fn(|s| next.get(place(s)..).unwrap_or(&[])), DEEP.min(k))
                    }
                    _ => ([&[]; S], 0),
                };
                let step = (length * unit).div_ceil(depth * band.len());
                for (share, rows) in band.clone().map(|at| tile(m, tiles, at)).enumerate() {
                    let ahead = Ahead { bytes: ahead, start: share * depth * step, step };
                    let x = &x[place(first, depth, rows.start, m)..][..depth * rows.len()];
                    let sums = &mut sums[rows.start - start..rows.end - start];
                    let packed = sides.map(|side| &side[first * unit..]);
                    match rows.len() {
                        2 => multiply::<L, TY, 2, S>(l, x, packed, ahead, sums),
                        3 => multiply::<L, TY, 3, S>(l, x, packed, ahead, sums),
                        4 => multiply::<L, TY, 4, S>(l, x, packed, ahead, sums),
                        5 => multiply::<L, TY, 5, S>(l, x, packed, ahead, sums),
                        6 => multiply::<L, TY, 6, S>(l, x, packed, ahead, sums),
                        7 => multiply::<L, TY, 7, S>(l, x, packed, ahead, sums),
                        _ => multiply::<L, TY, 8, S>(l, x, packed, ahead, sums),
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (s, lanes) in sums.iter().enumerate() {
                    // SAFETY: tasks own disjoint panels.
                    unsafe { self.product.store(start + r, at + s, lanes) };
                }
            }
        }
    }

    /// The bytes of `S` panels from panel `at` on.
    #[inline(always)]
    fn sides<const S: usize>(&self, at: usize) -> [&[u8]; S] {
        let weight = self.product.weight;
        let bytes = weight.panel_bytes();
        let panels = weight.panels(at, S);
        std::array::from_fn(|s| &panels[s * bytes..(s + 1) * bytes])
    }

    /// The panels behind the `count` from panel `at` on: as many, where there are.
    #[inline(always)]
    fn next(&self, at: usize, count: usize) -> &[u8] {
        let weight = self.product.weight;
        let left = weight.n().div_ceil(LANES) - (at + count);
        weight.panels(at + count, count.min(left))
    }
}

/// What a tile fetches: a step of bytes for each input, from `start` on.
#[derive(Clone, Copy)]
struct Ahead<'a, const S: usize> {
    bytes: [&'a [u8]; S],
    start: usize,
    step: usize,
}

impl<const S: usize> Ahead<'_, S> {
    #[inline(always)]
    fn fetch<L: Lanes>(&self, l: L, input: usize) {
        for bytes in self.bytes {
            if let Some(bytes) = bytes.get(self.start + input * self.step..) {
                l.prefetch(bytes);
            }
        }
    }
}

/// Goes on with the sums of a tile of `R` rows; `x` is `[k, R]`.
#[inline(always)]
fn multiply<L: Lanes, const TY: usize, const R: usize, const S: usize>(
    l: L,
    x: &[f32],
    packed: [&[u8]; S],
    ahead: Ahead<'_, S>,
    sums: &mut [[[f32; LANES]; S]],
) {
    // Sizes that the compiler knows keep the sums in registers.
    let (Some(sums), (x, _)) = (sums.first_chunk_mut::<R>(), x.as_chunks::<R>()) else { return };
    let mut kept = [[l.splat(0.0); S]; R];
    for (kept, sums) in kept.iter_mut().zip(&*sums) {
        for (kept, sum) in kept.iter_mut().zip(sums) {
            *kept = l.load(sum);
        }
    }
    let unit = const { unit::<TY>() };
    for (i, x) in x.iter().enumerate() {
        ahead.fetch(l, i);
        let mut w = [l.splat(0.0); S];
        for (w, packed) in w.iter_mut().zip(packed) {
            *w = load::<L, TY>(l, &packed[i * unit..(i + 1) * unit]);
        }
        add(l, x, w, &mut kept);
    }
    for (kept, sums) in kept.iter().zip(sums) {
        for (kept, sum) in kept.iter().zip(sums) {
            l.store(*kept, sum);
        }
    }
}

/// One input's products.
#[inline(always)]
fn add<L: Lanes, const R: usize, const S: usize>(
    l: L,
    x: &[f32; R],
    w: [L::F; S],
    sums: &mut [[L::F; S]; R],
) {
    for (sums, x) in sums.iter_mut().zip(x) {
        let x = l.splat(*x);
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = l.fma(w, x, *sum);
        }
    }
}

/// Bytes of one input's weights for sixteen outputs.
const fn unit<const TY: usize>() -> usize {
    WeightType::ALL[TY].block_bytes() * LANES
}

/// One input's weights for sixteen outputs.
#[inline(always)]
fn load<L: Lanes, const TY: usize>(l: L, unit: &[u8]) -> L::F {
    let found = match const { WeightType::ALL[TY] } {
        WeightType::F16 => unit.first_chunk().map(|unit| l.half(unit)),
        WeightType::Bf16 => unit.first_chunk().map(|unit| l.bfloat(unit)),
        _ => unit.first_chunk().map(|unit| l.single(unit)),
    };
    found.unwrap_or(l.splat(0.0))
}

/// Runs the kernel that fits the weight's type.
pub(crate) fn dense(found: Found, product: &Product<'_>, rows: &Rows<'_>, first: usize, count: usize) {
    macro_rules! run {
        ($($ty:ident),*) => {
            match product.weight.ty() {
                $(WeightType::$ty => {
                    found.run(Dense::<{ WeightType::$ty as usize }> { product, rows, first, count });
                })*
                _ => {}
            }
        };
    }
    run!(F32, F16, Bf16);
}
