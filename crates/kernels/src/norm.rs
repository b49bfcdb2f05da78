//! Root-mean-square normalisation: y = x / √(mean(x²) + ε) · weight, over the last dimension.

use std::mem::MaybeUninit;

use candle_core::Tensor;

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Arg, Card, address, address_mut, count};
use crate::elementwise::{same, stretches};
use crate::error::{Error, Result};
use crate::factor::{Pair, Pairing};
use crate::flat::{Flat, dims, equal, known, room, tensor, written};
use crate::isa::Work;
use crate::lanes::{LANES, Lanes};
use crate::operand::{Form, Operand};
#[cfg(feature = "card")]
use crate::operand::{Handed, Kind};
use crate::pool::Parts;
use crate::weight::Weight;

/// Normalises a row.
struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [MaybeUninit<f32>],
}

impl<'a> Work for Norm<'a> {
    type Output = &'a [f32];

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> &'a [f32] {
        normalise(l, self.x, self.weight, self.eps, self.out)
    }
}

/// [`Norm`] of x + y, which `sum` takes.
struct AddNorm<'a> {
    x: &'a [f32],
    y: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    sum: &'a mut [MaybeUninit<f32>],
    out: &'a mut [MaybeUninit<f32>],
}

impl<'a> Work for AddNorm<'a> {
    type Output = &'a [f32];

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> &'a [f32] {
        for ((sum, x), y) in self.sum.iter_mut().zip(self.x).zip(self.y) {
            sum.write(x + y);
        }
        // SAFETY: x and y are as long as the sum, so that it has all been written.
        let sum = unsafe { known(self.sum) };
        normalise(l, sum, self.weight, self.eps, self.out)
    }
}

/// * `x`, `weight`, `out`: as long
#[inline(always)]
fn normalise<'a, L: Lanes>(
    l: L,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &'a mut [MaybeUninit<f32>],
) -> &'a [f32] {
    let mut squares = l.splat(0.0);
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        let v = l.load(chunk);
        squares = l.fma(v, v, squares);
    }
    let mut last = [0.0; LANES];
    last[..tail.len()].copy_from_slice(tail);
    let v = l.load(&last);
    squares = l.fma(v, v, squares);
    let scale = 1.0 / (l.sum(squares) / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        out.write(x * scale * weight);
    }
    // SAFETY: as long as x and the weight, so that all of it has been written.
    unsafe { known(out) }
}

impl Kernels {
    /// Root-mean-square normalisation over the last dimension, in f32.
    ///
    /// * `x`: `[m, w]`, or `[m, heads, d]` with each head normalised alone
    /// * `weight`: `[w]` or `[d]`
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if the last dimensions differ or are zero.
    pub fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            let width = normalised(x, weight)?;
            let out = Handed::new(card, Kind::Whole, x.elem_count() / width, width)?;
            hand_over(card, x, weight, eps, &out)?;
            return Ok(out.operand().whole()?.reshape(x.dims())?);
        }
        Ok(self.normed(x, weight, eps, &[])?.0)
    }

    /// [`Kernels::rms_norm`] for products with `weights`.
    ///
    /// * `x`: `[m, w]`
    /// * `weight`: `[w]`
    ///
    /// # Errors
    /// As there.
    pub fn norm_for(&self, x: &Tensor, weight: &Tensor, eps: f32, weights: &[&Weight]) -> Result<Operand> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            let ([m, _], width) = (dims("x", x)?, normalised(x, weight)?);
            let handed = Handed::new(card, Kind::of_all(weights, m), m, width)?;
            hand_over(card, x, weight, eps, &handed)?;
            return Ok(handed.operand());
        }
        let (out, pairs) = self.normed(x, weight, eps, weights)?;
        Ok(Operand(Form::Whole(out, pairs)))
    }

    /// Normalised rows on this CPU, and their pairs where products with `weights` take them.
    fn normed(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        weights: &[&Weight],
    ) -> Result<(Tensor, Vec<Pair>)> {
        let width = normalised(x, weight)?;
        let (values, weight) = (Flat::new("x", x)?, Flat::new("the norm's weight", weight)?);
        let (values, weight) = (values.values(), weight.values());
        let rows = values.len() / width;
        let (mut out, mut pairs) = (room(values.len())?, self.pairs_of(weights, rows, width)?);
        let (parts, pairing) = (Parts::new(&mut out), Pairing::new(&mut pairs, width));
        let (count, step) = stretches(rows, width, self.threads());
        self.pool().run(count, &|i| {
            for row in i * step..rows.min((i + 1) * step) {
                // SAFETY: tasks own disjoint rows.
                let out = unsafe { parts.part(row * width, width) };
                let x = &values[row * width..][..width];
                let out = self.found().run(Norm { x, weight, eps, out });
                if let Some(pairing) = &pairing {
                    // SAFETY: as above.
                    unsafe { pairing.put(self.found(), row, 0, out) };
                }
            }
        })?;
        // SAFETY: the tasks have every row.
        Ok((tensor(unsafe { written(out) }, x.dims())?, unsafe { written(pairs) }))
    }

    /// x + y, and its normalisation for products with `weights`: [`Kernels::add`] and [`Kernels::norm_for`].
    ///
    /// * `x`, `y`: `[m, w]`
    /// * `weight`: `[w]`
    ///
    /// # Errors
    /// As theirs.
    pub fn add_norm_for(
        &self,
        x: &Tensor,
        y: &Tensor,
        weight: &Tensor,
        eps: f32,
        weights: &[&Weight],
    ) -> Result<(Tensor, Operand)> {
        same("the residual", x, y)?;
        let ([m, _], width) = (dims("x", x)?, normalised(x, weight)?);
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            let handed = Handed::new(card, Kind::of_all(weights, m), m, width)?;
            let sum = hand_over_sum(card, [x, y], weight, eps, &handed)?;
            return Ok((sum, handed.operand()));
        }
        let (x, y) = (Flat::new("x", x)?, Flat::new("y", y)?);
        let weight = Flat::new("the norm's weight", weight)?;
        let (x, y, weight) = (x.values(), y.values(), weight.values());
        let (mut sum, mut out) = (room(x.len())?, room(x.len())?);
        let mut pairs = self.pairs_of(weights, m, width)?;
        let (sums, outs) = (Parts::new(&mut sum), Parts::new(&mut out));
        let pairing = Pairing::new(&mut pairs, width);
        let (count, step) = stretches(m, width, self.threads());
        self.pool().run(count, &|i| {
            for row in i * step..m.min((i + 1) * step) {
                let (from, to) = (row * width, (row + 1) * width);
                // SAFETY: tasks own disjoint rows.
                let (sum, out) = unsafe { (sums.part(from, width), outs.part(from, width)) };
                let (x, y) = (&x[from..to], &y[from..to]);
                let out = self.found().run(AddNorm { x, y, weight, eps, sum, out });
                if let Some(pairing) = &pairing {
                    // SAFETY: as above.
                    unsafe { pairing.put(self.found(), row, 0, out) };
                }
            }
        })?;
        // SAFETY: the tasks have every row.
        let (sum, out, pairs) = unsafe { (written(sum), written(out), written(pairs)) };
        Ok((tensor(sum, &[m, width])?, Operand(Form::Whole(tensor(out, &[m, width])?, pairs))))
    }
}

