//! Operations on single numbers: residual sums, biases and the feed-forward's gate.

use std::mem::MaybeUninit;

use candle_core::Tensor;
use candle_core::cpu::erf::erf_f64;

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Arg, Card, address, address_mut, count};
use crate::error::{Error, Result};
use crate::exp::{gelu_tanh, silu};
use crate::factor::{Pair, Pairing};
use crate::flat::{Flat, dims, equal, known, room, tensor, written};
use crate::isa::Work;
use crate::lanes::{LANES, Lanes};
use crate::operand::{Form, Operand};
#[cfg(feature = "card")]
use crate::operand::{Handed, Kind};
use crate::pool::Parts;
use crate::weight::Weight;
use crate::words::Words;

/// Numbers up to which another core costs more than it gives.
const GRAIN: usize = 2048;

/// How many tasks `rows` of `width` numbers are cut into, as many for each thread that has some, and rows a task.
pub(crate) fn stretches(rows: usize, width: usize, threads: usize) -> (usize, usize) {
    let tasks = (rows * width).div_ceil(GRAIN).max(1);
    let tasks = if tasks <= threads { tasks } else { tasks.next_multiple_of(threads).min(4 * threads) };
    let step = rows.div_ceil(tasks).max(1);
    (rows.div_ceil(step), step)
}

/// A feed-forward's non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x / (1 + exp(-x)).
    Silu,
    /// GELU through tanh, as T5 1.1 and Gemma have it.
    GeluTanh,
    /// GELU through the error function.
    Gelu,
    /// max(x, 0).
    Relu,
}

struct Gate<'a> {
    x: &'a [f32],
    up: Option<&'a [f32]>,
    activation: Activation,
    out: &'a mut [MaybeUninit<f32>],
}

#[inline(always)]
fn activate<L: Lanes>(l: L, activation: Activation, x: L::F) -> L::F {
    match activation {
        Activation::Silu => silu(l, x),
        Activation::GeluTanh => gelu_tanh(l, x),
        Activation::Relu => l.max(l.splat(0.0), x),
        Activation::Gelu => {
            let mut values = [0.0; LANES];
            l.store(x, &mut values);
            for value in &mut values {
                let x = f64::from(*value);
                *value = (0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))) as f32;
            }
            l.load(&values)
        }
    }
}

#[inline(always)]
fn gated<L: Lanes>(l: L, activation: Activation, x: &[f32; LANES], up: &[f32; LANES]) -> [f32; LANES] {
    let mut result = [0.0; LANES];
    l.store(l.mul(activate(l, activation, l.load(x)), l.load(up)), &mut result);
    result
}

impl<'a> Work for Gate<'a> {
    type Output = &'a [f32];

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> &'a [f32] {
        let ones = [1.0; LANES];
        let (whole, rest) = self.out.as_chunks_mut::<LANES>();
        let (x, last) = self.x.as_chunks::<LANES>();
        let (up, last_up) = self.up.map_or((&[][..], &[][..]), |up| up.as_chunks::<LANES>());
        for (i, (out, x)) in whole.iter_mut().zip(x).enumerate() {
            *out = gated(l, self.activation, x, up.get(i).unwrap_or(&ones)).map(MaybeUninit::new);
        }
        // A short last chunk goes through a full vector, so that its steps are the same.
        let (mut x, mut up) = ([0.0; LANES], ones);
        x[..last.len()].copy_from_slice(last);
        up[..last_up.len()].copy_from_slice(last_up);
        for (to, x) in rest.iter_mut().zip(gated(l, self.activation, &x, &up)) {
            to.write(x);
        }
        // SAFETY: whole vectors and the rest have been written.
        unsafe { known(self.out) }
    }
}

/// Makes `x` what [`Gate`] makes of it alone.
pub(crate) struct Activate<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) activation: Activation,
}

impl Work for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (whole, rest) = self.x.as_chunks_mut::<LANES>();
        for x in whole {
            *x = gated(l, self.activation, x, &[1.0; LANES]);
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        rest.copy_from_slice(&gated(l, self.activation, &last, &[1.0; LANES])[..rest.len()]);
    }
}

