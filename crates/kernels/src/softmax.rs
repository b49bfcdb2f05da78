//! What a softmax over a row of scores is made of, where only a few of its values are asked for.
//!
//! Sampling and thresholds look at one probability in a vocabulary of thousands: the highest score and the sum of all
//! weights relative to it are enough for any of them, and no row of probabilities is ever written.

use crate::exp::exp;
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

/// The score of a token that stands in the text already, under a repetition penalty.
pub fn penalise(score: f32, penalty: f32) -> f32 {
    if score > 0.0 { score / penalty } else { score * penalty }
}

/// What a score is multiplied by at this temperature; finite, so that the highest weighs 1 at any.
pub(crate) fn scale(temperature: f32) -> f32 {
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
