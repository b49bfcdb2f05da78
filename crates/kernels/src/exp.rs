//! The exponential, and the activations made of it.
//!
//! One polynomial, the same steps in every lane: a value does not depend on where in a vector it
//! stands. The C library's `expf` was rejected because its bits differ between systems.

use crate::lanes::Lanes;

/// Where `exp` underflows to zero.
const LOWEST: f32 = -87.0;
/// Where `exp` stops growing; its value there is 1.65e38.
const HIGHEST: f32 = 88.0;
/// ln 2 in two parts, the first exact when multiplied by any exponent.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// (exp(r) - 1 - r) / r² on |r| ≤ ln 2 / 2, lowest order first; a Chebyshev fit, off by 1e-8.
const TAIL: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_463, 0.008_363_205, 0.001_393_368_8];

/// exp(x) to 1.5 units in the last place for -87 ≤ x ≤ 88; 0 below, exp(88) above.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(l: L, x: L::F) -> L::F {
    let clamped = l.max(l.splat(LOWEST), x);
    let flipped = l.max(l.splat(-HIGHEST), l.sub(l.splat(0.0), clamped));
    let y = l.sub(l.splat(0.0), flipped);
    let n = l.round(l.mul(y, l.splat(std::f32::consts::LOG2_E)));
    let r = l.fma(n, l.splat(-LN2[0]), y);
    let r = l.fma(n, l.splat(-LN2[1]), r);
    let mut tail = l.splat(TAIL[4]);
    for i in (0..4).rev() {
        tail = l.fma(tail, r, l.splat(TAIL[i]));
    }
    let grown = l.add(l.fma(l.mul(r, r), tail, r), l.splat(1.0));
    l.zero_below(x, l.splat(LOWEST), l.mul(grown, l.pow2(n)))
}

/// x / (1 + exp(-x)).
#[inline(always)]
pub(crate) fn silu<L: Lanes>(l: L, x: L::F) -> L::F {
    let one = l.splat(1.0);
    l.div(x, l.add(one, exp(l, l.sub(l.splat(0.0), x))))
}

/// GELU by its usual approximation: x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), which is
/// x / (1 + exp(-2 √(2/π) (x + 0.044715 x³))).
#[inline(always)]
pub(crate) fn gelu_tanh<L: Lanes>(l: L, x: L::F) -> L::F {
    const ROOT: f32 = 0.797_884_6;
    let cube = l.mul(l.mul(x, x), x);
    let inner = l.fma(cube, l.splat(0.044_715), x);
    l.div(x, l.add(l.splat(1.0), exp(l, l.mul(inner, l.splat(-2.0 * ROOT)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::{LANES, Portable};

    fn exp_one(x: f32) -> f32 {
        let mut out = [0.0; LANES];
        Portable.store(exp(Portable, Portable.splat(x)), &mut out);
        out[0]
    }

    #[test]
    fn exp_is_close_to_the_truth() {
        let mut worst = 0.0_f64;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let truth = f64::from(x).exp();
            let got = exp_one(x);
            let unit = f64::from(f32::from_bits(got.to_bits() + 1)) - f64::from(got);
            worst = worst.max((f64::from(got) - truth).abs() / unit);
        }
        assert!(worst < 1.5, "{worst} units in the last place");
    }

    #[test]
    fn exp_has_sane_ends() {
        let bits = |x| exp_one(x).to_bits();
        assert_eq!(bits(0.0), 1.0_f32.to_bits());
        assert_eq!(bits(f32::NEG_INFINITY), 0);
        assert_eq!(bits(-87.1), 0);
        assert!(exp_one(f32::INFINITY) > 1e38);
        assert!(exp_one(f32::NAN).is_nan());
    }

    #[test]
    fn activations_match_their_definitions() {
        for i in -2000..=2000 {
            let x = i as f32 * 0.01;
            let (mut silu_out, mut gelu_out) = ([0.0; LANES], [0.0; LANES]);
            let l = Portable;
            l.store(silu(l, l.splat(x)), &mut silu_out);
            l.store(gelu_tanh(l, l.splat(x)), &mut gelu_out);
            let x = f64::from(x);
            let expected = x / (1.0 + (-x).exp());
            assert!((f64::from(silu_out[0]) - expected).abs() <= 4e-7 * expected.abs() + 1e-30, "silu({x})");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            let expected = 0.5 * x * (1.0 + inner.tanh());
            assert!((f64::from(gelu_out[0]) - expected).abs() <= 1e-6 * expected.abs() + 1e-7, "gelu({x})");
        }
    }
}
