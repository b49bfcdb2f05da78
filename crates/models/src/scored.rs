//! The two ends of every decoder: tokens in, logits of the scored rows out.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use trefoil_kernels::{Kernels, Kind, Lease, Look, Sight, Upload, Wanted, Weight, Words};

use crate::draft::{BranchId, Draft, RowId, Token};
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

/// How draws see the scored rows, and the tokens that stand in their texts already.
#[derive(Default)]
struct Draws {
    looks: Vec<Look>,
    repeated: Vec<Token>,
    /// Where the text of a branch is among those tokens: once, for all rows of the branch.
    texts: Vec<(BranchId, Range<u32>)>,
}

impl Draws {
    /// What `draft` wants of `row`, which is the scored one at `place`.
    fn take(&mut self, draft: &Draft, row: RowId, place: u32) {
        let entry = draft.row(row);
        if let Some(draw) = entry.drawn {
            let repeated = if draw.penalty == 1.0 { [0..0, 0..0] } else { self.repeat(draft, row) };
            self.looks.push(Look {
                row: place,
                temperature: draw.temperature,
                penalty: draw.penalty,
                repeated,
            });
        }
        let is_ranked = self.looks.last().is_some_and(|look| look.row == place && look.is_raw());
        if entry.ranked && !is_ranked {
            self.looks.push(Look { row: place, temperature: 1.0, penalty: 1.0, repeated: [0..0, 0..0] });
        }
    }

    /// Where the tokens are that stand before a draw at `row`: those of its text, and those of its path, of which some may
    /// be the text's too.
    fn repeat(&mut self, draft: &Draft, row: RowId) -> [Range<u32>; 2] {
        let branch = draft.row(row).branch;
        let known = self.texts.iter().find(|(theirs, _)| *theirs == branch).map(|(_, range)| range.clone());
        let text = known.unwrap_or_else(|| {
            let range = self.name(draft.repeated(branch).iter().copied());
            self.texts.push((branch, range.clone()));
            range
        });
        let path = std::iter::successors(Some(draft.row(row)), |row| Some(draft.row(row.parent?)));
        [text, self.name(path.map(|row| row.token))]
    }

    fn name(&mut self, tokens: impl Iterator<Item = Token>) -> Range<u32> {
        let from = self.repeated.len() as u32;
        self.repeated.extend(tokens);
        from..self.repeated.len() as u32
    }
}

impl Rows {
    pub(crate) fn of(draft: &Draft, kv: &Kv) -> Result<Self> {
        let (rows, mut scored) = (draft.rows(), Vec::new());
        let (mut asked, mut draws) = (Vec::new(), Draws::default());
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| row.scored) {
            let place = scored.len() as u32;
            scored.push(at as u32);
            asked.extend(row.asked.map(|token| (place, token)));
            draws.take(draft, RowId(at as u32), place);
        }
        Ok(Self {
            tokens: rows.iter().map(|row| row.token).collect::<Vec<Token>>().into(),
            sight: kv.sight(draft)?,
            scored: scored.into(),
            wanted: Wanted::new(asked, draws.looks, draws.repeated),
        })
    }

    /// Each row's position in its text.
    pub(crate) fn positions(&self) -> Vec<u32> {
        (0..self.tokens.len()).map(|row| self.sight.position(row) as u32).collect()
    }

    /// Hands it all to a card in one copy, with the lists of `more`. What is as long as the text comes last, so that the
    /// others keep their places.
    pub(crate) fn upload(&self, kernels: &Kernels, more: &dyn Upload) -> Result<()> {
        let wanted = &self.wanted;
        Ok(kernels.upload(&[&self.tokens, &self.scored, wanted, more, &self.sight, wanted.repeated()])?)
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
