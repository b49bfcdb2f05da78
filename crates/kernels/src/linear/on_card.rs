//! Products on a card: which kernel takes which rows, and what they are given.

use std::borrow::Cow;

use candle_core::Tensor;

use crate::card::{Arg, Card, address, address_mut, count, start_mut};
use crate::error::{Error, Result};
use crate::flat::dims;
use crate::formats::WeightType;
use crate::lanes::LANES;
use crate::operand::{FEW, Form, Handed, Kind, Made, Operand};
use crate::pieces::{PIECE, ROWS, STEP};
use crate::quantise::{BLOCK, TILE};
use crate::units::UnitLayout;
use crate::weight::Weight;
use crate::words::Words;

/// What a product on a card multiplies, made once for all weights that want it.
struct Operands<'a> {
    card: &'a Card,
    whole: Option<&'a Tensor>,
    m: usize,
    k: usize,
    made: Vec<Cow<'a, Made>>,
}

impl Operands<'_> {
    /// Activations as products with weights of `ty` take them, and what undoes the scaling of their rows, if anything does.
    fn form(&mut self, ty: WeightType) -> Result<[Arg<'static>; 2]> {
        let (kind, m, k) = (Kind::of(ty, self.m), self.m, self.k);
        let whole = || self.whole.ok_or_else(|| Error::shape("activations that were made for other weights"));
        if kind == Kind::Whole {
            return Ok([address("x", whole()?)?, Arg::Address(0)]);
        }
        if let Some(made) = self.made.iter().find(|made| made.kind == kind) {
            return Ok(made.args());
        }
        let (x, depth) = (address("x", whole()?)?, kind.depth(k));
        let Handed::Made(made) = Handed::new(self.card, kind, m, k)? else {
            return Err(Error::shape("a form that is none"));
        };
        let [to, scales] = made.args();
        let eights = depth * STEP / ROWS;
        let (kernel, grid, threads, args) = match kind {
            Kind::F16 => ("round_f16", [m, 1, 1], 512, vec![x, to, scales, count(k), count(depth)]),
            Kind::Bf16 => {
                ("round_bf16", [eights.div_ceil(256), m, 1], 256, vec![x, to, count(k), count(depth)])
            }
            Kind::Tiles => {
                let rows = m.next_multiple_of(TILE);
                (
                    "quantise_tiles",
                    [(rows * depth).div_ceil(8), 1, 1],
                    256,
                    vec![x, to, count(m), count(depth)],
                )
            }
            _ => ("quantise", [(m * depth).div_ceil(8), 1, 1], 256, vec![x, to, count(m * depth)]),
        };
        // SAFETY: there is room for every row in this form.
        unsafe { self.card.launch(kernel, grid, threads, &args) }?;
        self.made.push(Cow::Owned(made));
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
                let [x, _] = self.form(WeightType::F32)?;
                (kernel, [stretches(8), m.div_ceil(rows), 1], vec![products, x, count(m), count(k)])
            }
            ty @ (WeightType::F16 | WeightType::Bf16) => {
                let sizes: Vec<usize> = weights.iter().map(|w| w.n()).collect();
                if m > FEW { self.many(ty, &sizes, &mut places) } else { self.few(ty, &sizes, &places) }?;
                return Ok(outs);
            }
            ty => {
                let [x, _] = self.form(ty)?;
                let (panels, args) = (stretches(LANES), vec![products, x, count(m), count(k)]);
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

    /// The products of up to sixteen rows with weights of sixteen bits.
    fn few(&mut self, ty: WeightType, sizes: &[usize], places: &[u64; 3 * PRODUCTS]) -> Result<()> {
        let (card, depth) = (self.card, self.k.div_ceil(STEP));
        let [x, scales] = self.form(ty)?;
        let (blocks, plan) = turns(sizes, depth, 2 * card.processors());
        let args = [Arg::Words(places), Arg::Words(&plan), x, scales, count(self.m), count(depth)];
        let kernel = if ty == WeightType::F16 { "dense_f16_16" } else { "dense_bf16_16" };
        // SAFETY: x, the weights and their outputs have these sizes.
        unsafe { card.launch_with(kernel, [blocks, 1, 1], 256, WARPS * RING_PIECES * PIECE, &args) }
    }

    /// The products of many rows with weights of sixteen bits: a block a chain and so many outputs that processors have
    /// as much to do as each other.
    fn many(&mut self, ty: WeightType, sizes: &[usize], places: &mut [u64; 3 * PRODUCTS]) -> Result<()> {
        let (m, card, depth) = (self.m, self.card, self.k.div_ceil(STEP));
        let [x, scales] = self.form(ty)?;
        let (kernel, tall) = match (ty, m) {
            (WeightType::F16, 0..=32) => ("dense_f16_32", 1),
            (WeightType::F16, 33..=64) => ("dense_f16_64", 2),
            (WeightType::F16, _) => ("dense_f16_128", 4),
            (_, 0..=32) => ("dense_bf16_32", 1),
            (_, 33..=64) => ("dense_bf16_64", 2),
            _ => ("dense_bf16_128", 4),
        };
        let rows = 4 * tall;
        let stretches = m.div_ceil(8 * rows);
        let width = width(sizes, depth, rows, stretches, card);
        let stage = (rows + width) * PIECE;
        let stages = (card.room() / stage).min(STAGES);
        let tasks: Vec<usize> = sizes.iter().map(|&n| tasks(n, depth, width)).collect();
        let chains: Vec<usize> = sizes.iter().map(|&n| chains(n, depth)).collect();
        // Where there are several chains, their sums come first, and then what adds them up.
        let (mut joined, mut parts, mut counts) = ([0; 3 * PRODUCTS], Vec::new(), Vec::new());
        for (at, (&n, &chains)) in
            sizes.iter().zip(&chains).enumerate().filter(|(_, (_, chains))| **chains > 1)
        {
            let part = card.scratch(chains * m * n * size_of::<f32>())?;
            let place = parts.len();
            (joined[place], joined[PRODUCTS + place]) = (part.start(), places[PRODUCTS + at]);
            (joined[2 * PRODUCTS + place], places[PRODUCTS + at]) = (n as u64, part.start());
            parts.push(part);
            counts.push(chains);
        }
        let plans = [plan(&chains, &tasks), plan(&counts, &[])];
        let args = [
            Arg::Words(&*places),
            Arg::Words(&plans[0]),
            x,
            scales,
            count(m),
            count(depth),
            count(width),
            count(stages),
        ];
        let grid = [tasks.iter().sum(), stretches, 1];
        // SAFETY: x, the weights and their outputs or chains have these sizes.
        unsafe { card.launch_with(kernel, grid, 256, stages * stage, &args) }?;
        let longest = sizes.iter().zip(&chains).filter(|(_, chains)| **chains > 1).map(|(n, _)| n).max();
        let Some(longest) = longest else { return Ok(()) };
        let args = [Arg::Words(&joined), Arg::Words(&plans[1]), scales, count(m)];
        let blocks = (m * longest).div_ceil(4 * 256).min(8 * card.processors());
        // SAFETY: all chains are there, and so are the outputs.
        unsafe { card.launch("add_chains", [blocks, parts.len(), 1], 256, &args) }
    }
}

