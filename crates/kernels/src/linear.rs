//! Matrix products with packed weights: y = x · wᵀ, and the look-up of a weight's rows.
//!
//! A product is split over outputs only. Each output sums its inputs from first to last in a fixed
//! order of rounded operations, the same for one row and for five hundred, so a row's result never
//! depends on the rows beside it. What many rows gain is that a block of weights is unpacked once
//! for all of them.

#[cfg(feature = "card")]
mod on_card;

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::Tensor;
use half::f16;

use crate::Kernels;
use crate::dense::{dense, paired};
use crate::elementwise::{Activate, Activation, stretches};
use crate::error::{Error, Result};
use crate::factor::{Pair, Pairing};
use crate::flat::{Flat, dims, equal, known, room, tensor, written};
use crate::formats::WeightType;
use crate::integer::Integer;
use crate::isa::Found;
use crate::lanes::LANES;
use crate::operand::{Form, Operand};
use crate::pool::Parts;
use crate::product::Product;
use crate::quantise::{BLOCK, Block, Quantise, TILE};
use crate::units::BUNDLE;
use crate::weight::Weight;
use crate::words::Words;

#[cfg(feature = "card")]
pub(crate) use on_card::scratch;

/// Bytes of panels that a task walks for every tile of rows: half of a small second-level cache.
const CHUNK: usize = 128 << 10;

/// A weight is read in the time of so many multiplications with it.
const READING: usize = 4;

/// Below so many multiplications, a microsecond, calling the other threads costs more than they give.
const ALONE: usize = 100_000;

impl Kernels {
    /// y = x · wᵀ.
    ///
    /// * `x`: `[m, k]`
    /// * `w`: `[n, k]`
    ///
    /// Returns `[m, n]`. With a quantised weight, `x` is rounded to bytes in blocks of 32; with a
    /// dense one the product is in f32, with `x` as it is unless these kernels are [`Kernels::rounding`].
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if the inner dimensions differ.
    pub fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor> {
        let [y] = self.linears(x, [w])?;
        Ok(y)
    }

    /// [`Kernels::linear`] of one `x` with several weights, as one job: the same bits, and `x` is
    /// quantised once.
    ///
    /// # Errors
    /// As [`Kernels::linear`].
    pub fn linears<const N: usize>(&self, x: &Tensor, weights: [&Weight; N]) -> Result<[Tensor; N]> {
        self.linears_of(&x.clone().into(), weights)
    }

    /// [`Kernels::linears`] of activations that were made for these weights.
    ///
    /// # Errors
    /// As [`Kernels::linear`], and [`ErrorKind::Shape`](crate::ErrorKind::Shape) for weights that they were not made for.
    pub fn linears_of<const N: usize>(&self, x: &Operand, weights: [&Weight; N]) -> Result<[Tensor; N]> {
        let [m, k] = x.dims()?;
        for w in weights {
            equal("the width of x", k, w.k())?;
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card::linears(card, x, weights);
        }
        let results = self.products(x, weights, &|_, _| {})?.into_iter().zip(weights);
        let results: Vec<_> = results.map(|(out, w)| tensor(out, &[m, w.n()])).collect::<Result<_>>()?;
        // As many results as weights: the conversion cannot fail.
        results.try_into().map_err(|_| Error::shape("products and weights differ in number"))
    }

    /// [`Kernels::linear`] on this CPU, as numbers: row after row, without a copy.
    ///
    /// # Errors
    /// As [`Kernels::linear`]; a card's tensor is one of another device.
    pub fn linear_values(&self, x: &Tensor, w: &Weight) -> Result<Vec<f32>> {
        let [_, k] = dims("x", x)?;
        equal("the width of x", k, w.k())?;
        Ok(self.products(&x.clone().into(), [w], &|_, _| {})?.remove(0))
    }

