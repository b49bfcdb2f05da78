//! Shared attention on a card: how documents and their rows come to blocks.

use std::sync::Arc;

use candle_core::Tensor;

use super::{BLOCK_ROWS, DOCUMENTS, Place, Readers, SharedKv};
use crate::card::{Arg, Buffer, Card, Joint, Shape, address, address_mut, count};
use crate::cut::PART;
use crate::error::{Error, Result};
use crate::flat::dims;
use crate::kv::PAGE;
use crate::stored::CacheType;
use crate::words::{Upload, Words};

/// Packs keys and values, `[n, heads, d]`.
pub(super) fn share(
    card: &Card,
    [k, v]: [&Tensor; 2],
    [n, heads, d]: [usize; 3],
    ty: CacheType,
) -> Result<SharedKv> {
    let len = heads * n.div_ceil(PAGE) * PAGE * d * ty.bytes();
    let sides = [card.zeros(len)?, card.zeros(len)?];
    let [to_k, to_v] = sides.each_ref().map(Buffer::address);
    let from = [address("shared keys", k)?, address("shared values", v)?];
    let args = [from[0], from[1], to_k, to_v, count(n), count(heads), count(d)];
    let kernel = match ty {
        CacheType::F32 => "share_f32",
        CacheType::F16 => "share_f16",
        CacheType::Bf16 => "share_bf16",
    };
    // SAFETY: both sides have room for all tiles.
    unsafe { card.launch(kernel, [(n * heads * d).div_ceil(256), 1, 1], 256, &args) }?;
    Ok(SharedKv { place: Place::Card(Arc::new(sides)), ty, n, heads, d })
}

pub(super) fn attend(
    card: &Card,
    q: &Tensor,
    documents: &[&SharedKv],
    readers: &Readers,
    scale: f32,
    bias: Option<(&Tensor, &Words)>,
) -> Result<Tensor> {
    let [m, heads, d] = dims("q", q)?;
    let ty = documents.first().map_or(CacheType::F32, |kv| kv.ty);
    let shape = Shape::new(d)?;
    let shared = if ty == CacheType::F32 { shape.walk(ty) } else { shape.crowd() };
    let kernel = match (ty, shape.channels) {
        (CacheType::F32, 2) => "attend_shared_f32_2",
        (CacheType::F32, 4) => "attend_shared_f32_4",
        (CacheType::F32, _) => "attend_shared_f32_8",
        (CacheType::F16, 2) => "attend_shared_f16_2",
        (CacheType::F16, 4) => "attend_shared_f16_4",
        (CacheType::F16, _) => "attend_shared_f16_8",
        (CacheType::Bf16, 2) => "attend_shared_bf16_2",
        (CacheType::Bf16, 4) => "attend_shared_bf16_4",
        (CacheType::Bf16, _) => "attend_shared_bf16_8",
    };
    let tiles = documents.iter().map(|kv| kv.n.div_ceil(PAGE)).max().unwrap_or(0);
    let joint = Joint::new(card, &[m, heads * d], m * heads, d, tiles.div_ceil(PART))?;
    let table = bias.map(|(table, _)| address("the bias", table)).transpose()?;
    let positions = bias.map_or(Ok(0), |(_, positions)| card.words(positions))?;
    let words = card.words(readers.words())?;
    let word = |at: usize| Arg::Address(words + (at * size_of::<u32>()) as u64);
    let (mut first, all) = (0, Readers::blocks(&readers.groups));
    for (some, groups) in documents.chunks(DOCUMENTS).zip(readers.groups.chunks(DOCUMENTS)) {
        let mut places = [0; 3 * DOCUMENTS];
        for (index, kv) in some.iter().enumerate() {
            let Place::Card(sides) = &kv.place else {
                return Err(Error::shape("shared keys are on another device"));
            };
            let [k, v] = sides.each_ref().map(Buffer::start);
            (places[index], places[DOCUMENTS + index], places[2 * DOCUMENTS + index]) = (k, v, kv.n as u64);
        }
        let blocks = Readers::blocks(groups);
        let args = [
            address("q", q)?,
            Arg::Words(&places),
            word(3 * first),
            word(3 * all),
            table.unwrap_or(Arg::Address(0)),
            Arg::Address(positions),
            address_mut(&joint.out)?,
            joint.partial(),
            count(heads),
            count(some[0].heads),
            count(d),
            Arg::Number(scale),
            count(bias.map_or(0, |(table, _)| table.dims()[1])),
            count(joint.parts()),
        ];
        let grid = [blocks * BLOCK_ROWS.div_ceil(shape.most), heads, joint.parts()];
        // SAFETY: every row is some document's once, and the tiles of documents are as long as they say.
        unsafe { card.launch_with(kernel, grid, 256, shared, &args) }?;
        first += blocks;
    }
    joint.merge(card)
}
