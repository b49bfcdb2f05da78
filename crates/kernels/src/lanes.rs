//! Sixteen lanes: the vector that every kernel is written in.
//!
//! A lane is an output (matmul), a key (scores) or a channel (everything else), and it always runs
//! the same sequence of individually rounded operations. Sixteen is fixed for all instruction sets
//! (one 512-bit register, two of 256 or four of 128), so that sums over lanes take the same tree
//! everywhere and all instruction sets give the same bits. The compiler's own vectorisation was
//! rejected for the integer dot products, which it does not find, and a SIMD crate because its
//! width varies and it has no byte dot product.
//!
//! A value of a lanes type proves that the CPU has the instructions, so the methods are safe.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Pairs of bfloat16 as two vectors, for lanes without an instruction for them.
macro_rules! pairs_apart {
    () => {
        type Pairs = [Self::F; 2];
        const PAIRED: bool = false;

        #[inline(always)]
        fn pairs(self, x: &[u8; 64]) -> Self::Pairs {
            self.bfloats(x)
        }
        #[inline(always)]
        fn splat_pair(self, x: [half::bf16; 2]) -> Self::Pairs {
            [self.splat(x[0].to_f32()), self.splat(x[1].to_f32())]
        }
        #[inline(always)]
        fn add_pairs(self, sum: Self::F, a: Self::Pairs, b: Self::Pairs) -> Self::F {
            self.fma(a[0], b[0], self.fma(a[1], b[1], sum))
        }
    };
}

mod portable;
pub(crate) use portable::Portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use {avx2::Avx2, avx512::Avx512};

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

/// Lanes in a vector.
pub(crate) const LANES: usize = 16;

/// Bytes of a cache line: what one hint fetches.
pub(crate) const LINE: usize = 64;

/// Sixteen `f32` (`F`), sixteen `i32` that double as 64 bytes (`I`), and sixteen pairs of bfloat16 (`Pairs`).
pub(crate) trait Lanes: Copy + Send + Sync {
    type F: Copy;
    type I: Copy;
    type Pairs: Copy;

    /// Whether some twenty vectors fit in registers; otherwise it is six.
    const WIDE: bool;
    /// Whether one instruction multiplies pairs.
    const PAIRED: bool;

    /// Says that what lies at an address will be loaded soon: it comes to a second-level cache. Any address will do, for
    /// nothing is read.
    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}
    /// Says that it will be loaded next: it comes to a first-level cache.
    #[inline(always)]
    fn prefetch_near(self, _at: *const u8) {}

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`, hence `b` where either is not a number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `x < limit ? 0 : v`.
    fn zero_below(self, x: Self::F, limit: Self::F, v: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, x: Self::F) -> Self::F;
    /// Two to the power of an integer-valued `n` in -126..=127.
    fn pow2(self, n: Self::F) -> Self::F;

    /// Sixteen single-precision numbers, little-endian.
    fn single(self, x: &[u8; 64]) -> Self::F;
    /// Sixteen half-precision numbers, little-endian.
    fn half(self, x: &[u8; 32]) -> Self::F;
    /// Sixteen bfloat16 numbers, little-endian.
    fn bfloat(self, x: &[u8; 32]) -> Self::F;
    /// Sixteen pairs of bfloat16 numbers, little-endian: the first ones, and the second ones.
    fn bfloats(self, x: &[u8; 64]) -> [Self::F; 2];
    /// Sixteen pairs of bfloat16 numbers, little-endian.
    fn pairs(self, x: &[u8; 64]) -> Self::Pairs;
    fn splat_pair(self, x: [bf16; 2]) -> Self::Pairs;
    /// Adds to each lane the product of its pairs' second numbers and then that of the first ones, rounded after each.
    /// Whether a number or a sum below 2^-126 is more than zero is left open.
    fn add_pairs(self, sum: Self::F, a: Self::Pairs, b: Self::Pairs) -> Self::F;
    fn unsigned(self, x: &[u8; 16]) -> Self::F;
    fn signed(self, x: &[u8; 16]) -> Self::F;

    fn splat_i(self, x: i32) -> Self::I;
    fn bytes(self, x: &[u8; 64]) -> Self::I;
    fn to_f32(self, v: Self::I) -> Self::F;
    /// The bits of `mask` in every byte.
    fn keep(self, v: Self::I, mask: u8) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shifts each 32-bit lane right (zeros come in).
    fn shr(self, v: Self::I, bits: u32) -> Self::I;
    /// Shifts each 32-bit lane left.
    fn shl(self, v: Self::I, bits: u32) -> Self::I;
    /// Adds to each lane the dot product of its four unsigned bytes, all below 128, with `x`.
    fn dot(self, sum: Self::I, codes: Self::I, x: [i8; 4]) -> Self::I;
    /// [`Lanes::dot`] for any unsigned bytes.
    fn dot_wide(self, sum: Self::I, codes: Self::I, x: [i8; 4]) -> Self::I;

    /// Integer-valued lanes from -127 to 127 as bytes.
    fn to_bytes(self, v: Self::F) -> [i8; LANES];
    /// The nearest numbers in half precision, ties to even.
    #[inline(always)]
    fn to_half(self, v: Self::F) -> [f16; LANES] {
        let (mut x, mut out) = ([0.0; LANES], [f16::ZERO; LANES]);
        self.store(v, &mut x);
        out.convert_from_f32_slice(&x);
        out
    }

    /// The sum of the lanes, as a tree over lane distances 8, 4, 2, 1.
    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        let mut x = [0.0; LANES];
        self.store(v, &mut x);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                x[i] += x[i + width];
            }
            width /= 2;
        }
        x[0]
    }

    /// The greatest lane.
    #[inline(always)]
    fn highest(self, v: Self::F) -> f32 {
        let mut x = [0.0; LANES];
        self.store(v, &mut x);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                x[i] = if x[i] > x[i + width] { x[i] } else { x[i + width] };
            }
            width /= 2;
        }
        x[0]
    }
}

#[cfg(test)]
mod tests;
