//! Element types as files name them, and whether their values are finite.

use trefoil_kernels::WeightType;

/// The element type, or the name of one that no model here computes with.
pub(super) enum Stored {
    Weight(WeightType),
    Other(String),
}

/// The type of this number in a GGUF file; the name of one that no model here computes with, as the error.
///
/// # Source
/// `ggml_type` in ggml.h.
pub(super) fn ggml_type(number: u32) -> Result<WeightType, String> {
    let name = match number {
        0 => return Ok(WeightType::F32),
        1 => return Ok(WeightType::F16),
        2 => return Ok(WeightType::Q4_0),
        3 => return Ok(WeightType::Q4_1),
        6 => return Ok(WeightType::Q5_0),
        7 => return Ok(WeightType::Q5_1),
        8 => return Ok(WeightType::Q8_0),
        12 => return Ok(WeightType::Q4K),
        13 => return Ok(WeightType::Q5K),
        14 => return Ok(WeightType::Q6K),
        30 => return Ok(WeightType::Bf16),
        10 => "Q2_K",
        11 => "Q3_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return Err(format!("number {number}")),
    };
    Err(name.to_owned())
}

/// The types that models are stored in, for messages.
pub(super) const ALLOWED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K";

/// Whether every weight, or every scale of a quantised block, is a finite number.
pub(super) fn is_finite(ty: WeightType, bytes: &[u8]) -> bool {
    let halves: &[usize] = match ty {
        WeightType::F32 => return words(bytes).all(|word| word & 0x7f80_0000 != 0x7f80_0000),
        WeightType::Bf16 => return pairs(bytes).all(|half| half & 0x7f80 != 0x7f80),
        WeightType::F16 => return pairs(bytes).all(is_finite_half),
        // Where a block keeps its f16 scale and, where it has one, its f16 minimum.
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => &[0],
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
        WeightType::Q6K => &[208],
    };
    bytes
        .chunks_exact(ty.block_bytes())
        .all(|block| halves.iter().all(|&at| is_finite_half(u16::from_le_bytes([block[at], block[at + 1]]))))
}

fn is_finite_half(half: u16) -> bool {
    half & 0x7c00 != 0x7c00
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}
