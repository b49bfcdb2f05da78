//! How often guesses come true, by where they come from.
//!
//! Every guess is followed up against the text that was written, whether it was drafted or not, so that trying costs
//! nothing. Old outcomes fade, because a text changes its ways: copying stops, a list begins.

use crate::echoes::{COUNTED, GUESSES};

/// Where a guess comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The text, or what it is about: agreeing tokens before the first guessed one, and how many better guesses there
    /// are.
    Echo { agree: usize, rank: usize },
    /// A draft model.
    Little,
}

/// Upper ends of the classes of agreeing tokens, and the share of guesses that come true in each before anything is
/// known: what chat, code and copied text have in common.
const CLASSES: [(usize, f64); 7] =
    [(1, 0.1), (2, 0.2), (3, 0.35), (5, 0.55), (8, 0.7), (16, 0.8), (usize::MAX, 0.9)];

/// The same for a draft model.
const LITTLE: f64 = 0.6;

/// What a guess that is not the best is worth beside one that is.
const SECOND: f64 = 0.4;

/// Outcomes that the first estimate counts for.
const WEIGHT: f64 = 4.0;

/// What is left of an outcome when the next one comes.
const FADE: f64 = 0.96;

/// Counts of guesses by origin.
#[derive(Clone, Debug)]
pub(crate) struct Odds {
    /// Guesses that came true and guesses, by class and rank, the draft model last.
    counts: [(f64, f64); SLOTS],
}

const SLOTS: usize = CLASSES.len() * GUESSES + 1;

impl Odds {
    pub(crate) fn new() -> Self {
        Self { counts: [(0.0, 0.0); SLOTS] }
    }

    /// The share of guesses that come true `ahead` tokens into a guess, where all before did.
    pub(crate) fn of(&self, origin: Origin, ahead: usize) -> f64 {
        let (slot, prior) = slot(origin, ahead);
        let (kept, seen) = self.counts[slot];
        (kept + prior * WEIGHT) / (seen + WEIGHT)
    }

    /// Takes in whether a guess came true `ahead` tokens in, where all before did.
    pub(crate) fn note(&mut self, origin: Origin, ahead: usize, kept: bool) {
        let (slot, _) = slot(origin, ahead);
        let (before, seen) = self.counts[slot];
        self.counts[slot] = (before * FADE + f64::from(u8::from(kept)), seen * FADE + 1.0);
    }

    /// Lets what is known of a draft model that does not write fade, so that it is tried again.
    pub(crate) fn rest(&mut self) {
        let (kept, seen) = &mut self.counts[SLOTS - 1];
        (*kept, *seen) = (*kept * REST, *seen * REST);
    }
}

/// What is left of a draft model's outcomes after a step without it.
const REST: f64 = 0.98;

fn slot(origin: Origin, ahead: usize) -> (usize, f64) {
    let Origin::Echo { agree, rank } = origin else { return (SLOTS - 1, LITTLE) };
    let agree = (agree + ahead).min(COUNTED);
    let class = CLASSES.iter().position(|&(most, _)| agree <= most).unwrap_or(CLASSES.len() - 1);
    let rank = rank.min(GUESSES - 1);
    let prior = CLASSES[class].1 * if rank == 0 { 1.0 } else { SECOND };
    (class * GUESSES + rank, prior)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_move_the_estimate_and_fade() {
        let mut odds = Odds::new();
        let echo = Origin::Echo { agree: 2, rank: 0 };
        assert_eq!(odds.of(echo, 0), 0.2);
        (0..200).for_each(|_| odds.note(echo, 0, true));
        assert!(odds.of(echo, 0) > 0.85);
        (0..200).for_each(|_| odds.note(echo, 0, false));
        assert!(odds.of(echo, 0) < 0.05);
        assert_eq!(odds.of(Origin::Echo { agree: 2, rank: 1 }, 0), 0.2 * SECOND, "ranks are counted apart");
        assert_eq!(odds.of(echo, 1), 0.35, "a kept token agrees too");
    }

    #[test]
    fn a_draft_model_that_rests_is_tried_again() {
        let mut odds = Odds::new();
        (0..100).for_each(|_| odds.note(Origin::Little, 0, false));
        let low = odds.of(Origin::Little, 0);
        (0..400).for_each(|_| odds.rest());
        assert!(low < 0.1 && odds.of(Origin::Little, 3) > 0.55);
    }
}
