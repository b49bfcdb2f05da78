//! A linear layer as the model files write it.

use candle_core::Tensor;
use trefoil_kernels::{Kernels, Operand, Weight};

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
    pub(crate) fn forward(&self, kernels: &Kernels, x: &Operand) -> Result<Tensor> {
        let [y] = Self::forward_all([self], kernels, x)?;
        Ok(y)
    }

    /// What it multiplies, for what makes its operand.
    pub(crate) fn weight(&self) -> &Weight {
        &self.weight
    }

    /// What several layers make of the same `x`, as one job.
    pub(crate) fn forward_all<const N: usize>(
        layers: [&Self; N],
        kernels: &Kernels,
        x: &Operand,
    ) -> Result<[Tensor; N]> {
        let mut products = kernels.linears_of(x, layers.map(|layer| &layer.weight))?;
        for (y, layer) in products.iter_mut().zip(layers) {
            if let Some(bias) = &layer.bias {
                *y = kernels.add_bias(y, bias)?;
            }
        }
        Ok(products)
    }

    /// Resident bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| bias.elem_count() * size_of::<f32>())
    }
}

/// Bytes of a matrix that are read before they are packed.
const CHUNK: usize = 8 << 20;

/// A packed `[n, k]` matrix. It is read and packed some rows at a time, so that its file's bytes are not in memory too.
pub(crate) fn matrix(kernels: &Kernels, weights: &Weights, name: &str, n: usize, k: usize) -> Result<Weight> {
    let broken = |source| Error::load(format!("tensor {name} cannot be packed")).because(source);
    let mut packed: Option<Weight> = None;
    let (mut first, mut rows) = (0, Weight::ROWS.min(n));
    while first < n {
        let raw = weights.read_rows(name, &[n, k], first..first + rows)?;
        let weight = match &mut packed {
            Some(weight) => weight,
            none => none.insert(Weight::zeros(kernels, raw.ty, n, k).map_err(broken)?),
        };
        weight.pack_rows(kernels, first, &raw.bytes).map_err(broken)?;
        first += rows;
        // The first rows say how many make a chunk.
        let chunk = CHUNK / (raw.bytes.len() / rows).max(1) / Weight::ROWS * Weight::ROWS;
        rows = chunk.max(Weight::ROWS).min(n - first);
    }
    packed.ok_or_else(|| Error::load(format!("tensor {name} has no rows")))
}

/// A vector in f32, whatever type the file stores it in.
pub(crate) fn vector(kernels: &Kernels, weights: &Weights, name: &str, len: usize) -> Result<Tensor> {
    let raw = weights.read(name, &[len])?;
    let row = Weight::pack(kernels, raw.ty, 1, len, &raw.bytes)
        .and_then(|weight| weight.row(0))
        .map_err(|source| Error::load(format!("tensor {name} cannot be read")).because(source))?;
    Ok(Tensor::from_vec(row, len, kernels.device())?)
}
