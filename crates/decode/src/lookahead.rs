//! Lookahead decoding: a Jacobi window that writes n-grams, a pool that keeps them, guesses that spend them.
//!
//! # Source
//! Fu et al. 2024, "Break the sequential dependency of LLM inference using lookahead decoding" (arXiv 2402.02057).
//!
//! Beyond the published method: guesses share their common beginnings and any row of the window that says the same;
//! candidates are ranked by how long a suffix of the text they continue; of the rows that they leave, half go to the
//! tokens that are most common anywhere and the others to what the pool has behind the end of a guess; verification starts with the first step; a full match yields N tokens; the window moves by as
//! many positions as the text. `LookaheadSettings::reference` undoes all of that but the sharing, which changes no
//! text and no step.

use std::collections::{HashMap, VecDeque};

use trefoil_models::{Draft, RowId, Scores, Token};

use crate::error::{Error, Result};
use crate::ngrams::{Before, Ngrams, before};
use crate::sampler::Sampler;
use crate::strategy::{Counters, Live, Strategy, Verdict, walk};
use crate::window::Window;

/// Bytes of a session's pool.
const POOL_BYTES: usize = 4 << 20;

/// Entries that the pool keeps for one token, in multiples of the guesses that one step can verify.
const KEPT: usize = 6;

/// The parameters of lookahead decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookaheadSettings {
    /// W: columns of the window; 0 decodes from the pool alone.
    pub window: usize,
    /// N: tokens of an n-gram, at least 2.
    pub ngram: usize,
    /// G: n-grams verified a step; 0 never drafts.
    pub guesses: usize,
    /// Whether the prompt's n-grams, and those of the text as it grows, go into the pool.
    pub pool_from_prompt: bool,
    /// The published method to the letter, for comparison.
    pub reference: bool,
}

impl LookaheadSettings {
    /// Rows that a step has at most: (W + G)(N − 1), the pending token included.
    pub fn rows(&self) -> usize {
        ((self.window + self.guesses) * (self.ngram - 1)).max(1)
    }
}

/// Lookahead decoding for the branches of one session, which share a pool.
pub struct Lookahead {
    settings: LookaheadSettings,
    pool: Ngrams,
    branches: HashMap<usize, Branch>,
    ends: VecDeque<End>,
    picks: Vec<Token>,
    gram: Vec<Token>,
}

struct Branch {
    window: Option<Window>,
    /// Tokens of the text that are in the pool.
    pooled: usize,
    /// Steps in which the pool knew the pending token.
    hits: usize,
}

/// The end of a guess, where the next one may begin: its row and token, and the tokens before that one.
#[derive(Clone, Copy, Debug)]
struct End {
    row: RowId,
    token: Token,
    before: Before,
}

impl Lookahead {
    /// A pool filled from `source` (what the text is about, if it is known) and no branches yet.
    pub fn new(settings: LookaheadSettings, source: &[Token]) -> Self {
        let per_key = if settings.reference { settings.guesses } else { settings.guesses * KEPT };
        let mut pool = Ngrams::new(settings.ngram, per_key, POOL_BYTES);
        if settings.pool_from_prompt {
            pool.insert_text(source, source.len());
        }
        Self {
            settings,
            pool,
            branches: HashMap::new(),
            ends: VecDeque::new(),
            picks: Vec::new(),
            gram: Vec::new(),
        }
    }

    /// Hangs the candidates that continue `live` into the draft, within `budget` rows; says whether there were any.
    fn guess(&mut self, live: &Live<'_>, draft: &mut Draft, mut budget: usize) -> bool {
        let Self { settings: LookaheadSettings { guesses, reference, .. }, pool, ends, .. } = self;
        let tokens = live.text.tokens();
        let Some((&pending, rest)) = tokens.split_last() else { return false };
        let root = End { row: live.root, token: pending, before: before(rest) };
        let known = pool.after(pending).next().is_some();
        ends.clear();
        ends.push_back(root);
        while let Some(start) = ends.pop_front() {
            let width = if start.row == root.row { *guesses } else { 1 };
            let context = (!*reference).then_some(start.before);
            for tail in pool.ranked(start.token, context).take(width) {
                let mut end = start;
                for &token in tail {
                    let rows = draft.len();
                    if budget == 0 && draft.child_with(end.row, token).is_none() {
                        return known;
                    }
                    let row = draft.extend(end.row, token);
                    draft.score(row);
                    budget -= draft.len() - rows;
                    end = End { row, token, before: [Some(end.token), end.before[0]] };
                }
                if !*reference {
                    ends.push_back(end);
                }
            }
            if budget == 0 {
                break;
            }
            if start.row == root.row && !*reference {
                for token in pool.common().take(budget / 2) {
                    let rows = draft.len();
                    let row = draft.extend(root.row, token);
                    draft.score(row);
                    budget -= draft.len() - rows;
                }
            }
        }
        known
    }

