//! Activations in the form in which the products that follow take them.
//!
//! On a card a product wants its activations rounded to sixteen bits or as bytes, in an order of its own. What makes them
//! writes that form at once, where all products that follow want the same one: a kernel less, and a quarter of the bytes.

use candle_core::Tensor;
#[cfg(feature = "card")]
use std::sync::Arc;

#[cfg(feature = "card")]
use crate::card::{Arg, Buffer, Card, count, start_mut};
#[cfg(feature = "card")]
use crate::error::Error;
use crate::error::Result;
use crate::factor::Pair;
use crate::flat::dims;
#[cfg(feature = "card")]
use crate::formats::WeightType;
#[cfg(feature = "card")]
use crate::pieces::{ROWS, STEP};
#[cfg(feature = "card")]
use crate::quantise::{BLOCK, Block, TILE};
#[cfg(feature = "card")]
use crate::weight::Weight;

/// Rows whose products read weights straight from a card's memory.
#[cfg(feature = "card")]
pub(crate) const FEW: usize = 16;

/// Activations, `[m, k]`, that products with certain weights multiply.
pub struct Operand(pub(crate) Form);

impl std::fmt::Debug for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Operand({:?})", self.dims())
    }
}

/// The form that they have.
pub(crate) enum Form {
    /// Numbers, from which products make what they take, and their pairs where that was made already.
    Whole(Tensor, Vec<Pair>),
    /// What products on a card take.
    #[cfg(feature = "card")]
    Made(Made),
}

/// Activations on a card in one form.
#[cfg(feature = "card")]
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) kind: Kind,
    pub(crate) numbers: Arc<Buffer>,
    /// What undoes the scaling of a row in half precision.
    pub(crate) scales: Option<Arc<Buffer>>,
}

/// What products on a card take; forms.cuh has the same order.
#[cfg(feature = "card")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Numbers as they are.
    Whole,
    /// Pieces of numbers in half precision.
    F16,
    /// Pieces of bfloat16.
    Bf16,
    /// Bytes, row by row.
    Blocks,
    /// Bytes, in tiles of sixteen rows.
    Tiles,
}

impl From<Tensor> for Operand {
    fn from(whole: Tensor) -> Self {
        Self(Form::Whole(whole, Vec::new()))
    }
}

impl Operand {
    /// Rows, and their numbers.
    pub(crate) fn dims(&self) -> Result<[usize; 2]> {
        match &self.0 {
            Form::Whole(whole, _) => dims("x", whole),
            #[cfg(feature = "card")]
            Form::Made(made) => Ok([made.m, made.k]),
        }
    }

    /// All numbers, as they are.
    #[cfg_attr(
        not(feature = "card"),
        expect(clippy::unnecessary_wraps, reason = "a card may have made them its own")
    )]
    pub(crate) fn whole(&self) -> Result<&Tensor> {
        match &self.0 {
            Form::Whole(whole, _) => Ok(whole),
            #[cfg(feature = "card")]
            Form::Made(_) => Err(Error::shape("activations that were made for a card")),
        }
    }

    /// Their pairs: none where they were not made.
    pub(crate) fn pairs(&self) -> &[Pair] {
        match &self.0 {
            Form::Whole(_, pairs) => pairs,
            #[cfg(feature = "card")]
            Form::Made(_) => &[],
        }
    }
}

#[cfg(feature = "card")]
impl Kind {
    /// What a product of `m` rows with weights of `ty` takes.
    pub(crate) fn of(ty: WeightType, m: usize) -> Self {
        match ty {
            WeightType::F32 => Self::Whole,
            WeightType::F16 => Self::F16,
            WeightType::Bf16 => Self::Bf16,
            _ if m > FEW => Self::Tiles,
            _ => Self::Blocks,
        }
    }

    /// What products of `m` rows with all of `weights` take: numbers as they are, where they don't agree.
    pub(crate) fn of_all(weights: &[&Weight], m: usize) -> Self {
        let mut kinds = weights.iter().map(|weight| Self::of(weight.ty(), m));
        let first = kinds.next().unwrap_or(Self::Whole);
        if kinds.all(|kind| kind == first) { first } else { Self::Whole }
    }

    /// Steps of 64 inputs or blocks of 32, of `k`.
    pub(crate) fn depth(self, k: usize) -> usize {
        match self {
            Self::Whole => 0,
            Self::F16 | Self::Bf16 => k.div_ceil(STEP),
            Self::Blocks | Self::Tiles => k / BLOCK,
        }
    }

    /// Bytes of `m` rows of `k` numbers.
    pub(crate) fn bytes(self, m: usize, k: usize) -> usize {
        match self {
            Self::Whole => m * k * size_of::<f32>(),
            Self::F16 | Self::Bf16 => m.next_multiple_of(ROWS) * self.depth(k) * STEP * 2,
            Self::Blocks => m * self.depth(k) * size_of::<Block>(),
            // What stands in a tile is less by the sums of halves.
            Self::Tiles => {
                m.next_multiple_of(TILE) * self.depth(k) * (size_of::<Block>() - size_of::<[i32; 2]>())
            }
        }
    }
}

/// Where a kernel hands over activations.
#[cfg(feature = "card")]
pub(crate) enum Handed {
    Whole(Tensor),
    Made(Made),
}

#[cfg(feature = "card")]
impl Handed {
    /// Room for `m` rows of `k` numbers in a form.
    pub(crate) fn new(card: &Card, kind: Kind, m: usize, k: usize) -> Result<Self> {
        if kind == Kind::Whole {
            return card.output(&[m, k]).map(Self::Whole);
        }
        let numbers = card.scratch(kind.bytes(m, k))?;
        let scales = (kind == Kind::F16).then(|| card.scratch(m * size_of::<f32>())).transpose()?;
        Ok(Self::Made(Made { m, k, kind, numbers, scales }))
    }

    /// What a kernel is told of it: forms.cuh.
    pub(crate) fn args(&self) -> Result<[Arg<'static>; 4]> {
        Ok(match self {
            Self::Whole(out) => {
                [Arg::Address(start_mut(out)?), Arg::Address(0), count(0), count(Kind::Whole as usize)]
            }
            Self::Made(Made { k, kind, numbers, scales, .. }) => {
                let scales = scales.as_ref().map_or(Arg::Address(0), |scales| scales.address());
                [numbers.address(), scales, count(kind.depth(*k)), count(*kind as usize)]
            }
        })
    }

    /// What was handed over, when its kernel has been launched.
    pub(crate) fn operand(self) -> Operand {
        Operand(match self {
            Self::Whole(whole) => Form::Whole(whole, Vec::new()),
            Self::Made(made) => Form::Made(made),
        })
    }
}
