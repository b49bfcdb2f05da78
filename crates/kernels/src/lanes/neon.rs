//! Sixteen lanes in four 128-bit registers.
//!
//! Byte products are widened to 16 bits and summed in pairs: every aarch64 CPU can do that, where
//! the dot-product instructions are an extension.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all: every aarch64 CPU has NEON, and loads and stores stay inside references of the \
              full width"
)]

use std::arch::aarch64::{
    float32x4_t, int32x4_t, vaddq_f32, vaddq_s32, vandq_s32, vbicq_u32, vbslq_f32, vcgtq_f32, vcltq_f32,
    vcombine_s8, vcombine_s16, vcvtq_f32_s32, vcvtq_f32_u32, vcvtq_s32_f32, vdivq_f32, vdupq_n_f32,
    vdupq_n_s32, vfmaq_f32, vget_high_s8, vget_high_s16, vget_high_u8, vget_high_u16, vget_low_s8,
    vget_low_s16, vget_low_u8, vget_low_u16, vld1q_f32, vld1q_s32, vld1q_u8, vld1q_u16, vmovl_s8, vmovl_s16,
    vmovl_u8, vmovl_u16, vmull_high_s8, vmull_s8, vmull_s16, vmulq_f32, vorrq_s32, vpadalq_s16, vpaddq_s16,
    vpaddq_s32, vqmovn_s16, vqmovn_s32, vreinterpretq_f32_s32, vreinterpretq_f32_u32, vreinterpretq_s8_s32,
    vreinterpretq_s8_u8, vreinterpretq_s16_u16, vreinterpretq_s32_u32, vreinterpretq_u8_s32,
    vreinterpretq_u32_f32, vreinterpretq_u32_s32, vrndnq_f32, vshll_n_u16, vshlq_n_s32, vshlq_u32, vst1q_f32,
    vst1q_s8, vsubq_f32,
};
use std::array::from_fn;

use super::{LANES, Lanes, Portable};

/// Proof that the CPU has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];

/// Applies an intrinsic to all four quarters.
macro_rules! quarters {
    ($op:ident, $a:expr) => {{
        let a = $a;
        from_fn(|i| unsafe { $op(a[i]) })
    }};
    ($op:ident, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        from_fn(|i| unsafe { $op(a[i], b[i]) })
    }};
}

impl Lanes for Neon {
    type F = F;
    type I = I;

    const WIDE: bool = false;

