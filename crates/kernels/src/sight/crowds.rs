//! Rows that see the same keys, but for their last tiles: what tensor cores take together.
//!
//! A row's own tile and the one before may hold its own ancestors, and it walks them alone. The tiles before those are
//! shared with every row that continues the same branch on the same path so far. Where the border lies follows from a
//! row's position, whatever the step.

use super::Sight;
use crate::kv::PAGE;

/// Rows of a crowd, at most.
pub(crate) const ROWS: usize = 32;

/// Words of a crowd, beside its rows.
const WORDS: usize = 6;

/// Rows that see the same keys wherever two of them see a tile of those that they share.
#[derive(Debug, Clone)]
pub(crate) struct Crowd {
    rows: Vec<u32>,
    /// The one with the longest path.
    leader: usize,
    /// The end of the tiles that it shares.
    pub(crate) end: usize,
}

/// The end of the tiles that a row shares; attend.cu has the same.
fn end(sight: &Sight, row: usize) -> usize {
    (sight.position(row) / PAGE).saturating_sub(1)
}

/// The staged rows that a row sees in the tiles that it shares.
fn path(sight: &Sight, row: usize) -> &[u32] {
    let staged = (end(sight, row) * PAGE).saturating_sub(sight.committed(row));
    &sight.path(row)[..staged]
}

impl Crowd {
    /// The crowds of a step; a row that shares no tile is in none.
    pub(super) fn all(sight: &Sight) -> Vec<Self> {
        let mut crowds: Vec<Self> = Vec::new();
        for row in 0..sight.rows() {
            let end = end(sight, row);
            if end == 0 {
                continue;
            }
            match crowds.iter_mut().rev().find(|crowd| crowd.admits(sight, row)) {
                Some(crowd) => {
                    crowd.rows.push(row as u32);
                    if end > crowd.end {
                        (crowd.end, crowd.leader) = (end, row);
                    }
                }
                None => crowds.push(Self { rows: vec![row as u32], leader: row, end }),
            }
        }
        crowds
    }

    fn admits(&self, sight: &Sight, row: usize) -> bool {
        let (ours, theirs) = (path(sight, self.leader), path(sight, row));
        let common = ours.len().min(theirs.len());
        self.rows.len() < ROWS
            && sight.branch_of(self.leader) == sight.branch_of(row)
            && ours[..common] == theirs[..common]
    }

    /// How many words they all have.
    pub(super) fn count_words(crowds: &[Self]) -> usize {
        crowds.iter().map(|crowd| WORDS + crowd.rows.len()).sum()
    }

    /// All of them as words for a card, `at` words behind the array's beginning: where the rows of each begin and how many
    /// they are, where its leader's pages and path begin, the branch's committed positions, and its end; then all rows.
    pub(super) fn words(sight: &Sight, at: usize) -> Vec<u32> {
        let crowds = sight.crowds();
        let mut words = Vec::new();
        let mut rows = at + WORDS * crowds.len();
        for crowd in crowds {
            let [pages, committed, path] = sight.text_of(crowd.leader);
            words.extend([rows, crowd.rows.len(), pages, path, committed, crowd.end].map(|word| word as u32));
            rows += crowd.rows.len();
        }
        words.extend(crowds.iter().flat_map(|crowd| &crowd.rows));
        words
    }
}
