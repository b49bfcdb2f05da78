//! The front of a row of scores, in order.

use std::cmp::Ordering;

/// The `count` highest of `scores` with their indices, in descending order, and of equal ones the lowest index first.
/// What is no number is left out.
pub fn top(scores: &[f32], count: usize) -> Vec<(f32, u32)> {
    let mut found: Vec<u64> = Vec::with_capacity(2 * count.min(scores.len()));
    let mut least = f32::NEG_INFINITY;
    for (at, &score) in scores.iter().enumerate() {
        // Behind `count` scores that are as high, an equal one has no chance: its index is higher.
        if score > least || (found.len() < count && score == least) {
            found.push(key(score, at as u32));
            if found.len() == 2 * count {
                found.select_nth_unstable(count - 1);
                found.truncate(count);
                least = unkey(found[count - 1]).0;
            }
        }
    }
    found.sort_unstable();
    found.truncate(count);
    found.into_iter().map(unkey).collect()
}

/// A score and its index as one number, which is the lower the earlier [`higher`] puts them: whole numbers are sorted
/// in a third of the time.
pub(crate) fn key(score: f32, at: u32) -> u64 {
    // Both zeros are one score.
    let bits = (score + 0.0).to_bits();
    let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!rising) << 32 | u64::from(at)
}

/// What [`key`] was made of.
fn unkey(key: u64) -> (f32, u32) {
    let rising = !((key >> 32) as u32);
    let bits = if rising >> 31 == 1 { rising & !(1 << 31) } else { !rising };
    (f32::from_bits(bits), key as u32)
}

/// The order of [`top`]: of a score and its index, the highest score, and of equal ones the lowest index, first.
pub fn higher(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_is_the_front_of_a_sorted_row() {
        for len in [0, 1, 7, 100, 3000] {
            // Some are equal, and some are none.
            let mixed = (0..len as u32).map(|at| at.wrapping_mul(2_654_435_761) >> 8);
            let mut scores: Vec<f32> =
                mixed.map(|at| ((at as f32 / 75_000.0).round() - 72.0) / 8.0).collect();
            scores.iter_mut().skip(9).step_by(23).for_each(|score| *score = -0.0);
            scores.iter_mut().skip(5).step_by(17).for_each(|score| *score = f32::NAN);
            scores.iter_mut().skip(3).step_by(19).for_each(|score| *score = f32::NEG_INFINITY);
            let mut sorted: Vec<(f32, u32)> =
                scores.iter().copied().zip(0..).filter(|(score, _)| !score.is_nan()).collect();
            sorted.sort_by(higher);
            for count in [1, 2, 64, 256, 5000] {
                assert_eq!(top(&scores, count), sorted[..count.min(sorted.len())], "{count} of {len}");
            }
        }
    }
}
