//! The sum that layers add to.

use candle_core::Tensor;
use trefoil_kernels::{Kernels, Operand, Weight};

use crate::error::Result;

/// What layers have added up, `[m, width]`. The last addend stays apart until the next norm, whose kernel adds it.
pub(crate) struct Residual<'a> {
    kernels: &'a Kernels,
    sum: Tensor,
    last: Option<Tensor>,
}

impl<'a> Residual<'a> {
    pub(crate) fn new(kernels: &'a Kernels, sum: Tensor) -> Self {
        Self { kernels, sum, last: None }
    }

    /// Adds what a layer has made.
    pub(crate) fn add(&mut self, y: Tensor) -> Result<()> {
        if let Some(last) = self.last.replace(y) {
            self.sum = self.kernels.add(&self.sum, &last)?;
        }
        Ok(())
    }

    /// The sum's norm, for products with `weights`.
    pub(crate) fn norm_for(&mut self, norm: &Tensor, eps: f32, weights: &[&Weight]) -> Result<Operand> {
        let Some(last) = self.last.take() else {
            return Ok(self.kernels.norm_for(&self.sum, norm, eps, weights)?);
        };
        let (sum, normed) = self.kernels.add_norm_for(&self.sum, &last, norm, eps, weights)?;
        self.sum = sum;
        Ok(normed)
    }

    /// The sum of all.
    pub(crate) fn whole(self) -> Result<Tensor> {
        Ok(match self.last {
            Some(last) => self.kernels.add(&self.sum, &last)?,
            None => self.sum,
        })
    }
}
