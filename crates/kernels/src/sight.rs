//! What each row of a step may see.
//!
//! A branch's committed prefix, then the row's ancestors in the draft, itself last: the logical
//! order is all that attention needs. A mask of rows × length was rejected: it grows with the
//! context, and it says where keys lie instead of which position they have.

#[cfg(feature = "card")]
mod circles;
#[cfg(feature = "card")]
mod crowds;

use std::ops::Range;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::kv::PAGE;
use crate::words::{Upload, Words};
#[cfg(feature = "card")]
pub(crate) use circles::Circle;
#[cfg(feature = "card")]
pub(crate) use crowds::{Crowd, ROWS};

/// The rows of a step: which branch each continues, and through which staged rows.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    branches: Vec<Branch>,
    pages: Vec<u32>,
    rows: Vec<Row>,
    paths: Vec<u32>,
    #[cfg(feature = "card")]
    crowds: OnceLock<Vec<Crowd>>,
    #[cfg(feature = "card")]
    circles: OnceLock<Vec<Circle>>,
    /// All of it, as a card reads it.
    words: OnceLock<Words>,
}

#[derive(Debug, Clone)]
struct Branch {
    pages: Range<usize>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Row {
    branch: usize,
    path: Range<usize>,
}

impl Sight {
    /// No branches and no rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a branch and returns its index.
    ///
    /// * `pages`: its page table; position p lies in `pages[p / PAGE]`
    /// * `len`: its committed positions
    pub fn branch(&mut self, pages: &[u32], len: usize) -> usize {
        self.change();
        let from = self.pages.len();
        self.pages.extend_from_slice(pages);
        self.branches.push(Branch { pages: from..self.pages.len(), len });
        self.branches.len() - 1
    }

    /// Adds the next row.
    ///
    /// * `branch`: an index that [`Sight::branch`] returned
    /// * `path`: staged rows from the branch's root to this row, itself last
    pub fn row(&mut self, branch: usize, path: &[u32]) {
        self.change();
        let from = self.paths.len();
        self.paths.extend_from_slice(path);
        self.rows.push(Row { branch, path: from..self.paths.len() });
    }

    /// Forgets what follows from branches and rows.
    fn change(&mut self) {
        self.words.take();
        #[cfg(feature = "card")]
        self.crowds.take();
        #[cfg(feature = "card")]
        self.circles.take();
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The position of a row: its branch's committed length plus its depth in the draft. A row or
    /// branch that does not exist has position 0.
    pub fn position(&self, row: usize) -> usize {
        self.rows.get(row).map_or(0, |row| {
            let len = self.branches.get(row.branch).map_or(0, |branch| branch.len);
            (len + row.path.len()).saturating_sub(1)
        })
    }

    pub(crate) fn branch_of(&self, row: usize) -> usize {
        self.rows[row].branch
    }

    /// Committed positions of a row's branch.
    pub fn committed(&self, row: usize) -> usize {
        self.branches[self.rows[row].branch].len
    }

    /// The staged rows that a row sees, from its branch's root to itself.
    pub fn path(&self, row: usize) -> &[u32] {
        &self.paths[self.rows[row].path.clone()]
    }

    /// The page of positions `tile * PAGE ..` of a row's branch.
    pub fn page(&self, row: usize, tile: usize) -> usize {
        let branch = &self.branches[self.rows[row].branch];
        self.pages[branch.pages.start + tile] as usize
    }

    /// Checks everything against a step of `rows` staged rows and a store of `pages` pages.
    pub(crate) fn check(&self, rows: usize, pages: usize) -> Result<()> {
        for (index, branch) in self.branches.iter().enumerate() {
            if branch.len > branch.pages.len().saturating_mul(PAGE) {
                return Err(Error::range(format!(
                    "branch {index} has {} positions; its {} pages hold {}",
                    branch.len,
                    branch.pages.len(),
                    branch.pages.len() * PAGE
                )));
            }
        }
        if let Some(page) = self.pages.iter().find(|&&page| page as usize >= pages) {
            return Err(Error::range(format!("page {page} of a store with {pages} pages")));
        }
        if let Some(row) = self.paths.iter().find(|&&row| row as usize >= rows) {
            return Err(Error::range(format!("a path names row {row} of a step with {rows} rows")));
        }
        for (index, row) in self.rows.iter().enumerate() {
            if row.branch >= self.branches.len() {
                let (branch, count) = (row.branch, self.branches.len());
                return Err(Error::range(format!("row {index} is on branch {branch} of {count}")));
            }
            let last = self.paths[row.path.clone()].last().copied();
            if last.is_none_or(|last| last as usize != index) {
                return Err(Error::range(format!(
                    "the path of row {index} ends in {last:?}, not in the row itself"
                )));
            }
        }
        Ok(())
    }

    /// Rows that see the same keys, but for their last tiles.
    #[cfg(feature = "card")]
    pub(crate) fn crowds(&self) -> &[Crowd] {
        self.crowds.get_or_init(|| Crowd::all(self))
    }

    /// Rows that walk their last tiles together.
    #[cfg(feature = "card")]
    pub(crate) fn circles(&self) -> &[Circle] {
        self.circles.get_or_init(|| Circle::all(self))
    }

    /// How many branches there are.
    #[cfg(feature = "card")]
    pub(crate) fn branches(&self) -> usize {
        self.branches.len()
    }

    /// Where crowds stand among the words.
    #[cfg(feature = "card")]
    pub(crate) fn crowds_at(&self) -> usize {
        4 * self.rows.len() + self.pages.len() + self.paths.len()
    }

    /// Where circles stand among the words.
    #[cfg(feature = "card")]
    pub(crate) fn circles_at(&self) -> usize {
        self.crowds_at() + Crowd::count_words(self.crowds())
    }

    /// Where a row's pages begin among the words, its branch's committed positions, and where its path begins.
    fn text_of(&self, row: usize) -> [usize; 3] {
        let Row { branch, path } = &self.rows[row];
        let Branch { pages, len } = &self.branches[*branch];
        let at = 4 * self.rows.len();
        [at + pages.start, *len, at + self.pages.len() + path.start]
    }
}

impl Upload for Sight {
    /// For each row where its pages begin, its committed positions, where its path begins and its position; then pages,
    /// paths and, on a card, crowds and circles.
    fn words(&self) -> &Words {
        self.words.get_or_init(|| {
            let rows = (0..self.rows.len()).flat_map(|row| {
                let [pages, committed, path] = self.text_of(row);
                [pages, committed, path, self.position(row)].map(|word| word as u32)
            });
            let mut words: Vec<u32> = rows.chain(self.pages.iter().copied()).collect();
            #[cfg(not(feature = "card"))]
            words.extend(&self.paths);
            #[cfg(feature = "card")]
            {
                words.extend(Circle::paths(self));
                words.extend(Crowd::words(self, self.crowds_at()));
                words.extend(Circle::words(self, self.circles_at()));
            }
            words.into()
        })
    }
}
