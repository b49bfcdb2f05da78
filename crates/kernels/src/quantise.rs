//! Activations as bytes: each row in blocks of 32 with a scale of its own, so that a row's bytes
//! never depend on its neighbours.

use crate::isa::Work;
use crate::lanes::Lanes;

/// Activations in a block.
pub(crate) const BLOCK: usize = 32;
/// Rows that one pass over a panel serves; their blocks stay in the first-level cache.
pub(crate) const TILE: usize = 16;

/// Thirty-two activations: x ≈ `scale` · `codes`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C, align(16))]
pub(crate) struct Block {
    pub(crate) codes: [i8; BLOCK],
    pub(crate) scale: f32,
    /// Sums of the first and the second half of the codes, which weights with an offset need.
    pub(crate) sums: [i32; 2],
    /// `scale` times both sums.
    pub(crate) total: f32,
}

impl Block {
    #[inline(always)]
    pub(crate) fn new(x: &[f32; BLOCK]) -> Self {
        // Ordered as integers, infinities and NaN are the greatest: they reach the scale and make
        // the result a NaN instead of vanishing in the bytes.
        let mut bits = 0;
        for x in x {
            bits = bits.max(x.to_bits() & 0x7fff_ffff);
        }
        let greatest = f32::from_bits(bits);
        let inverse = 127.0 / greatest;
        if inverse == f32::INFINITY {
            return Self::default();
        }
        let mut codes = [0_i8; BLOCK];
        let mut sums = [0_i32; 2];
        for (i, (code, x)) in codes.iter_mut().zip(x).enumerate() {
            let rounded = (x * inverse).round_ties_even() as i32;
            *code = rounded as i8;
            sums[i / (BLOCK / 2)] += rounded;
        }
        let scale = greatest / 127.0;
        Self { codes, scale, sums, total: scale * (sums[0] + sums[1]) as f32 }
    }
}

/// Quantises `rows` whole rows into `[blocks, rows]`: all rows of a block lie together, as the
/// matmul walks them.
pub(crate) struct Quantise<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) out: &'a mut [Block],
}

impl Work for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        let k = self.x.len() / self.rows.max(1);
        for (row, x) in self.x.chunks_exact(k.max(1)).enumerate() {
            for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                self.out[block * self.rows + row] = Block::new(x);
            }
        }
    }
}
