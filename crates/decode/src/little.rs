//! The little model's side of BiLD and of exact speculation: it writes chains into a cache of its own.
//!
//! Its cache trails the text as the large model's does: it holds every token that the little model has processed, and
//! what a verdict did not keep is cut off before the next chain. The forward pass that made the little model unsure is
//! kept with the rest, so no token is processed twice. All branches of a session write at once, one forward pass a
//! token for all that are still sure.
//!
//! One little model serves every session of an engine, behind a lock that only one thread ever asks for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trefoil_models::{BranchId, CausalLm, CrossKv, Draft, Kv, Logits, Token};

use crate::error::{Error, Result};
use crate::prefill::{chain, fill};
use crate::strategy::{Due, Hear};

/// A draft model with the cache that it shares with other sessions, and this session's branches in it.
pub struct Little {
    model: Arc<dyn CausalLm>,
    kv: Arc<Mutex<Kv>>,
    source: Option<Arc<CrossKv>>,
    branches: HashMap<usize, BranchId>,
    draft: Draft,
}

/// What the little model wrote for one branch since the last large call.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) tokens: Vec<Token>,
    pub(crate) stop: Stop,
    /// Forward passes that it took.
    pub(crate) forwards: usize,
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
    /// Tokens of a chain, at most.
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
        let mut missing = Vec::new();
        for due in due {
            let id = open(branches, &mut kv, source.as_ref(), due);
            let tokens = due.text.tokens();
            if kv.len(id)? + 2 < tokens.len() {
                missing.push((id, &tokens[..tokens.len() - 1]));
            }
        }
        Ok(!fill(model.as_ref(), &mut kv, draft, &missing)?.is_empty())
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
            let id = open(branches, &mut kv, source.as_ref(), due);
            // What the last verdict dropped; where it kept everything the cache may also be one token short.
            let cached = kv.len(id)?.min(due.text.len() - 1);
            kv.truncate(id, cached)?;
            chains.push(Chain { tokens: Vec::new(), stop: Stop::Full, forwards: 0 });
            writing.push((place, id, due.text.tokens()[cached..].to_vec()));
        }
        while !writing.is_empty() {
            draft.clear();
            let paths: Vec<_> = writing.iter().map(|(_, id, fresh)| chain(draft, *id, fresh)).collect();
            for ((place, ..), path) in writing.iter().zip(&paths) {
                if let (Some(&root), Some(&last)) = (path.first(), path.last()) {
                    draft.score(last);
                    due[*place].sampler.ask(draft, root);
                }
            }
            let scores = model.score(draft, &mut kv)?;
            for ((place, id, fresh), path) in writing.iter_mut().zip(&paths) {
                kv.commit(*id, path)?;
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
        Ok(chains)
    }

    /// Gives a branch's cache back.
    pub(crate) fn close(&mut self, branch: usize) {
        if let Some(id) = self.branches.remove(&branch) {
            lock(&self.kv).close(id);
        }
    }
}

impl Drop for Little {
    fn drop(&mut self) {
        let mut kv = lock(&self.kv);
        self.branches.values().for_each(|&id| kv.close(id));
    }
}

impl Chain {
    /// A chain of nothing, as of a model that is never sure.
    pub(crate) fn unsure() -> Self {
        Self { tokens: Vec::new(), stop: Stop::Unsure, forwards: 0 }
    }

    /// Adds the token that follows by `logits`, where the model is sure of it; says whether writing goes on.
    fn extend(&mut self, logits: Logits<'_>, due: &Due<'_>, reach: Reach<'_>) -> Result<bool> {
        if logits.confidence() < reach.fallback {
            self.stop = Stop::Unsure;
            return Ok(false);
        }
        let token = due.sampler.pick(logits, due.text, &self.tokens)?.token;
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
}

/// The cache branch of `due`, opened where it is new.
fn open(
    branches: &mut HashMap<usize, BranchId>,
    kv: &mut Kv,
    source: Option<&Arc<CrossKv>>,
    due: &Due<'_>,
) -> BranchId {
    *branches.entry(due.branch).or_insert_with(|| kv.open(source.cloned()))
}

fn lock(kv: &Mutex<Kv>) -> MutexGuard<'_, Kv> {
    // A session whose thread unwound never steps again; closing its branches is all that is left to do.
    kv.lock().unwrap_or_else(PoisonError::into_inner)
}
