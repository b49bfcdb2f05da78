//! Plain decoding: no draft, one token a step. What every other decoding is measured against.

use trefoil_models::{Draft, Scores};

use crate::error::Result;
use crate::sampler::Sampler;
use crate::strategy::{Live, Strategy, Verdict, walk};

/// Plain autoregressive decoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Strategy for Plain {
    fn propose(&mut self, _live: &[Live<'_>], _draft: &mut Draft) -> Result<()> {
        Ok(())
    }

    fn judge(
        &mut self,
        live: &Live<'_>,
        draft: &Draft,
        scores: &Scores,
        sampler: &Sampler,
    ) -> Result<Verdict> {
        walk(live, draft, scores, sampler)
    }
}
