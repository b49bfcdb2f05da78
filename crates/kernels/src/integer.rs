//! The product with quantised weights: bytes times bytes, exactly, and one rounded sum over blocks.
//!
//! For each block of 32 inputs, with s, f the weight's scale and floor of an output and a, Σ the
//! activations' scale and sum of codes: `sum = fma(s · a, dot − offset · Σ, sum)`, then, where the
//! type has a floor, `sum = fma(f, a · Σ, sum)`. The dot product is an integer, so its order is
//! free; the rest runs block after block in this order on every instruction set.

use crate::formats::{Scaling, WeightType};
use crate::isa::Work;
use crate::lanes::{LANES, LINE, Lanes};
use crate::product::Product;
use crate::quantise::{BLOCK, Block, TILE};
use crate::units::{GROUP, UnitLayout};

/// Groups of four inputs in a block.
const GROUPS: usize = BLOCK / 4;

/// Rows that are few: the hardware alone fetches their weights as fast as they are used. With more rows it does not look
/// far enough, and memory and arithmetic would take turns.
const FEW: usize = 4;

/// So many bytes before they are multiplied with more rows, weights come to a first-level cache.
const NEAR: usize = 3072;

/// Panels `first..first + count` for all rows; `TY` is a [`WeightType`] as its index, so that every
/// branch on the type is decided when the kernel is compiled.
pub(crate) struct Integer<'a, const TY: usize> {
    pub(crate) product: &'a Product<'a>,
    /// Tiles of rows, each `[k / 32, rows]`.
    pub(crate) blocks: &'a [Block],
    pub(crate) first: usize,
    pub(crate) count: usize,
}

impl<const TY: usize> Work for Integer<'_, TY> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let weight = self.product.weight;
        let depth = weight.k() / BLOCK;
        for (tile, blocks) in self.blocks.chunks(TILE * depth).enumerate() {
            for panel in self.first..self.first + self.count {
                // Weights from this panel on, so that what follows it can be fetched.
                let weights = weight.panels(panel, self.first + self.count - panel);
                macro_rules! rows {
                    ($($r:literal)*) => {
                        match blocks.len() / depth {
                            $($r => self.panel::<L, $r>(l, tile, panel, weights, blocks),)*
                            _ => self.panel::<L, TILE>(l, tile, panel, weights, blocks),
                        }
                    };
                }
                rows!(1 2 3 4 5 6 7 8);
            }
        }
    }
}

impl<const TY: usize> Integer<'_, TY> {
    /// One panel for one tile of `R` rows, whose sums stay in registers, or of up to [`TILE`].
    #[inline(always)]
    fn panel<L: Lanes, const R: usize>(
        &self,
        l: L,
        tile: usize,
        panel: usize,
        weights: &[u8],
        blocks: &[Block],
    ) {
        let weight = self.product.weight;
        let rows = if R < TILE { R } else { blocks.len() * BLOCK / weight.k() };
        let mut sums = [l.splat(0.0); R];
        let sums = &mut sums[..rows];
        walk::<L, TY>(l, weights, weight.panel_bytes(), blocks, sums);
        for (r, sum) in sums.iter().enumerate() {
            let mut lanes = [0.0; LANES];
            l.store(*sum, &mut lanes);
            // SAFETY: tasks own disjoint panels.
            unsafe { self.product.store(tile * TILE + r, panel, &lanes) };
        }
    }
}