    pairs_apart!();

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        from_fn(|i| unsafe { vld1q_f32(x.as_ptr().add(4 * i)) })
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; LANES]) {
        for (i, v) in v.into_iter().enumerate() {
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), v) }
        }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        quarters!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        quarters!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        quarters!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        quarters!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        // `vmaxq_f32` differs where a lane is not a number.
        from_fn(|i| unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) })
    }
    #[inline(always)]
    fn zero_below(self, x: F, limit: F, v: F) -> F {
        from_fn(|i| unsafe {
            let below = vcltq_f32(x[i], limit[i]);
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v[i]), below))
        })
    }
    #[inline(always)]
    fn round(self, x: F) -> F {
        quarters!(vrndnq_f32, x)
    }
    #[inline(always)]
    fn pow2(self, n: F) -> F {
        from_fn(|i| unsafe {
            let biased = vaddq_s32(vcvtq_s32_f32(n[i]), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        })
    }

    #[inline(always)]
    fn single(self, x: &[u8; 64]) -> F {
        quarters!(vreinterpretq_f32_s32, self.bytes(x))
    }
    #[inline(always)]
    fn half(self, x: &[u8; 32]) -> F {
        self.load(&Portable.half(x))
    }
    #[inline(always)]
    fn bfloat(self, x: &[u8; 32]) -> F {
        let [low, high] = from_fn(|i| unsafe { vld1q_u16(x.as_ptr().add(16 * i).cast()) });
        let wide = unsafe {
            [
                vshll_n_u16::<16>(vget_low_u16(low)),
                vshll_n_u16::<16>(vget_high_u16(low)),
                vshll_n_u16::<16>(vget_low_u16(high)),
                vshll_n_u16::<16>(vget_high_u16(high)),
            ]
        };
        quarters!(vreinterpretq_f32_u32, wide)
    }
    #[inline(always)]
    fn bfloats(self, x: &[u8; 64]) -> [F; 2] {
        let pairs = self.bytes(x);
        let mask = unsafe { vdupq_n_s32(0xffff_0000_u32 as i32) };
        let first = from_fn(|i| unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<16>(pairs[i])) });
        [first, from_fn(|i| unsafe { vreinterpretq_f32_s32(vandq_s32(pairs[i], mask)) })]
    }
    #[inline(always)]
    fn unsigned(self, x: &[u8; 16]) -> F {
        let wide = unsafe {
            let x = vld1q_u8(x.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(x)), vmovl_u8(vget_high_u8(x)));
            [
                vmovl_u16(vget_low_u16(low)),
                vmovl_u16(vget_high_u16(low)),
                vmovl_u16(vget_low_u16(high)),
                vmovl_u16(vget_high_u16(high)),
            ]
        };
        quarters!(vcvtq_f32_u32, wide)
    }
    #[inline(always)]
    fn signed(self, x: &[u8; 16]) -> F {
        let wide = unsafe {
            let x = vreinterpretq_s8_u8(vld1q_u8(x.as_ptr()));
            let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_high_s8(x)));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_s16(vget_high_s16(low)),
                vmovl_s16(vget_low_s16(high)),
                vmovl_s16(vget_high_s16(high)),
            ]
        };
        quarters!(vcvtq_f32_s32, wide)
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> I {
        from_fn(|i| unsafe { vld1q_s32(x.as_ptr().add(16 * i).cast()) })
    }
    #[inline(always)]
    fn to_f32(self, v: I) -> F {
        quarters!(vcvtq_f32_s32, v)
    }
    #[inline(always)]
    fn keep(self, v: I, mask: u8) -> I {
        let mask = self.splat_i(i32::from_le_bytes([mask; 4]));
        quarters!(vandq_s32, v, mask)
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        quarters!(vorrq_s32, a, b)
    }
    #[inline(always)]
    fn shr(self, v: I, bits: u32) -> I {
        self.shift(v, -(bits as i32))
    }
    #[inline(always)]
    fn shl(self, v: I, bits: u32) -> I {
        self.shift(v, bits as i32)
    }
    #[inline(always)]
    fn dot(self, sum: I, codes: I, x: [i8; 4]) -> I {
        from_fn(|i| unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8))));
            // Below 128 a code is the same number as a signed byte; two products fit 16 bits.
            let codes = vreinterpretq_s8_s32(codes[i]);
            let pairs = vpaddq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(x)), vmull_high_s8(codes, x));
            vpadalq_s16(sum[i], pairs)
        })
    }
    #[inline(always)]
    fn dot_wide(self, sum: I, codes: I, x: [i8; 4]) -> I {
        from_fn(|i| unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(x.map(|x| x as u8))));
            let x = vmovl_s8(vget_low_s8(x));
            let codes = vreinterpretq_u8_s32(codes[i]);
            let quads = [vget_low_u8(codes), vget_high_u8(codes)].map(|codes| {
                let codes = vreinterpretq_s16_u16(vmovl_u8(codes));
                vpaddq_s32(
                    vmull_s16(vget_low_s16(codes), vget_low_s16(x)),
                    vmull_s16(vget_high_s16(codes), vget_high_s16(x)),
                )
            });
            vaddq_s32(sum[i], vpaddq_s32(quads[0], quads[1]))
        })
    }

    #[inline(always)]
    fn to_bytes(self, v: F) -> [i8; LANES] {
        let mut out = [0; LANES];
        unsafe {
            let [a, b, c, d] = v.map(|v| vqmovn_s32(vcvtq_s32_f32(v)));
            let bytes = vcombine_s8(vqmovn_s16(vcombine_s16(a, b)), vqmovn_s16(vcombine_s16(c, d)));
            vst1q_s8(out.as_mut_ptr(), bytes);
        }
        out
    }
}

impl Neon {
    /// Shifts 32-bit lanes left, or right where `bits` is negative.
    #[inline(always)]
    fn shift(self, v: I, bits: i32) -> I {
        let bits = self.splat_i(bits);
        from_fn(|i| unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v[i]), bits[i])) })
    }
}
