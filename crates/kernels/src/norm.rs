//! Root-mean-square normalisation: y = x / √(mean(x²) + ε) · weight, over the last dimension.

use std::mem::MaybeUninit;

use candle_core::Tensor;

#[cfg(feature = "card")]
use crate::card::{Arg, Card, address, address_mut, count};
#[cfg(feature = "card")]
use crate::elementwise::same;
use crate::error::{Error, Result};
use crate::flat::{Flat, dims, equal, room, tensor, written};
use crate::isa::Work;
use crate::lanes::{LANES, Lanes};
use crate::pool::Parts;
use crate::{Kernels, elementwise::stretches};

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [MaybeUninit<f32>],
}

impl Work for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
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
            let scale = 1.0 / (l.sum(squares) / width as f32 + self.eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(self.weight) {
                out.write(x * scale * weight);
            }
        }
    }
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
        let width = normalised(x, weight)?;
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card(card, x, weight, eps);
        }
        let (values, weight) = (Flat::new("x", x)?, Flat::new("the norm's weight", weight)?);
        let (values, weight) = (values.values(), weight.values());
        let mut out = room(values.len())?;
        let parts = Parts::new(&mut out);
        let rows = values.len() / width;
        let (count, step) = stretches(rows, width, self.threads());
        self.pool().run(count, &|i| {
            let (from, to) = (i * step * width, rows.min((i + 1) * step) * width);
            // SAFETY: stretches of rows are disjoint.
            let out = unsafe { parts.part(from, to - from) };
            self.found().run(Norm { x: &values[from..to], weight, eps, out });
        })?;
        // SAFETY: the stretches have every row.
        tensor(unsafe { written(out) }, x.dims())
    }

    /// x + y and its normalisation, as [`Kernels::add`] and [`Kernels::rms_norm`] make them.
    ///
    /// * `x`, `y`: `[m, w]`
    /// * `weight`: `[w]`
    ///
    /// # Errors
    /// As theirs.
    pub fn add_norm(&self, x: &Tensor, y: &Tensor, weight: &Tensor, eps: f32) -> Result<[Tensor; 2]> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            same("the residual", x, y)?;
            normalised(x, weight)?;
            return add_on_card(card, [x, y], weight, eps);
        }
        let sum = self.add(x, y)?;
        let normed = self.rms_norm(&sum, weight, eps)?;
        Ok([sum, normed])
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
fn on_card(card: &Card, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (width, out) = (weight.elem_count(), card.output(x.dims())?);
    let args = [
        address("x", x)?,
        address("the norm's weight", weight)?,
        address_mut(&out)?,
        count(width),
        Arg::Number(eps),
    ];
    // SAFETY: x and the output have rows of the weight's width.
    unsafe { launch(card, "rms_norm", x.elem_count() / width, width, &args) }?;
    Ok(out)
}

#[cfg(feature = "card")]
fn add_on_card(card: &Card, [x, y]: [&Tensor; 2], weight: &Tensor, eps: f32) -> Result<[Tensor; 2]> {
    let (width, sum, normed) = (weight.elem_count(), card.output(x.dims())?, card.output(x.dims())?);
    let args = [
        address("x", x)?,
        address("y", y)?,
        address("the norm's weight", weight)?,
        address_mut(&sum)?,
        address_mut(&normed)?,
        count(width),
        Arg::Number(eps),
    ];
    // SAFETY: x, y and both outputs have rows of the weight's width.
    unsafe { launch(card, "add_norm", x.elem_count() / width, width, &args) }?;
    Ok([sum, normed])
}

/// Starts a kernel of one block a row, whose numbers stay in shared memory where it has room for them.
///
/// # Safety
/// As `Card::launch`.
#[cfg(feature = "card")]
unsafe fn launch(
    card: &Card,
    kernel: &'static str,
    rows: usize,
    width: usize,
    args: &[Arg<'_>],
) -> Result<()> {
    let (bytes, threads) = (width * size_of::<f32>(), width.next_multiple_of(32).min(256));
    let kept = bytes <= card.room();
    let args = [args, &[count(usize::from(kept))]].concat();
    // SAFETY: the caller's promise.
    unsafe { card.launch_with(kernel, [rows, 1, 1], threads, if kept { bytes } else { 0 }, &args) }
}
