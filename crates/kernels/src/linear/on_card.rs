//! Products on a card: which kernel takes which rows, and what they are given.

use std::sync::Arc;

use candle_core::Tensor;

use crate::card::{Arg, Buffer, Card, address, address_mut, count, start_mut};
use crate::error::{Error, Result};
use crate::flat::dims;
use crate::formats::WeightType;
use crate::lanes::LANES;
use crate::quantise::{BLOCK, Block, TILE};
use crate::units::UnitLayout;
use crate::weight::{Weight, stride};
use crate::words::Words;

/// What a product on a card multiplies, made once for all weights that want it.
struct Operands<'a> {
    card: &'a Card,
    x: &'a Tensor,
    m: usize,
    k: usize,
    bytes: Option<Arc<Buffer>>,
    /// Numbers of sixteen bits and what scales their rows, by the weight's type.
    rounded: Vec<(WeightType, [Arc<Buffer>; 2])>,
}

impl Operands<'_> {
    /// Activations as bytes: [`Block`]s, `[m, k / 32]`, or tiles of many rows, `[m / 16, k / 32]`.
    fn bytes(&mut self) -> Result<Arg<'static>> {
        if let Some(found) = &self.bytes {
            return Ok(found.address());
        }
        let (x, depth) = (address("x", self.x)?, self.k / BLOCK);
        let rows = if self.m > FEW { self.m.next_multiple_of(TILE) } else { self.m };
        // What stands in a tile is less by the sums of halves.
        let each = size_of::<Block>() - if self.m > FEW { size_of::<[i32; 2]>() } else { 0 };
        let made = self.card.scratch(rows * depth * each)?;
        let (kernel, args) = if self.m > FEW {
            ("quantise_tiles", vec![x, made.address(), count(self.m), count(depth)])
        } else {
            ("quantise", vec![x, made.address(), count(rows * depth)])
        };
        // SAFETY: x holds 32 numbers a block, and there is room for every block.
        unsafe { self.card.launch(kernel, [(rows * depth).div_ceil(8), 1, 1], 256, &args) }?;
        Ok(self.bytes.insert(made).address())
    }

    /// Activations as numbers of `ty`, `[m, stride]`, and what scales each row.
    fn rounded(&mut self, ty: WeightType, stride: usize) -> Result<[Arg<'static>; 2]> {
        if let Some((_, found)) = self.rounded.iter().find(|(found, _)| *found == ty) {
            return Ok(found.each_ref().map(|found| found.address()));
        }
        let made = [self.card.scratch(self.m * stride * 2)?, self.card.scratch(self.m * size_of::<f32>())?];
        let [to, scales] = made.each_ref().map(|made| made.address());
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
                let args = vec![products, x, scales, count(m), count(stride)];
                if m > FEW {
                    self.many(ty, stretches(OUTPUTS), args)?;
                    return Ok(outs);
                }
                let kernel = if ty == WeightType::F16 { "dense_f16_16" } else { "dense_bf16_16" };
                (kernel, [stretches(LANES), 1, 1], args)
            }
            ty => {
                let (panels, args) = (stretches(LANES), vec![products, self.bytes()?, count(m), count(k)]);
                if m > FEW {
                    self.many_quantised(ty, panels, args)?;
                    return Ok(outs);
                }
                (integer_kernel(ty, m), [panels, 1, 1], args)
            }
        };
        // SAFETY: x, the weights and their outputs have these sizes.
        unsafe { self.card.launch(kernel, grid, 256, &args) }?;
        Ok(outs)
    }

    /// The products of many rows with quantised weights: a block takes up to [`TALL`] tiles of rows and [`WIDE`] panels,
    /// fewer of both where processors would have none.
    fn many_quantised(&self, ty: WeightType, panels: usize, mut args: Vec<Arg<'_>>) -> Result<()> {
        let (tiles, processors) = (self.m.div_ceil(TILE), self.card.processors());
        let rows = tiles.div_ceil(TALL).max((processors / panels).min(tiles));
        let tall = tiles.div_ceil(rows);
        let wide = (8 * panels * rows / (7 * processors)).clamp(1, WIDE.min(BLOCK_WARPS / tall));
        args.extend([count(tall), count(wide), count(panels)]);
        let layout = UnitLayout::of(ty);
        let packed = STEP_BLOCKS / layout.blocks * layout.bytes();
        let unpacked = STEP_BLOCKS * LANES * (BLOCK + 2 * size_of::<f32>());
        let shared = wide * (RING * packed + 2 * unpacked);
        let (grid, threads) = ([tiles.div_ceil(tall), panels.div_ceil(wide), 1], 32 * tall * wide);
        // SAFETY: x, the weights and their outputs have these sizes, and a block's panels their place.
        unsafe { self.card.launch_with(integer_kernel(ty, self.m), grid, threads, shared, &args) }
    }

    /// The products of many rows with weights of sixteen bits: a block a processor, each with an equal share of the
    /// chains of all outputs, [`OUTPUTS`] at a time.
    fn many(&self, ty: WeightType, outputs: usize, mut args: Vec<Arg<'_>>) -> Result<()> {
        let (kernel, tall) = match (ty, self.m) {
            (WeightType::F16, 0..=32) => ("dense_f16_32", 1),
            (WeightType::F16, 33..=64) => ("dense_f16_64", 2),
            (WeightType::F16, _) => ("dense_f16_128", 4),
            (_, 0..=32) => ("dense_bf16_32", 1),
            (_, 33..=64) => ("dense_bf16_64", 2),
            _ => ("dense_bf16_128", 4),
        };
        let tile = 32 * tall;
        let rows = self.m.div_ceil(tile);
        // Every block has some: whoever adds up counts on hearing from all of them.
        let blocks = self.card.processors().min(rows * outputs * CHAINS);
        // What a block hands over: the sums of its last outputs, and those of chains whose first ones are another's.
        let slots = 1 + (rows * outputs * CHAINS).div_ceil(blocks).min(CHAINS - 1);
        let handed = self.card.scratch(handed(blocks, slots, tile))?;
        let met = self.card.counters(rows * outputs)?;
        args.extend([count(rows), count(outputs), count(slots), handed.address(), met.address()]);
        let stages = if tall == 4 { 3 } else { 4 };
        let shared = stages * (tile + OUTPUTS) * STEP * 2;
        // SAFETY: x, the weights and their outputs have these sizes, and every block has its slots.
        unsafe { self.card.launch_with(kernel, [blocks, 1, 1], 256, shared, &args) }
    }
}

