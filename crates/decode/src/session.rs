//! A session: branches that decode together, and the step that moves them on.
//!
//! > A step scores a forest of draft tokens in one forward pass, keeps one path per branch, and drops the rest.
//!
//! After every step a branch has cached all its tokens but the pending one. Whatever a branch has yet to cache beyond
//! that (its prompt, at first) goes in through the same forward pass, as a chain without scores, some rows at a time
//! so that a long prompt never keeps the engine from hearing a cancel.

use std::sync::Arc;

use trefoil_models::{BranchId, CausalLm, Draft, Kv, RowId, Token};

use crate::error::Result;
use crate::sampler::{Pick, Sampler, Sampling};
use crate::strategy::{Live, Strategy};
use crate::transcript::Transcript;

/// Rows of a prefill step, at most.
const PREFILL_ROWS: usize = 256;

/// Why a branch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the text, or a stop string did.
    Stop,
    /// The token limit or the context's end was reached.
    Length,
    /// It was cancelled.
    Abort,
}

/// What a step added to one branch.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The branch's number in its session.
    pub branch: usize,
    /// The tokens that joined its text, without an end-of-text token.
    pub picks: Vec<Pick>,
    /// Set where the branch ended in this step.
    pub finish: Option<Finish>,
}

/// Forward passes and tokens so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Forward passes that filled the cache from prompts.
    pub prefills: usize,
    /// Forward passes after prefill.
    pub steps: usize,
    /// Draft rows beyond the roots.
    pub drafted: usize,
    /// Draft rows that were kept.
    pub accepted: usize,
}

struct Branch {
    id: BranchId,
    text: Transcript,
    sampler: Sampler,
    limit: usize,
    finish: Option<Finish>,
    tally: Tally,
}

/// Branches that decode together by one strategy.
pub struct Session {
    branches: Vec<Branch>,
    strategy: Box<dyn Strategy>,
    ends: Arc<[Token]>,
    draft: Draft,
}

impl Session {
    /// A session without branches.
    ///
    /// * `ends`: the tokens that end a text.
    pub fn new(strategy: Box<dyn Strategy>, ends: Arc<[Token]>) -> Self {
        Self { branches: Vec::new(), strategy, ends, draft: Draft::new() }
    }

    /// Adds a branch that continues `prompt` by at most `limit` tokens, and gives its number.
    ///
    /// * `id`: an open branch of the cache that holds a (possibly empty) beginning of `prompt`, but not its last token.
    /// * `key`: the branch's part in the sampler's key.
    pub fn add(
        &mut self,
        id: BranchId,
        prompt: Vec<Token>,
        limit: usize,
        sampling: Sampling,
        key: u64,
    ) -> usize {
        let finish = (limit == 0).then_some(Finish::Length);
        let sampler = Sampler::new(sampling, key);
        self.branches.push(Branch {
            id,
            text: Transcript::new(prompt),
            sampler,
            limit,
            finish,
            tally: Tally::default(),
        });
        self.branches.len() - 1
    }

    /// Whether every branch has ended.
    pub fn is_done(&self) -> bool {
        self.branches.iter().all(|branch| branch.finish.is_some())
    }

    /// A branch's text.
    pub fn text(&self, branch: usize) -> &Transcript {
        &self.branches[branch].text
    }

    /// Why a branch ended, once it has.
    pub fn finish(&self, branch: usize) -> Option<Finish> {
        self.branches[branch].finish
    }

    /// What a branch took so far.
    pub fn tally(&self, branch: usize) -> Tally {
        self.branches[branch].tally
    }

    /// The strategy of the session.
    pub fn strategy(&self) -> &dyn Strategy {
        self.strategy.as_ref()
    }

    /// Ends a branch from outside and gives its cache back.
    pub fn end(&mut self, branch: usize, finish: Finish, kv: &mut Kv) {
        let ended = &mut self.branches[branch];
        kv.close(ended.id);
        ended.finish.get_or_insert(finish);
        self.strategy.close(branch);
    }

