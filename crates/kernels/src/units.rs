//! Units: what a panel is made of, one for each block of the file's type, or two.
//!
//! A unit of single or half precision is one input of sixteen outputs. One of bfloat16 is two: an output's two numbers
//! are a word, whose halves become single precision by a shift and by a mask.
//!
//! In a quantised unit, scales come first and then, for each 32 inputs, codes in groups of four inputs:
//! sixteen outputs × four bytes are the 64 bytes that one dot-product instruction takes.
//!
//! | part | bytes | for |
//! | --- | --- | --- |
//! | d | 16 × f16 | all |
//! | m | 16 × f16 | affine, super |
//! | for each 32 inputs: s (and t, or a second s) | 16 × u8 (32 × u8) | super, halves |
//! | nibbles of groups g and g + 4 | 4 × 64 | 4, 5, 6 bits |
//! | bit g of a byte: fifth bit of group g | 64 | 5 bits |
//! | two bits each: upper bits of four groups | 2 × 64 | 6 bits |
//! | codes | 8 × 64 | 8 bits |

use half::{bf16, f16};

use crate::formats::{Parsed, Scaling, WeightType};
use crate::lanes::LANES;
use crate::quantise::BLOCK;

/// Bytes of one dot-product operand: sixteen outputs, four inputs.
pub(crate) const GROUP: usize = 4 * LANES;

/// Panels of a dense weight that take turns in memory, unit by unit, so that a thread's share of a product is one line.
pub(crate) const BUNDLE: usize = 3;

/// Where the parts of a unit lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnitLayout {
    /// Bytes of d and m.
    pub(crate) head: usize,
    /// Bytes of the scales of each 32 inputs.
    pub(crate) scales: usize,
    /// Bytes of the codes of each 32 inputs.
    pub(crate) codes: usize,
    /// Runs of 32 inputs.
    pub(crate) blocks: usize,
}

impl UnitLayout {
    pub(crate) const fn of(ty: WeightType) -> Self {
        let (head, scales) = match ty.scaling() {
            Scaling::Dense => (0, 0),
            Scaling::Centred(_) => (2 * LANES, 0),
            Scaling::Affine => (4 * LANES, 0),
            Scaling::Super => (4 * LANES, 2 * LANES),
            Scaling::Halves => (2 * LANES, 2 * LANES),
        };
        Self { head, scales, codes: ty.bits() * GROUP, blocks: ty.block_elements() / BLOCK }
    }

    /// Where block `b` begins.
    pub(crate) const fn block(self, b: usize) -> usize {
        self.head + b * (self.scales + self.codes)
    }

    pub(crate) const fn bytes(self) -> usize {
        self.block(self.blocks)
    }
}

/// Inputs of a unit.
pub(crate) const fn unit_inputs(ty: WeightType) -> usize {
    match ty {
        WeightType::Bf16 => 2,
        _ => ty.block_elements(),
    }
}

/// Bytes of a unit.
pub(crate) const fn unit_bytes(ty: WeightType) -> usize {
    match ty.scaling() {
        Scaling::Dense => unit_inputs(ty) * ty.block_bytes() * LANES,
        _ => UnitLayout::of(ty).bytes(),
    }
}

