//! Every instruction set against the portable lanes, bit for bit.

use half::bf16;

use super::{LANES, Lanes, Portable};
use crate::isa::{Found, Isa, Work};

/// Everything that the lanes can do with one set of inputs, as bits.
#[derive(Clone, Copy)]
struct Everything<'a> {
    a: &'a [f32; LANES],
    b: &'a [f32; LANES],
    bytes: &'a [u8; 64],
    x: [i8; 4],
    /// Pairs of bfloat16, none of them below its normal numbers.
    pairs: &'a [u8; 64],
    pair: [bf16; 2],
}

impl Work for Everything<'_> {
    const PAIRS: bool = true;
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Vec<u32> {
        let (a, b) = (l.load(self.a), l.load(self.b));
        let v = l.bytes(self.bytes);
        let small = l.keep(v, 0x7f);
        let half: &[u8; 32] = self.bytes.first_chunk().unwrap();
        let quarter: &[u8; 16] = self.bytes.first_chunk().unwrap();
        let floats = [
            l.add(a, b),
            l.sub(a, b),
            l.mul(a, b),
            l.div(a, b),
            l.fma(a, b, a),
            l.max(a, b),
            l.zero_below(a, b, l.splat(3.0)),
            l.round(a),
            l.pow2(l.round(l.max(l.splat(-126.0), l.sub(l.splat(0.0), l.max(l.splat(-127.0), a))))),
            l.half(half),
            l.bfloat(half),
            l.bfloats(self.bytes)[0],
            l.bfloats(self.bytes)[1],
            l.add_pairs(b, l.pairs(self.pairs), l.splat_pair(self.pair)),
            l.unsigned(quarter),
            l.signed(quarter),
            l.to_f32(v),
            l.to_f32(l.shr(v, 3)),
            l.to_f32(l.shl(v, 2)),
            l.to_f32(l.or(small, l.splat_i(77))),
            l.to_f32(l.dot(l.splat_i(-9), small, self.x)),
            l.to_f32(l.dot_wide(l.splat_i(5), v, self.x)),
        ];
        let mut bits = Vec::new();
        for float in floats {
            let mut out = [0.0; LANES];
            l.store(float, &mut out);
            // A NaN's payload is the hardware's own business.
            bits.extend(out.map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }));
        }
        let whole = l.round(l.mul(l.signed(quarter), l.splat(0.99)));
        bits.extend(l.to_bytes(whole).map(|byte| byte as u32));
        bits.extend(l.to_half(a).map(|half| u32::from(half.to_bits())));
        bits.push(l.sum(a).to_bits());
        bits.push(l.highest(b).to_bits());
        bits
    }
}

#[test]
fn every_isa_matches_portable() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..2000 {
        let mut float = || {
            let scale = [1.0, 30.0, 1e-20, 1e20][round % 4];
            ((next() >> 40) as f32 / 16_777_216.0 - 0.5) * scale
        };
        let a: [f32; LANES] = std::array::from_fn(|_| float());
        let mut b: [f32; LANES] = std::array::from_fn(|_| float());
        b[round % LANES] = a[round % LANES];
        let mut bytes: [u8; 64] = std::array::from_fn(|_| (next() >> 24) as u8);
        if round == 0 {
            bytes = [255; 64];
        }
        let x =
            if round == 0 { [-127; 4] } else { std::array::from_fn(|_| ((next() >> 30) as i8).max(-127)) };
        let narrow = |x: f32| bf16::from_f32(x).to_le_bytes();
        let pairs: [u8; 64] = std::array::from_fn(|i| narrow([a, b][i / 2 % 2][i / 4])[i % 2]);
        let pair = [bf16::from_f32(a[3]), bf16::from_f32(b[5])];
        let everything = Everything { a: &a, b: &b, bytes: &bytes, x, pairs: &pairs, pair };
        let expected = everything.run(Portable);
        for found in Isa::ALL.into_iter().filter_map(|isa| Found::new(isa).ok()) {
            for found in [found, found.without_pairs()] {
                assert_eq!(found.run(everything), expected, "{found:?}, round {round}");
            }
        }
    }
}
