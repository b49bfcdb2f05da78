//! A counter-based generator: the draw at a place depends on its key alone, not on the draws before it.

/// A number in [0, 1) for this key, uniform over keys.
///
/// # Source
/// The finaliser is SplitMix64's (Steele, Lea and Flood 2014), applied once a key part.
pub(crate) fn uniform(seed: u64, branch: u64, position: u64) -> f64 {
    let bits = mix(mix(mix(seed) ^ branch) ^ position);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn draws_are_uniform_along_each_part_of_the_key() {
        for along in 0..3 {
            let mut buckets = [0u32; 16];
            for i in 0..16_000 {
                let key = |part| if part == along { i } else { 3 };
                buckets[(uniform(key(0), key(1), key(2)) * 16.0) as usize] += 1;
            }
            let chi: f64 = buckets.iter().map(|&count| (f64::from(count) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 45.0, "chi-squared {chi} over 15 degrees of freedom");
        }
    }
}
