//! Weights that no file has: seeded numbers in any shape that is asked for, so that what does not depend on their
//! meaning, such as the time of a step, is known without a model.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use half::{bf16, f16};
use trefoil_kernels::WeightType;

use super::RawTensor;
use crate::error::{Error, Result};

/// Blocks that are made up; more are copies of these from other places on.
const BLOCKS: usize = 1 << 14;

type Patterns = HashMap<(WeightType, usize), Arc<[u8]>>;

/// Numbers from a seed.
pub(super) struct Random {
    ty: WeightType,
    seed: u64,
    /// Blocks of a type, scaled for a matrix of so many inputs.
    patterns: Mutex<Patterns>,
}

impl Random {
    pub(super) fn new(ty: WeightType, seed: u64) -> Self {
        Self { ty, seed, patterns: Mutex::default() }
    }

    /// Rows of a tensor of this name and shape: a matrix that keeps its inputs' size, a norm's weights near one, a
    /// small bias. Matrices whose rows are no whole blocks are f32.
    pub(super) fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<RawTensor> {
        let width = shape.iter().skip(1).product::<usize>();
        let start = name.bytes().fold(self.seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        if shape.len() == 1 {
            let mut draw = Draw(start);
            let offset = if name.ends_with("bias") { 0.0 } else { 1.0 };
            let bytes = rows.clone().flat_map(|_| (offset + 0.1 * draw.unit()).to_le_bytes()).collect();
            return Ok(RawTensor { ty: WeightType::F32, shape: vec![rows.len()], bytes });
        }
        let ty = if width.is_multiple_of(self.ty.block_elements()) { self.ty } else { WeightType::F32 };
        let pattern = self.pattern(ty, width)?;
        let (block, blocks) = (ty.block_bytes(), width / ty.block_elements());
        let mut bytes = Vec::with_capacity(rows.len() * blocks * block);
        for row in rows.clone() {
            let mut left = blocks * block;
            // A prime, so that rows begin in different places.
            let mut at = (start as usize).wrapping_add(row.wrapping_mul(7919)) % BLOCKS * block;
            while left > 0 {
                let piece = left.min(pattern.len() - at);
                bytes.extend_from_slice(&pattern[at..at + piece]);
                (at, left) = (0, left - piece);
            }
        }
        let shape = std::iter::once(rows.len()).chain(shape.iter().skip(1).copied()).collect();
        Ok(RawTensor { ty, shape, bytes })
    }

    fn pattern(&self, ty: WeightType, width: usize) -> Result<Arc<[u8]>> {
        if width == 0 {
            return Err(Error::internal("a random matrix without inputs"));
        }
        let mut patterns = self.patterns.lock().unwrap_or_else(PoisonError::into_inner);
        let made = patterns.entry((ty, width)).or_insert_with(|| pattern(ty, width, self.seed));
        Ok(Arc::clone(made))
    }
}

/// Blocks of numbers with a spread of one by the root of `width`, so that a product with them keeps its inputs' size.
fn pattern(ty: WeightType, width: usize, seed: u64) -> Arc<[u8]> {
    let mut draw = Draw(seed ^ width as u64);
    let spread = (width as f32).sqrt().recip();
    // A uniform number's own spread is the root of a third.
    let scale = spread * 3f32.sqrt();
    match ty {
        WeightType::F32 => (0..BLOCKS).flat_map(|_| (scale * draw.unit()).to_le_bytes()).collect(),
        WeightType::F16 => {
            (0..BLOCKS).flat_map(|_| f16::from_f32(scale * draw.unit()).to_le_bytes()).collect()
        }
        WeightType::Bf16 => {
            (0..BLOCKS).flat_map(|_| bf16::from_f32(scale * draw.unit()).to_le_bytes()).collect()
        }
        quantised => {
            let mut bytes: Vec<u8> =
                (0..BLOCKS * quantised.block_bytes()).map(|_| (draw.next() >> 56) as u8).collect();
            for block in bytes.chunks_exact_mut(quantised.block_bytes()) {
                for &(at, factor) in scales(quantised) {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(spread * factor).to_le_bytes());
                }
            }
            bytes.into()
        }
    }
}

/// Where a block keeps its scale, and its minimum where it has one, and what they are for codes of all values to have
/// a spread of one around zero.
fn scales(ty: WeightType) -> &'static [(usize, f32)] {
    // Codes of four bits have a spread of 4.6, of five bits 9.2, of eight 74; six-bit factors add theirs, 18.
    match ty {
        WeightType::Q4_0 => &[(0, 1.0 / 4.6)],
        WeightType::Q4_1 => &[(0, 1.0 / 4.6), (2, -7.5 / 4.6)],
        WeightType::Q5_0 => &[(0, 1.0 / 9.2)],
        WeightType::Q5_1 => &[(0, 1.0 / 9.2), (2, -15.5 / 9.2)],
        WeightType::Q8_0 => &[(0, 1.0 / 74.0)],
        WeightType::Q4K => &[(0, 1.0 / 258.0), (2, 7.5 / 258.0)],
        WeightType::Q5K => &[(0, 1.0 / 527.0), (2, 15.5 / 527.0)],
        WeightType::Q6K => &[(208, 1.0 / (74.0 * 18.0))],
        WeightType::F32 | WeightType::F16 | WeightType::Bf16 => &[],
    }
}

const PRIME: u64 = 0x0100_0000_01b3;

/// A generator (splitmix).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From −1 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use trefoil_kernels::{Kernels, Weight};

    use super::super::Weights;
    use super::*;

    #[test]
    fn products_keep_their_inputs_size_in_every_type() {
        let kernels = Kernels::cpu(1).unwrap();
        for ty in WeightType::ALL {
            let raw = Weights::random(ty, 7).read("a.weight", &[64, 512]).unwrap();
            let weight = Weight::pack(&kernels, raw.ty, 64, 512, &raw.bytes).unwrap();
            let numbers: Vec<f32> = (0..64).flat_map(|row| weight.row(row).unwrap()).collect();
            let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
            let spread = (numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32 * 512.0).sqrt();
            assert!((0.9..1.1).contains(&spread) && mean.abs() < 0.02, "{ty:?}: {spread} around {mean}");
        }
    }

    #[test]
    fn the_same_seed_and_name_are_the_same_numbers_row_by_row() {
        let weights = || Weights::random(WeightType::Q4K, 3);
        let whole = weights().read("a.weight", &[40, 256]).unwrap();
        let some = weights().read_rows("a.weight", &[40, 256], 7..19).unwrap();
        let bytes = whole.bytes.len() / 40;
        assert_eq!(some.bytes, whole.bytes[7 * bytes..19 * bytes]);
        assert_ne!(weights().read("b.weight", &[40, 256]).unwrap().bytes, whole.bytes);
        assert_eq!(weights().read("a.bias", &[40, 7]).unwrap().ty, WeightType::F32);
        assert_eq!(weights().read("a.norm.weight", &[40]).unwrap().shape, [40]);
    }
}