/// The width of the dimension that is normalised.
fn normalised(x: &Tensor, weight: &Tensor) -> Result<usize> {
    let [width] = dims("the norm's weight", weight)?;
    let last = x.dims().last().copied().unwrap_or(0);
    equal("the normalised dimension", last, width)?;
    if width == 0 {
        return Err(Error::shape("the normalised dimension is 0; at least 1 is needed"));
    }
    Ok(width)
}

#[cfg(feature = "card")]
fn hand_over(card: &Card, x: &Tensor, weight: &Tensor, eps: f32, to: &Handed) -> Result<()> {
    let [to, scales, depth, form] = to.args()?;
    let weight_at = address("the norm's weight", weight)?;
    // SAFETY: x and what is handed over have rows of the weight's width.
    unsafe {
        launch(card, "rms_norm", [x, weight], eps, &[address("x", x)?, weight_at, to, scales, depth, form])
    }
}

#[cfg(feature = "card")]
fn hand_over_sum(
    card: &Card,
    [x, y]: [&Tensor; 2],
    weight: &Tensor,
    eps: f32,
    to: &Handed,
) -> Result<Tensor> {
    let (sum, [to, scales, depth, form]) = (card.output(x.dims())?, to.args()?);
    let args = [
        address("x", x)?,
        address("y", y)?,
        address("the norm's weight", weight)?,
        address_mut(&sum)?,
        to,
        scales,
        depth,
        form,
    ];
    // SAFETY: x, y, their sum and what is handed over have rows of the weight's width.
    unsafe { launch(card, "add_norm", [x, weight], eps, &args) }?;
    Ok(sum)
}

/// Starts a kernel of one block a row, whose numbers stay in shared memory where it has room for them.
///
/// # Safety
/// As `Card::launch`.
#[cfg(feature = "card")]
unsafe fn launch(
    card: &Card,
    kernel: &'static str,
    [x, weight]: [&Tensor; 2],
    eps: f32,
    args: &[Arg<'_>],
) -> Result<()> {
    let width = weight.elem_count();
    let (bytes, threads) = (width * size_of::<f32>(), width.next_multiple_of(32).min(256));
    let kept = bytes <= card.room() - KEPT;
    let args = [args, &[count(width), Arg::Number(eps), count(usize::from(kept))]].concat();
    let rows = x.elem_count() / width;
    // SAFETY: the caller's promise.
    unsafe { card.launch_with(kernel, [rows, 1, 1], threads, if kept { bytes } else { 0 }, &args) }
}

/// Bytes of shared memory that norms have of their own.
#[cfg(feature = "card")]
const KEPT: usize = 1 << 10;
