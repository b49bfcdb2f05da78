//! Choosing a token from a row of scores.
//!
//! A row is drawn once, by a generator keyed by (seed, branch, position) and nothing else. A draft's child is then kept
//! where it equals the draw, so that the same seed gives the same text whatever the decoding was, and no rejection
//! arithmetic is needed.
//!
//! The order of the filters is the field's: repetition penalty, temperature, top-k, top-p, min-p.

use std::cmp::Ordering;

use trefoil_models::{Logits, Token};

use crate::error::Result;
use crate::random::uniform;
use crate::transcript::Transcript;

/// How a token is chosen. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the highest score, the lowest index among equals.
    pub temperature: f32,
    /// Keeps the k highest scores; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens with at least this share of the highest probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive scores of tokens already in the text, and multiplies negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Keys the generator.
    pub seed: u64,
    /// Whether picks carry their log-probability.
    pub logprobs: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        let (temperature, top_k, top_p, min_p) = (0.0, 0, 1.0, 0.0);
        Self { temperature, top_k, top_p, min_p, repetition_penalty: 1.0, seed: 0, logprobs: false }
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// The token.
    pub token: Token,
    /// Its natural log-probability under the model's own, unprocessed scores, where asked for.
    pub logprob: Option<f32>,
}

/// Draws tokens for one branch.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    branch: u64,
    penalised: Vec<f32>,
    candidates: Vec<(f32, Token)>,
}

/// Below this exponent a token's weight is lost in the rounding of the sum.
const NEGLIGIBLE: f32 = -30.0;

impl Sampler {
    /// A sampler for the branch with this number; numbers, not cache slots, key the draws.
    pub fn new(sampling: Sampling, branch: u64) -> Self {
        Self { sampling, branch, penalised: Vec::new(), candidates: Vec::new() }
    }

    /// Chooses the token that follows `text` and then `path`.
    ///
    /// * `logits`: the model's scores there.
    /// * `path`: the draft's tokens between the text and this row.
    ///
    /// # Errors
    /// Fails where no score is a finite number.
    pub fn pick<'a>(
        &mut self,
        logits: impl Into<Logits<'a>>,
        text: &Transcript,
        path: &[Token],
    ) -> Result<Pick> {
        let (logits, position) = (logits.into(), text.len() + path.len());
        let token = if self.sampling.repetition_penalty == 1.0 {
            self.choose(logits, position)?
        } else {
            let mut penalised = std::mem::take(&mut self.penalised);
            self.penalise(&logits.all()?, text, path, &mut penalised);
            let token = self.choose(penalised.as_slice().into(), position);
            self.penalised = penalised;
            token?
        };
        self.note(logits, token)
    }

    /// `token` as a pick from `logits`, whoever chose it.
    pub(crate) fn note(&self, logits: Logits<'_>, token: Token) -> Result<Pick> {
        let wanted = self.sampling.logprobs;
        let logprob = wanted.then(|| logits.log_probability(token)).transpose()?;
        Ok(Pick { token, logprob: logprob.map(|logprob| logprob as f32) })
    }

    fn choose(&mut self, logits: Logits<'_>, position: usize) -> Result<Token> {
        let best = logits.best()?;
        if self.sampling.temperature == 0.0 {
            return Ok(best);
        }
        let logits = logits.all()?;
        self.weigh(&logits, logits[best as usize]);
        self.filter();
        let total: f64 = self.candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
        let mut left = uniform(self.sampling.seed, self.branch, position as u64) * total;
        for &(weight, token) in &self.candidates {
            left -= f64::from(weight);
            if left < 0.0 {
                return Ok(token);
            }
        }
        Ok(self.candidates.last().map_or(best, |&(_, token)| token))
    }

    /// Fills `candidates` with each token's weight relative to the best one's, in index order.
    fn weigh(&mut self, logits: &[f32], best: f32) {
        let temperature = self.sampling.temperature;
        self.candidates.clear();
        for (token, &logit) in logits.iter().enumerate() {
            let exponent = (logit - best) / temperature;
            if exponent > NEGLIGIBLE || logit == best {
                let weight = if logit == best { 1.0 } else { exponent.exp() };
                self.candidates.push((weight, token as Token));
            }
        }
    }

    fn filter(&mut self) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let candidates = &mut self.candidates;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, heavier);
            candidates.truncate(top_k);
            candidates.sort_unstable_by(heavier);
        }
        if top_p < 1.0 {
            keep_nucleus(candidates, f64::from(top_p));
        }
        if min_p > 0.0 {
            candidates.retain(|&(weight, _)| weight >= min_p);
        }
    }

    fn penalise(&self, logits: &[f32], text: &Transcript, path: &[Token], penalised: &mut Vec<f32>) {
        penalised.clear();
        penalised.extend_from_slice(logits);
        let penalty = self.sampling.repetition_penalty;
        let fresh = path
            .iter()
            .enumerate()
            .filter(|&(at, token)| !text.distinct().contains(token) && !path[..at].contains(token));
        for &token in text.distinct().iter().chain(fresh.map(|(_, token)| token)) {
            if let Some(logit) = penalised.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }
}

