//! BiLD, the big little decoder, and exact speculation: a little model writes, the large one judges.
//!
//! The little model writes a chain under each pending token until it is unsure, and one large forward pass scores the
//! chains of all branches. The two rules differ only in what they forgive: exact speculation keeps a token where the
//! large model picks it too, so that the text is the large model's own; BiLD also keeps one that the large model finds
//! likely enough, and is therefore lossy.
//!
//! Both thresholds look at *raw* probabilities, the softmax of the scores before penalty, temperature and filters, on
//! either side. Processed ones were rejected: a top-p filter would make a token certain or impossible and the
//! thresholds would mean something else at each temperature. Tokens are drawn from processed scores, by both models
//! with the same key, so that they agree as often as they can.
//!
//! # Source
//! Kim et al. 2023, "Speculative decoding with big little decoder" (arXiv 2302.07863), algorithm 1. Beyond it: every
//! token is judged, also behind one that the large model would have written itself; a rollback costs no second large
//! pass; what the little model wrote last is judged before the text ends, unless `verify_tail` is off; a chain that is
//! full, and not unsure, asks for no token of the large model.
//!
//! Further beyond it, and off in its sense, are `candidates` and `cumulative`. A candidate is a row beside the chain: a
//! token that the little model finds likely and does not write. Where the large model writes it itself, in a token's
//! place or where the little one was unsure, the row has its next token too, and the text moves on by one more. No
//! candidate is forgiven anything, so the text can only come closer to the large model's.

use std::collections::HashMap;
use std::sync::Arc;

use trefoil_models::{Draft, Logits, RowId, Scores, Token};

use crate::error::{Error, Result};
use crate::little::{Candidate, Chain, Little, Reach, Stop};
use crate::sampler::{Pick, Sampler};
use crate::strategy::{Counters, Due, Hear, Live, Strategy, Verdict};

/// The parameters of BiLD and of exact speculation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BildSettings {
    /// `α_FB`: the little model writes on while the probability of its best token is at least this. 0 never falls back;
    /// above 1 nothing is drafted.
    pub fallback: f64,
    /// Whether `fallback` is held against the probability of the chain with that token, and not of the token alone.
    pub cumulative: bool,
    /// The least probability, under the little model, of a candidate and the chain before it, above 0; 1 is for none.
    pub candidates: f64,
    /// Tokens of a chain, at most, and of a chain and its candidates; at least 1.
    pub max_draft: usize,
    /// What the large model forgives.
    pub rule: Rule,
}

/// Which of the little model's tokens are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Those that the large model picks too.
    Exact,
    /// Those and every token with −ln p ≤ `rollback` under the large model.
    Bild {
        /// `α_RB`, in nats: 0 forgives nothing, infinity everything.
        rollback: f64,
        /// Whether the large model judges what was written since its last call before the little one ends the text.
        verify_tail: bool,
    },
}

/// BiLD or exact speculation for the branches of one session.
pub struct Bild {
    settings: BildSettings,
    little: Little,
    ends: Arc<[Token]>,
    chains: HashMap<usize, Chain>,
    counters: HashMap<usize, Counters>,
}

impl Bild {
    /// Decodes with `little` as the draft model.
    ///
    /// * `ends`: the tokens that end a text.
    pub fn new(settings: BildSettings, little: Little, ends: Arc<[Token]>) -> Self {
        let settings = BildSettings { max_draft: settings.max_draft.max(1), ..settings };
        Self { settings, little, ends, chains: HashMap::new(), counters: HashMap::new() }
    }

    /// Ends a path by the large model's own token at `row`; where that was named as a candidate, its row joins the path
    /// and the token behind it the text. `before`: the draft's tokens down to `row`.
    fn take_over(
        &mut self,
        (live, draft, scores, sampler): (&Live<'_>, &Draft, &Scores, &Sampler),
        (row, before): (RowId, &[Token]),
        mut verdict: Verdict,
    ) -> Result<Verdict> {
        let own = sampler.pick(scored(scores, row)?, live.text, before)?;
        verdict.picks.push(own);
        if let Some(candidate) = draft.child_with(row, own.token) {
            let text = [before, &[own.token]].concat();
            verdict.path.push(candidate);
            verdict.picks.push(sampler.pick(scored(scores, candidate)?, live.text, &text)?);
            self.counters.entry(live.branch).or_default().candidates += 1;
        }
        Ok(verdict)
    }

    /// Whether the little model can be sure of any token.
    fn drafts(&self) -> bool {
        self.settings.fallback <= 1.0
    }

    /// Whether the large model's token behind the whole chain is wanted.
    fn wants_bonus(&self, chain: &Chain) -> bool {
        chain.stop == Stop::Unsure || (chain.stop == Stop::Full && self.settings.rule == Rule::Exact)
    }
}

impl Rule {
    /// How unlikely a token that the large model does not pick is, in nats, where it is kept all the same.
    fn forgives(self, logits: Logits<'_>, token: Token) -> Result<Option<f64>> {
        match self {
            Self::Exact => Ok(None),
            Self::Bild { rollback, .. } => {
                Ok(Some(-logits.log_probability(token)?).filter(|&surprise| surprise <= rollback))
            }
        }
    }
}

/// The scores after a row that the draft has marked.
fn scored(scores: &Scores, row: RowId) -> Result<Logits<'_>> {
    scores.row(row).ok_or_else(|| Error::internal("a row of a chain or a candidate without scores"))
}

