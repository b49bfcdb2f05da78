//! A linear layer as the model files write it.

use candle_core::Tensor;
use trefoil_kernels::{Kernels, Weight};

use crate::error::{Error, Result};
use crate::weights::Weights;

/// `y = x Wᵀ + b`.
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Reads `{name}.weight` (`[n, k]`) and, where `bias` says so, `{name}.bias` (`[n]`).
    pub(crate) fn load(
        kernels: &Kernels,
        weights: &Weights,
        name: &str,
        n: usize,
        k: usize,
        bias: bool,
    ) -> Result<Self> {
        let weight = matrix(kernels, weights, &format!("{name}.weight"), n, k)?;
        let bias = bias.then(|| vector(kernels, weights, &format!("{name}.bias"), n)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// `[m, k]` to `[m, n]`.
    pub(crate) fn forward(&self, kernels: &Kernels, x: &Tensor) -> Result<Tensor> {
        let y = kernels.linear(x, &self.weight)?;
        match &self.bias {
            Some(bias) => Ok(kernels.add_bias(&y, bias)?),
            None => Ok(y),
        }
    }

    /// Resident bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| bias.elem_count() * size_of::<f32>())
    }
}

/// A packed `[n, k]` matrix.
pub(crate) fn matrix(kernels: &Kernels, weights: &Weights, name: &str, n: usize, k: usize) -> Result<Weight> {
    let raw = weights.read(name, &[n, k])?;
    Weight::pack(kernels, raw.ty, n, k, &raw.bytes)
        .map_err(|source| Error::load(format!("tensor {name} cannot be packed")).because(source))
}

/// A vector in f32, whatever type the file stores it in.
pub(crate) fn vector(kernels: &Kernels, weights: &Weights, name: &str, len: usize) -> Result<Tensor> {
    let raw = weights.read(name, &[len])?;
    let row = Weight::pack(kernels, raw.ty, 1, len, &raw.bytes)
        .and_then(|weight| weight.row(0))
        .map_err(|source| Error::load(format!("tensor {name} cannot be read")).because(source))?;
    Ok(Tensor::from_vec(row, len, kernels.device())?)
}
