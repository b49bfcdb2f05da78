//! What a softmax over a row of scores is made of, where only a few of its values are asked for.
//!
//! Sampling and thresholds look at one probability in a vocabulary of thousands: the highest score and the sum of all
//! weights relative to it are enough for any of them, and no row of probabilities is ever written.

use std::sync::OnceLock;

use candle_core::{IndexOp, Tensor};

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Arg, Card, address, count};
use crate::error::{Error, Result};
use crate::exp::exp;
use crate::flat::{Flat, dims};
use crate::isa::{Found, Work};
use crate::lanes::{LANES, Lanes};
use crate::top::top;
use crate::words::{Upload, Words};

/// Scores among which the highest is looked for again once it is known to be there.
const BLOCK: usize = 1024;

/// Vectors whose sums stay in single precision before they join the total.
const STRETCH: usize = 64;

/// The highest of `scores`; negative infinity where none is a number.
fn highest(scores: &[f32]) -> f32 {
    Found::best().run(Highest { scores })
}

/// The highest of `scores`, and the sum of all e^(score − highest): not a number where a score is none.
pub fn mass(scores: &[f32]) -> (f32, f64) {
    mass_at(scores, 1.0)
}

/// The highest of `scores`, and the sum of all e^((score − highest) / temperature): not a number where a score is none.
pub fn mass_at(scores: &[f32], temperature: f32) -> (f32, f64) {
    let highest = highest(scores);
    (highest, Found::best().run(Mass { scores, highest, scale: scale(temperature) }))
}

/// Turns each of `scores` into its weight, e^((score − highest) / temperature).
pub fn weigh(scores: &mut [f32], highest: f32, temperature: f32) {
    Found::best().run(Weigh { scores, highest, scale: scale(temperature) });
}

/// What a score is multiplied by at this temperature; finite, so that the highest weighs 1 at any.
fn scale(temperature: f32) -> f32 {
    (1.0 / temperature).min(f32::MAX)
}

/// The index of the highest of `scores`, the lowest among equals; none where it is no finite number.
pub fn best(scores: &[f32]) -> Option<u32> {
    // Only which block has it is tracked while the scores go by, so that many are compared at once.
    let mut found = (0, f32::NEG_INFINITY);
    for (block, scores) in scores.chunks(BLOCK).enumerate() {
        let highest = highest(scores);
        if highest > found.1 {
            found = (block, highest);
        }
    }
    let from = found.0 * BLOCK;
    let at = scores[from.min(scores.len())..].iter().position(|&score| score == found.1)?;
    found.1.is_finite().then_some((from + at) as u32)
}

/// The most of a row's scores that [`Kernels::judge`] hands out for a draw.
pub const TOP: usize = 256;

/// What is wanted of rows of scores beyond what [`Kernels::judge`] says of each.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    asked: Vec<(u32, u32)>,
    drawn: Vec<(u32, f32)>,
    /// Both, as a card reads them: row and index, then row and scale.
    words: OnceLock<Words>,
}

impl Wanted {
    /// * `asked`: row and index of single scores
    /// * `drawn`: rows from which a token will be drawn, and the temperature
    pub fn new(asked: Vec<(u32, u32)>, drawn: Vec<(u32, f32)>) -> Self {
        Self { asked, drawn, words: OnceLock::new() }
    }

    /// Row and index of the single scores.
    pub fn asked(&self) -> &[(u32, u32)] {
        &self.asked
    }

    /// The rows from which a token will be drawn, and the temperature.
    pub fn drawn(&self) -> &[(u32, f32)] {
        &self.drawn
    }
}

impl Upload for Wanted {
    fn words(&self) -> &Words {
        self.words.get_or_init(|| {
            let asked = self.asked.iter().flat_map(|&(row, at)| [row, at]);
            let drawn = self.drawn.iter().flat_map(|&(row, temperature)| [row, scale(temperature).to_bits()]);
            asked.chain(drawn).collect::<Vec<_>>().into()
        })
    }
}

/// What is known of rows of scores that stay on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Of each row: its best score's index, the lowest among equals; that score; and [`mass`].
    pub rows: Vec<(u32, f32, f64)>,
    /// The scores that were asked for.
    pub asked: Vec<f32>,
    /// Of each row from which a token will be drawn.
    pub drawn: Vec<Drawn>,
}

/// What a draw needs of a row: nearly always enough.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// [`mass_at`] the temperature.
    pub mass: f64,
    /// [`top`]: [`TOP`] of them, all that there are, or none at all where too many are alike.
    pub top: Vec<(f32, u32)>,
}