/// Heaviest first; among equals, the lowest index, so that the order never depends on the algorithm.
fn heavier(a: &(f32, Token), b: &(f32, Token)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the smallest set of heaviest candidates whose weights reach `share` of the sum.
fn keep_nucleus(candidates: &mut Vec<(f32, Token)>, share: f64) {
    let total: f64 = candidates.iter().map(|&(weight, _)| f64::from(weight)).sum();
    let mut sorted = 0;
    let mut sum = 0.0;
    while sorted < candidates.len() {
        // Few tokens make a nucleus: sorting all of a large vocabulary for them would cost more than the draw.
        let until = (sorted * 4).max(64).min(candidates.len());
        if until < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(until - sorted - 1, heavier);
        }
        candidates[sorted..until].sort_unstable_by(heavier);
        for at in sorted..until {
            sum += f64::from(candidates[at].0);
            if sum >= share * total {
                candidates.truncate(at + 1);
                return;
            }
        }
        sorted = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling, 0);
        let mut seen = vec![0; logits.len()];
        let mut text = Transcript::new(vec![]);
        for _ in 0..count {
            seen[sampler.pick(logits, &text, &[]).unwrap().token as usize] += 1;
            text.push(0);
        }
        seen
    }

    #[test]
    fn greedy_takes_the_first_of_equal_scores() {
        let mut sampler = Sampler::new(Sampling::default(), 0);
        let pick = sampler.pick(&[1.0, 3.0, 3.0, f32::NAN][..], &Transcript::new(vec![]), &[]).unwrap();
        assert_eq!(pick.token, 1);
    }

    #[test]
    fn scores_that_are_no_numbers_are_an_error() {
        let mut sampler = Sampler::new(Sampling::default(), 0);
        assert!(sampler.pick(&[f32::NAN; 4][..], &Transcript::new(vec![]), &[]).is_err());
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let seen = draws(sampling, &logits, 40_000);
        for (count, share) in seen.iter().zip([0.5, 0.25, 0.125, 0.125]) {
            assert!((*count as f64 / 40_000.0 - share).abs() < 0.01, "{seen:?}");
        }
    }

    #[test]
    fn filters_keep_what_they_name() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let base = Sampling { temperature: 1.0, ..Sampling::default() };
        let kept = |sampling| draws(sampling, &logits, 4000).iter().filter(|&&count| count > 0).count();
        assert_eq!(kept(base), 4);
        assert_eq!(kept(Sampling { top_k: 2, ..base }), 2);
        assert_eq!(kept(Sampling { top_p: 0.69, ..base }), 2);
        assert_eq!(kept(Sampling { top_p: 0.71, ..base }), 3);
        assert_eq!(kept(Sampling { min_p: 0.3, ..base }), 3);
        assert_eq!(kept(Sampling { top_p: 1e-9, ..base }), 1);
    }

    #[test]
    fn a_nucleus_over_a_large_vocabulary_is_the_sorted_one() {
        let weights: Vec<f32> = (0..5000).map(|i| uniform(1, 2, i) as f32 + 1e-3).collect();
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for share in [0.01, 0.3, 0.9, 0.9999] {
            let mut found: Vec<_> = weights.iter().copied().zip(0..).collect();
            keep_nucleus(&mut found, share);
            let mut expected: Vec<_> = weights.iter().copied().zip(0..).collect();
            expected.sort_by(heavier);
            let mut sum = 0.0;
            let end = expected.iter().position(|&(w, _)| {
                sum += f64::from(w);
                sum >= share * total
            });
            expected.truncate(end.unwrap() + 1);
            assert_eq!(found, expected, "share {share}");
        }
    }

    #[test]
    fn the_penalty_reaches_text_and_path_once() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let sampler = Sampler::new(sampling, 0);
        let text = Transcript::new(vec![0, 0]);
        let mut found = Vec::new();
        sampler.penalise(&[4.0, -4.0, 4.0, 1.0], &text, &[0, 1, 1], &mut found);
        assert_eq!(found, [2.0, -8.0, 4.0, 1.0]);
    }

    #[test]
    fn a_draw_depends_on_seed_branch_and_position_alone() {
        let logits = vec![0.0; 100];
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let text = Transcript::new(vec![1, 2]);
        let pick = |sampling, branch, path: &[Token]| {
            Sampler::new(sampling, branch).pick(logits.as_slice(), &text, path).unwrap()
        };
        let mut longer = text.clone();
        longer.push(3);
        let later = Sampler::new(sampling, 0).pick(logits.as_slice(), &longer, &[]).unwrap();
        assert_eq!(pick(sampling, 0, &[3]), later);
        assert_ne!(pick(sampling, 0, &[]), pick(sampling, 1, &[]));
        assert_ne!(pick(sampling, 0, &[]), pick(Sampling { seed: 8, ..sampling }, 0, &[]));
    }

    #[test]
    fn log_probabilities_are_those_of_the_raw_scores() {
        let logits: Vec<f32> = [0.7f32, 0.3].iter().map(|p| p.ln() + 5.0).collect();
        let sampling = Sampling { repetition_penalty: 9.0, logprobs: true, ..Sampling::default() };
        let pick = Sampler::new(sampling, 0).pick(logits.as_slice(), &Transcript::new(vec![0]), &[]).unwrap();
        assert_eq!(pick.token, 1);
        assert!((pick.logprob.unwrap() - 0.3f32.ln()).abs() < 1e-6);
    }
}
