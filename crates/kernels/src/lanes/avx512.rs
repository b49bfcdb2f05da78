//! Sixteen lanes in one 512-bit register.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all: an `Avx512` exists only where the CPU has AVX-512 F, BW, VL and VNNI and F16C, \
              and BF16 where its parameter says so, and loads and stores go through references of the full width"
)]

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512bh, __m512i, _CMP_LT_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT,
    _MM_HINT_T0, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm_storeu_si128, _mm256_castpd_ps,
    _mm256_loadu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_pd,
    _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi8_epi32,
    _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_cvtps_epi32, _mm512_cvtps_ph, _mm512_div_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32,
    _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_blend_ps,
    _mm512_max_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_roundscale_ps, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_sllv_epi32, _mm512_srlv_epi32,
    _mm512_storeu_ps, _mm512_sub_ps,
};

use std::mem::transmute;

use half::{bf16, f16};

use super::avx2::{highest, sum};
use super::{LANES, Lanes};

/// Proof that the CPU has AVX-512 with VNNI, and with BF16 where `BF16` says so.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL and VNNI and F16C, and AVX-512 BF16 if `BF16` is true.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl<const BF16: bool> Lanes for Avx512<BF16> {
    type F = __m512;
    type I = __m512i;
    type Pairs = __m512i;

    const WIDE: bool = true;
    const PAIRED: bool = BF16;

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    fn prefetch_near(self, at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn zero_below(self, x: __m512, limit: __m512, v: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, limit), v, _mm512_setzero_ps()) }
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    fn single(self, x: &[u8; 64]) -> __m512 {
        unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn half(self, x: &[u8; 32]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn bfloat(self, x: &[u8; 32]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn bfloats(self, x: &[u8; 64]) -> [__m512; 2] {
        unsafe { apart(_mm512_loadu_si512(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn pairs(self, x: &[u8; 64]) -> __m512i {
        self.bytes(x)
    }
    #[inline(always)]
    fn splat_pair(self, x: [bf16; 2]) -> __m512i {
        self.splat_i(i32::from(x[0].to_bits()) | i32::from(x[1].to_bits()) << 16)
    }
    #[inline(always)]
    fn add_pairs(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        if BF16 {
            // SAFETY: both are 512 bits, and any are numbers.
            unsafe {
                _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b))
            }
        } else {
            let (a, b) = unsafe { (apart(a), apart(b)) };
            self.fma(a[0], b[0], self.fma(a[1], b[1], sum))
        }
    }
    #[inline(always)]
    fn unsigned(self, x: &[u8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn signed(self, x: &[u8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn bytes(self, x: &[u8; 64]) -> __m512i {
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn keep(self, v: __m512i, mask: u8) -> __m512i {
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn shr(self, v: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_srlv_epi32(v, _mm512_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    fn shl(self, v: __m512i, bits: u32) -> __m512i {
        unsafe { _mm512_sllv_epi32(v, _mm512_set1_epi32(bits as i32)) }
    }
    #[inline(always)]
    fn dot(self, sum: __m512i, codes: __m512i, x: [i8; 4]) -> __m512i {
        let x = i32::from_le_bytes(x.map(|x| x as u8));
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    fn dot_wide(self, sum: __m512i, codes: __m512i, x: [i8; 4]) -> __m512i {
        self.dot(sum, codes, x)
    }

    #[inline(always)]
    fn to_bytes(self, v: __m512) -> [i8; LANES] {
        let mut out = [0; LANES];
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
        out
    }
    #[inline(always)]
    fn to_half(self, v: __m512) -> [f16; LANES] {
        unsafe { transmute::<__m256i, [f16; LANES]>(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        unsafe { sum(lower(v), upper(v)) }
    }
    #[inline(always)]
    fn highest(self, v: __m512) -> f32 {
        unsafe { highest(lower(v), upper(v)) }
    }
}

/// The first and the second numbers of pairs of bfloat16.
#[inline(always)]
unsafe fn apart(pairs: __m512i) -> [__m512; 2] {
    unsafe {
        let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
    }
}

#[inline(always)]
unsafe fn lower(v: __m512) -> __m256 {
    unsafe { _mm512_castps512_ps256(v) }
}

#[inline(always)]
unsafe fn upper(v: __m512) -> __m256 {
    unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v))) }
}
