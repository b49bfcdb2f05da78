//! The lookahead window: N−1 levels of Jacobi trajectories, kept by position.
//!
//! Cell (l, i) has position p + l + i, where p is the pending token's. Level 0 is a chain under the root; each further
//! level hangs one cell under each cell of the level above, so that the window is a comb and its mask is
//! ancestor-or-self. A step's picks below the deepest level become the next level, and once there are N−1 levels every
//! step moves them up by one and yields an n-gram a column.
//!
//! Where a step keeps k tokens the text moves k positions, and so does the window: the reference moves it by one
//! whatever was kept, which leaves its trajectories aimed at places that the text has passed. The columns that this
//! leaves empty on the right are filled with what the pool thinks comes next.

use trefoil_models::{Draft, RowId, Token};

use crate::ngrams::Ngrams;
use crate::random::uniform;

/// The window of one branch.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    columns: usize,
    depth: usize,
    /// Tokens by level and column; level 0 leaves out the root, which is its column 0.
    levels: Vec<Vec<Token>>,
    /// This step's rows by level and column, the root included.
    cells: Vec<Vec<RowId>>,
    drawn: u64,
}

impl Window {
    /// A window of `columns` ≥ 1 columns and `n` − 1 levels, its first level drawn from `text`.
    pub(crate) fn new(columns: usize, n: usize, text: &[Token]) -> Self {
        let mut window =
            Self { columns, depth: n - 1, levels: vec![Vec::new()], cells: Vec::new(), drawn: 0 };
        // Each step until the window is full takes a column off the first level.
        for _ in 0..columns + n - 3 {
            let token = window.draw(text);
            window.levels[0].push(token);
        }
        window
    }

    /// Whether there are N−1 levels.
    pub(crate) fn is_full(&self) -> bool {
        self.levels.len() == self.depth
    }

    /// Hangs the window under `root` and asks for the scores of its deepest level, and of the first column: that one
    /// hangs under the pending token itself, so it is a guess at what comes next and can be kept like any other.
    pub(crate) fn hang(&mut self, root: RowId, draft: &mut Draft) {
        self.cells.resize_with(self.levels.len(), Vec::new);
        let spine = &mut self.cells[0];
        spine.clear();
        spine.push(root);
        let mut end = root;
        for &token in &self.levels[0] {
            end = draft.extend(end, token);
            spine.push(end);
        }
        for (level, tokens) in self.levels.iter().enumerate().skip(1) {
            let [above, cells] = &mut self.cells[level - 1..=level] else { continue };
            cells.clear();
            cells.extend(above.iter().zip(tokens).map(|(&above, &token)| draft.extend(above, token)));
        }
        let first = self.cells[1..].iter().map(|level| &level[..1]);
        for &cell in first.chain(self.cells.last().map(Vec::as_slice)).flatten() {
            draft.score(cell);
        }
    }

    /// The rows whose picks make the next level, by column.
    pub(crate) fn deepest(&self) -> &[RowId] {
        self.cells.last().map_or(&[], Vec::as_slice)
    }

    /// Writes the n-gram of `column` into `gram`: its tokens from level 0 down, and then `pick`.
    pub(crate) fn gram(&self, column: usize, draft: &Draft, pick: Token, gram: &mut Vec<Token>) {
        gram.clear();
        gram.extend(self.cells.iter().map(|level| draft.row(level[column]).token));
        gram.push(pick);
    }

    /// The token of level 0 in `column`.
    pub(crate) fn spine(&self, column: usize, draft: &Draft) -> Token {
        draft.row(self.cells[0][column]).token
    }

    /// Moves the window on by `kept` positions.
    ///
    /// * `picks`: the model's picks below the deepest level, by column.
    /// * `text`: the text with the kept tokens, the new pending one last.
    pub(crate) fn advance(&mut self, kept: usize, picks: &[Token], text: &[Token], pool: &Ngrams) {
        let full = self.is_full();
        if full {
            self.levels.rotate_left(1);
        } else {
            self.levels.push(Vec::new());
        }
        if let Some(deepest) = self.levels.last_mut() {
            deepest.clear();
            deepest.extend_from_slice(picks);
        }
        for (at, level) in self.levels.iter_mut().enumerate() {
            // The level that moves to the top loses one more: its first cell is the pending token's place.
            let passed = if full && at > 0 { kept - 1 } else { kept };
            level.drain(..passed.min(level.len()));
        }
        self.refill(text, pool);
    }

    /// Fills every level up to its width: behind each token goes what last followed it. Levels are wider while some
    /// are missing, but all together never have more rows than the full window.
    fn refill(&mut self, text: &[Token], pool: &Ngrams) {
        let missing = self.depth - self.levels.len();
        let widest = self.columns * self.depth / self.levels.len();
        for level in 0..self.levels.len() {
            let width = (self.columns + missing).min(widest) - usize::from(level == 0);
            self.levels[level].truncate(width);
            while self.levels[level].len() < width {
                let column = self.levels[level].len();
                let above = match level {
                    0 => self.levels[0].last().or(text.last()),
                    1 if column == 0 => text.last(),
                    1 => self.levels[0].get(column - 1),
                    _ => self.levels[level - 1].get(column),
                };
                let known = above.and_then(|&above| pool.after(above).next()).map(|(_, tail)| tail[0]);
                let token = known.unwrap_or_else(|| self.draw(text));
                self.levels[level].push(token);
            }
        }
    }

    /// Some token of `text`, another one each time.
    fn draw(&mut self, text: &[Token]) -> Token {
        self.drawn += 1;
        let at = uniform(0, 0, self.drawn) * text.len() as f64;
        text.get(at as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_models::BranchId;

    fn shape(window: &Window) -> Vec<usize> {
        window.levels.iter().map(Vec::len).collect()
    }

    #[test]
    fn it_fills_in_n_minus_two_steps_and_keeps_its_shape() {
        let pool = Ngrams::new(5, 4, 1 << 12);
        let mut window = Window::new(4, 5, &[7]);
        assert_eq!(shape(&window), [6]);
        let mut seen = Vec::new();
        for kept in [1, 1, 1, 1, 3, 2, 9, 1] {
            let mut draft = Draft::new();
            let root = draft.root(BranchId::default(), 1);
            window.hang(root, &mut draft);
            let picks: Vec<Token> = (0..window.deepest().len() as Token).collect();
            window.advance(kept, &picks, &[7], &pool);
            seen.push(shape(&window));
        }
        assert_eq!(seen[..3], [vec![5, 6], vec![4, 5, 5], vec![3, 4, 4, 4]]);
        assert!(seen[3..].iter().all(|shape| *shape == [3, 4, 4, 4]));
    }

    #[test]
    fn a_token_keeps_its_position_as_the_text_moves_on() {
        let pool = Ngrams::new(3, 4, 1 << 12);
        let mut window = Window::new(3, 3, &[7]);
        // Positions stand for tokens: cell (l, i) of a text whose pending token is at p holds p + l + i.
        let at = |p: Token| vec![vec![p + 1, p + 2], vec![p + 1, p + 2, p + 3]];
        for kept in 1..3 {
            window.levels = at(10);
            let picks = [12, 13, 14];
            window.advance(kept, &picks, &[7], &pool);
            let expected = at(10 + kept as Token);
            for (found, expected) in window.levels.iter().zip(&expected) {
                let known = found.len() - (kept - 1);
                assert_eq!(found[..known], expected[..known], "kept {kept}");
            }
        }
    }
}
