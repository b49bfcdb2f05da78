//! A row's tokens in the order of their scores, as far as somebody looks.
//!
//! Whoever draws a token looks at the likeliest ones first and nearly always stops there, so that a device need not hand
//! over the others: the order of the first tokens is the same whether the rest is here or not, and so is what is drawn.

use std::borrow::Cow;

use trefoil_kernels::{TOP, higher, mass_at, top, weigh};

use crate::draft::Token;
use crate::error::{Error, Result};
use crate::scores::Logits;

/// Tokens that are put in order at first.
const FIRST: usize = 64;

/// What changes the scores of some tokens before one is drawn.
pub trait Rescore {
    /// Whether no score is raised, so that what is ahead of all other tokens' old scores is ahead of their new ones.
    fn lowers(&self) -> bool;

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
    /// * `temperature`: divides scores in weights; above 0
    ///
    /// # Errors
    /// Fails where no score is a finite number, and where a device does.
    pub fn new(logits: Logits<'a>, temperature: f32, rescore: Option<&'a dyn Rescore>) -> Result<Self> {
        let mut ranked = Self {
            logits,
            rescore,
            temperature,
            row: None,
            known: Vec::new(),
            weights: Vec::new(),
            complete: false,
        };
        if rescore.is_none_or(Rescore::lowers) {
            ranked.take_known();
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
        let (temperature, drawn) = (self.temperature, self.logits.drawn(self.temperature));
        let mass = if let (Some(drawn), None) = (drawn, self.rescore) {
            drawn.mass
        } else {
            mass_at(self.row()?, temperature).1
        };
        if mass.is_nan() { Err(Error::internal("the model's scores are not all numbers")) } else { Ok(mass) }
    }

    /// Takes over the first tokens of a row that is on a device, as far as rescoring leaves them ahead of the others.
    fn take_known(&mut self) {
        let Some(drawn) = self.logits.drawn(self.temperature) else { return };
        // None at all says that the device did not find the first ones.
        self.complete = !drawn.top.is_empty() && drawn.top.len() < TOP;
        self.known.clone_from(&drawn.top);
        if let (Some(rescore), Some(&(least, _))) = (self.rescore, drawn.top.last()) {
            for (score, token) in &mut self.known {
                *score = rescore.one(*token, *score);
            }
            self.known.retain(|&(score, _)| self.complete || score > least);
            self.known.sort_unstable_by(higher);
        }
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
