//! Choosing a token from a row of scores.
//!
//! A row is drawn once, by a generator keyed by (seed, branch, position) and nothing else. A draft's child is then kept
//! where it equals the draw, so that the same seed gives the same text whatever the decoding was, and no rejection
//! arithmetic is needed.
//!
//! The order of the filters is the field's: repetition penalty, temperature, top-k, top-p, min-p. Each keeps the front of
//! what is left, in the order of the scores, and a draw walks down from there: it looks at few tokens, and a device is
//! asked for no others.

use trefoil_kernels::penalise;
use trefoil_models::{Draft, Draw, Logits, Ranked, Rescore, RowId, Token};

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
}

/// The scores of tokens that are in a text already, lowered.
struct Penalised<'a> {
    penalty: f32,
    text: &'a Transcript,
    path: &'a [Token],
}

impl Sampler {
    /// A sampler for the branch with this number; numbers, not cache slots, key the draws.
    pub fn new(sampling: Sampling, branch: u64) -> Self {
        Self { sampling, branch }
    }

    /// Chooses the token that follows `text` and then `path`.
    ///
    /// * `logits`: the model's scores there.
    /// * `path`: the draft's tokens between the text and this row.
    ///
    /// # Errors
    /// Fails where no score is a finite number.
    pub fn pick<'a>(&self, logits: impl Into<Logits<'a>>, text: &Transcript, path: &[Token]) -> Result<Pick> {
        let logits = logits.into();
        self.note(logits, self.choose(logits, text, path)?)
    }

    /// Asks for what a pick needs, at the scored rows of the branch whose root this is, behind `text` and then `written`.
    pub(crate) fn ask(&self, draft: &mut Draft, root: RowId, text: &Transcript, written: &[Token]) {
        if !self.ranks() {
            return;
        }
        let branch = draft.row(root).branch;
        let draw = Draw { temperature: self.sampling.temperature, penalty: self.sampling.repetition_penalty };
        if draw.penalty != 1.0 {
            draft.repeat(branch, text.distinct().iter().chain(written).copied());
        }
        for row in (0..draft.len() as u32).map(RowId) {
            if draft.row(row).branch == branch && draft.row(row).scored {
                draft.draw(row, draw);
            }
        }
    }

    /// `token` as a pick from `logits`, whoever chose it.
    pub(crate) fn note(&self, logits: Logits<'_>, token: Token) -> Result<Pick> {
        let wanted = self.sampling.logprobs;
        let logprob = wanted.then(|| logits.log_probability(token)).transpose()?;
        Ok(Pick { token, logprob: logprob.map(|logprob| logprob as f32) })
    }

    /// Whether a pick looks at more than the highest of the model's own scores.
    fn ranks(&self) -> bool {
        self.sampling.temperature > 0.0 || self.sampling.repetition_penalty != 1.0
    }

    /// The token of [`Sampler::pick`], alone.
    pub(crate) fn choose(&self, logits: Logits<'_>, text: &Transcript, path: &[Token]) -> Result<Token> {
        if !self.ranks() {
            return Ok(logits.best()?);
        }
        let penalty = self.sampling.repetition_penalty;
        let penalised = Penalised { penalty, text, path };
        let rescore = (penalty != 1.0).then_some(&penalised as &dyn Rescore);
        let mut ranked = Ranked::new(logits, self.sampling.temperature, rescore)?;
        let first = ranked.first();
        if self.sampling.temperature == 0.0 {
            return Ok(first);
        }
        let (count, total) = self.filter(&mut ranked)?;
        let position = (text.len() + path.len()) as u64;
        let mut left = uniform(self.sampling.seed, self.branch, position) * total;
        for at in 0..count {
            let Some((weight, token)) = ranked.get(at)? else { break };
            left -= f64::from(weight);
            if left < 0.0 {
                return Ok(token);
            }
        }
        // Less is left than sums are rounded by.
        Ok(first)
    }

    /// How many tokens, from the first, may be drawn, and the sum of their weights.
    fn filter(&self, ranked: &mut Ranked<'_>) -> Result<(usize, f64)> {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let most = if top_k > 0 { top_k } else { usize::MAX };
        if top_k == 0 && top_p >= 1.0 && min_p <= 0.0 {
            return Ok((most, ranked.mass()?));
        }
        let enough = if top_p >= 1.0 {
            f64::INFINITY
        } else if top_k > 0 {
            f64::from(top_p) * front(ranked, top_k, |_, _| true)?.1
        } else {
            f64::from(top_p) * ranked.mass()?
        };
        front(ranked, most, |weight, sum| weight >= min_p && sum < enough)
    }
}

