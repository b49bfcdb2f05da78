//! What a step returns: the logits of the rows that asked for them.

use std::borrow::Cow;

use candle_core::Tensor;
use trefoil_kernels::{Further, Judged, Kernels, Lease, Look, Looked, TOP, Wanted, best, higher, mass};

use crate::draft::{Draft, RowId, Token};
use crate::error::{Error, Result};

/// Logits of a draft's scored rows.
#[derive(Clone, Debug)]
pub struct Scores {
    vocabulary: usize,
    /// Logits as the workers gave them.
    parts: Vec<Part>,
    /// For each row of the draft, its part and its place there.
    slots: Vec<Option<(u32, u32)>>,
}

/// Logits of one worker: `[scored rows, vocabulary]`.
#[derive(Clone, Debug)]
enum Part {
    Here(Vec<f32>),
    Away(Box<Away>),
}

/// Logits that stay on a device, and what it said of them.
#[derive(Clone, Debug)]
pub(crate) struct Away {
    pub(crate) kernels: Kernels,
    /// Of the pass that made them.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) lease: Lease,
    pub(crate) logits: Tensor,
    pub(crate) judged: Judged,
    pub(crate) wanted: Wanted,
}

/// The logits after one row, `[vocabulary]`, wherever they are.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a>(At<'a>);

/// The softmax of a row of logits, whose sum is taken once.
#[derive(Clone, Copy, Debug)]
pub struct Probabilities<'a> {
    logits: Logits<'a>,
    highest: f32,
    /// The sum of all e^(score − highest).
    mass: f64,
}

#[derive(Clone, Copy, Debug)]
enum At<'a> {
    Here(&'a [f32]),
    Away(&'a Away, u32),
}

impl Scores {
    /// Takes the logits of the rows of `draft` that are marked as scored, in draft order.
    ///
    /// * `logits`: `[scored rows, vocabulary]`, f32, contiguous.
    pub fn new(draft: &Draft, vocabulary: usize, logits: Vec<f32>) -> Self {
        let slots = slots(draft);
        debug_assert_eq!(logits.len(), slots.iter().flatten().count() * vocabulary);
        Self { vocabulary, parts: vec![Part::Here(logits)], slots }
    }

    /// As [`Scores::new`], of logits that stay on a device.
    pub(crate) fn away(draft: &Draft, vocabulary: usize, away: Away) -> Self {
        Self { vocabulary, parts: vec![Part::Away(away.into())], slots: slots(draft) }
    }

    /// No row's logits yet.
    pub(crate) fn none(draft: &Draft, vocabulary: usize) -> Self {
        Self { vocabulary, parts: Vec::new(), slots: vec![None; draft.len()] }
    }

    /// Takes in the scores of a draft whose rows are `rows` of the whole one.
    pub(crate) fn join(&mut self, rows: &[RowId], other: Self) {
        let before = self.parts.len() as u32;
        self.parts.extend(other.parts);
        for (row, slot) in rows.iter().zip(other.slots) {
            if let Some((part, at)) = slot {
                self.slots[row.index()] = Some((before + part, at));
            }
        }
    }

    /// The logits after `row`; `None` where the draft did not ask for them.
    pub fn row(&self, row: RowId) -> Option<Logits<'_>> {
        let (part, at) = (*self.slots.get(row.index())?)?;
        Some(Logits(match self.parts.get(part as usize)? {
            Part::Here(logits) => At::Here(logits.chunks_exact(self.vocabulary).nth(at as usize)?),
            Part::Away(away) => At::Away(away, at),
        }))
    }
}

/// The place of each row of `draft` among the scored ones.
fn slots(draft: &Draft) -> Vec<Option<(u32, u32)>> {
    let mut next = 0;
    let slot = |scored: bool| {
        scored.then(|| {
            next += 1;
            (0, next - 1)
        })
    };
    draft.rows().iter().map(|row| row.scored).map(slot).collect()
}

/// A look that a device has taken at a row, and that may go on.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    away: &'a Away,
    /// Its place among the looks.
    at: usize,
}

impl<'a> View<'a> {
    /// What the device has said of it.
    pub(crate) fn seen(self) -> &'a Looked {
        &self.away.judged.looks[self.at]
    }

    /// What follows behind so many known tokens, of which `last` is the last one, with its score as the look sees it:
    /// three times as many, so that a walk down a row asks seldom. A token takes eight bytes.
    pub(crate) fn further(self, known: usize, last: Option<(f32, Token)>) -> Result<Further> {
        let Away { kernels, logits, wanted, .. } = self.away;
        let most = (3 * known).clamp(3 * TOP, MOST);
        Ok(kernels.further(logits, wanted, self.at, last, most)?)
    }
}

/// Tokens that a device is asked for at once, at most: 128 KiB.
const MOST: usize = 16_384;