/// Bytes that so many blocks hand over: in each slot the sums of so many rows.
fn handed(blocks: usize, slots: usize, rows: usize) -> usize {
    blocks * slots * rows * OUTPUTS * size_of::<f32>()
}

/// Bytes that a product takes beside activations and results, at most: what blocks of the largest tile hand over.
pub(crate) fn scratch(card: &Card) -> usize {
    handed(card.processors(), CHAINS, MOST)
}

/// Products of one launch.
const PRODUCTS: usize = 4;

/// Rows whose products read weights straight from memory.
const FEW: usize = 16;

/// Outputs that a block takes for more rows than that, where weights have sixteen bits.
const OUTPUTS: usize = 128;

/// Rows of such a block, at most.
const MOST: usize = 128;

/// Inputs that are copied at a time, and chains into which all are cut.
const STEP: usize = 64;
const CHAINS: usize = 8;

/// Tiles of rows and panels that a block takes where weights are quantised, and its warps, at most: one for each of both.
const TALL: usize = 8;
const WIDE: usize = 4;
const BLOCK_WARPS: usize = 16;

/// Blocks of inputs that are unpacked at a time, and such steps that are copied ahead.
const STEP_BLOCKS: usize = 8;
const RING: usize = 3;

/// The integer kernel of a type for so many rows.
fn integer_kernel(ty: WeightType, m: usize) -> &'static str {
    macro_rules! rows {
        ($name:literal) => {
            match m {
                1 => concat!("integer_", $name, "_1"),
                2 => concat!("integer_", $name, "_2"),
                3 | 4 => concat!("integer_", $name, "_4"),
                5..=8 => concat!("integer_", $name, "_8"),
                9..=FEW => concat!("integer_", $name, "_16"),
                _ => concat!("integer_", $name, "_128"),
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

pub(super) fn linears<const N: usize>(card: &Card, x: &Tensor, weights: [&Weight; N]) -> Result<[Tensor; N]> {
    let [m, k] = dims("x", x)?;
    let mut operands = Operands { card, x, m, k, bytes: None, rounded: Vec::new() };
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

pub(super) fn embed(card: &Card, tokens: &Words, w: &Weight) -> Result<Tensor> {
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
