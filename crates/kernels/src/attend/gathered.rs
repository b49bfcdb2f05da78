//! A tile of which some keys are a step's own.

use super::Step;
use crate::kv::{PAGE, Side};
use crate::lanes::Lanes;
use crate::stored::Stored;

/// A tile in a page's layout that holds staged rows, rounded as a page would keep them.
pub(super) struct Gathered<T> {
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    branch: usize,
    tile: usize,
    /// The staged rows that it holds after the committed positions.
    path: Vec<u32>,
}

impl<T: Stored> Gathered<T> {
    /// One that holds no tile yet.
    pub(super) fn new() -> Self {
        Self { k: Vec::new(), v: Vec::new(), branch: usize::MAX, tile: usize::MAX, path: Vec::new() }
    }

    /// Makes the tile hold everything that `row` sees of it.
    #[inline(always)]
    pub(super) fn hold<L: Lanes>(&mut self, l: L, step: &Step<'_, T>, row: usize, tile: usize, head: usize) {
        let d = step.d;
        let committed = step.sight.committed(row).saturating_sub(tile * PAGE);
        let branch = step.sight.branch_of(row);
        if self.tile != tile || self.branch != branch {
            (self.tile, self.branch) = (tile, branch);
            self.path.clear();
            self.k.resize(d * PAGE, T::default());
            self.v.resize(d * PAGE, T::default());
            if committed > 0 {
                let [k, v] = step.page(step.sight.page(row, tile), head);
                self.k.copy_from_slice(k);
                self.v[..committed * d].copy_from_slice(&v[..committed * d]);
            }
        }
        let path = step.path(row, tile);
        let common = common(&self.path, path);
        if common == path.len() {
            return;
        }
        self.path.truncate(common);
        for (slot, &staged) in (committed + common..).zip(&path[common..]) {
            let at = (staged as usize * step.kv_heads + head) * d;
            let [k, v] = step.staged.map(|rows| &rows[at..at + d]);
            Side::Keys.put(l, k, &mut self.k, slot);
            Side::Values.put(l, v, &mut self.v, slot);
            self.path.push(staged);
        }
    }

    /// Whether `row` can be added without overwriting what earlier rows of the run see.
    pub(super) fn admits(&self, step: &Step<'_, T>, row: usize, tile: usize) -> bool {
        let path = step.path(row, tile);
        self.branch == step.sight.branch_of(row)
            && common(&self.path, path) == path.len().min(self.path.len())
    }
}

/// How long the common beginning is.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
