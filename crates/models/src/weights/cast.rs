//! Dense tensors in another precision than the file's.

use half::{bf16, f16};
use trefoil_kernels::WeightType;

use super::RawTensor;

/// Whether elements of this type stand alone.
pub(super) fn is_dense(ty: WeightType) -> bool {
    matches!(ty, WeightType::F32 | WeightType::F16 | WeightType::Bf16)
}

/// Rounds a dense tensor to `ty`; leaves a quantised one as it is.
pub(super) fn dense(raw: RawTensor, ty: WeightType) -> RawTensor {
    if raw.ty == ty || !is_dense(raw.ty) {
        return raw;
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
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    RawTensor { ty, shape: raw.shape, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dense_type_reaches_every_other() {
        let values = [0.0f32, 1.5, -2.25, 1024.0];
        let raw = |ty| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            dense(RawTensor { ty: WeightType::F32, shape: vec![4], bytes }, ty)
        };
        for from in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
            for to in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
                assert_eq!(dense(raw(from), to), raw(to), "{from:?} to {to:?}");
            }
        }
    }
}
