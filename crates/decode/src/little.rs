//! The little model's side of BiLD and of exact speculation: it writes chains into a cache of its own.
//!
//! Its cache trails the text as the large model's does: it holds every token that the little model has processed, and
//! what a verdict did not keep is cut off before the next chain. The forward pass that made the little model unsure is
//! kept with the rest, so no token is processed twice. All branches of a session write at once, one forward pass a
//! token for all that are still sure.
//!
//! Beside each token of a chain, and where it was unsure, it also names *candidates*: tokens that it would not write and
//! that the large model may. They cost it nothing, since it has scored them all.
//!
//! One little model serves every session of an engine, behind a lock that only one thread ever asks for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trefoil_models::{BranchId, CausalLm, CrossKv, Draft, Kv, Logits, Probabilities, Token};

use crate::error::{Error, Result};
use crate::prefill::{chain, fill};
use crate::strategy::{Due, Hear};
use crate::transcript::Transcript;

/// A draft model with the cache that it shares with other sessions, and this session's branches in it.
pub struct Little {
    model: Arc<dyn CausalLm>,
    kv: Arc<Mutex<Kv>>,
    source: Option<Arc<CrossKv>>,
    branches: HashMap<usize, Seat>,
    draft: Draft,
}

/// A branch's place in the little model's cache, and the tokens that it holds there.
struct Seat {
    id: BranchId,
    cached: Vec<Token>,
}

/// What the little model wrote for one branch since the last large call.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) tokens: Vec<Token>,
    /// Tokens that may stand in a token's place, or behind the last one, the likeliest first.
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) stop: Stop,
    /// Forward passes that it took.
    pub(crate) forwards: usize,
    /// The probability of all tokens together.
    sure: f64,
}

/// A token that the little model finds likely and has not written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// The chain's tokens before it.
    pub(crate) at: usize,
    pub(crate) token: Token,
    /// The probability of all of them together.
    odds: f64,
}

/// Why the little model stopped writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It was not sure enough of the next token.
    Unsure,
    /// The chain was as long as allowed.
    Full,
    /// The text was as long as allowed.
    Limit,
    /// It wrote a token that ends the text.
    End,
}

/// When the little model stops writing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach<'a> {
    /// The least probability of its best token at which it goes on.
    pub(crate) fallback: f64,
    /// Whether that is the probability of the chain with this token, and not of this token alone.
    pub(crate) cumulative: bool,
    /// The least probability of a candidate and the tokens before it; 1 names none.
    pub(crate) candidates: f64,
    /// Tokens of a chain, at most, and of a chain and its candidates.
    pub(crate) most: usize,
    /// Tokens that end a text.
    pub(crate) ends: &'a [Token],
}

impl Little {
    /// A session's use of `model`.
    ///
    /// * `kv`: a cache of the model's shape, with a page for every page that the large model's cache has.
    /// * `source`: the encoded document of an encoder-decoder model, encoded by `model` itself.
    pub fn new(model: Arc<dyn CausalLm>, kv: Arc<Mutex<Kv>>, source: Option<Arc<CrossKv>>) -> Self {
        Self { model, kv, source, branches: HashMap::new(), draft: Draft::new() }
    }

