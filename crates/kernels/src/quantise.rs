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
        let zero = l.splat(0.0);
        let greatest = l.highest(l.max(l.max(v[0], l.sub(zero, v[0])), l.max(v[1], l.sub(zero, v[1]))));
        // Where there is NaN, this may be any number; sums find it, and infinity, which times zero is NaN too.
        let inverse = 127.0 / greatest;
        if inverse == f32::INFINITY {
            return if l.sum(l.add(v[0], v[1])).is_nan() { Self::nan() } else { Self::default() };
        }
        let mut codes = [0; BLOCK];
        let mut sums = [0.0; 2];
        for ((codes, sum), v) in codes.as_chunks_mut::<LANES>().0.iter_mut().zip(&mut sums).zip(v) {
            let rounded = l.round(l.mul(v, l.splat(inverse)));
            *codes = l.to_bytes(rounded);
            // Whole numbers, whose sum is exact.
            *sum = l.sum(rounded);
        }
        let all = sums[0] + sums[1];
        if all.is_nan() {
            return Self::nan();
        }
        let scale = greatest / 127.0;
        Self { codes, scale, sums: sums.map(|sum| sum as i32), total: scale * all }
    }

    /// What bytes cannot say, the scale does: every output of the row is NaN.
    fn nan() -> Self {
        Self { scale: f32::NAN, total: f32::NAN, ..Self::default() }
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
