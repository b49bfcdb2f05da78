//! A session: branches that decode together, and the step that moves them on.
//!
//! > A step scores a forest of draft tokens in one forward pass, keeps one path per branch, and drops the rest.
//!
//! After every step a branch has cached all its tokens but the pending one. Whatever a branch has yet to cache beyond
//! that (its prompt, at first) goes in through the same forward pass, as a chain without scores: before the step where
//! it is long, and above the pending token's own row where it is short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_models::{BranchId, CausalLm, Draft, Kv, RowId, Token};

use crate::error::Result;
use crate::prefill::{chain, fill};
use crate::sampler::{Pick, Sampler, Sampling};
use crate::strategy::{Due, Hear, Live, Strategy, Verdict};
use crate::transcript::Transcript;

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
    /// How many of them, from the first, a draft had.
    pub accepted: usize,
    /// Whether the one behind those replaces a token of a draft model.
    pub replaced: bool,
    /// Set where the branch ended in this step.
    pub finish: Option<Finish>,
}

/// Forward passes and tokens so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Forward passes that filled the cache from prompts.
    pub prefills: usize,
    /// Forward passes of the model after prefill.
    pub steps: usize,
    /// Tokens that were drafted.
    pub drafted: usize,
    /// Drafted tokens that joined the text.
    pub accepted: usize,
}

struct Branch {
    /// The branch's place in the cache; none while it is parked and once it has ended.
    seat: Option<BranchId>,
    text: Transcript,
    sampler: Sampler,
    limit: usize,
    finish: Option<Finish>,
    tally: Tally,
}

/// Rows of prompts that join a step, at most: so few cost next to nothing beside the step's weights, and a pass of their
/// own would read all weights for them.
const JOINING: usize = 16;

/// Branches that decode together by one strategy.
pub struct Session {
    branches: Vec<Branch>,
    strategy: Box<dyn Strategy>,
    ends: Arc<[Token]>,
    draft: Draft,
    host: Duration,
}