/// Places what a file has for the inputs of a unit as `lane` of one of zeros; the last unit of an odd row is half full.
pub(crate) fn put(ty: WeightType, unit: &mut [u8], lane: usize, block: &[u8]) {
    if ty.is_dense() {
        let bytes = unit_inputs(ty) * ty.block_bytes();
        unit[lane * bytes..][..block.len()].copy_from_slice(block);
        return;
    }
    let layout = UnitLayout::of(ty);
    let parsed = Parsed::new(ty, block);
    unit[2 * lane..2 * lane + 2].copy_from_slice(&parsed.d);
    if matches!(ty.scaling(), Scaling::Affine | Scaling::Super) {
        unit[2 * (LANES + lane)..2 * (LANES + lane) + 2].copy_from_slice(&parsed.m);
    }
    for b in 0..layout.blocks {
        let (scales, codes) = unit[layout.block(b)..layout.block(b + 1)].split_at_mut(layout.scales);
        match ty.scaling() {
            Scaling::Super => {
                scales[lane] = parsed.scales[b];
                scales[LANES + lane] = parsed.mins[b];
            }
            Scaling::Halves => {
                scales[lane] = parsed.scales[2 * b];
                scales[LANES + lane] = parsed.scales[2 * b + 1];
            }
            _ => {}
        }
        let (parsed, _) = parsed.codes[b * BLOCK..(b + 1) * BLOCK].as_chunks::<4>();
        for (group, code) in parsed.iter().enumerate().take(if ty.bits() == 8 { 8 } else { 4 }) {
            for (byte, to) in codes[group * GROUP + 4 * lane..][..4].iter_mut().enumerate() {
                *to = if ty.bits() == 8 {
                    code[byte]
                } else {
                    code[byte] & 15 | (parsed[group + 4][byte] & 15) << 4
                };
            }
        }
        // The bits above the nibbles: five-bit codes have one, six-bit codes two.
        let (planes, bits) = match ty.bits() {
            5 => (1, 1),
            6 => (2, 2),
            _ => (0, 0),
        };
        for plane in 0..planes {
            let groups = &parsed[plane * 4 * (planes - 1)..][..8 / planes];
            for (byte, to) in codes[(4 + plane) * GROUP + 4 * lane..][..4].iter_mut().enumerate() {
                *to = groups.iter().rev().fold(0, |above, code| above << bits | code[byte] >> 4);
            }
        }
    }
}

/// Reads `lane` of a unit into numbers; the inverse of [`put`].
pub(crate) fn get(ty: WeightType, unit: &[u8], lane: usize, out: &mut [f32]) {
    let half = |at: usize| f16::from_le_bytes([unit[2 * at], unit[2 * at + 1]]).to_f32();
    match ty {
        WeightType::F32 => {
            let at = 4 * lane;
            out[0] = f32::from_le_bytes([unit[at], unit[at + 1], unit[at + 2], unit[at + 3]]);
            return;
        }
        WeightType::F16 => {
            out[0] = half(lane);
            return;
        }
        WeightType::Bf16 => {
            for (out, x) in out.iter_mut().zip(unit[4 * lane..].as_chunks().0) {
                *out = bf16::from_le_bytes(*x).to_f32();
            }
            return;
        }
        _ => {}
    }
    let layout = UnitLayout::of(ty);
    let d = half(lane);
    for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        let (scales, codes) = unit[layout.block(b)..layout.block(b + 1)].split_at(layout.scales);
        for (i, out) in out.iter_mut().enumerate() {
            let code = code(ty, codes, i / 4, 4 * lane + i % 4);
            *out = match ty.scaling() {
                Scaling::Dense => 0.0,
                Scaling::Centred(offset) => d * (i32::from(code) - offset) as f32,
                Scaling::Affine => d * f32::from(code) + half(LANES + lane),
                Scaling::Super => {
                    let floor = half(LANES + lane) * f32::from(scales[LANES + lane]);
                    d * f32::from(scales[lane]) * f32::from(code) + floor
                }
                Scaling::Halves => {
                    let scale = scales[i / 16 * LANES + lane] as i8;
                    d * f32::from(scale) * (i32::from(code) - 32) as f32
                }
            };
        }
    }
}

fn code(ty: WeightType, codes: &[u8], group: usize, byte: usize) -> u8 {
    if ty.bits() == 8 {
        return codes[group * GROUP + byte];
    }
    let nibble = codes[group % 4 * GROUP + byte] >> (group / 4 * 4) & 15;
    match ty.bits() {
        5 => nibble | (codes[4 * GROUP + byte] >> group & 1) << 4,
        6 => nibble | (codes[(4 + group / 4) * GROUP + byte] >> (2 * (group % 4)) & 3) << 4,
        _ => nibble,
    }
}