impl Kernels {
    /// The rows of `x`, `[m, w]`, that `rows` names.
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if one is not below m.
    pub fn select(&self, x: &Tensor, rows: &Words) -> Result<Tensor> {
        let [m, _] = dims("x", x)?;
        if let Some(row) = rows.iter().find(|&&row| row as usize >= m) {
            return Err(Error::range(format!("row {row} of {m}")));
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return select(card, x, rows);
        }
        Ok(x.index_select(&Tensor::new(&**rows, x.device())?, 0)?)
    }

    /// a + b: the residual.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if the shapes differ.
    pub fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        same("the residual", a, b)?;
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return each(card, "add", a, &[address("a", a)?, address("b", b)?], &[]);
        }
        let (left, right) = (Flat::new("a", a)?, Flat::new("b", b)?);
        let (left, right) = (left.values(), right.values());
        let mut sum = room(left.len())?;
        let parts = Parts::new(&mut sum);
        let (count, step) = stretches(left.len(), 1, self.threads());
        self.pool().run(count, &|i| {
            let (from, to) = (i * step, left.len().min((i + 1) * step));
            // SAFETY: stretches are disjoint.
            let sum = unsafe { parts.part(from, to - from) };
            for ((sum, a), b) in sum.iter_mut().zip(&left[from..to]).zip(&right[from..to]) {
                sum.write(a + b);
            }
        })?;
        // SAFETY: the stretches have every number.
        tensor(unsafe { written(sum) }, a.dims())
    }

    /// x · factor.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if `x` is not contiguous.
    pub fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return each(card, "scale", x, &[address("x", x)?], &[Arg::Number(factor)]);
        }
        let values = Flat::new("x", x)?;
        tensor(values.values().iter().map(|x| x * factor).collect(), x.dims())
    }

    /// Adds `bias`, `[n]`, to every row of `x`, `[m, n]`.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if the widths differ.
    pub fn add_bias(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let ([_, width], [n]) = (dims("x", x)?, dims("the bias", bias)?);
        equal("the bias's width", n, width)?;
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            let from = [address("x", x)?, address("the bias", bias)?];
            return each(card, "add_bias", x, &from, &[count(width)]);
        }
        let (values, bias) = (Flat::new("x", x)?, Flat::new("the bias", bias)?);
        let rows = values.values().chunks_exact(width.max(1));
        let sum = rows.flat_map(|row| row.iter().zip(bias.values()).map(|(x, b)| x + b)).collect();
        tensor(sum, x.dims())
    }

    /// [`Kernels::gate`] for products with `weights`.
    ///
    /// * `gate`, `up`: `[m, w]`
    ///
    /// # Errors
    /// As there.
    pub fn gate_for(
        &self,
        gate: &Tensor,
        up: Option<&Tensor>,
        activation: Activation,
        weights: &[&Weight],
    ) -> Result<Operand> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            let [m, width] = dims("the gate", gate)?;
            let kind = Kind::of_all(weights, m);
            // A row in half precision is known when all of it is.
            if kind == Kind::F16 {
                return self.gate(gate, up, activation).map(Operand::from);
            }
            up.map_or(Ok(()), |up| same("the gate", gate, up))?;
            let to = Handed::new(card, kind, m, width)?;
            hand_over(card, [gate, up.unwrap_or(gate)], up.is_some(), activation, &to)?;
            return Ok(to.operand());
        }
        let (out, pairs) = self.gated(gate, up, activation, weights)?;
        Ok(Operand(Form::Whole(out, pairs)))
    }

    /// activation(gate) · up, or activation(gate) alone.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if the shapes differ.
    pub fn gate(&self, gate: &Tensor, up: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            up.map_or(Ok(()), |up| same("the gate", gate, up))?;
            let (width, all) = (gate.dims().last().copied().unwrap_or(1).max(1), gate.elem_count());
            let to = Handed::new(card, Kind::Whole, all / width, width)?;
            hand_over(card, [gate, up.unwrap_or(gate)], up.is_some(), activation, &to)?;
            return Ok(to.operand().whole()?.reshape(gate.dims())?);
        }
        Ok(self.gated(gate, up, activation, &[])?.0)
    }

    /// What the gate lets through on this CPU, and its pairs where products with `weights` take them.
    fn gated(
        &self,
        gate: &Tensor,
        up: Option<&Tensor>,
        activation: Activation,
        weights: &[&Weight],
    ) -> Result<(Tensor, Vec<Pair>)> {
        up.map_or(Ok(()), |up| same("the gate", gate, up))?;
        let values = Flat::new("the gate", gate)?;
        let up = up.map(|up| Flat::new("up", up)).transpose()?;
        let (values, up) = (values.values(), up.as_ref().map(Flat::values));
        let width = gate.dims().last().copied().unwrap_or(1).max(1);
        let rows = values.len() / width;
        let (mut out, mut pairs) = (room(values.len())?, self.pairs_of(weights, rows, width)?);
        let (parts, pairing) = (Parts::new(&mut out), Pairing::new(&mut pairs, width));
        // Columns, as products share them out: a thread finds in its own cache what it has written.
        let (count, step) = stretches(width.div_ceil(LANES), LANES * rows, self.threads());
        self.pool().run(count, &|i| {
            let columns = i * step * LANES..width.min((i + 1) * step * LANES);
            for row in 0..rows {
                let (from, to) = (row * width + columns.start, row * width + columns.end);
                // SAFETY: stretches of columns are disjoint.
                let out = unsafe { parts.part(from, to - from) };
                let up = up.map(|up| &up[from..to]);
                let out = self.found().run(Gate { x: &values[from..to], up, activation, out });
                if let Some(pairing) = &pairing {
                    // SAFETY: as above, and they begin at whole vectors.
                    unsafe { pairing.put(self.found(), row, columns.start, out) };
                }
            }
        })?;
        // SAFETY: the stretches have every column of every row.
        Ok((tensor(unsafe { written(out) }, gate.dims())?, unsafe { written(pairs) }))
    }
}