    /// Ends every branch that is still writing.
    pub fn end_all(&mut self, finish: Finish, kv: &mut Kv) {
        for branch in 0..self.branches.len() {
            if self.branches[branch].finish.is_none() {
                self.end(branch, finish, kv);
            }
        }
    }

    /// Moves the session on by one forward pass. A pass that fills the cache from prompts keeps nothing.
    ///
    /// # Errors
    /// Fails where the model or the cache does; the session can't be continued then.
    pub fn step(&mut self, model: &dyn CausalLm, kv: &mut Kv) -> Result<Vec<Kept>> {
        self.draft.clear();
        if self.prefill(model, kv)? {
            return Ok(Vec::new());
        }
        let writing: Vec<usize> =
            (0..self.branches.len()).filter(|&branch| self.branches[branch].finish.is_none()).collect();
        let live: Vec<Live<'_>> = writing
            .iter()
            .filter_map(|&number| {
                let branch = &self.branches[number];
                let root = self.draft.root(branch.id, *branch.text.tokens().last()?);
                self.draft.score(root);
                Some(Live { branch: number, text: &branch.text, root })
            })
            .collect();
        if live.is_empty() {
            return Ok(Vec::new());
        }
        self.strategy.propose(&live, &mut self.draft)?;
        let scores = model.score(&self.draft, kv)?;
        let roots: Vec<(usize, RowId)> = live.iter().map(|live| (live.branch, live.root)).collect();
        drop(live);
        roots.into_iter().map(|(number, root)| self.settle(number, root, &scores, kv)).collect()
    }

    /// Judges one branch, commits what was kept, and ends the branch where its text ends.
    fn settle(
        &mut self,
        number: usize,
        root: RowId,
        scores: &trefoil_models::Scores,
        kv: &mut Kv,
    ) -> Result<Kept> {
        let branch = &mut self.branches[number];
        let live = Live { branch: number, text: &branch.text, root };
        let verdict = self.strategy.judge(&live, &self.draft, scores, &mut branch.sampler)?;

        let mut picks = verdict.picks;
        let room = branch.limit - branch.text.written().len();
        let end = picks.iter().position(|pick| self.ends.contains(&pick.token));
        let finish = match end {
            Some(end) if end < room => Some(Finish::Stop),
            _ => (picks.len() >= room).then_some(Finish::Length),
        };
        picks.truncate(end.unwrap_or(picks.len()).min(room));
        for pick in &picks {
            branch.text.push(pick.token);
        }
        branch.tally.steps += 1;
        branch.tally.drafted += self.draft.rows().iter().filter(|row| row.branch == branch.id).count() - 1;
        branch.tally.accepted += (verdict.path.len() - 1).min(picks.len());
        match finish {
            Some(finish) => self.end(number, finish, kv),
            None => kv.commit(branch.id, &verdict.path)?,
        }
        Ok(Kept { branch: number, picks, finish })
    }

    /// Caches the next rows of prompts that are not cached yet; false where there are none.
    fn prefill(&mut self, model: &dyn CausalLm, kv: &mut Kv) -> Result<bool> {
        let mut filled: Vec<(usize, Vec<RowId>)> = Vec::new();
        for (number, branch) in self.branches.iter().enumerate() {
            let room = PREFILL_ROWS - self.draft.len();
            if branch.finish.is_some() || room == 0 {
                continue;
            }
            let cached = kv.len(branch.id)?;
            let tokens = branch.text.tokens();
            let missing = &tokens[cached..tokens.len() - 1];
            let mut path: Vec<RowId> = Vec::new();
            for &token in &missing[..missing.len().min(room)] {
                let row = match path.last() {
                    None => self.draft.root(branch.id, token),
                    Some(&above) => self.draft.child(above, token),
                };
                path.push(row);
            }
            if !path.is_empty() {
                filled.push((number, path));
            }
        }
        if filled.is_empty() {
            return Ok(false);
        }
        model.score(&self.draft, kv)?;
        for (number, path) in filled {
            let branch = &mut self.branches[number];
            kv.commit(branch.id, &path)?;
            branch.tally.prefills += 1;
        }
        Ok(true)
    }
}
