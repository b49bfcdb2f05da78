//! The product with quantised weights: bytes times bytes, exactly, and one rounded sum over blocks.
//!
//! For each block of 32 inputs, with s, f the weight's scale and floor of an output and a, Σ the
//! activations' scale and sum of codes: `sum = fma(s · a, dot − offset · Σ, sum)`, then, where the
//! type has a floor, `sum = fma(f, a · Σ, sum)`. The dot product is an integer, so its order is
//! free; the rest runs block after block in this order on every instruction set.

use crate::formats::{Scaling, WeightType};
use crate::isa::Work;
use crate::lanes::{LANES, Lanes};
use crate::linear::Product;
use crate::quantise::{BLOCK, Block, TILE};
use crate::units::{GROUP, UnitLayout};

/// Groups of four inputs in a block.
const GROUPS: usize = BLOCK / 4;

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
            let rows = blocks.len() / depth;
            let panels = weight.panels(self.first, self.count);
            for (i, panel) in panels.chunks_exact(weight.panel_bytes()).enumerate() {
                let mut sums = [l.splat(0.0); TILE];
                walk::<L, TY>(l, panel, blocks, &mut sums[..rows]);
                for (r, sum) in sums[..rows].iter().enumerate() {
                    let mut lanes = [0.0; LANES];
                    l.store(*sum, &mut lanes);
                    // SAFETY: tasks own disjoint panels.
                    unsafe { self.product.store(tile * TILE + r, self.first + i, &lanes) };
                }
            }
        }
    }
}

/// Adds one panel's products to `sums`, one vector a row.
#[inline(always)]
fn walk<L: Lanes, const TY: usize>(l: L, panel: &[u8], blocks: &[Block], sums: &mut [L::F]) {
    let ty = const { WeightType::ALL[TY] };
    let layout = const { UnitLayout::of(WeightType::ALL[TY]) };
    let rows = sums.len();
    let units = panel.chunks_exact(layout.bytes());
    for (unit, blocks) in units.zip(blocks.chunks_exact(layout.blocks * rows)) {
        let d = l.half(array(unit, 0));
        let m = match ty.scaling() {
            Scaling::Affine | Scaling::Super => l.half(array(unit, 2 * LANES)),
            _ => l.splat(0.0),
        };
        for (b, blocks) in blocks.chunks_exact(rows).enumerate() {
            let at = layout.block(b);
            let codes = codes::<L, TY>(l, unit, at + layout.scales);
            match ty.scaling() {
                Scaling::Dense => {}
                Scaling::Centred(offset) => {
                    for (sum, x) in sums.iter_mut().zip(blocks) {
                        let start = l.splat_i(-offset * (x.sums[0] + x.sums[1]));
                        let dot = dot::<L, TY>(l, start, &codes, x, 0, GROUPS);
                        *sum = l.fma(l.mul(d, l.splat(x.scale)), l.to_f32(dot), *sum);
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
                        let scaled = l.fma(l.mul(scale, l.splat(x.scale)), l.to_f32(dot), *sum);
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
