//! Matrix products with packed weights: y = x · wᵀ, and the look-up of a weight's rows.
//!
//! A product is split over outputs only. Each output sums its inputs from first to last in a fixed
//! order of rounded operations, the same for one row and for five hundred, so a row's result never
//! depends on the rows beside it. What many rows gain is that a block of weights is unpacked once
//! for all of them.

use candle_core::Tensor;

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Arg, Buffer, Card, address, address_mut, count, start_mut};
use crate::dense::{SIDE, dense};
use crate::error::{Error, Result};
use crate::flat::{Flat, dims, equal, tensor, zeros};
use crate::formats::WeightType;
use crate::integer::Integer;
use crate::isa::Found;
use crate::lanes::LANES;
use crate::pool::Parts;
use crate::quantise::{BLOCK, Block, Quantise, TILE};
use crate::weight::Weight;
#[cfg(feature = "card")]
use crate::weight::stride;
use crate::words::Words;

/// Bytes of panels that a task walks for every tile of rows: half of a small second-level cache.
const CHUNK: usize = 128 << 10;

/// A weight is read in the time of so many multiplications with it.
const READING: usize = 4;

/// Below so many multiplications, a microsecond, calling the other threads costs more than they give.
const ALONE: usize = 100_000;

/// One product, seen from a task.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Weight,
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
        let [y] = self.linears(x, [w])?;
        Ok(y)
    }

    /// [`Kernels::linear`] of one `x` with several weights, as one job: the same bits, and `x` is
    /// quantised once.
    ///
    /// # Errors
    /// As [`Kernels::linear`].
    pub fn linears<const N: usize>(&self, x: &Tensor, weights: [&Weight; N]) -> Result<[Tensor; N]> {
        let [m, k] = dims("x", x)?;
        for w in weights {
            equal("the width of x", k, w.k())?;
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card(card, x, weights);
        }
        let x = Flat::new("x", x)?;
        let blocks = if weights.iter().all(|w| w.ty().is_dense()) {
            Vec::new()
        } else {
            self.blocks(x.values(), m, k)?
        };

        let mut outs = Vec::with_capacity(N);
        for w in weights {
            outs.push(zeros(m * w.n())?);
        }
        let products: Vec<_> = outs
            .iter_mut()
            .zip(weights)
            .map(|(out, weight)| Product { weight, out: Parts::new(out) })
            .collect();
        let tasks: Vec<_> = products.iter().flat_map(|product| self.stretches(product)).collect();
        let task = |i: usize| {
            let (product, first, count) = tasks[i];
            if product.weight.ty().is_dense() {
                dense(self.found(), product, x.values(), first, count);
            } else {
                integer(self.found(), product, &blocks, first, count);
            }
        };
        let work = weights.iter().map(|w| w.n()).sum::<usize>() * k * (m + READING);
        if work < ALONE {
            (0..tasks.len()).for_each(task);
        } else {
            self.pool().run(tasks.len(), &task)?;
        }
        drop(products);
        let results = outs.into_iter().zip(weights).map(|(out, w)| tensor(out, &[m, w.n()]));
        let results: Vec<_> = results.collect::<Result<_>>()?;
        // As many results as weights: the conversion cannot fail.
        results.try_into().map_err(|_| Error::shape("products and weights differ in number"))
    }

    /// Quantises `x`, `[m, k]`, in tiles of rows.
    fn blocks(&self, x: &[f32], m: usize, k: usize) -> Result<Vec<Block>> {
        let mut blocks = vec![Block::default(); x.len() / BLOCK];
        let parts = Parts::new(&mut blocks);
        self.pool().run(m.div_ceil(TILE), &|tile| {
            let (from, to) = (tile * TILE, m.min((tile + 1) * TILE));
            // SAFETY: tiles are disjoint.
            let out = unsafe { parts.part(k / BLOCK * from, k / BLOCK * (to - from)) };
            self.found().run(Quantise { x: &x[from * k..to * k], rows: to - from, out });
        })?;
        Ok(blocks)
    }

    /// Cuts a product into tasks: stretches of panels, each as its first panel and their number.
    fn stretches<'a>(
        &self,
        product: &'a Product<'a>,
    ) -> impl Iterator<Item = (&'a Product<'a>, usize, usize)> {
        let panels = product.weight.n().div_ceil(LANES);
        let step = (CHUNK / product.weight.panel_bytes()).min(panels / (8 * self.threads()));
        let step = if product.weight.ty().is_dense() { step.next_multiple_of(SIDE) } else { step }.max(1);
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
            return embed(card, tokens, w);
        }
        let mut out = Vec::with_capacity(tokens.len() * w.k());
        for &token in tokens.iter() {
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

/// What a product on a card multiplies, made once for all weights that want it.
#[cfg(feature = "card")]
struct Operands<'a> {
    card: &'a Card,
    x: &'a Tensor,
    m: usize,
    k: usize,
    blocks: Option<Buffer>,
    /// Numbers of sixteen bits and what scales their rows, by the weight's type.
    rounded: Vec<(WeightType, [Buffer; 2])>,
}