#[cfg(feature = "card")]
fn select(card: &Card, x: &Tensor, rows: &Words) -> Result<Tensor> {
    let [_, width] = dims("x", x)?;
    let (out, words, all) = (card.output(&[rows.len(), width])?, card.words(rows)?, rows.len() * width);
    let args = [address("x", x)?, Arg::Address(words), address_mut(&out)?, count(all), count(width)];
    // SAFETY: the caller has checked the rows, and the output has room for them.
    unsafe { card.launch("select_rows", blocks(all), THREADS, &args) }?;
    Ok(out)
}

/// Hands over activation(gate) · up, where there is an up.
#[cfg(feature = "card")]
fn hand_over(
    card: &Card,
    [gate, up]: [&Tensor; 2],
    has_up: bool,
    activation: Activation,
    to: &Handed,
) -> Result<()> {
    let width = gate.dims().last().copied().unwrap_or(1).max(1);
    let up = if has_up { address("up", up)? } else { Arg::Address(0) };
    let [to, scales, depth, form] = to.args()?;
    let args =
        [address("the gate", gate)?, up, to, scales, depth, form, count(width), count(activation as usize)];
    let grid = [width.div_ceil(GATED), gate.elem_count() / width, 1];
    // SAFETY: gate, up and what is handed over have the same rows.
    unsafe { card.launch("gate", grid, 128, &args) }
}

/// Numbers of a block of the gate.
#[cfg(feature = "card")]
const GATED: usize = 1024;

/// Threads a block, where a thread has no neighbours to wait for.
#[cfg(feature = "card")]
const THREADS: usize = 256;

/// Blocks for so many numbers; threads that have done theirs take more.
#[cfg(feature = "card")]
fn blocks(numbers: usize) -> [usize; 3] {
    [numbers.div_ceil(THREADS).min(4096), 1, 1]
}

/// Starts a kernel that makes each number of an output like `x` of those in its place.
#[cfg(feature = "card")]
fn each(card: &Card, kernel: &'static str, x: &Tensor, from: &[Arg<'_>], more: &[Arg<'_>]) -> Result<Tensor> {
    let (out, all) = (card.output(x.dims())?, x.elem_count());
    let args = [from, &[address_mut(&out)?, count(all)], more].concat();
    // SAFETY: the operands were checked to be as long as the output.
    unsafe { card.launch(kernel, blocks(all), THREADS, &args) }?;
    Ok(out)
}

/// Checks that two tensors have one shape.
pub(crate) fn same(name: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() == b.dims() {
        return Ok(());
    }
    Err(Error::shape(format!("{name}: {:?} and {:?} differ in shape", a.dims(), b.dims())))
}
