//! Dense tensors in another precision than the file's.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use trefoil_kernels::WeightType;

use super::RawTensor;
use crate::error::Result;

/// What a tensor's elements are read as, where dense ones are wanted as `wanted`. Quantised ones stay as they are, and so
/// does what has no rows of whole blocks, or is no matrix of a product: vectors, and a table of biases.
pub(super) fn target(ty: WeightType, wanted: Option<WeightType>, name: &str, shape: &[usize]) -> WeightType {
    let Some(wanted) = wanted.filter(|_| is_dense(ty)) else { return ty };
    let blocks = match shape {
        [_, k] => k.is_multiple_of(wanted.block_elements()) && !name.ends_with(TABLE),
        _ => false,
    };
    if is_dense(wanted) || blocks { wanted } else { ty }
}

/// How the names of T5's tables of biases end: numbers that are added to scores.
const TABLE: &str = "relative_attention_bias.weight";

/// Whether elements of this type stand alone.
fn is_dense(ty: WeightType) -> bool {
    matches!(ty, WeightType::F32 | WeightType::F16 | WeightType::Bf16)
}

/// Rounds a dense tensor to `ty`, another dense type or blocks of eight bits.
pub(super) fn cast(raw: RawTensor, ty: WeightType) -> Result<RawTensor> {
    if raw.ty == ty {
        return Ok(raw);
    }
    let halves = || raw.bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let values: Vec<f32> = match raw.ty {
        WeightType::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        WeightType::Bf16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        _ => raw
            .bytes
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            .collect(),
    };
    let bytes = match ty {
        WeightType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        WeightType::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        WeightType::Q8_0 => {
            let values = Tensor::from_vec(values, raw.shape.as_slice(), &Device::Cpu)?;
            QTensor::quantize(&values, GgmlDType::Q8_0)?.data()?.into_owned()
        }
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    Ok(RawTensor { ty, shape: raw.shape, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dense_type_reaches_every_other() {
        let values = [0.0f32, 1.5, -2.25, 1024.0];
        let raw = |ty| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            cast(RawTensor { ty: WeightType::F32, shape: vec![4], bytes }, ty).unwrap()
        };
        for from in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
            for to in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
                assert_eq!(cast(raw(from), to).unwrap(), raw(to), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn blocks_of_eight_bits_are_half_a_step_away_at_most() {
        let values: Vec<f32> =
            (0..96).map(|i| if i < 32 { 0.0 } else { (i as f32).sin() * i as f32 }).collect();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let raw = RawTensor { ty: WeightType::F32, shape: vec![1, 96], bytes };
        let found = cast(raw, WeightType::Q8_0).unwrap();
        assert_eq!((found.ty, found.shape, found.bytes.len()), (WeightType::Q8_0, vec![1, 96], 3 * 34));
        for (block, values) in found.bytes.chunks(34).zip(values.chunks(32)) {
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            let greatest = values.iter().fold(0.0f32, |greatest, value| greatest.max(value.abs()));
            assert!((scale - greatest / 127.0).abs() <= greatest * 1e-5);
            for (&code, value) in block[2..].iter().zip(values) {
                // The scale itself is rounded to eleven bits.
                let off = (f32::from(code as i8) * scale - value).abs();
                assert!(off <= scale * (0.5 + 127.0 / 2048.0), "{value}: {off} of {scale}");
            }
        }
    }

    #[test]
    fn only_matrices_of_whole_blocks_are_quantised() {
        let ty = WeightType::Bf16;
        let eight = |ty, name: &str, shape: &[usize]| target(ty, Some(WeightType::Q8_0), name, shape);
        assert_eq!(eight(ty, "lm_head.weight", &[3, 64]), WeightType::Q8_0);
        assert_eq!(eight(WeightType::Q4K, "lm_head.weight", &[3, 256]), WeightType::Q4K);
        let table = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        for (name, shape) in [("lm_head.weight", &[3, 48][..]), ("norm.weight", &[64]), (table, &[32, 32])] {
            assert_eq!(eight(ty, name, shape), ty, "{name}");
            assert_eq!(target(ty, Some(WeightType::F32), name, shape), WeightType::F32, "{name}");
            assert_eq!(target(ty, None, name, shape), ty, "{name}");
        }
    }
}
