//! The two ends of every decoder: tokens in, logits of the scored rows out.

use candle_core::Tensor;
use trefoil_kernels::{Kernels, Weight};

use crate::draft::{Draft, Token};
use crate::error::Result;
use crate::scores::Scores;

/// The draft's tokens, row by row.
pub(crate) fn tokens(draft: &Draft) -> Vec<Token> {
    draft.rows().iter().map(|row| row.token).collect()
}

/// Applies the last norm and the head to the rows of `x` (`[rows, width]`) that the draft wants scored, and to no
/// others: the head is the widest product of the step.
pub(crate) fn logits(
    kernels: &Kernels,
    draft: &Draft,
    x: &Tensor,
    head: &Weight,
    finish: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Scores> {
    let scored: Vec<u32> = (0..draft.len() as u32).filter(|&row| draft.rows()[row as usize].scored).collect();
    if scored.is_empty() {
        return Ok(Scores::new(draft, head.n(), Vec::new()));
    }
    let x = if scored.len() == draft.len() { x.clone() } else { kernels.select(x, &scored)? };
    if !kernels.on_card() {
        return Ok(Scores::new(draft, head.n(), kernels.linear_values(&finish(&x)?, head)?));
    }
    let logits = kernels.linear(&finish(&x)?, head)?;
    let asked = |(at, &row): (usize, &u32)| Some((at as u32, draft.rows()[row as usize].asked?));
    let asked: Vec<(u32, Token)> = scored.iter().enumerate().filter_map(asked).collect();
    let judged = kernels.judge(&logits, &asked)?;
    Scores::away(draft, logits, judged, asked)
}
