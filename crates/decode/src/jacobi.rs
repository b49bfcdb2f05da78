//! Jacobi decoding: guess a block, score it, keep what was right, guess again from what the model said.
//!
//! The fixed-point iteration that lookahead decoding starts from (Santilli et al. 2023, arXiv 2305.10427). Exact, and
//! beside lookahead in a bench it shows what the n-gram pool adds.

use std::collections::HashMap;

use trefoil_models::{Draft, Scores, Token};

use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::strategy::{Live, Strategy, Verdict, walk};

/// Jacobi decoding with a fixed block.
#[derive(Clone, Debug)]
pub struct Jacobi {
    block: usize,
    guesses: HashMap<usize, Vec<Token>>,
}

impl Jacobi {
    /// Guesses `block` tokens a step.
    pub fn new(block: usize) -> Self {
        Self { block, guesses: HashMap::new() }
    }
}

impl Strategy for Jacobi {
    fn propose(&mut self, live: &[Live<'_>], draft: &mut Draft) -> Result<()> {
        for live in live {
            let guess = self.guesses.entry(live.branch).or_default();
            let mut row = live.root;
            for at in 0..self.block {
                // Any token will do where nothing is known yet: the pending one repeats itself.
                let token = guess.get(at).copied().unwrap_or(draft.row(live.root).token);
                row = draft.child(row, token);
                draft.score(row);
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
        let verdict = walk(live, draft, scores, sampler)?;
        let guess = self.guesses.entry(live.branch).or_default();
        guess.clear();
        // What the model said behind the last kept row guesses what comes after the new pending token.
        let mut row = verdict.path.last().copied().unwrap_or(live.root);
        while let Some(below) = draft.children(row).next() {
            let logits = scores.row(below).ok_or_else(|| Error::internal("a block row without scores"))?;
            guess.push(logits.best()?);
            row = below;
        }
        Ok(verdict)
    }

    fn close(&mut self, branch: usize) {
        self.guesses.remove(&branch);
    }
}
