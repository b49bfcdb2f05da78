//! What a decoding is: a draft under each root, and a verdict on the scores that come back.

use trefoil_models::{Draft, RowId, Scores, Token};

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

/// What a step decided for one branch.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The rows to commit, from the root down.
    pub path: Vec<RowId>,
    /// The tokens that join the text: one for each kept child, and the model's own pick behind the last one.
    pub picks: Vec<Pick>,
}

/// Counts that only some decodings have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Forward passes of a draft model.
    pub draft_forwards: usize,
    /// Times that the large model took over because the little one was unsure.
    pub fallbacks: usize,
    /// Times that the large model replaced a token of the little one.
    pub rollbacks: usize,
}

/// A decoding, for all branches of one session.
pub trait Strategy: Send {
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
        sampler: &mut Sampler,
    ) -> Result<Verdict>;

    /// Hears that a branch has ended.
    fn close(&mut self, _branch: usize) {}

    /// What happened so far, beyond steps and tokens.
    fn counters(&self) -> Counters {
        Counters::default()
    }
}

/// The exact rule, shared by every lossless decoding: from the root down, keep the child that equals the model's own
/// pick at its parent; where there is none, that pick ends the path as the new pending token.
///
/// # Errors
/// Fails where the root has no scores or a row's scores are not finite.
pub fn walk(live: &Live<'_>, draft: &Draft, scores: &Scores, sampler: &mut Sampler) -> Result<Verdict> {
    let mut row = live.root;
    let mut path = vec![row];
    let mut picks: Vec<Pick> = Vec::new();
    let mut between: Vec<Token> = Vec::new();
    let mut logits = scores.row(row).ok_or_else(|| Error::internal("a root without scores"))?;
    loop {
        let pick = sampler.pick(logits, live.text, &between)?;
        picks.push(pick);
        // A kept child without scores would have no successor, so the pick stays pending instead.
        let kept = draft.child_with(row, pick.token).and_then(|child| Some((child, scores.row(child)?)));
        let Some((child, next)) = kept else { return Ok(Verdict { path, picks }) };
        row = child;
        logits = next;
        path.push(child);
        between.push(pick.token);
    }
}