impl Kernels {
    /// Looks rows of scores over where they are, so that they need not be downloaded.
    ///
    /// * `scores`: `[m, n]`
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if a score is asked for that is not there.
    pub fn judge(&self, scores: &Tensor, wanted: &Wanted) -> Result<Judged> {
        let [m, n] = dims("scores", scores)?;
        let mut asked = wanted.asked.iter();
        if let Some((row, at)) = asked.find(|&&(row, at)| row as usize >= m || at as usize >= n) {
            return Err(Error::range(format!("score {at} of row {row}; there are {n} in each of {m}")));
        }
        if let Some((row, _)) = wanted.drawn.iter().find(|&&(row, _)| row as usize >= m) {
            return Err(Error::range(format!("a draw from row {row} of {m}")));
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return judge(card, scores, wanted);
        }
        let flat = Flat::new("scores", scores)?;
        let row = |row: u32| &flat.values()[row as usize * n..(row as usize + 1) * n];
        let rows = (0..m as u32).map(row).map(|scores| {
            let (highest, mass) = mass(scores);
            (best(scores).unwrap_or(u32::MAX), highest, mass)
        });
        let asked = wanted.asked.iter().map(|&(at, token)| row(at)[token as usize]);
        let drawn = wanted.drawn.iter().map(|&(at, temperature)| Drawn {
            mass: mass_at(row(at), temperature).1,
            top: top(row(at), TOP),
        });
        Ok(Judged { rows: rows.collect(), asked: asked.collect(), drawn: drawn.collect() })
    }

    /// One row of `scores`, `[m, n]`, wherever it is.
    ///
    /// # Errors
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend) if there is no such row or the device fails.
    pub fn row(&self, scores: &Tensor, row: usize) -> Result<Vec<f32>> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            card.note_download();
        }
        Ok(scores.i(row)?.to_vec1()?)
    }
}

/// Bytes of what is known of a row, and of what a draw needs of one: its mass, a count, and scores with their indices.
#[cfg(feature = "card")]
const JUDGED: usize = 16;
#[cfg(feature = "card")]
const DRAWN: usize = 16 + 8 * TOP;

#[cfg(feature = "card")]
fn judge(card: &Card, scores: &Tensor, wanted: &Wanted) -> Result<Judged> {
    let [m, n] = dims("scores", scores)?;
    let (asked, drawn) = (wanted.asked.len(), wanted.drawn.len());
    // One buffer for everything, so that there is one download.
    let (rows_end, drawn_end) = (m * JUDGED, m * JUDGED + drawn * DRAWN);
    let buffer = card.scratch(drawn_end + asked * size_of::<f32>())?;
    let at = |offset: usize| Arg::Address(buffer.start() + offset as u64);
    let (from, words) = (address("scores", scores)?, card.words(wanted.words())?);
    // SAFETY: there is room for every row.
    unsafe { card.launch("judge", [m, 1, 1], THREADS, &[from, at(0), count(n)]) }?;
    let rows = Arg::Address(words + (2 * asked * size_of::<u32>()) as u64);
    // SAFETY: the rows were checked to be there and are judged by now, and there is room behind them.
    unsafe { card.launch("draw", [drawn, 1, 1], THREADS, &[from, at(0), rows, at(rows_end), count(n)]) }?;
    let args = [from, Arg::Address(words), at(drawn_end), count(asked), count(n)];
    // SAFETY: the scores were checked to be there, and the answers have room behind the rows.
    unsafe { card.launch("ask", [asked.div_ceil(256), 1, 1], 256, &args) }?;
    let bytes = card.download(&buffer, 0, drawn_end + asked * size_of::<f32>())?;
    let rows = bytes[..rows_end].as_chunks::<JUDGED>().0.iter().map(|row| {
        let [best, highest, low, high] = four(row);
        (best, f32::from_bits(highest), double(low, high))
    });
    let answers = bytes[drawn_end..].as_chunks().0.iter().map(|&answer| f32::from_le_bytes(answer));
    let drawn = bytes[rows_end..drawn_end].chunks_exact(DRAWN).map(|row| {
        let (quads, _) = row.as_chunks();
        let [low, high, count, _] = four(&quads[0]);
        let pairs = quads[1..].iter().map(four).flat_map(|[a, b, c, d]| [(a, b), (c, d)]);
        let top = pairs.take(count as usize).map(|(score, at)| (f32::from_bits(score), at)).collect();
        Drawn { mass: double(low, high), top }
    });
    Ok(Judged { rows: rows.collect(), asked: answers.collect(), drawn: drawn.collect() })
}

/// Threads of a block that looks a row over.
#[cfg(feature = "card")]
const THREADS: usize = 1024;

/// A number of two words.
#[cfg(feature = "card")]
fn double(low: u32, high: u32) -> f64 {
    f64::from_bits(u64::from(low) | u64::from(high) << 32)
}

/// Four words.
#[cfg(feature = "card")]
fn four(bytes: &[u8; JUDGED]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

struct Highest<'a> {
    scores: &'a [f32],
}

struct Mass<'a> {
    scores: &'a [f32],
    highest: f32,
    scale: f32,
}

struct Weigh<'a> {
    scores: &'a mut [f32],
    highest: f32,
    scale: f32,
}

