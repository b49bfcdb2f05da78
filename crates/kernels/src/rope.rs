//! Rotary position embedding, half-split: channel i turns with channel i + r/2, where r is the
//! number of turning channels.
//!
//! # Source
//! Su et al., 2021, arXiv 2104.09864; the split into halves is that of `GPT-NeoX`.

use std::sync::OnceLock;

use candle_core::Tensor;

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Arg, Card, count, start, start_mut};
use crate::error::{Error, Result};
use crate::flat::{Flat, dims, equal, tensor};
use crate::words::{Upload, Words};

/// How far channels turn with each position.
///
/// A table of every position up to the context length was rejected: 16 MiB and a tenth of a second
/// of sines for a context of 32,768, nearly all unused. A step makes its own [`Turns`].
#[derive(Debug)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    scale: f32,
}

/// The turns of a step's rows, for all of its layers: cosines and sines, `[m, r/2]` each.
#[derive(Debug)]
pub struct Turns {
    rows: usize,
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Cosines, then sines, as a card reads them.
    words: OnceLock<Words>,
}

impl Rope {
    /// * `inverse_frequencies`: radians a position, one for each pair of channels; twice as many
    ///   channels turn, and the rest of a head passes through
    pub fn new(inverse_frequencies: &[f32]) -> Self {
        Self::scaled(inverse_frequencies, 1.0)
    }

    /// [`Rope::new`] with cosines and sines multiplied by `scale`, as some context extensions ask.
    pub fn scaled(inverse_frequencies: &[f32], scale: f32) -> Self {
        Self { inverse_frequencies: inverse_frequencies.to_vec(), scale }
    }

    /// The turns of rows at these positions.
    pub fn turns(&self, positions: &[u32]) -> Turns {
        let (rows, pairs) = (positions.len(), self.inverse_frequencies.len());
        let (mut cos, mut sin) = (Vec::with_capacity(rows * pairs), Vec::with_capacity(rows * pairs));
        for &position in positions {
            for &frequency in &self.inverse_frequencies {
                // The angle is rounded to f32 as trained models had it; sine and cosine of it
                // go through f64, where systems' libraries agree after rounding.
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32 * self.scale);
                sin.push(angle.sin() as f32 * self.scale);
            }
        }
        Turns { rows, pairs, cos, sin, words: OnceLock::new() }
    }
}

impl Upload for Turns {
    fn words(&self) -> &Words {
        let words = || self.cos.iter().chain(&self.sin).map(|x| x.to_bits()).collect::<Vec<_>>().into();
        self.words.get_or_init(words)
    }
}

impl Kernels {
    /// Turns every head of every row by the row's position, in each of several tensors.
    ///
    /// * `all`: `[m, heads, d]` each, of any number of heads
    /// * `turns`: of m positions
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if there is not one position a row, or if
    /// more than `d` channels would turn.
    pub fn rope<const N: usize>(&self, all: [&Tensor; N], turns: &Turns) -> Result<[Tensor; N]> {
        for x in all {
            let [m, _, d] = dims("x", x)?;
            equal("the number of positions", turns.rows, m)?;
            if 2 * turns.pairs > d {
                return Err(Error::shape(format!("{} channels turn; a head has {d}", 2 * turns.pairs)));
            }
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card(card, all, turns);
        }
        let turned: Vec<Tensor> = all.iter().map(|x| turns.turn(x)).collect::<Result<_>>()?;
        // As many as there were: the conversion cannot fail.
        turned.try_into().map_err(|_| Error::shape("tensors and turned ones differ in number"))
    }
}

impl Turns {
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let ([_, heads, d], pairs) = (dims("x", x)?, self.pairs);
        let mut out = Flat::new("x", x)?.values().to_vec();
        for (row, values) in out.chunks_exact_mut((heads * d).max(1)).enumerate() {
            let cos = &self.cos[row * pairs..(row + 1) * pairs];
            let sin = &self.sin[row * pairs..(row + 1) * pairs];
            for head in values.chunks_exact_mut(d) {
                let (left, right) = head.split_at_mut(pairs);
                for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                    let (a, b) = (*left, *right);
                    *left = a * cos - b * sin;
                    *right = b * cos + a * sin;
                }
            }
        }
        tensor(out, x.dims())
    }
}

/// Tensors of one launch.
#[cfg(feature = "card")]
const TURNED: usize = 2;

#[cfg(feature = "card")]
fn on_card<const N: usize>(card: &Card, all: [&Tensor; N], turns: &Turns) -> Result<[Tensor; N]> {
    let cos = card.words(turns.words())?;
    let sin = cos + size_of_val(turns.cos.as_slice()) as u64;
    let mut turned = Vec::with_capacity(N);
    // Tensors of one launch have heads of one width.
    for some in all.chunks(TURNED).flat_map(|some| some.chunk_by(|a, b| a.dims()[2] == b.dims()[2])) {
        let mut places = [0; 3 * TURNED];
        for (at, x) in some.iter().enumerate() {
            let out = card.output(x.dims())?;
            places[at] = start("x", x)?;
            places[TURNED + at] = start_mut(&out)?;
            places[2 * TURNED + at] = x.dims()[1] as u64;
            turned.push(out);
        }
        let (d, heads) = (some[0].dims()[2], some.iter().map(|x| x.dims()[1]).sum());
        let args = [Arg::Words(&places), Arg::Address(cos), Arg::Address(sin), count(d), count(turns.pairs)];
        let threads = d.next_multiple_of(32).clamp(32, 256);
        // SAFETY: there are turns for every row of each x, and no more than d channels turn.
        unsafe { card.launch("rope", [turns.rows, heads, 1], threads, &args) }?;
    }
    turned.try_into().map_err(|_| Error::shape("tensors and turned ones differ in number"))
}
