//! T5's relative position biases, spread out over distances once at load.
//!
//! # Source
//! Raffel et al. 2020 (arXiv 1910.10683), section 2.1; the bucket arithmetic is in f32, as the published models were
//! trained with.

use candle_core::Tensor;
use trefoil_kernels::{Kernels, Weight};

use crate::config::T5Config;
use crate::error::Result;

/// The decoder's table: `[heads, max_distance + 1]` by `row position - key position`.
///
/// * `buckets`: `[buckets, heads]`.
pub(crate) fn decoder_bias(config: &T5Config, buckets: &Weight, kernels: &Kernels) -> Result<Tensor> {
    let distances =
        (0..=config.max_distance).map(|distance| bucket(distance, config.buckets, config.max_distance));
    table(&distances.collect::<Vec<_>>(), config, buckets, kernels)
}

/// The encoder's table: `[heads, 2 · max_distance + 1]` by `key position - row position + max_distance`.
pub(crate) fn encoder_bias(config: &T5Config, buckets: &Weight, kernels: &Kernels) -> Result<Tensor> {
    let (half, reach) = (config.buckets / 2, config.max_distance);
    let offsets = (0..=2 * reach).map(|offset| {
        let ahead = if offset > reach { half } else { 0 };
        ahead + bucket(offset.abs_diff(reach), half, reach)
    });
    table(&offsets.collect::<Vec<_>>(), config, buckets, kernels)
}

/// The bucket of a distance: one each for the near half, logarithmic up to `max_distance`, the last one beyond.
fn bucket(distance: usize, buckets: usize, max_distance: usize) -> usize {
    let exact = buckets / 2;
    if distance < exact {
        return distance;
    }
    let reach = (max_distance as f64 / exact as f64).ln() as f32;
    let step = (distance as f32 / exact as f32).ln() / reach * (buckets - exact) as f32;
    (exact + step as usize).min(buckets - 1)
}

fn table(index: &[usize], config: &T5Config, buckets: &Weight, kernels: &Kernels) -> Result<Tensor> {
    let rows = (0..config.buckets).map(|bucket| buckets.row(bucket));
    let rows: Vec<Vec<f32>> = rows.collect::<std::result::Result<_, _>>()?;
    let values: Vec<f32> = (0..config.heads)
        .flat_map(|head| index.iter().map(|&bucket| rows[bucket][head]).collect::<Vec<_>>())
        .collect();
    Ok(Tensor::from_vec(values, (config.heads, index.len()), kernels.device())?)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn distances_meet_the_published_buckets() {
        // transformers' `_relative_position_bucket(bidirectional=False)` at 32 buckets, distance 128.
        let expected = [
            (0, 0),
            (1, 1),
            (15, 15),
            (16, 16),
            (17, 16),
            (20, 17),
            (31, 21),
            (32, 21),
            (64, 26),
            (100, 30),
            (113, 31),
            (500, 31),
        ];
        for (distance, found) in expected {
            assert_eq!(bucket(distance, 32, 128), found, "distance {distance}");
        }
    }
}
