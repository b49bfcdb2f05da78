//! The product with dense weights, in f32: one fused multiply-add for each input, in order.

use crate::formats::WeightType;
use crate::isa::{Found, Work};
use crate::lanes::{LANES, Lanes};
use crate::linear::Product;

/// Rows that share a pass over a panel; their sums stay in registers.
const TILE: usize = 8;

/// Up to eight rows, `[k, width]`, `width` one of 1, 2, 4, 8 with zeros beyond the last row.
pub(crate) struct Tile {
    first: usize,
    rows: usize,
    width: usize,
    x: Vec<f32>,
}

/// Cuts `x`, `[rows, k]`, into tiles and transposes them.
pub(crate) fn tiles(x: &[f32], rows: usize, k: usize) -> Vec<Tile> {
    (0..rows)
        .step_by(TILE)
        .map(|first| {
            let count = TILE.min(rows - first);
            let width = count.next_power_of_two();
            let mut tile = Tile { first, rows: count, width, x: vec![0.0; k * width] };
            for (r, row) in x[first * k..(first + count) * k].chunks_exact(k).enumerate() {
                for (x, to) in row.iter().zip(tile.x[r..].iter_mut().step_by(width)) {
                    *to = *x;
                }
            }
            tile
        })
        .collect()
}

/// Panels `first..first + count` for all rows.
struct Dense<'a, const TY: usize> {
    product: &'a Product<'a>,
    tiles: &'a [Tile],
    first: usize,
    count: usize,
}

impl<const TY: usize> Work for Dense<'_, TY> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let weight = self.product.weight;
        let panels = weight.panels(self.first, self.count);
        for tile in self.tiles {
            for (i, panel) in panels.chunks_exact(weight.panel_bytes()).enumerate() {
                let at = self.first + i;
                match tile.width {
                    1 => self.walk::<L, 1>(l, tile, panel, at),
                    2 => self.walk::<L, 2>(l, tile, panel, at),
                    4 => self.walk::<L, 4>(l, tile, panel, at),
                    _ => self.walk::<L, 8>(l, tile, panel, at),
                }
            }
        }
    }
}

impl<const TY: usize> Dense<'_, TY> {
    #[inline(always)]
    fn walk<L: Lanes, const R: usize>(&self, l: L, tile: &Tile, panel: &[u8], at: usize) {
        let ty = const { WeightType::ALL[TY] };
        let mut sums = [l.splat(0.0); R];
        let (inputs, _) = tile.x.as_chunks::<R>();
        for (x, unit) in inputs.iter().zip(panel.chunks_exact(ty.block_bytes() * LANES)) {
            let w = match ty {
                WeightType::F16 => unit.first_chunk().map(|unit| l.half(unit)),
                WeightType::Bf16 => unit.first_chunk().map(|unit| l.bfloat(unit)),
                _ => unit.first_chunk().map(|unit| l.single(unit)),
            };
            let Some(w) = w else { continue };
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = l.fma(w, l.splat(*x), *sum);
            }
        }
        for (r, sum) in sums[..tile.rows].iter().enumerate() {
            let mut lanes = [0.0; LANES];
            l.store(*sum, &mut lanes);
            // SAFETY: tasks own disjoint panels.
            unsafe { self.product.store(tile.first + r, at, &lanes) };
        }
    }
}

/// Runs the kernel that fits the weight's type.
pub(crate) fn dense(found: Found, product: &Product<'_>, tiles: &[Tile], first: usize, count: usize) {
    match product.weight.ty() {
        WeightType::F32 => found.run(Dense::<{ WeightType::F32 as usize }> { product, tiles, first, count }),
        WeightType::F16 => found.run(Dense::<{ WeightType::F16 as usize }> { product, tiles, first, count }),
        WeightType::Bf16 => {
            found.run(Dense::<{ WeightType::Bf16 as usize }> { product, tiles, first, count });
        }
        _ => {}
    }
}
