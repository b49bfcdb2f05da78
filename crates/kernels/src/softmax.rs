//! What a softmax over a row of scores is made of, where only a few of its values are asked for.
//!
//! Sampling and thresholds look at one probability in a vocabulary of thousands: the highest score and the sum of all
//! weights relative to it are enough for any of them, and no row of probabilities is ever written.

use candle_core::Tensor;

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Arg, Card, address, count};
use crate::error::{Error, Result};
use crate::exp::exp;
use crate::flat::{Flat, dims};
use crate::isa::{Found, Work};
use crate::lanes::{LANES, Lanes};

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
    let highest = highest(scores);
    (highest, Found::best().run(Mass { scores, highest }))
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

/// What is known of rows of scores that stay on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Of each row: its best score's index, the lowest among equals; that score; and [`mass`].
    pub rows: Vec<(u32, f32, f64)>,
    /// The scores that were asked for.
    pub asked: Vec<f32>,
}

impl Kernels {
    /// Looks rows of scores over where they are, so that they need not be downloaded.
    ///
    /// * `scores`: `[m, n]`
    /// * `asked`: row and index of single scores
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if a score is asked for that is not there.
    pub fn judge(&self, scores: &Tensor, asked: &[(u32, u32)]) -> Result<Judged> {
        let [m, n] = dims("scores", scores)?;
        if let Some((row, at)) = asked.iter().find(|&&(row, at)| row as usize >= m || at as usize >= n) {
            return Err(Error::range(format!("score {at} of row {row}; there are {n} in each of {m}")));
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return judge(card, scores, asked);
        }
        let flat = Flat::new("scores", scores)?;
        let rows = flat.values().chunks_exact(n.max(1)).map(|scores| {
            let (highest, mass) = mass(scores);
            (best(scores).unwrap_or(u32::MAX), highest, mass)
        });
        let asked = asked.iter().map(|&(row, at)| flat.values()[row as usize * n + at as usize]);
        Ok(Judged { rows: rows.collect(), asked: asked.collect() })
    }
}

/// Bytes of what is known of a row.
#[cfg(feature = "card")]
const JUDGED: usize = 16;

#[cfg(feature = "card")]
fn judge(card: &Card, scores: &Tensor, asked: &[(u32, u32)]) -> Result<Judged> {
    let [m, n] = dims("scores", scores)?;
    // One buffer for everything, so that there is one download.
    let buffer = card.scratch(m * JUDGED + asked.len() * size_of::<f32>())?;
    let from = address("scores", scores)?;
    // SAFETY: there is room for every row.
    unsafe { card.launch("judge", [m, 1, 1], 1024, &[from, buffer.address(), count(n)]) }?;
    let words: Vec<u32> = asked.iter().flat_map(|&(row, at)| [row, at]).collect();
    let words = card.words(&words)?;
    let answers = Arg::Address(buffer.start() + (m * JUDGED) as u64);
    let args = [from, words.address(), answers, count(asked.len()), count(n)];
    // SAFETY: the scores were checked to be there, and the answers have room behind the rows.
    unsafe { card.launch("ask", [asked.len().div_ceil(256), 1, 1], 256, &args) }?;
    let bytes = card.download(&buffer, 0, m * JUDGED + asked.len() * size_of::<f32>())?;
    let (rows, answers) = bytes.split_at(m * JUDGED);
    let rows = rows.as_chunks::<JUDGED>().0.iter().map(|row| {
        let [best, highest, low, high] = four(row);
        let mass = f64::from_bits(u64::from(low) | u64::from(high) << 32);
        (best, f32::from_bits(highest), mass)
    });
    let answers = answers.as_chunks().0.iter().map(|&answer| f32::from_le_bytes(answer));
    Ok(Judged { rows: rows.collect(), asked: answers.collect() })
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
        let highest = l.splat(self.highest);
        let (vectors, rest) = self.scores.as_chunks::<LANES>();
        let mut total = 0.0;
        for stretch in vectors.chunks(STRETCH) {
            let mut sum = l.splat(0.0);
            for vector in stretch {
                sum = l.add(sum, exp(l, l.sub(l.load(vector), highest)));
            }
            total += across(l, sum);
        }
        total + across(l, exp(l, l.sub(l.load(&padded(rest)), highest)))
    }
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
    fn every_instruction_set_gives_the_same_bits() {
        let scores = scores(6007);
        let (highest, mass) = mass(&scores);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let found = Found::new(isa).unwrap();
            assert_eq!(found.run(Highest { scores: &scores }).to_bits(), highest.to_bits(), "{isa:?}");
            let sum: f64 = found.run(Mass { scores: &scores, highest });
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
