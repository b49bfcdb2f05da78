//! What both attentions have in common on a card: a long text is walked in parts, and the parts are joined.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Arg, Buffer, Card, address_mut, count};
use crate::cut::PART;
use crate::error::{Error, Lack, Result};
use crate::kv::PAGE;
use crate::stored::CacheType;

/// The output of an attention whose parts may be walked apart.
pub(crate) struct Joint {
    pub(crate) out: Tensor,
    partial: Option<Arc<Buffer>>,
    queries: usize,
    d: usize,
    parts: usize,
}

impl Joint {
    pub(crate) fn new(card: &Card, dims: &[usize], queries: usize, d: usize, parts: usize) -> Result<Self> {
        let partial = (parts > 1).then(|| card.scratch(queries * parts * (2 + d) * size_of::<f32>()));
        Ok(Self { out: card.output(dims)?, partial: partial.transpose()?, queries, d, parts })
    }

    pub(crate) fn parts(&self) -> usize {
        self.parts
    }

    /// Where parts are written: `[queries, parts, 2 + d]`.
    pub(crate) fn partial(&self) -> Arg<'static> {
        self.partial.as_ref().map_or(Arg::Address(0), |partial| partial.address())
    }

    /// The output, when every part is written.
    pub(crate) fn merge(self, card: &Card) -> Result<Tensor> {
        if self.partial.is_some() {
            let args = [self.partial(), address_mut(&self.out)?, count(self.d), count(self.parts)];
            // SAFETY: every query has its parts.
            unsafe {
                card.launch("merge", [self.queries, 1, 1], self.d.next_multiple_of(32).min(256), &args)
            }?;
        }
        Ok(self.out)
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

/// Bytes of a query (tile.cuh), and of a text (text.cuh).
const QUERY: usize = 64;
const TEXT: usize = 72;
