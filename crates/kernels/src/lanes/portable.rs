//! Sixteen lanes in plain Rust: the definition that the others must match.

use half::{bf16, f16};

use super::{LANES, Lanes};

/// Runs everywhere.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn zip(a: F, b: F, op: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|i| op(a[i], b[i]))
}

#[inline(always)]
fn dot(sum: I, codes: I, x: [i8; 4]) -> I {
    std::array::from_fn(|i| {
        let codes = codes[i].to_le_bytes();
        (0..4).fold(sum[i], |sum, j| sum + i32::from(codes[j]) * i32::from(x[j]))
    })
}

impl Lanes for Portable {
    type F = F;
    type I = I;

    const WIDE: bool = false;

    pairs_apart!();

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        *x
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; LANES]) {
        *to = v;
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn zero_below(self, x: F, limit: F, v: F) -> F {
        std::array::from_fn(|i| if x[i] < limit[i] { 0.0 } else { v[i] })
    }
    #[inline(always)]
    fn round(self, x: F) -> F {
        x.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn pow2(self, n: F) -> F {
        n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn single(self, x: &[u8; 64]) -> F {
        self.bytes(x).map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn half(self, x: &[u8; 32]) -> F {
        std::array::from_fn(|i| f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn bfloat(self, x: &[u8; 32]) -> F {
        std::array::from_fn(|i| bf16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn bfloats(self, x: &[u8; 64]) -> [F; 2] {
        let half = |at: usize| bf16::from_le_bytes([x[2 * at], x[2 * at + 1]]).to_f32();
        [0, 1].map(|second| std::array::from_fn(|i| half(2 * i + second)))
    }
    #[inline(always)]
    fn unsigned(self, x: &[u8; 16]) -> F {
        x.map(f32::from)
    }
    #[inline(always)]
    fn signed(self, x: &[u8; 16]) -> F {
        x.map(|x| f32::from(x as i8))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> I {
        std::array::from_fn(|i| i32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]))
    }
    #[inline(always)]
    fn to_f32(self, v: I) -> F {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    fn keep(self, v: I, mask: u8) -> I {
        v.map(|x| x & i32::from_le_bytes([mask; 4]))
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn shr(self, v: I, bits: u32) -> I {
        v.map(|x| (x as u32 >> bits) as i32)
    }
    #[inline(always)]
    fn shl(self, v: I, bits: u32) -> I {
        v.map(|x| ((x as u32) << bits) as i32)
    }
    #[inline(always)]
    fn dot(self, sum: I, codes: I, x: [i8; 4]) -> I {
        dot(sum, codes, x)
    }
    #[inline(always)]
    fn dot_wide(self, sum: I, codes: I, x: [i8; 4]) -> I {
        dot(sum, codes, x)
    }

    #[inline(always)]
    fn to_bytes(self, v: F) -> [i8; LANES] {
        v.map(|x| x as i8)
    }
}