/// How many tokens, from the first and at most so many, `goes_on` lets through, told each weight and the sum of those
/// before it; and the sum of theirs.
fn front(ranked: &mut Ranked<'_>, most: usize, goes_on: impl Fn(f32, f64) -> bool) -> Result<(usize, f64)> {
    let mut sum = 0.0;
    for at in 0..most {
        match ranked.get(at)? {
            Some((weight, _)) if goes_on(weight, sum) => sum += f64::from(weight),
            _ => return Ok((at, sum)),
        }
    }
    Ok((most, sum))
}

impl Rescore for Penalised<'_> {
    fn penalty(&self) -> f32 {
        self.penalty
    }

    fn one(&self, token: Token, score: f32) -> f32 {
        let repeats = self.text.distinct().contains(&token) || self.path.contains(&token);
        if repeats { penalise(score, self.penalty) } else { score }
    }

    fn row(&self, scores: &mut [f32]) {
        let fresh =
            self.path.iter().enumerate().filter(|&(at, token)| {
                !self.text.distinct().contains(token) && !self.path[..at].contains(token)
            });
        for &token in self.text.distinct().iter().chain(fresh.map(|(_, token)| token)) {
            if let Some(score) = scores.get_mut(token as usize) {
                *score = self.one(token, *score);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<usize> {
        let sampler = Sampler::new(sampling, 0);
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
        let sampler = Sampler::new(Sampling::default(), 0);
        let pick = sampler.pick(&[1.0, 3.0, 3.0, f32::NAN][..], &Transcript::new(vec![]), &[]).unwrap();
        assert_eq!(pick.token, 1);
    }

    #[test]
    fn scores_that_are_no_numbers_are_an_error() {
        let sampler = Sampler::new(Sampling::default(), 0);
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

    /// The draw by the rule's own words: sort everything, keep what the filters keep, walk down.
    fn drawn(sampling: Sampling, logits: &[f32], position: u64) -> Token {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let weight = |&at: &usize| f64::from((logits[at] - logits[order[0]]) / sampling.temperature).exp();
        let mut kept: Vec<(f64, usize)> = order.iter().map(|at| (weight(at), *at)).collect();
        let sum = |kept: &[(f64, usize)]| kept.iter().map(|(weight, _)| weight).sum::<f64>();
        if sampling.top_k > 0 {
            kept.truncate(sampling.top_k);
        }
        let all = sum(&kept);
        let needed = (1..kept.len()).find(|&len| sum(&kept[..len]) >= f64::from(sampling.top_p) * all);
        if let Some(len) = needed.filter(|_| sampling.top_p < 1.0) {
            kept.truncate(len);
        }
        kept.retain(|&(weight, _)| weight >= f64::from(sampling.min_p));
        let mut left = uniform(sampling.seed, 0, position) * sum(&kept);
        let found = kept.iter().find(|&&(weight, _)| {
            left -= weight;
            left < 0.0
        });
        found.unwrap().1 as Token
    }

    #[test]
    fn draws_from_a_large_vocabulary_are_the_rules_own() {
        for seed in 0..40 {
            // Some rows are steep and some nearly flat, so that some draws go far down.
            let spread = [9.0, 3.0, 0.5][seed as usize % 3];
            let logits: Vec<f32> = (0..3000).map(|i| (uniform(seed, 2, i) * spread) as f32).collect();
            let base = Sampling { temperature: 0.7, seed, ..Sampling::default() };
            for sampling in [
                base,
                Sampling { top_k: 40, ..base },
                Sampling { top_p: 0.9, ..base },
                Sampling { min_p: 0.05, ..base },
                Sampling { top_k: 100, top_p: 0.8, min_p: 0.01, ..base },
            ] {
                let text = Transcript::new(vec![1; seed as usize]);
                let pick = Sampler::new(sampling, 0).pick(logits.as_slice(), &text, &[]).unwrap();
                assert_eq!(pick.token, drawn(sampling, &logits, seed), "{sampling:?}");
            }
        }
    }

    #[test]
    fn the_penalty_reaches_text_and_path_once() {
        let text = Transcript::new(vec![0, 0]);
        let penalised = Penalised { penalty: 2.0, text: &text, path: &[0, 1, 1] };
        let mut found = [4.0, -4.0, 4.0, 1.0];
        penalised.row(&mut found);
        assert_eq!(found, [2.0, -8.0, 4.0, 1.0]);
        assert_eq!([penalised.one(0, 4.0), penalised.one(1, -4.0), penalised.one(2, 4.0)], [2.0, -8.0, 4.0]);
        // A greedy pick sees it too.
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let pick = Sampler::new(sampling, 0).pick(&[4.0, -4.0, 3.0, 1.0][..], &text, &[1]).unwrap();
        assert_eq!(pick.token, 2);
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