    /// activation(x · wᵀ) for products with `weights`, as one job: the first half of a feed-forward layer without a gate. The
    /// bits are those of [`Kernels::linears_of`] and [`Kernels::gate`].
    ///
    /// # Errors
    /// As [`Kernels::linear`].
    pub fn activated(
        &self,
        x: &Operand,
        w: &Weight,
        activation: Activation,
        weights: &[&Weight],
    ) -> Result<Operand> {
        let [m, k] = x.dims()?;
        equal("the width of x", k, w.k())?;
        #[cfg(feature = "card")]
        if self.card().is_some() {
            let [y] = self.linears_of(x, [w])?;
            return self.gate_for(&y, None, activation, weights);
        }
        let n = w.n();
        let mut pairs = self.pairs_of(weights, m, n)?;
        let pairing = Pairing::new(&mut pairs, n);
        let mut outs = self.products(x, [w], &|product, columns| {
            for row in 0..m {
                // SAFETY: the columns are of this task's panels, which it has stored for every row.
                let x = unsafe { known(product.out.part(row * n + columns.start, columns.len())) };
                self.found().run(Activate { x, activation });
                if let Some(pairing) = &pairing {
                    // SAFETY: as above, and a panel's columns are an even number.
                    unsafe { pairing.put(self.found(), row, columns.start, x) };
                }
            }
        })?;
        let out = tensor(outs.remove(0), &[m, n])?;
        // SAFETY: the tasks have every column of every row.
        Ok(Operand(Form::Whole(out, unsafe { written(pairs) })))
    }