    /// Caches the next rows of texts that are far from cached; false where there are none. The last missing token goes
    /// in with the pending one.
    pub(crate) fn prefill(&mut self, due: &[Due<'_>]) -> Result<bool> {
        let Self { model, kv, source, branches, draft } = self;
        let mut kv = lock(kv);
        let (mut missing, mut places) = (Vec::new(), Vec::new());
        for due in due {
            let seat = seat(branches, &mut kv, source.as_ref(), due)?;
            let known = &due.text.tokens()[..due.text.len() - 1];
            if seat.cached.len() + 1 < known.len() {
                missing.push((seat.id, known));
                places.push(due.branch);
            }
        }
        let filled = fill(model.as_ref(), &mut kv, draft, &missing)?;
        for &place in &filled {
            if let Some(seat) = branches.get_mut(&places[place]) {
                let known = missing[place].1;
                seat.cached.extend_from_slice(&known[seat.cached.len()..kv.len(seat.id)?]);
            }
        }
        Ok(!filled.is_empty())
    }

    /// Writes a chain for every branch that is due, in `due`'s order; `hear` is told each token at once.
    pub(crate) fn write(
        &mut self,
        due: &[Due<'_>],
        reach: Reach<'_>,
        hear: &mut Hear<'_>,
    ) -> Result<Vec<Chain>> {
        let Self { model, kv, source, branches, draft } = self;
        let mut kv = lock(kv);
        let mut chains = Vec::with_capacity(due.len());
        let mut writing = Vec::with_capacity(due.len());
        for (place, due) in due.iter().enumerate() {
            let seat = seat(branches, &mut kv, source.as_ref(), due)?;
            chains.push(Chain { stop: Stop::Full, ..Chain::unsure() });
            writing.push((place, seat.id, due.text.tokens()[seat.cached.len()..].to_vec()));
        }
        while !writing.is_empty() {
            draft.clear();
            let paths: Vec<_> = writing.iter().map(|(_, id, fresh)| chain(draft, *id, fresh)).collect();
            for ((place, ..), path) in writing.iter().zip(&paths) {
                if let (Some(&root), Some(&last)) = (path.first(), path.last()) {
                    draft.score(last);
                    let due = &due[*place];
                    due.sampler.ask(draft, root, due.text, &chains[*place].tokens);
                    if reach.names() {
                        draft.rank(last);
                    }
                }
            }
            let scores = model.score(draft, &mut kv)?;
            for ((place, id, fresh), path) in writing.iter_mut().zip(&paths) {
                kv.commit(*id, path)?;
                if let Some(seat) = branches.get_mut(&due[*place].branch) {
                    seat.cached.extend_from_slice(fresh);
                }
                let logits = path.last().and_then(|&last| scores.row(last));
                let logits = logits.ok_or_else(|| Error::internal("a little row without scores"))?;
                let (due, chain) = (&due[*place], &mut chains[*place]);
                chain.forwards += 1;
                fresh.clear();
                let written = chain.tokens.len();
                let goes_on = chain.extend(logits, due, reach)?;
                if let Some(&token) = chain.tokens.get(written) {
                    hear(due.branch, token);
                    fresh.extend(goes_on.then_some(token));
                }
            }
            writing.retain(|(_, _, fresh)| !fresh.is_empty());
        }
        for chain in &mut chains {
            chain.candidates.sort_by(|a, b| b.odds.total_cmp(&a.odds));
            chain.candidates.truncate(reach.most - chain.tokens.len());
        }
        Ok(chains)
    }

    /// Sets pages aside for a branch, up to `positions`; false where there are too few.
    pub(crate) fn reserve(&mut self, branch: usize, positions: usize) -> Result<bool> {
        let Self { kv, source, branches, .. } = self;
        let mut kv = lock(kv);
        let seat = branches.entry(branch).or_insert_with(|| Seat::new(&mut kv, source.as_ref()));
        Ok(kv.reserve(seat.id, positions)?)
    }

    /// Gives a branch's cache back.
    pub(crate) fn close(&mut self, branch: usize) {
        if let Some(seat) = self.branches.remove(&branch) {
            lock(&self.kv).close(seat.id);
        }
    }
}

impl Drop for Little {
    fn drop(&mut self) {
        let mut kv = lock(&self.kv);
        self.branches.values().for_each(|seat| kv.close(seat.id));
    }
}

impl Seat {
    /// A seat that holds nothing yet.
    fn new(kv: &mut Kv, source: Option<&Arc<CrossKv>>) -> Self {
        Self { id: kv.open(source.cloned()), cached: Vec::new() }
    }

    /// Cuts the cache back to what it has of `text` but for the pending token: the last verdict may have dropped some.
    fn agree(&mut self, text: &Transcript, kv: &mut Kv) -> Result<()> {
        let known = &text.tokens()[..text.len() - 1];
        let common = self.cached.iter().zip(known).take_while(|(a, b)| a == b).count();
        self.cached.truncate(common);
        Ok(kv.truncate(self.id, common)?)
    }
}

impl Reach<'_> {
    /// Whether there can be candidates.
    fn names(self) -> bool {
        self.candidates < 1.0
    }
}

impl Chain {
    /// A chain of nothing, as of a model that is never sure.
    pub(crate) fn unsure() -> Self {
        Self { tokens: Vec::new(), candidates: Vec::new(), stop: Stop::Unsure, forwards: 0, sure: 1.0 }
    }

    /// Adds the token that follows by `logits`, where the model is sure of it; says whether writing goes on.
    fn extend(&mut self, logits: Logits<'_>, due: &Due<'_>, reach: Reach<'_>) -> Result<bool> {
        let odds = logits.probabilities();
        let before = if reach.cumulative { self.sure } else { 1.0 };
        if before * odds.best() < reach.fallback {
            self.stop = Stop::Unsure;
            self.name(&odds, None, due, reach)?;
            return Ok(false);
        }
        let token = due.sampler.choose(logits, due.text, &self.tokens)?;
        self.name(&odds, Some(token), due, reach)?;
        if reach.cumulative || reach.names() {
            self.sure *= odds.log(token)?.exp();
        }
        self.tokens.push(token);
        self.stop = if reach.ends.contains(&token) {
            Stop::End
        } else if self.tokens.len() >= due.room {
            Stop::Limit
        } else if self.tokens.len() >= reach.most {
            Stop::Full
        } else {
            return Ok(true);
        };
        Ok(false)
    }

    /// Names the candidates beside `written`, the next token, or in its place. Behind the end of a text nothing follows,
    /// and neither where there is no room for it.
    fn name(
        &mut self,
        odds: &Probabilities<'_>,
        written: Option<Token>,
        due: &Due<'_>,
        reach: Reach<'_>,
    ) -> Result<()> {
        let (at, least) = (self.tokens.len(), reach.candidates / self.sure);
        if reach.names() && least <= 1.0 && at + 2 <= due.room {
            let others = odds.from(least)?.into_iter();
            let others = others.filter(|(_, token)| Some(*token) != written && !reach.ends.contains(token));
            let sure = self.sure;
            self.candidates.extend(others.map(|(odds, token)| Candidate { at, token, odds: sure * odds }));
        }
        Ok(())
    }
}

/// The seat of `due`, opened where it is new, with nothing that its text has not.
fn seat<'a>(
    branches: &'a mut HashMap<usize, Seat>,
    kv: &mut Kv,
    source: Option<&Arc<CrossKv>>,
    due: &Due<'_>,
) -> Result<&'a Seat> {
    let seat = branches.entry(due.branch).or_insert_with(|| Seat::new(kv, source));
    seat.agree(due.text, kv)?;
    Ok(seat)
}

fn lock(kv: &Mutex<Kv>) -> MutexGuard<'_, Kv> {
    // A session whose thread unwound never steps again; closing its branches is all that is left to do.
    kv.lock().unwrap_or_else(PoisonError::into_inner)
}