/// How outputs are dealt out, as kernels of dense products are told: of each product its chains, and where its turns or
/// tasks end among all.
fn plan(chains: &[usize], counts: &[usize]) -> [u64; PRODUCTS] {
    let mut end = 0;
    let [a, b, c, d] = std::array::from_fn(|at| {
        end += counts.get(at).copied().unwrap_or(0);
        [chains.get(at).copied().unwrap_or(1) as u64, end as u64]
    });
    [a[0] | b[0] << 32, c[0] | d[0] << 32, a[1] | b[1] << 32, c[1] | d[1] << 32]
}

/// The blocks of products of up to sixteen rows, at most so many, and their plan. A turn gives each of a block's warps a
/// chain of eight outputs; where there is but one chain, no turn is begun before every block has its share.
fn turns(sizes: &[usize], depth: usize, most: usize) -> (usize, [u64; PRODUCTS]) {
    let chains: Vec<usize> = sizes.iter().map(|&n| chains(n, depth)).collect();
    let items = || sizes.iter().zip(&chains).map(|(n, chains)| n.div_ceil(ROWS) * chains);
    let blocks = items().map(|items| items.div_ceil(WARPS)).sum::<usize>().min(most);
    let counts = items().zip(&chains).map(|(items, &chains)| match chains {
        1 => items.div_ceil(WARPS * blocks) * blocks,
        _ => items.div_ceil(WARPS),
    });
    (blocks, plan(&chains, &counts.collect::<Vec<_>>()))
}

/// Chains into which inputs are cut for a weight of sixteen bits with `n` outputs and `depth` steps of inputs, of which a
/// chain has four at least.
fn chains(n: usize, depth: usize) -> usize {
    let most = match n {
        0..3072 => 8,
        3072..8192 => 4,
        _ => 1,
    };
    // The power of two below.
    1 << (depth / 4).clamp(1, most).ilog2()
}

/// Blocks of a product, each with one chain of `width` eights of outputs.
fn tasks(n: usize, depth: usize, width: usize) -> usize {
    n.div_ceil(8 * width) * chains(n, depth)
}

/// Eights of outputs of a block that has `rows` eights of rows, where there are `stretches` of those: so that the busiest
/// processor is done first. Rows come from the second-level cache, so they cost half, and a block costs something before it
/// multiplies.
fn width(sizes: &[usize], depth: usize, rows: usize, stretches: usize, card: &Card) -> usize {
    let cost = |&width: &usize| {
        let tasks = stretches * sizes.iter().map(|&n| tasks(n, depth, width)).sum::<usize>();
        tasks.div_ceil(card.processors()) * (2 * width + rows + 12)
    };
    let fits = |&width: &usize| FEWEST * (rows + width) * PIECE <= card.room();
    (1..=WIDEST).filter(fits).min_by_key(cost).unwrap_or(1)
}

/// Bytes that a pass's products take beside activations and results, at most: the chains of three that are one launch.
pub(crate) fn scratch() -> usize {
    const PASS: usize = 256;
    3 * PASS * 4 * 8192 * size_of::<f32>()
}

/// Products of one launch.
const PRODUCTS: usize = 4;

/// Warps of a block, and pieces of each one's ring.
const WARPS: usize = 8;
const RING_PIECES: usize = 8;

/// Steps that a block of many rows copies ahead or uses, and the eights of outputs that it takes, at most; and the fewest
/// steps that leave memory something to do.
const STAGES: usize = 8;
const WIDEST: usize = 24;
const FEWEST: usize = 4;

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

impl Made {
    /// Where they are, and what undoes their scaling.
    fn args(&self) -> [Arg<'static>; 2] {
        [self.numbers.address(), self.scales.as_ref().map_or(Arg::Address(0), |scales| scales.address())]
    }
}

pub(super) fn linears<const N: usize>(
    card: &Card,
    x: &Operand,
    weights: [&Weight; N],
) -> Result<[Tensor; N]> {
    let mut operands = match &x.0 {
        Form::Whole(whole, _) => {
            let [m, k] = dims("x", whole)?;
            Operands { card, whole: Some(whole), m, k, made: Vec::new() }
        }
        Form::Made(made) => {
            Operands { card, whole: None, m: made.m, k: made.k, made: vec![Cow::Borrowed(made)] }
        }
    };
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
