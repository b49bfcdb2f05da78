//! The product with dense weights, in f32: one fused multiply-add for each input, in order.

use std::ops::Range;

use crate::Kernels;
use crate::error::Result;
use crate::flat::zeros;
use crate::formats::WeightType;
use crate::isa::{Found, Work};
use crate::lanes::{LANES, Lanes};
use crate::linear::Product;
use crate::pool::Parts;

/// Panels that are walked side by side at most; tasks have whole groups of so many.
pub(crate) const SIDE: usize = 4;

/// Panels that are walked side by side where there are many rows.
const PAIR: usize = 2;

/// Inputs whose weights are unpacked at a time: with [`BAND`] rows of sums and of activations they fit a first-level cache.
const DEEP: usize = 128;

/// Rows that share unpacked weights.
const BAND: usize = 64;

/// Activations as the kernel walks them.
pub(crate) enum Rows<'a> {
    /// So few that all their sums stay in registers: `[m, k]`.
    Few { x: &'a [f32], m: usize },
    /// Tiles of about as many rows each, of which a tile is `[k, rows]`: what is multiplied together lies together.
    Many { x: Vec<f32>, m: usize, tiles: usize },
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
        let mut packed = zeros(x.len())?;
        let parts = Parts::new(&mut packed);
        self.pool().run(tiles, &|at| {
            let rows = tile(m, tiles, at);
            // SAFETY: tiles are disjoint.
            let out = unsafe { parts.part(rows.start * k, rows.len() * k) };
            let x = &x[rows.start * k..rows.end * k];
            match rows.len() {
                2 => interleave::<2>(x, out),
                3 => interleave::<3>(x, out),
                4 => interleave::<4>(x, out),
                5 => interleave::<5>(x, out),
                6 => interleave::<6>(x, out),
                7 => interleave::<7>(x, out),
                _ => interleave::<8>(x, out),
            }
        })?;
        Ok(Rows::Many { x: packed, m, tiles })
    }
}

/// `[R, k]` to `[k, R]`.
fn interleave<const R: usize>(x: &[f32], out: &mut [f32]) {
    let k = x.len() / R;
    let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * k..(r + 1) * k]);
    for (i, out) in out.as_chunks_mut::<R>().0[..k].iter_mut().enumerate() {
        for (to, row) in out.iter_mut().zip(rows) {
            *to = row[i];
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

/// Weights of some inputs, unpacked, and the sums of a band of rows up to there; for `S` panels.
struct Scratch<const S: usize> {
    weights: [[[f32; LANES]; S]; DEEP],
    sums: [[[f32; LANES]; S]; BAND],
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
                let mut scratch = Scratch::new();
                for at in (0..whole).step_by(PAIR) {
                    self.many::<L, PAIR>(l, x, [m, tiles], self.first + at, &mut scratch);
                }
                if whole < self.count {
                    self.many::<L, 1>(l, x, [m, tiles], self.first + whole, &mut Scratch::new());
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
        // rows the hardware's own look-ahead is too short.
        let next = self.next(at, S);
        let mut sums = [[l.splat(0.0); S]; R];
        let unit = const { unit::<TY>() };
        for i in 0..k {
            if let Some(next) = next.get(i * S * unit..) {
                l.prefetch(next);
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

    /// `S` panels from panel `at` on: some inputs' weights are unpacked once for a band of rows, and multiplied with one
    /// tile after the other. Sums rest in memory between, which rounds nothing.
    #[inline(always)]
    fn many<L: Lanes, const S: usize>(
        &self,
        l: L,
        x: &[f32],
        [m, tiles]: [usize; 2],
        at: usize,
        scratch: &mut Scratch<S>,
    ) {
        let k = self.product.weight.k();
        let unit = const { unit::<TY>() };
        let sides = self.sides::<S>(at);
        let band = BAND / const { tall::<L>() };
        for low in (0..tiles).step_by(band) {
            let band = low..tiles.min(low + band);
            let (start, end) = (tile(m, tiles, low).start, tile(m, tiles, band.end - 1).end);
            let Scratch { weights, sums } = &mut *scratch;
            let sums = &mut sums[..end - start];
            sums.fill([[0.0; LANES]; S]);
            for first in (0..k).step_by(DEEP) {
                let depth = DEEP.min(k - first);
                let weights = &mut weights[..depth];
                // What is unpacked after the next block is fetched meanwhile, each tile its share.
                let soon = first + 2 * DEEP;
                let ahead: [&[u8]; S] = match low {
                    0 if soon < k => sides.map(|side| &side[soon * unit..]),
                    0 => {
                        let next = self.next(at, S);
                        let place = |s| s * self.product.weight.panel_bytes() + (soon - k) * unit;
                        std::array::from_fn(|s| next.get(place(s)..).unwrap_or(&[]))
                    }
                    _ => [&[]; S],
                };
                let step = unit / band.len();
                for (share, rows) in band.clone().map(|at| tile(m, tiles, at)).enumerate() {
                    let ahead = Ahead { bytes: ahead, start: share * depth * step, step };
                    let x = &x[rows.start * k + first * rows.len()..][..depth * rows.len()];
                    let sums = &mut sums[rows.start - start..rows.end - start];
                    let packed =
                        if share == 0 { Some(sides.map(|side| &side[first * unit..])) } else { None };
                    match rows.len() {
                        2 => multiply::<L, TY, 2, S>(l, x, packed, weights, ahead, sums),
                        3 => multiply::<L, TY, 3, S>(l, x, packed, weights, ahead, sums),
                        4 => multiply::<L, TY, 4, S>(l, x, packed, weights, ahead, sums),
                        5 => multiply::<L, TY, 5, S>(l, x, packed, weights, ahead, sums),
                        6 => multiply::<L, TY, 6, S>(l, x, packed, weights, ahead, sums),
                        7 => multiply::<L, TY, 7, S>(l, x, packed, weights, ahead, sums),
                        _ => multiply::<L, TY, 8, S>(l, x, packed, weights, ahead, sums),
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

impl<const S: usize> Scratch<S> {
    fn new() -> Self {
        Self { weights: [[[0.0; LANES]; S]; DEEP], sums: [[[0.0; LANES]; S]; BAND] }
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

/// Goes on with the sums of a tile of `R` rows; `x` is `[k, R]`. The tile that is given `packed` weights unpacks them for
/// the others on its way, where arithmetic leaves time for it.
#[inline(always)]
fn multiply<L: Lanes, const TY: usize, const R: usize, const S: usize>(
    l: L,
    x: &[f32],
    packed: Option<[&[u8]; S]>,
    weights: &mut [[[f32; LANES]; S]],
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
    if let Some(packed) = packed {
        let unit = const { unit::<TY>() };
        for (i, (x, weights)) in x.iter().zip(weights).enumerate() {
            ahead.fetch(l, i);
            let mut w = [l.splat(0.0); S];
            for ((w, packed), unpacked) in w.iter_mut().zip(packed).zip(weights) {
                *w = load::<L, TY>(l, &packed[i * unit..(i + 1) * unit]);
                l.store(*w, unpacked);
            }
            add(l, x, w, &mut kept);
        }
    } else {
        for (i, (x, weights)) in x.iter().zip(weights).enumerate() {
            ahead.fetch(l, i);
            let mut w = [l.splat(0.0); S];
            for (w, unpacked) in w.iter_mut().zip(weights) {
                *w = l.load(unpacked);
            }
            add(l, x, w, &mut kept);
        }
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