impl Strategy for Bild {
    fn prefill(&mut self, due: &[Due<'_>]) -> Result<bool> {
        if self.drafts() { self.little.prefill(due) } else { Ok(false) }
    }

    fn ahead(&mut self, due: &[Due<'_>], hear: &mut Hear<'_>) -> Result<Vec<(usize, Verdict)>> {
        let BildSettings { fallback, cumulative, candidates, max_draft: most, rule } = self.settings;
        let chains = if self.drafts() {
            let ends = &self.ends;
            self.little.write(due, Reach { fallback, cumulative, candidates, most, ends }, hear)?
        } else {
            vec![Chain::unsure(); due.len()]
        };
        let verified = !matches!(rule, Rule::Bild { verify_tail: false, .. });
        let mut foregone = Vec::new();
        for (due, chain) in due.iter().zip(chains) {
            let counters = self.counters.entry(due.branch).or_default();
            counters.draft_forwards += chain.forwards;
            counters.fallbacks += usize::from(chain.stop == Stop::Unsure);
            if chain.stop == Stop::End && !verified {
                counters.forgiven = f64::INFINITY;
                let drafted = chain.tokens.len();
                let picks = chain.tokens.into_iter().map(|token| Pick { token, logprob: None }).collect();
                let verdict =
                    Verdict { path: Vec::new(), picks, drafted, accepted: drafted, replaced: false };
                foregone.push((due.branch, verdict));
            } else {
                self.chains.insert(due.branch, chain);
            }
        }
        Ok(foregone)
    }

    fn propose(&mut self, live: &[Live<'_>], draft: &mut Draft) -> Result<()> {
        for live in live {
            let Some(chain) = self.chains.get(&live.branch) else { continue };
            // A last token that nothing follows is judged by the row above it and needs none of its own.
            let rows = chain.tokens.len() - usize::from(!self.wants_bonus(chain));
            let mut path = vec![live.root];
            for (at, &token) in chain.tokens.iter().enumerate() {
                draft.ask(path[at], token);
                if at < rows {
                    let row = draft.child(path[at], token);
                    draft.score(row);
                    path.push(row);
                }
            }
            for &Candidate { at, token, .. } in &chain.candidates {
                let row = draft.child(path[at], token);
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
        let chain =
            self.chains.remove(&live.branch).ok_or_else(|| Error::internal("a branch without a chain"))?;
        let (mut row, mut path) = (live.root, vec![live.root]);
        let mut picks = Vec::with_capacity(chain.tokens.len() + 2);
        let drafted = chain.tokens.len();
        let ground = (live, draft, scores, sampler);
        for (at, &token) in chain.tokens.iter().enumerate() {
            let logits = scored(scores, row)?;
            if token != sampler.choose(logits, live.text, &chain.tokens[..at])? {
                let counters = self.counters.entry(live.branch).or_default();
                let Some(surprise) = self.settings.rule.forgives(logits, token)? else {
                    counters.rollbacks += 1;
                    let verdict = Verdict { path, picks, drafted, accepted: at, replaced: true };
                    return self.take_over(ground, (row, &chain.tokens[..at]), verdict);
                };
                counters.forgiven = counters.forgiven.max(surprise);
            }
            picks.push(sampler.note(logits, token)?);
            if let Some(child) = draft.child_with(row, token) {
                row = child;
                path.push(child);
            }
        }
        let verdict = Verdict { path, picks, drafted, accepted: drafted, replaced: false };
        if self.wants_bonus(&chain) {
            self.take_over(ground, (row, &chain.tokens), verdict)
        } else {
            Ok(verdict)
        }
    }

    fn reserve(&mut self, branch: usize, positions: usize) -> Result<bool> {
        if self.drafts() { self.little.reserve(branch, positions) } else { Ok(true) }
    }

    fn park(&mut self, branch: usize) {
        self.little.close(branch);
    }

    fn close(&mut self, branch: usize) {
        self.chains.remove(&branch);
        self.little.close(branch);
    }

    fn counters(&self, branch: usize) -> Counters {
        self.counters.get(&branch).copied().unwrap_or_default()
    }
}
