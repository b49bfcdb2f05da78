//! Matrix products with packed weights: y = x · wᵀ, and the look-up of a weight's rows.
//!
//! A product is split over outputs only. Each output sums its inputs from first to last in a fixed
//! order of rounded operations, the same for one row and for five hundred, so a row's result never
//! depends on the rows beside it. What many rows gain is that a block of weights is unpacked once
//! for all of them.

use candle_core::Tensor;

use crate::Kernels;
use crate::dense::dense;
use crate::error::{Error, Result};
use crate::flat::{Flat, dims, equal, tensor, zeros};
use crate::formats::{Scaling, WeightType};
use crate::integer::Integer;
use crate::isa::Found;
use crate::lanes::LANES;
use crate::pool::Parts;
use crate::quantise::{BLOCK, Block, Quantise, TILE};
use crate::weight::Weight;

/// Bytes of panels that a task walks for every tile of rows: half of a small second-level cache.
const CHUNK: usize = 128 << 10;

/// One product, seen from a task.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Weight,
    pub(crate) rows: usize,
    pub(crate) out: Parts<'a, f32>,
}

impl Product<'_> {
    /// Stores a panel's lanes for one row, without the padding of the last panel.
    ///
    /// # Safety
    /// No other thread writes this panel.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, row: usize, panel: usize, lanes: &[f32; LANES]) {
        let n = self.weight.n();
        let width = LANES.min(n - panel * LANES);
        // SAFETY: panels are disjoint columns, and the caller owns this one.
        let out = unsafe { self.out.part(row * n + panel * LANES, width) };
        out.copy_from_slice(&lanes[..width]);
    }
}

impl Kernels {
    /// y = x · wᵀ.
    ///
    /// * `x`: `[m, k]`
    /// * `w`: `[n, k]`
    ///
    /// Returns `[m, n]`. With a quantised weight, `x` is rounded to bytes in blocks of 32; with a
    /// dense one the product is in f32.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if the inner dimensions differ.
    pub fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        let [m, k] = dims("x", x)?;
        equal("the width of x", k, w.k())?;
        let x = Flat::new("x", x)?;
        let mut out = zeros(m * w.n())?;
        let product = Product { weight: w, rows: m, out: Parts::new(&mut out) };
        if w.ty().scaling() == Scaling::Dense {
            self.dense(x.values(), &product)?;
        } else {
            self.integer(x.values(), &product)?;
        }
        tensor(out, &[m, w.n()])
    }

    fn integer(&self, x: &[f32], product: &Product<'_>) -> Result<()> {
        let k = product.weight.k();
        let mut blocks = vec![Block::default(); x.len() / BLOCK];
        let parts = Parts::new(&mut blocks);
        let quantise = |tile: usize| {
            let (from, to) = (tile * TILE, product.rows.min((tile + 1) * TILE));
            let at = k / BLOCK * from;
            // SAFETY: tiles are disjoint.
            let out = unsafe { parts.part(at, k / BLOCK * (to - from)) };
            self.found().run(Quantise { x: &x[from * k..to * k], rows: to - from, out });
        };
        self.pool().run(product.rows.div_ceil(TILE), &quantise)?;
        self.over_panels(product.weight, &|first, count| {
            integer(self.found(), product, &blocks, first, count);
        })
    }

    fn dense(&self, x: &[f32], product: &Product<'_>) -> Result<()> {
        let tiles = crate::dense::tiles(x, product.rows, product.weight.k());
        self.over_panels(product.weight, &|first, count| {
            dense(self.found(), product, &tiles, first, count);
        })
    }

    /// Runs `task(first panel, panels)` for stretches of panels that cover the weight.
    fn over_panels(&self, w: &Weight, task: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
        let panels = w.n().div_ceil(LANES);
        let step = (CHUNK / w.panel_bytes()).min(panels / (8 * self.threads())).max(1);
        self.pool().run(panels.div_ceil(step), &|i| task(i * step, step.min(panels - i * step)))
    }

    /// The rows of `w` that `tokens` name, `[m, k]`.
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if a token is not below `n`.
    pub fn embed(&self, tokens: &[u32], w: &Weight) -> Result<Tensor> {
        let mut out = Vec::with_capacity(tokens.len() * w.k());
        for &token in tokens {
            if token as usize >= w.n() {
                return Err(Error::range(format!("token {token} is not below the vocabulary's {}", w.n())));
            }
            out.extend(w.row(token as usize)?);
        }
        tensor(out, &[tokens.len(), w.k()])
    }
}

/// Runs the integer kernel that fits the weight's type.
fn integer(found: Found, product: &Product<'_>, blocks: &[Block], first: usize, count: usize) {
    macro_rules! run {
        ($($ty:ident),*) => {
            match product.weight.ty() {
                $(WeightType::$ty => {
                    found.run(Integer::<{ WeightType::$ty as usize }> { product, blocks, first, count });
                })*
                WeightType::F32 | WeightType::F16 | WeightType::Bf16 => {}
            }
        };
    }
    run!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4K, Q5K, Q6K);
}
