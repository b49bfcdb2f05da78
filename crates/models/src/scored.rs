//! The two ends of every decoder: tokens in, logits of the scored rows out.

use std::sync::Arc;

use candle_core::Tensor;
use trefoil_kernels::{Kernels, Kind, Lease, Sight, Upload, Wanted, Weight, Words};

use crate::draft::{Draft, Token};
use crate::error::Result;
use crate::kv::Kv;
use crate::scores::{Away, Scores};

/// Which passes of a model are alike: those of as many layers, rows and scored rows.
pub(crate) fn kind(embedding: &Arc<Weight>, layers: usize, draft: &Draft) -> Kind {
    let scored = draft.rows().iter().filter(|row| row.scored).count();
    [Arc::as_ptr(embedding) as usize, layers, draft.len(), scored]
}

/// What the rows of a step are, as operations ask for it.
pub(crate) struct Rows {
    pub(crate) tokens: Words,
    pub(crate) sight: Sight,
    /// The rows that the draft wants scored.
    scored: Words,
    /// What else it wants of their scores; rows are those among the scored ones.
    wanted: Wanted,
}

impl Rows {
    pub(crate) fn of(draft: &Draft, kv: &Kv) -> Result<Self> {
        let (rows, mut scored) = (draft.rows(), Vec::new());
        let (mut asked, mut drawn) = (Vec::new(), Vec::new());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| row.scored) {
            let place = scored.len() as u32;
            scored.push(at as u32);
            asked.extend(row.asked.map(|token| (place, token)));
            drawn.extend(row.drawn.map(|temperature| (place, temperature)));
        }
        Ok(Self {
            tokens: rows.iter().map(|row| row.token).collect::<Vec<Token>>().into(),
            sight: kv.sight(draft)?,
            scored: scored.into(),
            wanted: Wanted::new(asked, drawn),
        })
    }

    /// Each row's position in its text.
    pub(crate) fn positions(&self) -> Vec<u32> {
        (0..self.tokens.len()).map(|row| self.sight.position(row) as u32).collect()
    }

    /// Hands it all to a card in one copy, with the lists of `more`. What is as long as the text comes last, so that the
    /// others keep their places.
    pub(crate) fn upload(&self, kernels: &Kernels, more: &dyn Upload) -> Result<()> {
        Ok(kernels.upload(&[&self.tokens, &self.scored, &self.wanted, more, &self.sight])?)
    }

    /// Applies the last norm and the head to the rows of `x` (`[rows, width]`) that the draft wants scored, and to no
    /// others: the head is the widest product of the step.
    pub(crate) fn logits(
        self,
        kernels: &Kernels,
        draft: &Draft,
        lease: &Lease,
        x: &Tensor,
        head: &Weight,
        finish: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Scores> {
        if self.scored.is_empty() {
            return Ok(Scores::new(draft, head.n(), Vec::new()));
        }
        let x = if self.scored.len() == draft.len() { x.clone() } else { kernels.select(x, &self.scored)? };
        if !kernels.on_card() {
            return Ok(Scores::new(draft, head.n(), kernels.linear_values(&finish(&x)?, head)?));
        }
        let logits = kernels.linear(&finish(&x)?, head)?;
        let judged = kernels.judge(&logits, &self.wanted)?;
        Ok(Scores::away(
            draft,
            head.n(),
            Away {
                kernels: kernels.clone(),
                lease: Lease::clone(lease),
                logits,
                judged,
                wanted: self.wanted,
            },
        ))
    }
}