impl<'a> Logits<'a> {
    /// All of them; downloads a row that is on a device, which is needed where nobody has said before the step what would
    /// be asked of it.
    ///
    /// # Errors
    /// Fails where the device does.
    pub fn all(self) -> Result<Cow<'a, [f32]>> {
        match self.0 {
            At::Here(logits) => Ok(Cow::Borrowed(logits)),
            At::Away(away, row) => Ok(Cow::Owned(away.kernels.row(&away.logits, row as usize)?)),
        }
    }

    /// The token with the highest score, the lowest among equals.
    ///
    /// # Errors
    /// Fails where no score is a finite number.
    pub fn best(self) -> Result<Token> {
        let found = match self.0 {
            At::Here(logits) => best(logits),
            At::Away(away, row) => {
                let (best, highest, _) = away.judged.rows[row as usize];
                highest.is_finite().then_some(best)
            }
        };
        found.ok_or_else(|| Error::internal("the model's scores are not finite"))
    }

    /// The score of `token`.
    ///
    /// # Errors
    /// Fails for a token outside the vocabulary, and where a device does.
    pub fn score(self, token: Token) -> Result<f32> {
        if let At::Away(away, row) = self.0 {
            let (best, highest, _) = away.judged.rows[row as usize];
            if token == best {
                return Ok(highest);
            }
            if let Some(at) = away.wanted.asked().iter().position(|&asked| asked == (row, token)) {
                return Ok(away.judged.asked[at]);
            }
            let looks = away.wanted.looks().iter().zip(&away.judged.looks);
            for (_, looked) in looks.filter(|(look, _)| look.row == row) {
                let mut known = looked.top.iter().copied().chain([(looked.score, looked.best)]);
                if let Some((score, _)) = known.find(|&(_, known)| known == token) {
                    return Ok(score);
                }
            }
        }
        let score = match self.0 {
            At::Here(logits) => logits.get(token as usize).copied(),
            At::Away(away, row) => {
                away.kernels.score(&away.logits, row as usize, token as usize).map(Some)?
            }
        };
        score.ok_or_else(|| Error::internal(format!("token {token} is outside the vocabulary")))
    }

    /// The natural logarithm of `token`'s probability.
    ///
    /// # Errors
    /// As [`Logits::score`].
    pub fn log_probability(self, token: Token) -> Result<f64> {
        self.probabilities().log(token)
    }

    /// What the tokens' probabilities are.
    pub fn probabilities(self) -> Probabilities<'a> {
        let (highest, mass) = match self.0 {
            At::Here(logits) => mass(logits),
            At::Away(away, row) => {
                let (_, highest, mass) = away.judged.rows[row as usize];
                (highest, mass)
            }
        };
        Probabilities { logits: self, highest, mass }
    }

    /// The first such look that a device has taken.
    pub(crate) fn view(self, is_such: impl Fn(&Look) -> bool) -> Option<View<'a>> {
        let At::Away(away, row) = self.0 else { return None };
        let at = away.wanted.looks().iter().position(|look| look.row == row && is_such(look))?;
        Some(View { away, at })
    }
}

/// Scores that are looked at together for whether one of them is high enough.
const STRETCH: usize = 64;

impl Probabilities<'_> {
    /// The probability of the best token; not a number where a score is none.
    pub fn best(&self) -> f64 {
        1.0 / self.mass
    }

    /// The natural logarithm of `token`'s probability.
    ///
    /// # Errors
    /// As [`Logits::score`].
    pub fn log(&self, token: Token) -> Result<f64> {
        Ok(f64::from(self.logits.score(token)? - self.highest) - self.mass.ln())
    }

    /// The tokens with a probability of at least `least`, which is above 0, in any order, each behind its probability. A
    /// device has the likeliest at hand where the draft asked for them ([`Draft::rank`]).
    ///
    /// # Errors
    /// Fails where a device does.
    pub fn from(&self, least: f64) -> Result<Vec<(f64, Token)>> {
        let odds = |score: f32| f64::from(score - self.highest).exp() / self.mass;
        let lowest = (f64::from(self.highest) + (least * self.mass).ln()) as f32;
        if let Some(view) = self.logits.view(Look::is_raw) {
            let mut known = view.seen().top.clone();
            let mut is_all = !known.is_empty() && known.len() < TOP;
            while !is_all && known.last().is_none_or(|&(last, _)| last >= lowest) {
                let mut further = view.further(known.len(), known.last().copied())?;
                further.next.sort_unstable_by(higher);
                known.append(&mut further.next);
                is_all = further.is_all;
            }
            let high = known.into_iter().filter(|(score, _)| *score >= lowest);
            return Ok(high.map(|(score, token)| (odds(score), token)).collect());
        }
        let mut found = Vec::new();
        for (stretch, scores) in self.logits.all()?.chunks(STRETCH).enumerate() {
            if scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) >= lowest {
                let high = scores.iter().enumerate().filter(|&(_, &score)| score >= lowest);
                found.extend(high.map(|(place, &score)| (odds(score), (stretch * STRETCH + place) as Token)));
            }
        }
        Ok(found)
    }
}

impl<'a> From<&'a [f32]> for Logits<'a> {
    fn from(logits: &'a [f32]) -> Self {
        Self(At::Here(logits))
    }
}
