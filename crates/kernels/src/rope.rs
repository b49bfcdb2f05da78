//! Rotary position embedding, half-split: channel i turns with channel i + r/2, where r is the
//! number of turning channels.
//!
//! # Source
//! Su et al., 2021, arXiv 2104.09864; the split into halves is that of `GPT-NeoX`.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Card, address, address_mut, count};
use crate::error::{Error, Result};
use crate::flat::{Flat, dims, equal, tensor};

/// Turns by position, made when they are asked for.
///
/// All layers of a step ask for the same positions, so the last ones are kept. A table of every
/// position up to the context length was rejected: 16 MiB and a tenth of a second of sines for a
/// context of 32,768, nearly all unused.
#[derive(Debug)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    scale: f32,
    last: Mutex<Arc<Turns>>,
}

/// Cosines and sines: `[positions, r/2]` each.
#[derive(Debug, Default)]
struct Turns {
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// * `inverse_frequencies`: radians a position, one for each pair of channels; twice as many
    ///   channels turn, and the rest of a head passes through
    pub fn new(inverse_frequencies: &[f32]) -> Self {
        Self::scaled(inverse_frequencies, 1.0)
    }

    /// [`Rope::new`] with cosines and sines multiplied by `scale`, as some context extensions ask.
    pub fn scaled(inverse_frequencies: &[f32], scale: f32) -> Self {
        Self { inverse_frequencies: inverse_frequencies.to_vec(), scale, last: Mutex::default() }
    }

    fn turns(&self, positions: &[u32]) -> Arc<Turns> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.positions != positions {
            let count = positions.len() * self.inverse_frequencies.len();
            let (mut cos, mut sin) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for &position in positions {
                for &frequency in &self.inverse_frequencies {
                    // The angle is rounded to f32 as trained models had it; sine and cosine of it
                    // go through f64, where systems' libraries agree after rounding.
                    let angle = f64::from(position as f32 * frequency);
                    cos.push(angle.cos() as f32 * self.scale);
                    sin.push(angle.sin() as f32 * self.scale);
                }
            }
            *last = Arc::new(Turns { positions: positions.to_vec(), cos, sin });
        }
        Arc::clone(&last)
    }
}

impl Kernels {
    /// Turns every head of every row by the row's position.
    ///
    /// * `x`: `[m, heads, d]`
    /// * `positions`: `[m]`
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if there is not one position a row, or if
    /// more than `d` channels would turn.
    pub fn rope(&self, x: &Tensor, positions: &[u32], table: &Rope) -> Result<Tensor> {
        let [m, heads, d] = dims("x", x)?;
        equal("the number of positions", positions.len(), m)?;
        let pairs = table.inverse_frequencies.len();
        if 2 * pairs > d {
            return Err(Error::shape(format!("{} channels turn; a head has {d}", 2 * pairs)));
        }
        let turns = table.turns(positions);
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card(card, x, &turns, pairs);
        }
        let mut out = Flat::new("x", x)?.values().to_vec();
        for (row, values) in out.chunks_exact_mut((heads * d).max(1)).enumerate() {
            let cos = &turns.cos[row * pairs..(row + 1) * pairs];
            let sin = &turns.sin[row * pairs..(row + 1) * pairs];
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

#[cfg(feature = "card")]
fn on_card(card: &Card, x: &Tensor, turns: &Turns, pairs: usize) -> Result<Tensor> {
    let [m, heads, d] = dims("x", x)?;
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let (cos, sin) = (card.words(&bits(&turns.cos))?, card.words(&bits(&turns.sin))?);
    let out = card.output(x.dims())?;
    let args = [
        address("x", x)?,
        cos.address(),
        sin.address(),
        address_mut(&out)?,
        count(heads),
        count(d),
        count(pairs),
    ];
    // SAFETY: there are turns for every row of x, and no more than d channels turn.
    unsafe { card.launch("rope", [m, 1, 1], (heads * d).next_multiple_of(32).clamp(32, 256), &args) }?;
    Ok(out)
}
