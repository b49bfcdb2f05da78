//! What a dense product multiplies weights by: numbers as they are, or pairs rounded to bfloat16.

use std::mem::MaybeUninit;

use half::bf16;

use crate::formats::WeightType;
use crate::isa::{Found, Work};
use crate::lanes::Lanes;
use crate::pool::Parts;

/// Inputs of a unit, at most.
pub(crate) const INPUTS: usize = 2;

/// One activation, or two in one.
pub(crate) trait Factor: Copy + Sync {
    /// Activations in one.
    const NUMBERS: usize;
    /// The weights of a unit.
    type Unit<L: Lanes>: Copy;
    /// A factor for each of sixteen outputs.
    type Splat<L: Lanes>: Copy;

    /// Reads a unit of type `TY`, a [`WeightType`] as its index.
    fn unit<L: Lanes, const TY: usize>(l: L, bytes: &[u8]) -> Self::Unit<L>;
    fn splat<L: Lanes>(self, l: L) -> Self::Splat<L>;
    /// Adds the products of a factor and what it meets of a unit, whose factor `at` it is.
    fn add<L: Lanes>(l: L, sum: L::F, unit: Self::Unit<L>, at: usize, x: Self::Splat<L>) -> L::F;
}

impl Factor for f32 {
    const NUMBERS: usize = 1;
    type Unit<L: Lanes> = [L::F; INPUTS];
    type Splat<L: Lanes> = L::F;

    #[inline(always)]
    fn unit<L: Lanes, const TY: usize>(l: L, bytes: &[u8]) -> [L::F; INPUTS] {
        let none = l.splat(0.0);
        let found = match const { WeightType::ALL[TY] } {
            WeightType::F16 => bytes.first_chunk().map(|unit| [l.half(unit), none]),
            WeightType::Bf16 => bytes.first_chunk().map(|unit| l.bfloats(unit)),
            _ => bytes.first_chunk().map(|unit| [l.single(unit), none]),
        };
        found.unwrap_or([none; INPUTS])
    }
    #[inline(always)]
    fn splat<L: Lanes>(self, l: L) -> L::F {
        l.splat(self)
    }
    #[inline(always)]
    fn add<L: Lanes>(l: L, sum: L::F, unit: [L::F; INPUTS], at: usize, x: L::F) -> L::F {
        l.fma(unit[at], x, sum)
    }
}

/// Two neighbouring activations; the second is zero where a row is odd and ends.
pub(crate) type Pair = [bf16; 2];

impl Factor for Pair {
    const NUMBERS: usize = 2;
    type Unit<L: Lanes> = L::Pairs;
    type Splat<L: Lanes> = L::Pairs;

    #[inline(always)]
    fn unit<L: Lanes, const TY: usize>(l: L, bytes: &[u8]) -> L::Pairs {
        const { assert!(matches!(WeightType::ALL[TY], WeightType::Bf16)) };
        bytes.first_chunk().map_or(l.splat_pair([bf16::ZERO; 2]), |unit| l.pairs(unit))
    }
    #[inline(always)]
    fn splat<L: Lanes>(self, l: L) -> L::Pairs {
        l.splat_pair(self)
    }
    #[inline(always)]
    fn add<L: Lanes>(l: L, sum: L::F, unit: L::Pairs, _: usize, x: L::Pairs) -> L::F {
        l.add_pairs(sum, unit, x)
    }
}

/// Pairs `[m, k / 2]` of activations `[m, k]`, as tasks make them: those that write activations have them at hand.
pub(crate) struct Pairing<'a> {
    pairs: Parts<'a, MaybeUninit<Pair>>,
    k: usize,
}

impl<'a> Pairing<'a> {
    /// * `room`: for all of the pairs, or for none where no product takes them
    pub(crate) fn new(room: &'a mut [MaybeUninit<Pair>], k: usize) -> Option<Self> {
        (!room.is_empty()).then(|| Self { pairs: Parts::new(room), k })
    }

    /// Makes those of some activations of a row, from `column` on.
    ///
    /// # Safety
    /// No other thread has these activations, and every part of the row begins at an even column: no pair is shared.
    pub(crate) unsafe fn put(&self, found: Found, row: usize, column: usize, x: &[f32]) {
        let at = row * self.k.div_ceil(2) + column / 2;
        // SAFETY: the caller's promise.
        let out = unsafe { self.pairs.part(at, x.len().div_ceil(2)) };
        found.run(Round { x, out });
    }
}

/// Rounds activations to pairs.
struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [MaybeUninit<Pair>],
}

impl Work for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        let (pairs, last) = self.x.as_chunks::<2>();
        for (to, x) in self.out.iter_mut().zip(pairs) {
            to.write([narrow(x[0]), narrow(x[1])]);
        }
        if let (Some(to), Some(x)) = (self.out.get_mut(pairs.len()), last.first()) {
            to.write([narrow(*x), bf16::ZERO]);
        }
    }
}

/// The nearest bfloat16, ties to even, and zero for what is below its normal numbers: instructions that multiply pairs take
/// those for zero.
#[inline(always)]
fn narrow(x: f32) -> bf16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // A NaN may wrap; it is replaced below.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let kept = if magnitude < 0x0080_0000 { bits >> 16 & 0x8000 } else { rounded };
    bf16::from_bits(if magnitude > 0x7f80_0000 { 0x7fc0 } else { kept as u16 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kernels;
    use crate::elementwise::Activation;
    use crate::flat::tensor;
    use crate::weight::Weight;

    #[test]
    fn pairs_are_made_where_products_take_them() {
        let kernels = Kernels::cpu(2).unwrap();
        let (x, scale) = (tensor(vec![1.0; 21], &[3, 7]).unwrap(), tensor(vec![1.0; 7], &[7]).unwrap());
        let weight =
            |ty: WeightType| Weight::pack(&kernels, ty, 1, 7, &vec![0; ty.bytes(1, 7).unwrap()]).unwrap();
        for (kernels, ty, count) in [
            (kernels.rounding(), WeightType::Bf16, 12),
            (kernels.rounding(), WeightType::F16, 0),
            (kernels.clone(), WeightType::Bf16, 0),
        ] {
            let weight = weight(ty);
            let normed = kernels.norm_for(&x, &scale, 0.0, &[&weight]).unwrap();
            let (_, sum) = kernels.add_norm_for(&x, &x, &scale, 0.0, &[&weight]).unwrap();
            let gated = kernels.gate_for(&x, None, Activation::Relu, &[&weight]).unwrap();
            for operand in [normed, sum, gated] {
                assert_eq!(operand.pairs().len(), count, "{ty:?}");
            }
        }
    }

    #[test]
    fn numbers_are_narrowed_as_half_does_it() {
        let mut bits = 0x1234_5678_u32;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            let (found, expected) = (narrow(x), bf16::from_f32(x));
            if x.is_nan() {
                assert!(found.is_nan());
            } else if x.is_subnormal() {
                assert_eq!((found.to_f32(), found.is_sign_negative()), (0.0, x.is_sign_negative()));
            } else {
                assert_eq!(found.to_bits(), expected.to_bits(), "{x}");
            }
        }
        for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE] {
            assert_eq!(narrow(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(narrow(f32::from_bits(u32::MAX)).is_nan());
    }
}
