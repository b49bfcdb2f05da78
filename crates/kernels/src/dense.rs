//! The product with dense weights, in f32: one fused multiply-add for each input, in order.

use crate::formats::WeightType;
use crate::isa::{Found, Work};
use crate::lanes::{LANES, Lanes};
use crate::linear::Product;

/// Panels that are walked side by side at most; tasks have whole groups of so many.
pub(crate) const SIDE: usize = 4;

/// Rows that share a pass over a panel, from row `first` on; their sums stay in registers.
struct Tile<'a> {
    first: usize,
    /// `[rows, k]`.
    x: &'a [f32],
}

/// Panels `first..first + count` for all rows.
struct Dense<'a, const TY: usize> {
    product: &'a Product<'a>,
    /// `[m, k]`.
    x: &'a [f32],
    first: usize,
    count: usize,
}

impl<const TY: usize> Work for Dense<'_, TY> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let k = self.product.weight.k();
        let most = if L::WIDE { 8 } else { 4 };
        // A sum waits some four cycles for the one before it while a core starts two each cycle, so that few rows need
        // panels side by side, as many as there are registers for.
        for (tile, x) in self.x.chunks(most * k).enumerate() {
            let tile = Tile { first: tile * most, x };
            match (x.len() / k, L::WIDE) {
                (1, true) => self.pass::<L, 1, 4>(l, &tile),
                (1, false) => self.pass::<L, 1, 2>(l, &tile),
                (2, true) => self.pass::<L, 2, 4>(l, &tile),
                (2, false) => self.pass::<L, 2, 2>(l, &tile),
                (3, true) => self.pass::<L, 3, 4>(l, &tile),
                (3, false) => self.pass::<L, 3, 1>(l, &tile),
                (4, true) => self.pass::<L, 4, 4>(l, &tile),
                (4, false) => self.pass::<L, 4, 1>(l, &tile),
                (5, _) => self.pass::<L, 5, 2>(l, &tile),
                (6, _) => self.pass::<L, 6, 2>(l, &tile),
                (7, _) => self.pass::<L, 7, 2>(l, &tile),
                _ => self.pass::<L, 8, 2>(l, &tile),
            }
        }
    }
}

impl<const TY: usize> Dense<'_, TY> {
    /// All panels, `S` at a time, for a tile of `R` rows.
    #[inline(always)]
    fn pass<L: Lanes, const R: usize, const S: usize>(&self, l: L, tile: &Tile<'_>) {
        const { assert!(S <= SIDE) };
        let whole = self.count / S * S;
        for at in (0..whole).step_by(S) {
            self.walk::<L, R, S>(l, tile, self.first + at);
        }
        for at in whole..self.count {
            self.walk::<L, R, 1>(l, tile, self.first + at);
        }
    }

    /// `S` panels from panel `at` on.
    #[inline(always)]
    fn walk<L: Lanes, const R: usize, const S: usize>(&self, l: L, tile: &Tile<'_>, at: usize) {
        let ty = const { WeightType::ALL[TY] };
        let weight = self.product.weight;
        let bytes = weight.panel_bytes();
        let panels = weight.panels(at, S);
        let k = weight.k();
        let rows: [&[f32]; R] = std::array::from_fn(|r| &tile.x[r * k..(r + 1) * k]);
        let sides: [&[u8]; S] = std::array::from_fn(|s| &panels[s * bytes..(s + 1) * bytes]);
        // What comes next, in this task or the thread's next one, is fetched while the first rows are multiplied: with
        // several rows the hardware's own look-ahead is too short.
        let left = weight.n().div_ceil(LANES) - (at + S);
        let next = weight.panels(at + S, if tile.first == 0 { S.min(left) } else { 0 });
        let mut sums = [[l.splat(0.0); S]; R];
        let unit = ty.block_bytes() * LANES;
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
                unsafe { self.product.store(tile.first + r, at + s, &lanes) };
            }
        }
    }
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
pub(crate) fn dense(found: Found, product: &Product<'_>, x: &[f32], first: usize, count: usize) {
    macro_rules! run {
        ($($ty:ident),*) => {
            match product.weight.ty() {
                $(WeightType::$ty => {
                    found.run(Dense::<{ WeightType::$ty as usize }> { product, x, first, count });
                })*
                _ => {}
            }
        };
    }
    run!(F32, F16, Bf16);
}