    /// As many products as weights, whose widths are that of `x`; `after` each task, for its product and its columns of every
    /// row.
    fn products<const N: usize>(
        &self,
        x: &Operand,
        weights: [&Weight; N],
        after: &(dyn Fn(&Product<'_>, Range<usize>) + Sync),
    ) -> Result<Vec<Vec<f32>>> {
        let [m, k] = x.dims()?;
        let values = Flat::new("x", x.whole()?)?;
        let (x, pairs) = (values.values(), x.pairs());
        let any = |wanted: fn(WeightType) -> bool| weights.iter().any(|w| wanted(w.ty()));
        let blocks = if any(|ty| !ty.is_dense()) { self.blocks(x, m, k)? } else { Vec::new() };
        let made = if pairs.is_empty() { self.pairs(x, &weights, m, k)? } else { Vec::new() };
        let pairs = if pairs.is_empty() { &made } else { pairs };
        let halves = if self.rounds && any(|ty| ty == WeightType::F16) { halved(x, k) } else { Vec::new() };

        let mut outs = Vec::with_capacity(N);
        for w in weights {
            outs.push(room(m * w.n())?);
        }
        let products: Vec<_> = outs
            .iter_mut()
            .zip(weights)
            .map(|(out, weight)| Product { weight, out: Parts::new(out) })
            .collect();
        let tasks: Vec<_> = products.iter().flat_map(|product| self.stretches(product)).collect();
        let task = |i: usize| {
            let (product, first, count) = tasks[i];
            match product.weight.ty() {
                WeightType::Bf16 if self.rounds => paired(self.found(), product, pairs, m, first, count),
                WeightType::F16 if self.rounds => dense(self.found(), product, &halves, m, first, count),
                ty if ty.is_dense() => dense(self.found(), product, x, m, first, count),
                _ => integer(self.found(), product, &blocks, first, count),
            }
            after(product, first * LANES..product.weight.n().min((first + count) * LANES));
        };
        let work = weights.iter().map(|w| w.n()).sum::<usize>() * k * (m + READING);
        if work < ALONE {
            (0..tasks.len()).for_each(task);
        } else {
            self.pool().run(tasks.len(), &task)?;
        }
        drop(products);
        // SAFETY: the tasks have every panel, and each writes its panels for every row.
        Ok(outs.into_iter().map(|out| unsafe { written(out) }).collect())
    }

    /// Quantises `x`, `[m, k]`, in tiles of rows: some columns a task, as products and gates have written them.
    fn blocks(&self, x: &[f32], m: usize, k: usize) -> Result<Vec<Block>> {
        let depth = k / BLOCK;
        let mut blocks = room(m * depth)?;
        let parts = Parts::new(&mut blocks);
        let (count, step) = stretches(depth, BLOCK * m, self.threads());
        self.pool().run(count, &|i| {
            let columns = i * step..depth.min((i + 1) * step);
            for from in (0..m).step_by(TILE) {
                let to = m.min(from + TILE);
                let rows = to - from;
                // SAFETY: tiles are disjoint, and so are stretches of their columns.
                let out = unsafe { parts.part(depth * from + columns.start * rows, columns.len() * rows) };
                self.found().run(Quantise { x: &x[from * k..to * k], rows, blocks: columns.clone(), out });
            }
        })?;
        // SAFETY: the stretches have every column of every tile.
        Ok(unsafe { written(blocks) })
    }

    /// Room for the pairs of activations, `[m, k / 2]`; none where products with `weights` take none.
    pub(crate) fn pairs_of(&self, weights: &[&Weight], m: usize, k: usize) -> Result<Vec<MaybeUninit<Pair>>> {
        let taken = self.rounds && weights.iter().any(|w| w.ty() == WeightType::Bf16);
        room(if taken { m * k.div_ceil(2) } else { 0 })
    }

    /// Rounds `x`, `[m, k]`, to pairs of bfloat16 where products with `weights` take them: some columns a task, as
    /// [`Kernels::blocks`] does.
    fn pairs(&self, x: &[f32], weights: &[&Weight], m: usize, k: usize) -> Result<Vec<Pair>> {
        let mut pairs = self.pairs_of(weights, m, k)?;
        if let Some(pairing) = Pairing::new(&mut pairs, k) {
            let (count, step) = stretches(k.div_ceil(2), 2 * m, self.threads());
            self.pool().run(count, &|i| {
                let columns = 2 * i * step..k.min(2 * (i + 1) * step);
                for (row, x) in x.chunks_exact(k).enumerate() {
                    // SAFETY: stretches of columns are disjoint, and begin at even ones.
                    unsafe { pairing.put(self.found(), row, columns.start, &x[columns.clone()]) };
                }
            })?;
        }
        // SAFETY: the stretches have every column of every row.
        Ok(unsafe { written(pairs) })
    }

    /// Cuts a product into tasks: stretches of panels, each as its first panel and their number; whole bundles where the
    /// weight is a dense one.
    fn stretches<'a>(
        &self,
        product: &'a Product<'a>,
    ) -> impl Iterator<Item = (&'a Product<'a>, usize, usize)> {
        let panels = product.weight.n().div_ceil(LANES);
        let step = (CHUNK / product.weight.panel_bytes()).min(panels / (8 * self.threads())).max(1);
        let step = if product.weight.ty().is_dense() { step.next_multiple_of(BUNDLE) } else { step };
        (0..panels).step_by(step).map(move |first| (product, first, step.min(panels - first)))
    }

    /// The rows of `w` that `tokens` name, `[m, k]`.
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if a token is not below `n`.
    pub fn embed(&self, tokens: &Words, w: &Weight) -> Result<Tensor> {
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= w.n()) {
            return Err(Error::range(format!("token {token} is not below the vocabulary's {}", w.n())));
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card::embed(card, tokens, w);
        }
        let mut out = Vec::with_capacity(tokens.len() * w.k());
        for &token in tokens.iter() {
            out.extend(w.row(token as usize)?);
        }
        tensor(out, &[tokens.len(), w.k()])
    }
}

/// Rows of `k` numbers as a card rounds them for weights in half precision: one that is too large is scaled by a power of
/// two.
fn halved(x: &[f32], k: usize) -> Vec<f32> {
    let row = |row: &[f32]| -> Vec<f32> {
        let greatest = row.iter().fold(0.0_f32, |greatest, x| greatest.max(x.abs()));
        let exponent = (greatest.to_bits() >> 23) as i32 - 127;
        let up = if (15..128).contains(&exponent) { 2f32.powi(exponent - 14) } else { 1.0 };
        row.iter().map(|x| f16::from_f32(x / up).to_f32() * up).collect()
    };
    x.chunks(k.max(1)).flat_map(row).collect()
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