    /// Learns from the window's picks and moves it on by the tokens that the step kept.
    fn look(&mut self, live: &Live<'_>, draft: &Draft, scores: &Scores, verdict: &Verdict) -> Result<()> {
        let Self { settings, pool, branches, picks, gram, .. } = self;
        let Some(Branch { window: Some(window), .. }) = branches.get_mut(&live.branch) else { return Ok(()) };
        picks.clear();
        for &cell in window.deepest() {
            let logits = scores.row(cell).ok_or_else(|| Error::internal("a window row without scores"))?;
            picks.push(logits.best()?);
        }
        let tokens = live.text.tokens();
        if window.is_full() {
            let mut trail = before(&tokens[..tokens.len() - 1]);
            for (column, &pick) in picks.iter().enumerate() {
                window.gram(column, draft, pick, gram);
                pool.insert(trail, gram[0], &gram[1..]);
                trail = [Some(window.spine(column, draft)), trail[0]];
            }
        }
        let kept = if settings.reference { 1 } else { verdict.picks.len() };
        gram.clear();
        gram.extend_from_slice(tokens);
        gram.extend(verdict.picks.iter().map(|pick| pick.token));
        window.advance(kept, picks, gram, pool);
        Ok(())
    }
}

impl Strategy for Lookahead {
    fn propose(&mut self, live: &[Live<'_>], draft: &mut Draft) -> Result<()> {
        for live in live {
            let LookaheadSettings { window, ngram, pool_from_prompt, reference, .. } = self.settings;
            let tokens = live.text.tokens();
            let branch = self.branches.entry(live.branch).or_insert_with(|| Branch {
                window: (window > 0).then(|| Window::new(window, ngram, tokens)),
                pooled: 0,
                hits: 0,
            });
            if pool_from_prompt {
                self.pool.insert_text(tokens, tokens.len() - branch.pooled);
                branch.pooled = tokens.len();
            }
            let rows = draft.len();
            let mut warm = true;
            if let Some(window) = &mut branch.window {
                window.hang(live.root, draft);
                warm = window.is_full();
            }
            if warm || !reference {
                // The root is one of the step's rows whether there is a window or not.
                let hung = draft.len() - rows + 1;
                let spare = self.settings.rows().saturating_sub(hung);
                let budget = if self.settings.guesses == 0 { 0 } else { spare };
                let known = self.guess(live, draft, budget);
                if let Some(branch) = self.branches.get_mut(&live.branch) {
                    branch.hits += usize::from(known);
                }
            }
        }
        Ok(())
    }

    fn judge(
        &mut self,
        live: &Live<'_>,
        draft: &Draft,
        scores: &Scores,
        sampler: &Sampler,
    ) -> Result<Verdict> {
        let mut verdict = walk(live, draft, scores, sampler)?;
        if self.settings.reference {
            verdict.picks.truncate(self.settings.ngram - 1);
            verdict.path.truncate(self.settings.ngram - 1);
            verdict.accepted = verdict.path.len() - 1;
        }
        self.look(live, draft, scores, &verdict)?;
        Ok(verdict)
    }

    fn close(&mut self, branch: usize) {
        // Its counters outlive it.
        if let Some(branch) = self.branches.get_mut(&branch) {
            branch.window = None;
        }
    }

    fn counters(&self, branch: usize) -> Counters {
        let pool_hits = self.branches.get(&branch).map_or(0, |branch| branch.hits);
        Counters { pool_hits, pool_bytes: self.pool.bytes(), ..Counters::default() }
    }
}