impl Session {
    /// A session without branches.
    ///
    /// * `ends`: the tokens that end a text.
    pub fn new(strategy: Box<dyn Strategy>, ends: Arc<[Token]>) -> Self {
        Self { branches: Vec::new(), strategy, ends, draft: Draft::new(), host: Duration::ZERO }
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
            seat: Some(id),
            text: Transcript::new(prompt),
            sampler,
            limit,
            finish,
            tally: Tally::default(),
        });
        self.branches.len() - 1
    }

    /// Number of branches that were added.
    pub fn len(&self) -> usize {
        self.branches.len()
    }

    /// Whether no branch was added.
    pub fn is_empty(&self) -> bool {
        self.branches.is_empty()
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

    /// Time that steps have spent outside of forward passes: proposing, judging, and keeping what was judged.
    pub fn host(&self) -> Duration {
        self.host
    }

    /// The strategy of the session.
    pub fn strategy(&self) -> &dyn Strategy {
        self.strategy.as_ref()
    }

    /// A branch's place in the cache; `None` while it is parked and once it has ended.
    pub fn seat(&self, branch: usize) -> Option<BranchId> {
        self.branches[branch].seat
    }

    /// Sets pages of a draft model's cache aside for a branch, up to `positions`; false where there are too few. The branch
    /// may be one that is yet to be added.
    ///
    /// # Errors
    /// Fails where that cache does.
    pub fn reserve(&mut self, branch: usize, positions: usize) -> Result<bool> {
        self.strategy.reserve(branch, positions)
    }

    /// Gives a branch's cache back. It takes no part in steps until it is seated again; what it has written stays,
    /// and goes on to the same text, because a row's scores depend on its own text alone.
    pub fn park(&mut self, branch: usize, kv: &mut Kv) {
        if let Some(id) = self.branches[branch].seat.take() {
            kv.close(id);
            self.strategy.park(branch);
        }
    }

    /// Gives a parked branch a place in the cache again.
    ///
    /// * `id`: as in [`Session::add`].
    pub fn unpark(&mut self, branch: usize, id: BranchId) {
        self.branches[branch].seat = Some(id);
    }

    /// Forgets the text of a branch that has ended, so that ten thousand short answers don't keep ten thousand copies
    /// of what they are about.
    pub fn forget(&mut self, branch: usize) {
        self.branches[branch].text = Transcript::new(Vec::new());
    }

    /// Ends a branch from outside and gives its cache back.
    pub fn end(&mut self, branch: usize, finish: Finish, kv: &mut Kv) {
        self.park(branch, kv);
        self.branches[branch].finish.get_or_insert(finish);
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

    /// Moves the session on by one forward pass. A pass that fills a cache from prompts keeps nothing.
    ///
    /// # Errors
    /// Fails where a model or a cache does; the session can't be continued then.
    pub fn step(&mut self, model: &dyn CausalLm, kv: &mut Kv) -> Result<Vec<Kept>> {
        self.step_aloud(model, kv, &mut |_, _| ())
    }

    /// [`Session::step`], with `hear` told each token that a draft model writes, as it writes it. What a branch keeps of
    /// them comes with the step's result.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn step_aloud(
        &mut self,
        model: &dyn CausalLm,
        kv: &mut Kv,
        hear: &mut Hear<'_>,
    ) -> Result<Vec<Kept>> {
        if self.missing(kv)? > JOINING && self.prefill(model, kv)? {
            return Ok(Vec::new());
        }
        let due: Vec<Due<'_>> =
            self.branches.iter().enumerate().filter_map(|(at, branch)| branch.due(at)).collect();
        if self.strategy.prefill(&due)? {
            return Ok(Vec::new());
        }
        let mut kept = Vec::with_capacity(due.len());
        let foregone = self.strategy.ahead(&due, hear)?;
        let before = Instant::now();
        for (number, verdict) in foregone {
            kept.push(self.settle(number, verdict, kv)?);
        }
        self.draft.clear();
        let (mut live, mut leads) = (Vec::new(), Vec::new());
        for (number, branch) in self.branches.iter().enumerate() {
            if let (Some(id), Some((&pending, known))) = (branch.writing(), branch.text.tokens().split_last())
            {
                let lead = chain(&mut self.draft, id, known.get(kv.len(id)?..).unwrap_or_default());
                let root = match lead.last() {
                    None => self.draft.root(id, pending),
                    Some(&above) => self.draft.child(above, pending),
                };
                self.draft.score(root);
                live.push(Live { branch: number, text: &branch.text, root });
                leads.push(lead);
            }
        }
        if live.is_empty() {
            self.host += before.elapsed();
            return Ok(kept);
        }
        self.strategy.propose(&live, &mut self.draft)?;
        for live in &live {
            self.branches[live.branch].sampler.ask(&mut self.draft, live.root, live.text, &[]);
        }
        self.host += before.elapsed();
        let before = Instant::now();
        let scores = model.score(&self.draft, kv)?;
        // The last tokens of a prompt are not scored: such rows say nothing of what drafted ones cost.
        if leads.iter().all(Vec::is_empty) {
            self.strategy.timed(self.draft.len(), before.elapsed().as_secs_f64());
        }
        let before = Instant::now();
        let roots: Vec<(usize, RowId)> = live.iter().map(|live| (live.branch, live.root)).collect();
        for ((number, root), lead) in roots.into_iter().zip(leads) {
            let branch = &mut self.branches[number];
            let live = Live { branch: number, text: &branch.text, root };
            let mut verdict = self.strategy.judge(&live, &self.draft, &scores, &branch.sampler)?;
            verdict.path.splice(..0, lead);
            kept.push(self.settle(number, verdict, kv)?);
        }
        self.host += before.elapsed();
        Ok(kept)
    }

    /// Lets a verdict's tokens join the text, commits its path, and ends the branch where the text ends.
    fn settle(&mut self, number: usize, verdict: Verdict, kv: &mut Kv) -> Result<Kept> {
        let branch = &mut self.branches[number];
        let mut picks = verdict.picks;
        let room = branch.room();
        let end = picks.iter().position(|pick| self.ends.contains(&pick.token));
        let finish = match end {
            Some(end) if end < room => Some(Finish::Stop),
            _ => (picks.len() >= room).then_some(Finish::Length),
        };
        picks.truncate(end.unwrap_or(picks.len()).min(room));
        for pick in &picks {
            branch.text.push(pick.token);
        }
        branch.tally.steps += usize::from(!verdict.path.is_empty());
        branch.tally.drafted += verdict.drafted;
        let accepted = verdict.accepted.min(picks.len());
        branch.tally.accepted += accepted;
        let replaced = verdict.replaced && accepted < picks.len();
        match finish {
            Some(finish) => self.end(number, finish, kv),
            None => branch.seat.map_or(Ok(()), |id| kv.commit(id, &verdict.path))?,
        }
        Ok(Kept { branch: number, picks, accepted, replaced, finish })
    }

    /// Rows that are yet to be cached before every pending token has its turn.
    fn missing(&self, kv: &Kv) -> Result<usize> {
        let mut rows = 0;
        for branch in &self.branches {
            if let Some(id) = branch.writing() {
                rows += (branch.text.len() - 1).saturating_sub(kv.len(id)?);
            }
        }
        Ok(rows)
    }

    /// Caches the next rows of prompts that are not cached yet; false where there are none.
    fn prefill(&mut self, model: &dyn CausalLm, kv: &mut Kv) -> Result<bool> {
        let seated =
            self.branches.iter().enumerate().filter_map(|(number, branch)| Some((number, branch.writing()?)));
        let (numbers, texts): (Vec<usize>, Vec<(BranchId, &[Token])>) = seated
            .map(|(number, id)| {
                let tokens = self.branches[number].text.tokens();
                (number, (id, &tokens[..tokens.len() - 1]))
            })
            .unzip();
        let filled = fill(model, kv, &mut self.draft, &texts)?;
        for &place in &filled {
            self.branches[numbers[place]].tally.prefills += 1;
        }
        Ok(!filled.is_empty())
    }
}

impl Branch {
    /// The branch's place in the cache where it takes part in the next step.
    fn writing(&self) -> Option<BranchId> {
        self.seat.filter(|_| self.finish.is_none())
    }

    /// Tokens that the text may still take.
    fn room(&self) -> usize {
        self.limit - self.text.written().len()
    }

    fn due(&self, branch: usize) -> Option<Due<'_>> {
        let due = || Due { branch, text: &self.text, sampler: &self.sampler, room: self.room() };
        self.writing().map(|_| due())
    }
}
