//! Activations as bytes: each row in blocks of 32 with a scale of its own, so that a row's bytes
//! never depend on its neighbours.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::isa::Work;
use crate::lanes::{LANES, Lanes};

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
    fn new<L: Lanes>(l: L, x: &[f32; BLOCK]) -> Self {
        let (halves, _) = x.as_chunks::<LANES>();
        let v = [l.load(&halves[0]), l.load(&halves[1])];
        let mut bits = [0; LANES];
        l.store_i(l.max_i(l.magnitude(v[0]), l.magnitude(v[1])), &mut bits);
        let greatest = f32::from_bits(bits.iter().fold(0, |a, b| a.max(*b)) as u32);
        if !greatest.is_finite() {
            // The bytes cannot say it, so the scale does: every output of the row is NaN.
            return Self { scale: f32::NAN, total: f32::NAN, ..Self::default() };
        }
        let inverse = 127.0 / greatest;
        if inverse == f32::INFINITY {
            return Self::default();
        }
        let mut codes = [0; BLOCK];
        let mut sums = [0; 2];
        for ((codes, sum), v) in codes.as_chunks_mut::<LANES>().0.iter_mut().zip(&mut sums).zip(v) {
            *codes = l.to_bytes(l.round(l.mul(v, l.splat(inverse))));
            *sum = codes.iter().map(|code| i32::from(*code)).sum();
        }
        let scale = greatest / 127.0;
        Self { codes, scale, sums, total: scale * (sums[0] + sums[1]) as f32 }
    }
}

/// Quantises blocks `blocks` of `rows` whole rows into `[blocks, rows]`: all rows of a block lie together, as the matmul
/// walks them.
pub(crate) struct Quantise<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) blocks: Range<usize>,
    pub(crate) out: &'a mut [MaybeUninit<Block>],
}

impl Work for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let k = self.x.len() / self.rows.max(1);
        for (row, x) in self.x.chunks_exact(k.max(1)).enumerate() {
            for (block, x) in x.as_chunks::<BLOCK>().0[self.blocks.clone()].iter().enumerate() {
                self.out[block * self.rows + row].write(Block::new(l, x));
            }
        }
    }
}
