//! What both attentions have in common on a card: a long text is walked in parts, and whichever block comes last joins
//! them.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Arg, Buffer, Card, address_mut};
use crate::error::{Error, Lack, Result};
use crate::kv::PAGE;
use crate::operand::{Form, Kind, Making, Operand, Parts, Recipe};
use crate::stored::CacheType;
use crate::weight::Weight;

/// Tiles that one walk takes; parts of a longer text are walked apart and joined in their order.
pub(crate) const PART: usize = 8;

/// The output of an attention whose parts may be walked apart.
pub(crate) struct Joint {
    pub(crate) out: Tensor,
    /// Parts, `[queries, parts, 2 + d]`, and how many of each query's blocks have come.
    apart: Option<[Arc<Buffer>; 2]>,
    pub(crate) parts: usize,
}

impl Joint {
    pub(crate) fn new(card: &Card, dims: &[usize], queries: usize, d: usize, parts: usize) -> Result<Self> {
        let apart = || {
            let partial = card.scratch(queries * parts * (2 + d) * size_of::<f32>())?;
            Ok::<_, Error>([partial, card.counters(queries)?])
        };
        let apart = (parts > 1).then(apart).transpose()?;
        Ok(Self { out: card.output(dims)?, apart, parts })
    }

    /// Where results, parts and counts are written. Nobody counts, and joins parts, where the products behind do.
    pub(crate) fn places(&self, left_apart: bool) -> Result<[Arg<'static>; 3]> {
        let [partial, met] = match &self.apart {
            Some(apart) => apart.each_ref().map(|buffer| buffer.address()),
            None => [Arg::Address(0); 2],
        };
        Ok([address_mut(&self.out)?, partial, if left_apart { Arg::Address(0) } else { met }])
    }

    /// Whether the only row's parts `first` to `last` are left to products with `weights`, which join them.
    pub(crate) fn leaves(
        &self,
        card: &Card,
        rows: usize,
        d: usize,
        seen: [usize; 2],
        weights: &[&Weight],
    ) -> bool {
        let width = self.out.elem_count() / rows.max(1);
        seen[0] < seen[1] && d % 8 == 0 && Kind::of_all(weights, rows).is_made_by_products(card, rows, width)
    }

    /// The row's heads, from their parts `first` to `last`.
    pub(crate) fn left(self, d: usize, [first, last]: [usize; 2]) -> Operand {
        let Some([partial, _]) = self.apart else { return self.out.into() };
        let parts = Parts { partial, d, room: self.parts, first, count: last - first + 1 };
        let k = self.out.elem_count();
        Operand(Form::Row(Recipe { making: Making::Joined(parts), k, x: self.out, y: None }))
    }
}

/// What attention over heads of a width is compiled for.
pub(crate) struct Shape {
    /// Channels of a lane: the fewest that hold a head.
    pub(crate) channels: usize,
    /// Queries that a block takes.
    pub(crate) most: usize,
}

impl Shape {
    /// The shape for heads of `d` channels.
    pub(crate) fn new(d: usize) -> Result<Self> {
        let channels = [2, 4, 8].into_iter().find(|lanes| d <= 32 * lanes).ok_or_else(|| {
            let message = format!("heads of {d} channels; on a card 1 to 256 are allowed");
            Error::device(Lack::Heads, message)
        })?;
        Ok(Self { channels, most: if channels == 8 { 16 } else { 32 } })
    }

    /// Bytes of shared memory of a block whose warps walk tiles (tile.cuh): one tile and the next, where they fit, and
    /// queries with their weights over a tile.
    pub(crate) fn walk(&self, ty: CacheType) -> usize {
        let (width, spare) = (32 * self.channels, 16 / ty.bytes());
        let stages = if self.channels == 8 && ty == CacheType::F32 { 1 } else { 2 };
        let tile = (PAGE * (width + spare) + width * (PAGE + spare)) * ty.bytes();
        stages * tile + self.most * (4 * (width + PAGE) + QUERY)
    }

    /// Bytes of one on tensor cores (halves.cuh): two halves of queries and of their weights over a part; and of each query
    /// the greatest score and the sum of weights a tile, what its products are multiplied with, and who it is;
    /// and where the text is.
    pub(crate) fn crowd(&self) -> usize {
        let width = 32 * self.channels;
        self.most * (4 * width + PART * (4 * PAGE + 8) + 4 + QUERY) + TEXT
    }
}

/// Bytes of a query (query.cuh), and of a text (text.cuh).
const QUERY: usize = 64;
const TEXT: usize = 72;
