//! One product, seen from a task.

use std::mem::MaybeUninit;

use crate::lanes::LANES;
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
}
