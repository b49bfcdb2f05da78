//! Attention on a card: which blocks take which rows.
//!
//! With a cache in single precision the rows of a *circle* walk their tiles together, part by part. With one of sixteen
//! bits, circles walk a row's own tile and the one before, and the tiles before those are taken by *crowds* on tensor
//! cores: rows that have the same keys there. Where the border lies follows from a row's position, so its bits do too.

use candle_core::Tensor;

use crate::card::{Arg, Card, Joint, Shape, address, address_mut, count};
use crate::cut::PART;
use crate::error::Result;
use crate::flat::dims;
use crate::kv::{KvStore, PAGE};
use crate::sight::{ROWS, Sight};
use crate::stored::CacheType;
use crate::words::Upload;

/// The kernel for a cache type and so many channels of a lane.
fn kernel(ty: CacheType, channels: usize) -> &'static str {
    match (ty, channels) {
        (CacheType::F32, 2) => "attend_f32_2",
        (CacheType::F32, 4) => "attend_f32_4",
        (CacheType::F32, _) => "attend_f32_8",
        (CacheType::F16, 2) => "attend_f16_2",
        (CacheType::F16, 4) => "attend_f16_4",
        (CacheType::F16, _) => "attend_f16_8",
        (CacheType::Bf16, 2) => "attend_bf16_2",
        (CacheType::Bf16, 4) => "attend_bf16_4",
        (CacheType::Bf16, _) => "attend_bf16_8",
    }
}

pub(super) fn attend(
    card: &Card,
    q: &Tensor,
    [k, v]: [&Tensor; 2],
    store: &KvStore,
    sight: &Sight,
    scale: f32,
    window: Option<usize>,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let [m, heads, d] = dims("q", q)?;
    let [_, kv_heads, _] = store.sizes()?;
    let (ty, group) = (store.ty()?, heads / kv_heads);
    let shape = Shape::new(d)?;
    let kernel = kernel(ty, shape.channels);
    let parts = |tiles: usize| tiles.div_ceil(PART);
    let crowds = match ty {
        CacheType::F32 => &[],
        CacheType::F16 | CacheType::Bf16 => sight.crowds(),
    };
    let parts = match ty {
        CacheType::F32 => parts((0..m).map(|row| sight.position(row) / PAGE + 1).max().unwrap_or(0)),
        CacheType::F16 | CacheType::Bf16 => {
            parts(crowds.iter().map(|crowd| crowd.end).max().unwrap_or(0)) + 1
        }
    };
    let joint = Joint::new(card, &[m, heads * d], m * heads, d, parts)?;
    let words = card.words(sight.words())?;
    let mut args = vec![
        address("q", q)?,
        address("staged keys", k)?,
        address("staged values", v)?,
        address_mut(&store.k)?,
        address_mut(&store.v)?,
        Arg::Address(words),
        bias.map_or(Ok(Arg::Address(0)), |bias| address("the bias", bias))?,
        address_mut(&joint.out)?,
        joint.partial(),
        count(m),
        count(heads),
        count(kv_heads),
        count(d),
        Arg::Number(scale),
        count(window.unwrap_or(0)),
        count(bias.map_or(0, |bias| bias.dims()[1])),
        count(parts),
        count(sight.circles().len()),
        count(sight.circles_at()),
    ];
    // Queries of a circle or a crowd are cut in as many blocks as the largest may need, and a branch has room for two
    // circles, so that steps of as many rows have as many blocks: those are started as one.
    let chunks = (ROWS.min(m) * group).div_ceil(shape.most);
    let circles = sight.circles().len().max(m.min(2 * sight.branches()));
    args.push(count(chunks));
    if ty == CacheType::F32 {
        let grid = [circles * chunks, kv_heads, parts];
        // SAFETY: the sight was checked against staged rows and pages, and all shapes agree.
        unsafe { card.launch_with(kernel, grid, 256, shape.walk(ty), &args) }?;
        return joint.merge(card);
    }
    let together = crowds.len() * chunks * kv_heads * (parts - 1);
    args.extend([count(sight.crowds_at()), count(chunks), count(together)]);
    let grid = [together + circles * chunks * kv_heads, 1, 1];
    // SAFETY: as above; crowds and circles are rows of the sight, which see what they are said to see.
    unsafe { card.launch_with(kernel, grid, 256, shape.walk(ty).max(shape.crowd()), &args) }?;
    joint.merge(card)
}
