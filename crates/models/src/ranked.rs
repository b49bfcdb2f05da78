//! A row's tokens in the order of their scores, as far as somebody looks.
//!
//! Whoever draws a token looks at the likeliest ones first and nearly always stops there, so that a device need not hand
//! over the others: the order of the first tokens is the same whether the rest is here or not, and so is what is drawn.
//! Where a draw does go on, the device is asked for what follows. A whole row comes over only where the draft has not said
//! that a token may be drawn there, or drawn like this ([`Draft::draw`](crate::Draft::draw)).

use std::borrow::Cow;

use trefoil_kernels::{TOP, higher, mass_at, top, weigh};

use crate::draft::Token;
use crate::error::{Error, Result};
use crate::scores::{Logits, View};

/// Tokens that are put in order at first.
const FIRST: usize = 64;

/// What changes the scores of some tokens before one is drawn: a repetition penalty.
pub trait Rescore {
    /// The penalty, as a draft says it.
    fn penalty(&self) -> f32;

    /// The new score of `token`.
    fn one(&self, token: Token, score: f32) -> f32;

    /// Changes the scores of a whole row.
    fn row(&self, scores: &mut [f32]);
}

/// A row's tokens, the highest score first and of equal ones the lowest index, with their weights relative to the first.
pub struct Ranked<'a> {
    logits: Logits<'a>,
    rescore: Option<&'a dyn Rescore>,
    temperature: f32,
    /// What a device sees of the row, rescored.
    view: Option<View<'a>>,
    /// The whole row, once it was needed.
    row: Option<Cow<'a, [f32]>>,
    known: Vec<(f32, Token)>,
    weights: Vec<f32>,
    /// Whether all tokens are known.
    complete: bool,
}

impl<'a> Ranked<'a> {
    /// Begins the order of a row's tokens.
    ///
    /// * `temperature`: divides scores in weights; 0 where only the first token is wanted
    ///
    /// # Errors
    /// Fails where no score is a finite number, and where a device does.
    pub fn new(logits: Logits<'a>, temperature: f32, rescore: Option<&'a dyn Rescore>) -> Result<Self> {
        let penalty = rescore.map_or(1.0, Rescore::penalty);
        let view = logits.view(|look| look.temperature == temperature && look.penalty == penalty);
        let mut ranked = Self {
            logits,
            rescore,
            temperature,
            view,
            row: None,
            known: Vec::new(),
            weights: Vec::new(),
            complete: false,
        };
        if let Some(seen) = view.map(View::seen) {
            let best = [(seen.score, seen.best)];
            // None at all says that the device did not find the first ones.
            ranked.complete = !seen.top.is_empty() && seen.top.len() < TOP;
            ranked.append(if temperature > 0.0 { &seen.top } else { &best });
        }
        match ranked.get(0)? {
            Some(_) if ranked.known[0].0.is_finite() => Ok(ranked),
            _ => Err(Error::internal("the model's scores are not finite")),
        }
    }

    /// The token with the highest score.
    pub fn first(&self) -> Token {
        self.known[0].1
    }

    /// The token at this place of the order, behind its weight, e^((score − highest) / temperature); none behind the
    /// last one.
    ///
    /// # Errors
    /// Fails where a device does.
    pub fn get(&mut self, at: usize) -> Result<Option<(f32, Token)>> {
        while at >= self.known.len() && !self.complete {
            if let Some(view) = self.view {
                let further = view.further(self.known.len(), self.known.last().copied())?;
                self.complete = further.is_all;
                self.append(&further.next);
                continue;
            }
            let count = (4 * self.known.len()).max(FIRST);
            self.known = top(self.row()?, count);
            self.complete = self.known.len() < count;
            self.weigh();
        }
        Ok(self.weights.get(at).copied().zip(self.known.get(at).map(|&(_, token)| token)))
    }

    /// The sum of all weights.
    ///
    /// # Errors
    /// Fails where a score is no number, and where a device does.
    pub fn mass(&mut self) -> Result<f64> {
        let temperature = self.temperature;
        let mass = match self.view {
            Some(view) => view.seen().mass,
            None => mass_at(self.row()?, temperature).1,
        };
        if mass.is_nan() { Err(Error::internal("the model's scores are not all numbers")) } else { Ok(mass) }
    }

    /// Adds what follows the known tokens, each behind its score as the model gave it.
    fn append(&mut self, next: &[(f32, Token)]) {
        let from = self.known.len();
        let rescored =
            |&(score, token)| (self.rescore.map_or(score, |rescore| rescore.one(token, score)), token);
        self.known.extend(next.iter().map(rescored));
        self.known[from..].sort_unstable_by(higher);
        self.weigh();
    }

    /// Gives the known tokens their weights.
    fn weigh(&mut self) {
        self.weights.clear();
        self.weights.extend(self.known.iter().map(|&(score, _)| score));
        if let Some(&(highest, _)) = self.known.first() {
            weigh(&mut self.weights, highest, self.temperature);
        }
    }

    /// The scores of all tokens, rescored.
    fn row(&mut self) -> Result<&[f32]> {
        let row = if let Some(row) = self.row.take() {
            row
        } else {
            let mut row = self.logits.all()?;
            self.rescore.iter().for_each(|rescore| rescore.row(row.to_mut()));
            row
        };
        Ok(self.row.insert(row))
    }
}
