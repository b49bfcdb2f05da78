//! Products on a card: which kernel takes which rows, and what they are given.

use std::sync::Arc;

use candle_core::Tensor;

use crate::card::{Arg, Buffer, Card, address, address_mut, count, start, start_mut};
use crate::error::{Error, Result};
use crate::flat::dims;
use crate::formats::WeightType;
use crate::lanes::LANES;
use crate::quantise::{BLOCK, Block, TILE};
use crate::units::UnitLayout;
use crate::weight::Weight;
use crate::words::Words;

/// What a product on a card multiplies, made once for all weights that want it.
struct Operands<'a> {
    card: &'a Card,
    x: &'a Tensor,
    m: usize,
    k: usize,
    bytes: Option<Arc<Buffer>>,
    /// Numbers of sixteen bits, by the weight's type, and what undoes their scaling.
    rounded: Vec<(WeightType, Arc<Buffer>, Option<Arc<Buffer>>)>,
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

    /// Activations as numbers of `ty` in pieces, `[m / 8, depth]`, and what undoes each row's scaling, where there is some.
    fn rounded(&mut self, ty: WeightType, depth: usize) -> Result<[Arg<'static>; 2]> {
        let address =
            |scales: &Option<Arc<Buffer>>| scales.as_ref().map_or(Arg::Address(0), |scales| scales.address());
        if let Some((_, found, scales)) = self.rounded.iter().find(|(found, ..)| *found == ty) {
            return Ok([found.address(), address(scales)]);
        }
        let made = self.card.scratch(self.m.next_multiple_of(ROWS) * depth * STEP * 2)?;
        let x = start("x", self.x)?;
        let (k, eights) = (count(self.k), depth * STEP / ROWS);
        let scales = if ty == WeightType::F16 {
            let scales = self.card.scratch(self.m * size_of::<f32>())?;
            let args = [Arg::Address(x), made.address(), scales.address(), k, count(depth)];
            // SAFETY: there is room for every row and its scale.
            unsafe { self.card.launch("round_f16", [self.m, 1, 1], 512, &args) }?;
            Some(scales)
        } else {
            let args = [Arg::Address(x), made.address(), k, count(depth)];
            // SAFETY: there is room for every row.
            unsafe { self.card.launch("round_bf16", [eights.div_ceil(256), self.m, 1], 256, &args) }?;
            None
        };
        let found = [made.address(), address(&scales)];
        self.rounded.push((ty, made, scales));
        Ok(found)
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
                let depth = k.div_ceil(STEP);
                let [x, scales] = self.rounded(ty, depth)?;
                if m > FEW {
                    let sizes: Vec<usize> = weights.iter().map(|w| w.n()).collect();
                    self.many(ty, &sizes, &mut places, [x, scales], depth)?;
                    return Ok(outs);
                }
                let strips = weights.iter().map(|w| w.n().div_ceil(8 * WARPS / chains(w.n()))).sum::<usize>();
                let args = [products, x, scales, count(m), count(depth), count(strips)];
                let kernel = if ty == WeightType::F16 { "dense_f16_16" } else { "dense_bf16_16" };
                let (blocks, shared) = (strips.min(2 * self.card.processors()), WARPS * RING_PIECES * PIECE);
                // SAFETY: x, the weights and their outputs have these sizes.
                unsafe { self.card.launch_with(kernel, [blocks, 1, 1], 256, shared, &args) }?;
                return Ok(outs);
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

    /// The products of many rows with weights of sixteen bits: a block a chain and so many outputs that processors have
    /// as much to do as each other.
    fn many(
        &self,
        ty: WeightType,
        sizes: &[usize],
        places: &mut [u64; 3 * PRODUCTS],
        [x, scales]: [Arg<'_>; 2],
        depth: usize,
    ) -> Result<()> {
        let (m, card) = (self.m, self.card);
        let (kernel, tall) = match (ty, m) {
            (WeightType::F16, 0..=32) => ("dense_f16_32", 1),
            (WeightType::F16, 33..=64) => ("dense_f16_64", 2),
            (WeightType::F16, _) => ("dense_f16_128", 4),
            (_, 0..=32) => ("dense_bf16_32", 1),
            (_, 33..=64) => ("dense_bf16_64", 2),
            _ => ("dense_bf16_128", 4),
        };
        let blocks = m.div_ceil(32 * tall);
        let width = width(sizes, 4 * tall, blocks, card.processors(), card.room());
        let tasks = sizes.iter().map(|&n| tasks(n, width)).sum();
        // Where there are several chains, their sums come first, and then what adds them up.
        let (mut joined, mut parts) = ([0; 3 * PRODUCTS], Vec::new());
        for (at, &n) in sizes.iter().enumerate().filter(|(_, n)| chains(**n) > 1) {
            let part = card.scratch(chains(n) * m * n * size_of::<f32>())?;
            let place = parts.len();
            (joined[place], joined[PRODUCTS + place]) = (part.start(), places[PRODUCTS + at]);
            (joined[2 * PRODUCTS + place], places[PRODUCTS + at]) = (n as u64, part.start());
            parts.push(part);
        }
        let args = [Arg::Words(&*places), x, scales, count(m), count(depth), count(width)];
        let shared = STAGES * (4 * tall + width) * PIECE;
        // SAFETY: x, the weights and their outputs or chains have these sizes.
        unsafe { card.launch_with(kernel, [tasks, blocks, 1], 256, shared, &args) }?;
        let longest = sizes.iter().filter(|n| chains(**n) > 1).max();
        let Some(longest) = longest else { return Ok(()) };
        let args = [Arg::Words(&joined), scales, count(m)];
        let blocks = (m * longest).div_ceil(4 * 256).min(8 * card.processors());
        // SAFETY: all chains are there, and so are the outputs.
        unsafe { card.launch("join", [blocks, parts.len(), 1], 256, &args) }
    }
}

/// Chains into which inputs are cut for a weight of sixteen bits with `n` outputs; dense.cu has the same.
const fn chains(n: usize) -> usize {
    match n {
        0..3072 => 8,
        3072..8192 => 4,
        8192..16_384 => 2,
        _ => 1,
    }
}

/// Blocks of a product, each with one chain of `width` eights of outputs.
const fn tasks(n: usize, width: usize) -> usize {
    n.div_ceil(8 * width) * chains(n)
}

/// Eights of outputs of a block that has `rows` eights of rows, where there are `blocks` such stretches of rows: so that
/// the busiest processor is done first. Rows come from the second-level cache, so they cost half; and blocks
/// that leave no room for a second one cannot prepare while another works.
fn width(sizes: &[usize], rows: usize, blocks: usize, processors: usize, room: usize) -> usize {
    let bytes = |width| STAGES * (rows + width) * PIECE;
    let cost = |&width: &usize| {
        let tasks = blocks * sizes.iter().map(|&n| tasks(n, width)).sum::<usize>();
        let alone = rows > 8 || 2 * bytes(width) > room;
        tasks.div_ceil(processors) * (2 * width + rows + if alone { 12 } else { 6 })
    };
    (1..=WIDEST).filter(|&width| bytes(width) <= room).min_by_key(cost).unwrap_or(1)
}

/// Bytes that a pass's products take beside activations and results, at most: the chains of three that are one launch.
pub(crate) fn scratch() -> usize {
    const PASS: usize = 256;
    3 * PASS * 4 * 8192 * size_of::<f32>()
}

/// Products of one launch.
const PRODUCTS: usize = 4;

/// Rows whose products read weights straight from memory.
const FEW: usize = 16;

/// Inputs of a piece, and its rows or outputs, where weights have sixteen bits; and its bytes.
pub(crate) const STEP: usize = 64;
pub(crate) const ROWS: usize = 8;
pub(crate) const PIECE: usize = STEP * ROWS * 2;

/// Warps of a block, and pieces of each one's ring.
const WARPS: usize = 8;
const RING_PIECES: usize = 8;

/// Steps that a block of many rows copies ahead or uses, and the eights of outputs that it takes, at most.
const STAGES: usize = 4;
const WIDEST: usize = 24;

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
    let args =
        [weight.address(), Arg::Address(words), address_mut(&out)?, count(w.k()), count(w.ty() as usize)];
    // SAFETY: tokens are below n, and the output has room for their rows.
    unsafe { card.launch("embed", [tokens.len(), 1, 1], 256, &args) }?;
    Ok(out)
}
