//! Rows of scores that are looked over where they are, so that they need not be downloaded.
//!
//! Of each row the best score and the mass of all are said. Where a token will be drawn there is a *look* at the row: the
//! same of the scores that the draw sees, with its temperature and its repetition penalty, and the likeliest tokens in
//! their order. What follows behind those is handed out when a draw gets there.

#[cfg(feature = "card")]
mod on_card;

use std::ops::Range;
use std::sync::OnceLock;

use candle_core::Tensor;

use crate::Kernels;
use crate::error::{Error, Result};
use crate::flat::{Flat, dims};
use crate::softmax::{best, mass, mass_at, penalise, scale};
use crate::top::{higher, top};
use crate::words::{Upload, Words};

/// The most of a row's scores that [`Kernels::judge`] hands out for a draw.
pub const TOP: usize = 256;

/// How a draw sees a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// The row.
    pub row: u32,
    /// What divides scores in weights; 0 where nothing but the best token is wanted.
    pub temperature: f32,
    /// What [`penalise`] does to the scores of the tokens that `repeated` names, once; 1 changes nothing.
    pub penalty: f32,
    /// Where they stand in [`Wanted::repeated`]: the text's own tokens, and the draft's.
    pub repeated: [Range<u32>; 2],
}

impl Look {
    /// Whether it has the likeliest tokens by the model's own scores.
    pub fn is_raw(&self) -> bool {
        self.penalty == 1.0 && self.temperature > 0.0
    }

    /// Whether more than the best token is wanted.
    fn orders(&self) -> bool {
        self.temperature > 0.0
    }
}

/// What is wanted of rows of scores beyond what [`Kernels::judge`] says of each.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    asked: Vec<(u32, u32)>,
    looks: Vec<Look>,
    repeated: Words,
    /// Row and index of what is asked, and then the looks, as a card reads them.
    words: OnceLock<Words>,
}

impl Wanted {
    /// * `asked`: row and index of single scores
    /// * `looks`: how draws see rows
    /// * `repeated`: tokens that stand in a text already, as looks name them
    pub fn new(asked: Vec<(u32, u32)>, mut looks: Vec<Look>, repeated: Vec<u32>) -> Self {
        // A card hands out the likeliest tokens of the first ones.
        looks.sort_by_key(|look| !look.orders());
        Self { asked, looks, repeated: repeated.into(), words: OnceLock::new() }
    }

    /// Row and index of the single scores.
    pub fn asked(&self) -> &[(u32, u32)] {
        &self.asked
    }

    /// How draws see rows, those first that see more than the best token.
    pub fn looks(&self) -> &[Look] {
        &self.looks
    }

    /// The tokens that stand in texts already. A list of its own, because it grows with them.
    pub fn repeated(&self) -> &Words {
        &self.repeated
    }

    /// What a look sees of a row.
    fn seen(&self, look: &Look, row: &[f32]) -> Vec<f32> {
        let mut scores = row.to_vec();
        let lists = look.repeated.iter();
        for &token in lists.flat_map(|list| &self.repeated[list.start as usize..list.end as usize]) {
            if let (Some(score), Some(&raw)) = (scores.get_mut(token as usize), row.get(token as usize)) {
                *score = penalise(raw, look.penalty);
            }
        }
        scores
    }

    fn check(&self, m: usize, n: usize) -> Result<()> {
        let mut asked = self.asked.iter();
        if let Some((row, at)) = asked.find(|&&(row, at)| row as usize >= m || at as usize >= n) {
            return Err(Error::range(format!("score {at} of row {row}; there are {n} in each of {m}")));
        }
        for Look { row, repeated, .. } in &self.looks {
            if *row as usize >= m {
                return Err(Error::range(format!("a draw from row {row} of {m}")));
            }
            if repeated.iter().any(|list| list.start > list.end || list.end as usize > self.repeated.len()) {
                let known = self.repeated.len();
                return Err(Error::range(format!("{repeated:?} of {known} tokens of texts")));
            }
        }
        Ok(())
    }
}

impl Upload for Wanted {
    fn words(&self) -> &Words {
        self.words.get_or_init(|| {
            let asked = self.asked.iter().flat_map(|&(row, at)| [row, at]);
            let looks = self.looks.iter().flat_map(|look| {
                let [text, draft] = look.repeated.each_ref();
                let numbers = [scale(look.temperature), look.penalty].map(f32::to_bits);
                [look.row, numbers[0], numbers[1], text.start, text.end, draft.start, draft.end, 0]
            });
            asked.chain(looks).collect::<Vec<_>>().into()
        })
    }
}

/// What is known of rows of scores that stay on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Of each row: its best score's index, the lowest among equals; that score; and [`mass`].
    pub rows: Vec<(u32, f32, f64)>,
    /// The scores that were asked for.
    pub asked: Vec<f32>,
    /// What there is to each look.
    pub looks: Vec<Looked>,
}

