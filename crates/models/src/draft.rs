//! A draft: the rows that one step scores.
//!
//! A draft is a forest. Each root is a branch's *pending* token (chosen, not yet cached); every other row hangs
//! under a row of the same branch. A row sees its branch's committed prefix and its own ancestors, nothing else, so
//! the forest itself is the attention mask and no mask is ever stored beside it. Parents come before their
//! children, which makes one forward sweep enough wherever rows are visited.

use std::ops::Range;

/// A vocabulary index.
pub type Token = u32;

/// A text being written, as its cache knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchId(pub(crate) u32);

/// A row's index in its draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub u32);

impl RowId {
    /// The row as an index into arrays that run along the draft.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a token may be drawn at a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// What divides scores in weights; 0 takes the best token.
    pub temperature: f32,
    /// The repetition penalty of the tokens in the branch's text ([`Draft::repeat`]) and on the row's path; 1 is none.
    pub penalty: f32,
}

/// One token to be scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The token at this row.
    pub token: Token,
    /// The branch that the row belongs to.
    pub branch: BranchId,
    /// The row above, or `None` for a root.
    pub parent: Option<RowId>,
    /// Edges from the root: the row's position is the branch's committed length plus this.
    pub depth: u32,
    /// Whether the step must return this row's logits.
    pub scored: bool,
    /// A token whose score there is wanted, whichever is the best.
    pub asked: Option<Token>,
    /// How a token may be drawn there.
    pub drawn: Option<Draw>,
    /// Whether the likeliest tokens are wanted, by the model's own scores.
    pub ranked: bool,
}

impl Row {
    fn new(token: Token, branch: BranchId) -> Self {
        Self { token, branch, parent: None, depth: 0, scored: false, asked: None, drawn: None, ranked: false }
    }
}

/// The rows of one step, parents before children.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    rows: Vec<Row>,
    /// Tokens that stand in texts already, one branch's behind the other's, and which are whose.
    repeated: Vec<Token>,
    repeats: Vec<(BranchId, Range<u32>)>,
}

impl Draft {
    /// An empty draft.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all rows and keeps the memory, so that a step allocates nothing.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.repeated.clear();
        self.repeats.clear();
    }

    /// Adds a branch's pending token.
    pub fn root(&mut self, branch: BranchId, token: Token) -> RowId {
        self.push(Row::new(token, branch))
    }

    /// Adds `token` under `parent`.
    pub fn child(&mut self, parent: RowId, token: Token) -> RowId {
        let above = self.rows[parent.index()];
        self.push(Row { parent: Some(parent), depth: above.depth + 1, ..Row::new(token, above.branch) })
    }

    /// The child of `parent` that carries `token`, added where there is none: what drafts share is scored once.
    pub fn extend(&mut self, parent: RowId, token: Token) -> RowId {
        self.child_with(parent, token).unwrap_or_else(|| self.child(parent, token))
    }

    /// Asks for the logits of `row`.
    pub fn score(&mut self, row: RowId) {
        self.rows[row.index()].scored = true;
    }

    /// Asks for the score of `token` at a scored `row`, so that a device can answer without its other scores.
    pub fn ask(&mut self, row: RowId, token: Token) {
        self.rows[row.index()].asked = Some(token);
    }

    /// Says that a token may be drawn at a scored `row`, so that a device can hand out what that takes without its
    /// other scores.
    pub fn draw(&mut self, row: RowId, draw: Draw) {
        self.rows[row.index()].drawn = Some(draw);
    }

    /// Asks for the likeliest tokens at a scored `row`, by the model's own scores, so that a device can hand them out
    /// without the others.
    pub fn rank(&mut self, row: RowId) {
        self.rows[row.index()].ranked = true;
    }

    /// Says which tokens stand in the text of `branch` already, for draws with a penalty; those on a row's path are known.
    pub fn repeat(&mut self, branch: BranchId, tokens: impl IntoIterator<Item = Token>) {
        let from = self.repeated.len() as u32;
        self.repeated.extend(tokens);
        self.repeats.push((branch, from..self.repeated.len() as u32));
    }

    /// The tokens that stand in the text of `branch` already, as far as [`Draft::repeat`] said.
    pub fn repeated(&self, branch: BranchId) -> &[Token] {
        let found = self.repeats.iter().find(|(theirs, _)| *theirs == branch);
        found.map_or(&[], |(_, range)| &self.repeated[range.start as usize..range.end as usize])
    }

    /// Knows of the same texts as `other`.
    pub(crate) fn repeat_as(&mut self, other: &Self) {
        self.repeated.clone_from(&other.repeated);
        self.repeats.clone_from(&other.repeats);
    }

    /// All rows, parents before children.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The row with this id.
    pub fn row(&self, id: RowId) -> &Row {
        &self.rows[id.index()]
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is nothing to score.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The children of `parent`, in the order in which they were added.
    pub fn children(&self, parent: RowId) -> impl Iterator<Item = RowId> + '_ {
        let after = parent.index() + 1;
        (after..self.rows.len())
            .filter(move |&i| self.rows[i].parent == Some(parent))
            .map(|i| RowId(i as u32))
    }

    /// The child of `parent` that carries `token`.
    pub fn child_with(&self, parent: RowId, token: Token) -> Option<RowId> {
        self.children(parent).find(|&child| self.row(child).token == token)
    }

    /// Writes the rows from the root down to `row`, both included, into `path`.
    pub fn path(&self, row: RowId, path: &mut Vec<RowId>) {
        path.clear();
        let mut next = Some(row);
        while let Some(id) = next {
            path.push(id);
            next = self.row(id).parent;
        }
        path.reverse();
    }

    fn push(&mut self, row: Row) -> RowId {
        let id = RowId(self.rows.len() as u32);
        self.rows.push(row);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_runs_from_the_root_to_the_row() {
        let mut draft = Draft::new();
        let root = draft.root(BranchId(0), 5);
        let left = draft.child(root, 6);
        let right = draft.child(root, 7);
        let leaf = draft.child(left, 8);
        let mut path = Vec::new();
        draft.path(leaf, &mut path);
        assert_eq!(path, [root, left, leaf]);
        assert_eq!(draft.children(root).collect::<Vec<_>>(), [left, right]);
        assert_eq!(draft.child_with(root, 7), Some(right));
        assert_eq!(draft.child_with(left, 7), None);
        assert_eq!(draft.row(leaf).depth, 2);
    }
}