impl Work for Highest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        // Four at a time, because one would wait for the comparison before it.
        let mut best = [l.splat(f32::NEG_INFINITY); 4];
        let (vectors, rest) = self.scores.as_chunks::<LANES>();
        let (quads, singles) = vectors.as_chunks::<4>();
        for quad in quads {
            for (best, vector) in best.iter_mut().zip(quad) {
                *best = l.max(l.load(vector), *best);
            }
        }
        for vector in singles {
            best[0] = l.max(l.load(vector), best[0]);
        }
        best[0] = l.max(l.load(&padded(rest)), best[0]);
        let best = l.max(l.max(best[0], best[1]), l.max(best[2], best[3]));
        let mut lanes = [0.0; LANES];
        l.store(best, &mut lanes);
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

impl Work for Mass<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f64 {
        let (highest, scale) = (l.splat(self.highest), l.splat(self.scale));
        let (vectors, rest) = self.scores.as_chunks::<LANES>();
        let mut total = 0.0;
        for stretch in vectors.chunks(STRETCH) {
            let mut sum = l.splat(0.0);
            for vector in stretch {
                sum = l.add(sum, weight(l, l.load(vector), highest, scale));
            }
            total += across(l, sum);
        }
        total + across(l, weight(l, l.load(&padded(rest)), highest, scale))
    }
}

impl Work for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (highest, scale) = (l.splat(self.highest), l.splat(self.scale));
        for some in self.scores.chunks_mut(LANES) {
            let mut weights = [0.0; LANES];
            l.store(weight(l, l.load(&padded(some)), highest, scale), &mut weights);
            some.copy_from_slice(&weights[..some.len()]);
        }
    }
}

#[inline(always)]
fn weight<L: Lanes>(l: L, scores: L::F, highest: L::F, scale: L::F) -> L::F {
    exp(l, l.mul(l.sub(scores, highest), scale))
}

/// The sum over all lanes, in their order.
#[inline(always)]
fn across<L: Lanes>(l: L, sum: L::F) -> f64 {
    let mut lanes = [0.0; LANES];
    l.store(sum, &mut lanes);
    lanes.into_iter().map(f64::from).sum()
}

/// The last scores, filled up with some that weigh nothing.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut vector = [f32::NEG_INFINITY; LANES];
    vector[..rest.len()].copy_from_slice(rest);
    vector
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    fn scores(count: usize) -> Vec<f32> {
        (0..count as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 8) as f32 / 600_000.0 - 9.0).collect()
    }

    #[test]
    fn sums_are_those_of_doubles_for_any_length() {
        for count in [1, 2, 15, 16, 17, 63, 64, 65, 1000, 6000, 151_936] {
            let scores = scores(count);
            let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = scores.iter().map(|&score| f64::from(score - best).exp()).sum();
            let (highest, mass) = mass(&scores);
            assert_eq!(highest.to_bits(), best.to_bits(), "{count}");
            assert!((mass / sum - 1.0).abs() < 1e-6, "{count}: {mass}, not {sum}");
        }
    }

    #[test]
    fn the_best_of_many_scores_is_the_first_highest() {
        for len in [1, 15, 16, 17, 1023, 1024, 1025, 5000] {
            for at in [0, len / 3, len - 1] {
                let mut scores = scores(len);
                scores[at] = 50.0;
                scores[len - 1] = 50.0;
                scores[len / 2] = if len > 2 { f32::NAN } else { 50.0 };
                let expected = scores.iter().position(|&score| score == 50.0);
                assert_eq!(best(&scores).map(|at| at as usize), expected, "{len}, {at}");
            }
        }
        assert_eq!(best(&[f32::NAN; 4]), None);
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn weights_are_relative_to_the_highest_at_any_temperature() {
        for temperature in [1e-45, 0.1, 1.0, 7.0] {
            let mut weights = scores(37);
            let (highest, mass) = mass_at(&weights, temperature);
            weigh(&mut weights, highest, temperature);
            assert!(weights.contains(&1.0) && weights.iter().all(|weight| (0.0..=1.0).contains(weight)));
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            assert!((mass / sum - 1.0).abs() < 1e-6, "{temperature}: {mass}, not {sum}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let scores = scores(6007);
        let (highest, mass) = mass(&scores);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let found = Found::new(isa).unwrap();
            assert_eq!(found.run(Highest { scores: &scores }).to_bits(), highest.to_bits(), "{isa:?}");
            let sum: f64 = found.run(Mass { scores: &scores, highest, scale: 1.0 });
            assert_eq!(sum.to_bits(), mass.to_bits(), "{isa:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_never_the_highest_and_spoils_the_mass() {
        let mut scores = scores(100);
        scores[40] = f32::NAN;
        let (best, sum) = mass(&scores);
        assert!(best.is_finite() && sum.is_nan());
        assert_eq!(highest(&[f32::NAN; 5]), f32::NEG_INFINITY);
        assert_eq!(highest(&[]), f32::NEG_INFINITY);
        assert_eq!(mass(&[f32::NEG_INFINITY, 2.0]), (2.0, 1.0));
    }
}
