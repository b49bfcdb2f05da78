//! What a decoding is: a draft under each root, and a verdict on the scores that come back.

use trefoil_models::{Draft, Row, RowId, Scores, Token};

use crate::error::{Error, Result};
use crate::sampler::{Pick, Sampler};
use crate::transcript::Transcript;

/// A branch that takes part in a step.
pub struct Live<'a> {
    /// The branch's number in its session.
    pub branch: usize,
    /// Its text, the pending token last.
    pub text: &'a Transcript,
    /// The row of its pending token.
    pub root: RowId,
}

/// A branch whose next step is due: what a strategy may know before there are rows.
pub struct Due<'a> {
    /// The branch's number in its session.
    pub branch: usize,
    /// Its text, the pending token last.
    pub text: &'a Transcript,
    /// How its tokens are drawn.
    pub sampler: &'a Sampler,
    /// Tokens that the text may still take, at least one.
    pub room: usize,
}

/// What a step decided for one branch.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The rows to commit, from the root down; none where the branch took no part in the forward pass.
    pub path: Vec<RowId>,
    /// The tokens that join the text, as many as the path has rows: one for each kept child, and behind the last one
    /// the new pending token.
    pub picks: Vec<Pick>,
    /// Tokens that were drafted.
    pub drafted: usize,
    /// How many of the picks, from the first, the draft had.
    pub accepted: usize,
    /// Whether the pick behind those stands where a draft model had written another token.
    pub replaced: bool,
}

/// Hears of each token that a draft model writes, with the number of its branch, before the model judges it.
pub type Hear<'a> = dyn FnMut(usize, Token) + 'a;

/// Counts of one branch that only some decodings have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    /// Forward passes of a draft model after prefill in which the branch took part.
    pub draft_forwards: usize,
    /// Times that the large model took over because the little one was unsure.
    pub fallbacks: usize,
    /// Times that the large model replaced a token of the little one.
    pub rollbacks: usize,
    /// Tokens that the large model wrote behind a candidate: one that the draft model had named and not written.
    pub candidates: usize,
    /// The most, in nats, that was forgiven: the highest −ln p under the model of a kept token that it would not have
    /// written itself. 0 where there is none, and infinity where a token was kept unjudged.
    pub forgiven: f64,
    /// Steps in which the n-gram pool had a guess at what follows the pending token.
    pub pool_hits: usize,
    /// Bytes set aside for the n-gram pool, which the branches of a session share.
    pub pool_bytes: usize,
}

/// A decoding, for all branches of one session.
pub trait Strategy: Send {
    /// Fills a draft model's cache by one forward pass of it; false where there is nothing to fill.
    ///
    /// # Errors
    /// Fails where a draft model does.
    fn prefill(&mut self, _due: &[Due<'_>]) -> Result<bool> {
        Ok(false)
    }

    /// Writes ahead of the step with a draft model, token by token for `hear`. Gives the verdicts that need no scores;
    /// their branches take no part in the step.
    ///
    /// # Errors
    /// Fails where a draft model does.
    fn ahead(&mut self, _due: &[Due<'_>], _hear: &mut Hear<'_>) -> Result<Vec<(usize, Verdict)>> {
        Ok(Vec::new())
    }

    /// Hangs rows under the roots of the live branches and marks the rows whose scores it needs; the roots are
    /// marked already.
    ///
    /// # Errors
    /// Fails where a draft model does.
    fn propose(&mut self, live: &[Live<'_>], draft: &mut Draft) -> Result<()>;

    /// Decides what the scores mean for one branch.
    ///
    /// # Errors
    /// Fails where a row's scores are missing or not finite.
    fn judge(
        &mut self,
        live: &Live<'_>,
        draft: &Draft,
        scores: &Scores,
        sampler: &Sampler,
    ) -> Result<Verdict>;

    /// Sets pages of a draft model's cache aside for a branch, up to `positions`; false where there are too few.
    ///
    /// # Errors
    /// Fails where that cache does.
    fn reserve(&mut self, _branch: usize, _positions: usize) -> Result<bool> {
        Ok(true)
    }

    /// Hears how long the model took for the rows of a step that read nothing of a prompt.
    fn timed(&mut self, _rows: usize, _seconds: f64) {}

    /// Hears that a branch gives its cache back for now.
    fn park(&mut self, _branch: usize) {}

    /// Hears that a branch has ended.
    fn close(&mut self, _branch: usize) {}

    /// What happened to a branch so far, beyond steps and tokens.
    fn counters(&self, _branch: usize) -> Counters {
        Counters::default()
    }

    /// What really ran, where the decoding's name does not say.
    fn ran(&self) -> Option<&'static str> {
        None
    }
}

/// The exact rule, shared by every lossless decoding: from the root down, keep the child that equals the model's own
/// pick at its parent; where there is none, that pick ends the path as the new pending token.
///
/// # Errors
/// Fails where the root has no scores or a row's scores are not finite.
pub fn walk(live: &Live<'_>, draft: &Draft, scores: &Scores, sampler: &Sampler) -> Result<Verdict> {
    let mut row = live.root;
    let branch = draft.row(row).branch;
    let mut path = vec![row];
    let mut picks: Vec<Pick> = Vec::new();
    let mut between: Vec<Token> = Vec::new();
    let mut logits = scores.row(row).ok_or_else(|| Error::internal("a root without scores"))?;
    loop {
        let pick = sampler.pick(logits, live.text, &between)?;
        picks.push(pick);
        // A kept child without scores would have no successor, so the pick stays pending instead.
        let kept = draft.child_with(row, pick.token).and_then(|child| Some((child, scores.row(child)?)));
        let Some((child, next)) = kept else {
            // Rows above the root are the prompt's.
            let below = |row: &&Row| row.branch == branch && row.depth > draft.row(live.root).depth;
            let drafted = draft.rows().iter().filter(below).count();
            return Ok(Verdict { accepted: path.len() - 1, path, picks, drafted, replaced: false });
        };
        row = child;
        logits = next;
        path.push(child);
        between.push(pick.token);
    }
}
