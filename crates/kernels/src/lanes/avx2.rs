//! Sixteen lanes in two 256-bit registers.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all: an `Avx2` exists only where the CPU has AVX2, FMA and F16C, and loads and stores \
              stay inside references of the full width"
)]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_LT_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0,
    _MM_HINT_T1, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadl_epi64, _mm_loadu_si128, _mm_max_ps,
    _mm_max_ss, _mm_movehdup_ps, _mm_movehl_ps, _mm_packs_epi16, _mm_prefetch, _mm_storeu_si128,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_andnot_ps, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_cvtps_epi32, _mm256_cvtps_ph,
    _mm256_div_ps, _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_ps, _mm256_mul_ps,
    _mm256_or_si256, _mm256_packs_epi32, _mm256_permute4x64_epi64, _mm256_round_ps, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi16, _mm256_slli_epi32,
    _mm256_sllv_epi32, _mm256_srai_epi16, _mm256_srli_epi16, _mm256_srlv_epi32, _mm256_storeu_ps,
    _mm256_sub_ps,
};

use std::mem::transmute;

use half::f16;

use super::{LANES, Lanes};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

type F = [__m256; 2];
type I = [__m256i; 2];

/// Applies an intrinsic to both halves.
macro_rules! halves {
    ($op:ident, $a:expr) => {
        unsafe { [$op($a[0]), $op($a[1])] }
    };
    ($op:ident, $a:expr, $b:expr) => {
        unsafe { [$op($a[0], $b[0]), $op($a[1], $b[1])] }
    };
    ($op:ident, $a:expr, $b:expr, $c:expr) => {
        unsafe { [$op($a[0], $b[0], $c[0]), $op($a[1], $b[1], $c[1])] }
    };
}

impl Lanes for Avx2 {
    type F = F;
    type I = I;

    const WIDE: bool = false;

    pairs_apart!();

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    fn prefetch_near(self, at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> F {
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, v: F, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
        }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        halves!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        halves!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn zero_below(self, x: F, limit: F, v: F) -> F {
        unsafe {
            [
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x[0], limit[0]), v[0]),
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x[1], limit[1]), v[1]),
            ]
        }
    }
    #[inline(always)]
    fn round(self, x: F) -> F {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { [_mm256_round_ps::<MODE>(x[0]), _mm256_round_ps::<MODE>(x[1])] }
    }
    #[inline(always)]
    fn pow2(self, n: F) -> F {
        let bias = self.splat_i(127);
        let whole = halves!(_mm256_cvtps_epi32, n);
        let biased = halves!(_mm256_add_epi32, whole, bias);
        halves!(_mm256_castsi256_ps, self.shl(biased, 23))
    }

    #[inline(always)]
    fn single(self, x: &[u8; 64]) -> F {
        unsafe { [_mm256_loadu_ps(x.as_ptr().cast()), _mm256_loadu_ps(x.as_ptr().add(32).cast())] }
    }
    #[inline(always)]
    fn half(self, x: &[u8; 32]) -> F {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(16).cast())),
            ]
        }
    }
    #[inline(always)]
    fn bfloat(self, x: &[u8; 32]) -> F {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(16).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    fn bfloats(self, x: &[u8; 64]) -> [F; 2] {
        unsafe {
            let pairs: [_; 2] = std::array::from_fn(|i| _mm256_loadu_si256(x.as_ptr().add(32 * i).cast()));
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            [
                pairs.map(|x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))),
                pairs.map(|x| _mm256_castsi256_ps(_mm256_and_si256(x, mask))),
            ]
        }
    }
    #[inline(always)]
    fn unsigned(self, x: &[u8; 16]) -> F {
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }
    #[inline(always)]
    fn signed(self, x: &[u8; 16]) -> F {
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> I {
        unsafe { [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(32).cast())] }
    }
    #[inline(always)]
    fn to_f32(self, v: I) -> F {
        halves!(_mm256_cvtepi32_ps, v)
    }
    #[inline(always)]
    fn keep(self, v: I, mask: u8) -> I {
        let mask = unsafe { [_mm256_set1_epi8(mask as i8); 2] };
        halves!(_mm256_and_si256, v, mask)
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        halves!(_mm256_or_si256, a, b)
    }
    #[inline(always)]
    fn shr(self, v: I, bits: u32) -> I {
        let bits = self.splat_i(bits as i32);
        halves!(_mm256_srlv_epi32, v, bits)
    }
    #[inline(always)]
    fn shl(self, v: I, bits: u32) -> I {
        let bits = self.splat_i(bits as i32);
        halves!(_mm256_sllv_epi32, v, bits)
    }
    #[inline(always)]
    fn dot(self, sum: I, codes: I, x: [i8; 4]) -> I {
        // Two products of at most 127 * 127 fit 16 bits, so this never saturates.
        let x = self.splat_i(i32::from_le_bytes(x.map(|x| x as u8)));
        let one = unsafe { [_mm256_set1_epi16(1); 2] };
        let pairs = halves!(_mm256_maddubs_epi16, codes, x);
        let quads = halves!(_mm256_madd_epi16, pairs, one);
        halves!(_mm256_add_epi32, sum, quads)
    }
    #[inline(always)]
    fn dot_wide(self, sum: I, codes: I, x: [i8; 4]) -> I {
        // Pairs of bytes up to 255 would saturate: widen even and odd bytes to 16 bits instead.
        let x = unsafe { _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8))) };
        std::array::from_fn(|i| unsafe {
            let even = _mm256_madd_epi16(
                _mm256_and_si256(codes[i], _mm256_set1_epi16(0xff)),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)),
            );
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes[i]), _mm256_srai_epi16::<8>(x));
            _mm256_add_epi32(sum[i], _mm256_add_epi32(even, odd))
        })
    }

    #[inline(always)]
    fn to_bytes(self, v: F) -> [i8; LANES] {
        let mut out = [0; LANES];
        unsafe {
            // Packing works within 128-bit halves; the permutation puts the quarters in order.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }
    #[inline(always)]
    fn to_half(self, v: F) -> [f16; LANES] {
        unsafe {
            transmute::<[__m128i; 2], [f16; LANES]>(
                v.map(|v| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)),
            )
        }
    }

    #[inline(always)]
    fn sum(self, [lower, upper]: F) -> f32 {
        unsafe { sum(lower, upper) }
    }
    #[inline(always)]
    fn highest(self, [lower, upper]: F) -> f32 {
        unsafe { highest(lower, upper) }
    }
}

/// [`Lanes::sum`] of sixteen lanes.
#[inline(always)]
pub(super) unsafe fn sum(lower: __m256, upper: __m256) -> f32 {
    unsafe {
        let eight = _mm256_add_ps(lower, upper);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// [`Lanes::highest`] of sixteen lanes.
#[inline(always)]
pub(super) unsafe fn highest(lower: __m256, upper: __m256) -> f32 {
    unsafe {
        let eight = _mm256_max_ps(lower, upper);
        let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}