/// Adds a panel's products to `sums`, one vector a row: the first `bytes` of `weights`.
#[inline(always)]
fn walk<L: Lanes, const TY: usize>(l: L, weights: &[u8], bytes: usize, blocks: &[Block], sums: &mut [L::F]) {
    let ty = const { WeightType::ALL[TY] };
    let layout = const { UnitLayout::of(WeightType::ALL[TY]) };
    let rows = sums.len();
    let units = weights[..bytes].chunks_exact(layout.bytes());
    for (u, (unit, blocks)) in units.zip(blocks.chunks_exact(layout.blocks * rows)).enumerate() {
        let d = l.half(array(unit, 0));
        let m = match ty.scaling() {
            Scaling::Affine | Scaling::Super => l.half(array(unit, 2 * LANES)),
            _ => l.splat(0.0),
        };
        for (b, blocks) in blocks.chunks_exact(rows).enumerate() {
            let at = layout.block(b);
            if rows > FEW {
                fetch(l, &weights[u * layout.bytes() + at..], layout.scales + layout.codes);
            }
            let codes = codes::<L, TY>(l, unit, at + layout.scales);
            match ty.scaling() {
                Scaling::Dense => {}
                Scaling::Centred(offset) => {
                    for (sum, x) in sums.iter_mut().zip(blocks) {
                        let start = l.splat_i(-offset * (x.sums[0] + x.sums[1]));
                        let dot = dot::<L, TY>(l, start, &codes, x, 0, GROUPS);
                        *sum = l.fma(l.to_f32(dot), l.mul(d, l.splat(x.scale)), *sum);
                    }
                }
                Scaling::Affine | Scaling::Super => {
                    let (scale, floor) = if ty.scaling() == Scaling::Super {
                        (l.mul(d, l.unsigned(array(unit, at))), l.mul(m, l.unsigned(array(unit, at + LANES))))
                    } else {
                        (d, m)
                    };
                    for (sum, x) in sums.iter_mut().zip(blocks) {
                        let dot = dot::<L, TY>(l, l.splat_i(0), &codes, x, 0, GROUPS);
                        let scaled = l.fma(l.to_f32(dot), l.mul(scale, l.splat(x.scale)), *sum);
                        *sum = l.fma(floor, l.splat(x.total), scaled);
                    }
                }
                Scaling::Halves => {
                    let left = l.mul(d, l.signed(array(unit, at)));
                    let right = l.mul(d, l.signed(array(unit, at + LANES)));
                    for (sum, x) in sums.iter_mut().zip(blocks) {
                        let scale = l.splat(x.scale);
                        let dot_left = dot::<L, TY>(l, l.splat_i(-32 * x.sums[0]), &codes, x, 0, GROUPS / 2);
                        let dot_right =
                            dot::<L, TY>(l, l.splat_i(-32 * x.sums[1]), &codes, x, GROUPS / 2, GROUPS);
                        let half = l.fma(l.mul(left, scale), l.to_f32(dot_left), *sum);
                        *sum = l.fma(l.mul(right, scale), l.to_f32(dot_right), half);
                    }
                }
            }
        }
    }
}

/// Asks for `count` bytes that lie [`NEAR`] behind the beginning of `weights`.
#[inline(always)]
fn fetch<L: Lanes>(l: L, weights: &[u8], count: usize) {
    for at in (0..count).step_by(LINE) {
        l.prefetch_near(weights.as_ptr().wrapping_add(NEAR + at));
    }
}

/// The codes of 32 inputs as bytes, four inputs a vector.
#[inline(always)]
fn codes<L: Lanes, const TY: usize>(l: L, unit: &[u8], at: usize) -> [L::I; GROUPS] {
    let bits = const { WeightType::ALL[TY].bits() };
    let vector = |i: usize| l.bytes(array(unit, at + i * GROUP));
    if bits == 8 {
        return [vector(0), vector(1), vector(2), vector(3), vector(4), vector(5), vector(6), vector(7)];
    }
    let mut codes = [l.splat_i(0); GROUPS];
    for i in 0..4 {
        let pair = vector(i);
        codes[i] = l.keep(pair, 15);
        codes[i + 4] = l.keep(l.shr(pair, 4), 15);
    }
    if bits == 5 {
        let plane = vector(4);
        for (g, code) in codes.iter_mut().enumerate() {
            let bit = if g < 4 { l.shl(plane, 4 - g as u32) } else { l.shr(plane, g as u32 - 4) };
            *code = l.or(*code, l.keep(bit, 16));
        }
    }
    if bits == 6 {
        for half in 0..2 {
            let plane = vector(4 + half);
            let pairs = [l.shl(plane, 4), l.shl(plane, 2), plane, l.shr(plane, 2)];
            for (g, pair) in pairs.into_iter().enumerate() {
                codes[4 * half + g] = l.or(codes[4 * half + g], l.keep(pair, 48));
            }
        }
    }
    codes
}

#[inline(always)]
fn dot<L: Lanes, const TY: usize>(
    l: L,
    start: L::I,
    codes: &[L::I; GROUPS],
    x: &Block,
    from: usize,
    to: usize,
) -> L::I {
    let wide = const { WeightType::ALL[TY].bits() == 8 };
    let (groups, _) = x.codes.as_chunks::<4>();
    let mut sum = start;
    for g in from..to {
        sum = if wide { l.dot_wide(sum, codes[g], groups[g]) } else { l.dot(sum, codes[g], groups[g]) };
    }
    sum
}

/// `N` bytes at `at`.
#[inline(always)]
fn array<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    const { assert!(N > 0) };
    let (head, _) = bytes[at..at + N].as_chunks::<N>();
    &head[0]
}
