//! One product, seen from a task.

use std::mem::MaybeUninit;

use crate::lanes::{LANES, Lanes};
use crate::pool::Parts;
use crate::weight::Weight;

/// A weight, and room for what its outputs are, `[m, n]`.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Weight,
    pub(crate) out: Parts<'a, MaybeUninit<f32>>,
}

impl Product<'_> {
    /// Stores a panel's lanes for one row, without the padding of the last panel.
    ///
    /// # Safety
    /// No other thread writes this panel.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, row: usize, panel: usize, lanes: &[f32; LANES]) {
        let n = self.weight.n();
        let width = LANES.min(n - panel * LANES);
        // SAFETY: panels are disjoint columns, and the caller owns this one.
        let out = unsafe { self.out.part(row * n + panel * LANES, width) };
        // A size that the compiler knows is one store.
        if let Some(out) = out.first_chunk_mut::<LANES>() {
            *out = lanes.map(MaybeUninit::new);
        } else {
            for (to, x) in out.iter_mut().zip(lanes) {
                to.write(*x);
            }
        }
    }

    /// Stores the sums of all `R` rows for the `S` panels from `first` on: straight from registers where no panel is padded. A
    /// store waits until its core owns the line, which another core has read, and whatever is stored meanwhile waits in turn.
    ///
    /// # Safety
    /// No other thread writes these panels.
    #[inline(always)]
    pub(crate) unsafe fn store_tile<L: Lanes, const R: usize, const S: usize>(
        &self,
        l: L,
        first: usize,
        sums: &[[L::F; S]; R],
    ) {
        let n = self.weight.n();
        if (first + S) * LANES <= n {
            // One assertion for all of them.
            let out = self.out.start_of(R * n);
            for (r, sums) in sums.iter().enumerate() {
                for (s, sum) in sums.iter().enumerate() {
                    // SAFETY: in bounds, since there are `R` rows of `n`; the caller owns these panels.
                    l.store(*sum, unsafe { &mut *out.add(r * n + (first + s) * LANES).cast() });
                }
            }
            return;
        }
        // What is stored one by one is in memory first: loops with assertions stay loops, and what they index would be there
        // from the beginning.
        let mut lanes = [[[0.0; LANES]; S]; R];
        for (lanes, sums) in lanes.iter_mut().zip(sums) {
            for (lanes, sum) in lanes.iter_mut().zip(sums) {
                l.store(*sum, lanes);
            }
        }
        for (r, lanes) in lanes.iter().enumerate() {
            for (s, lanes) in lanes.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { self.store(r, first + s, lanes) };
            }
        }
    }
}