#[cfg(feature = "card")]
impl Operands<'_> {
    /// Activations as bytes: [`Block`]s, `[m, k / 32]`.
    fn blocks(&mut self) -> Result<Arg<'static>> {
        if self.blocks.is_none() {
            let all = self.m * self.k / BLOCK;
            let blocks = self.card.scratch(all * size_of::<Block>())?;
            let args = [address("x", self.x)?, blocks.address(), count(all)];
            // SAFETY: x holds 32 numbers a block, and there is room for every block.
            unsafe { self.card.launch("quantise", [all.div_ceil(8), 1, 1], 256, &args) }?;
            self.blocks = Some(blocks);
        }
        Ok(self.blocks.as_ref().map_or(Arg::Address(0), Buffer::address))
    }

    /// Activations as numbers of `ty`, `[m, stride]`, and what scales each row.
    fn rounded(&mut self, ty: WeightType, stride: usize) -> Result<[Arg<'static>; 2]> {
        if let Some((_, found)) = self.rounded.iter().find(|(found, _)| *found == ty) {
            return Ok(found.each_ref().map(Buffer::address));
        }
        let made = [self.card.scratch(self.m * stride * 2)?, self.card.scratch(self.m * size_of::<f32>())?];
        let [to, scales] = made.each_ref().map(Buffer::address);
        let args = [address("x", self.x)?, to, scales, count(self.k), count(stride)];
        let kernel = if ty == WeightType::F16 { "round_f16" } else { "round_bf16" };
        // SAFETY: there is room for every row and its scale.
        unsafe { self.card.launch(kernel, [self.m, 1, 1], 256, &args) }?;
        self.rounded.push((ty, made));
        Ok([to, scales])
    }

    /// The products with weights of one type, as one launch.
    fn products(&mut self, weights: &[&Weight]) -> Result<Vec<Tensor>> {
        let (m, k) = (self.m, self.k);
        let (mut outs, mut places) = (Vec::with_capacity(weights.len()), [0; 3 * PRODUCTS]);
        for (index, w) in weights.iter().enumerate() {
            let weight = w.on_card().ok_or_else(|| Error::shape("the weight is on another device"))?;
            let out = self.card.output(&[m, w.n()])?;
            places[index] = weight.start();
            places[PRODUCTS + index] = start_mut(&out)?;
            places[2 * PRODUCTS + index] = w.n() as u64;
            outs.push(out);
        }
        let stretches = |width| weights.iter().map(|w| w.n().div_ceil(width)).sum();
        let products = Arg::Words(&places);
        let (kernel, grid, args) = match weights[0].ty() {
            WeightType::F32 => {
                let (kernel, rows) = if m == 1 { ("dense_f32_1", 1) } else { ("dense_f32_8", 8) };
                let args = vec![products, address("x", self.x)?, count(m), count(k)];
                (kernel, [stretches(8), m.div_ceil(rows), 1], args)
            }
            ty @ (WeightType::F16 | WeightType::Bf16) => {
                let stride = stride(ty, k);
                let [x, scales] = self.rounded(ty, stride)?;
                let (tall, wide) = match m {
                    0..=16 => (1, 2),
                    17..=32 => (2, 4),
                    _ => (4, 4),
                };
                let kernel = match (ty, tall) {
                    (WeightType::F16, 1) => "dense_f16_1",
                    (WeightType::F16, 2) => "dense_f16_2",
                    (WeightType::F16, _) => "dense_f16_4",
                    (_, 1) => "dense_bf16_1",
                    (_, 2) => "dense_bf16_2",
                    _ => "dense_bf16_4",
                };
                let args = vec![products, x, scales, count(m), count(stride)];
                (kernel, [m.div_ceil(16 * tall), stretches(8 * wide), 1], args)
            }
            ty => {
                let (kernel, rows) = integer_kernel(ty, m);
                let args = vec![products, self.blocks()?, count(m), count(k)];
                let (panels, rows) = (stretches(LANES), m.div_ceil(rows));
                // Many rows: those that read a panel follow each other, so that it is read from memory once.
                (kernel, if m > 8 { [rows, panels, 1] } else { [panels, rows, 1] }, args)
            }
        };
        // SAFETY: x, the weights and their outputs have these sizes.
        unsafe { self.card.launch(kernel, grid, 256, &args) }?;
        Ok(outs)
    }
}