/// What a draw needs of a row: nearly always enough.
#[derive(Debug, Clone, PartialEq)]
pub struct Looked {
    /// The best token, as the look sees the row.
    pub best: u32,
    /// Its score in the row as it is.
    pub score: f32,
    /// [`mass_at`] the temperature.
    pub mass: f64,
    /// The first ones in the order of [`top`], each behind its score in the row as it is: [`TOP`] of them, all that there
    /// are, or none at all where too many are alike or none are wanted.
    pub top: Vec<(f32, u32)>,
}

/// What follows in an order.
#[derive(Debug, Clone, PartialEq)]
pub struct Further {
    /// The next tokens, in any order, each behind its score in the row as it is.
    pub next: Vec<(f32, u32)>,
    /// Whether they are the last ones.
    pub is_all: bool,
}

impl Kernels {
    /// Looks rows of scores over where they are.
    ///
    /// * `scores`: `[m, n]`
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if a score is asked for that is not there.
    pub fn judge(&self, scores: &Tensor, wanted: &Wanted) -> Result<Judged> {
        let [m, n] = dims("scores", scores)?;
        wanted.check(m, n)?;
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card::judge(card, scores, wanted);
        }
        let flat = Flat::new("scores", scores)?;
        let row = |row: u32| &flat.values()[row as usize * n..(row as usize + 1) * n];
        let known = |scores: &[f32], (highest, mass)| (best(scores).unwrap_or(u32::MAX), highest, mass);
        let rows = (0..m as u32).map(row).map(|scores| known(scores, mass(scores)));
        let asked = wanted.asked.iter().map(|&(at, token)| row(at)[token as usize]);
        let looks = wanted.looks.iter().map(|look| {
            let (raw, seen) = (row(look.row), wanted.seen(look, row(look.row)));
            let (best, highest, mass) = known(&seen, mass_at(&seen, look.temperature));
            let score = raw.get(best as usize).copied().unwrap_or(highest);
            let count = if look.orders() { TOP } else { 0 };
            let top = top(&seen, count).into_iter().map(|(_, at)| (raw[at as usize], at)).collect();
            Looked { best, score, mass, top }
        });
        Ok(Judged { rows: rows.collect(), asked: asked.collect(), looks: looks.collect() })
    }

    /// What a look of [`Kernels::judge`] sees behind a token in the order of a row, or from the first one on: `most` tokens,
    /// or all that there are.
    ///
    /// * `look`: its place among [`Wanted::looks`]
    /// * `behind`: the token, behind the score that the look sees
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if there is no such look, and
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend) if the device fails.
    pub fn further(
        &self,
        scores: &Tensor,
        wanted: &Wanted,
        look: usize,
        behind: Option<(f32, u32)>,
        most: usize,
    ) -> Result<Further> {
        let [m, n] = dims("scores", scores)?;
        wanted.check(m, n)?;
        let Some(seen) = wanted.looks.get(look) else {
            return Err(Error::range(format!("look {look} of {}", wanted.looks.len())));
        };
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card::further(card, scores, wanted, look, behind, most.clamp(1, n));
        }
        let flat = Flat::new("scores", scores)?;
        let raw = &flat.values()[seen.row as usize * n..(seen.row as usize + 1) * n];
        let mut order = top(&wanted.seen(seen, raw), n);
        let from = behind.map_or(0, |behind| order.partition_point(|next| higher(next, &behind).is_le()));
        let rest = order.split_off(from);
        let next = rest.iter().take(most).map(|&(_, at)| (raw[at as usize], at)).collect();
        Ok(Further { next, is_all: rest.len() <= most })
    }

    /// One row of `scores`, `[m, n]`, wherever it is.
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if there is no such row, and
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend) if the device fails.
    pub fn row(&self, scores: &Tensor, row: usize) -> Result<Vec<f32>> {
        let [_, n] = dims("scores", scores)?;
        self.some(scores, row * n, n)
    }

    /// The score of a token in a row of `scores`, `[m, n]`, wherever it is.
    ///
    /// # Errors
    /// As [`Kernels::row`].
    pub fn score(&self, scores: &Tensor, row: usize, at: usize) -> Result<f32> {
        let [m, n] = dims("scores", scores)?;
        let no_such = || Error::range(format!("score {at} of row {row}; there are {n} in each of {m}"));
        if at >= n {
            return Err(no_such());
        }
        self.some(scores, row * n + at, 1)?.first().copied().ok_or_else(no_such)
    }

    /// Some of a tensor's numbers. candle would download all that are in the same memory.
    #[cfg_attr(not(feature = "card"), expect(clippy::unused_self, reason = "a card has its own way"))]
    fn some(&self, scores: &Tensor, from: usize, count: usize) -> Result<Vec<f32>> {
        if from + count > scores.elem_count() {
            return Err(Error::range(format!("{count} scores from {from} of {}", scores.elem_count())));
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return card.numbers(scores, from, count);
        }
        Ok(Flat::new("scores", scores)?.values()[from..from + count].to_vec())
    }
}