/// Products of one launch.
#[cfg(feature = "card")]
const PRODUCTS: usize = 4;

/// The integer kernel of a type for so many rows, and the rows that it takes at a time.
#[cfg(feature = "card")]
fn integer_kernel(ty: WeightType, m: usize) -> (&'static str, usize) {
    macro_rules! rows {
        ($name:literal) => {
            match m {
                1 => (concat!("integer_", $name, "_1"), 1),
                2 => (concat!("integer_", $name, "_2"), 2),
                3 | 4 => (concat!("integer_", $name, "_4"), 4),
                5..=8 => (concat!("integer_", $name, "_8"), 8),
                9..=16 => (concat!("integer_", $name, "_16"), 16),
                _ => (concat!("integer_", $name, "_32"), if ty == WeightType::Q6K { 16 } else { 32 }),
            }
        };
    }
    match ty {
        WeightType::Q4_0 => rows!("q4_0"),
        WeightType::Q4_1 => rows!("q4_1"),
        WeightType::Q5_0 => rows!("q5_0"),
        WeightType::Q5_1 => rows!("q5_1"),
        WeightType::Q8_0 => rows!("q8_0"),
        WeightType::Q4K => rows!("q4_k"),
        WeightType::Q5K => rows!("q5_k"),
        _ => rows!("q6_k"),
    }
}

#[cfg(feature = "card")]
fn on_card<const N: usize>(card: &Card, x: &Tensor, weights: [&Weight; N]) -> Result<[Tensor; N]> {
    let [m, k] = dims("x", x)?;
    let mut operands = Operands { card, x, m, k, blocks: None, rounded: Vec::new() };
    let mut outs: [Option<Tensor>; N] = [const { None }; N];
    let mut order: Vec<usize> = (0..N).collect();
    order.sort_by_key(|&at| weights[at].ty() as usize);
    let launches = order.chunk_by(|&a, &b| weights[a].ty() == weights[b].ty());
    for places in launches.flat_map(|places| places.chunks(PRODUCTS)) {
        let some: Vec<&Weight> = places.iter().map(|&at| weights[at]).collect();
        for (&at, out) in places.iter().zip(operands.products(&some)?) {
            outs[at] = Some(out);
        }
    }
    let outs: Vec<Tensor> = outs.into_iter().flatten().collect();
    // Every weight was in a launch: the conversion cannot fail.
    outs.try_into().map_err(|_| Error::shape("products and weights differ in number"))
}

#[cfg(feature = "card")]
fn embed(card: &Card, tokens: &Words, w: &Weight) -> Result<Tensor> {
    let weight = w.on_card().ok_or_else(|| Error::shape("the weight is on another device"))?;
    let (out, words) = (card.output(&[tokens.len(), w.k()])?, card.words(tokens)?);
    let row_bytes = stride(w.ty(), w.k()) * w.ty().block_bytes();
    let args = [
        weight.address(),
        Arg::Address(words),
        address_mut(&out)?,
        count(w.k()),
        count(w.ty() as usize),
        count(row_bytes),
    ];
    // SAFETY: tokens are below n, and the output has room for their rows.
    unsafe { card.launch("embed", [tokens.len(), 1, 1], 256, &args) }?;
    Ok(out)
}
