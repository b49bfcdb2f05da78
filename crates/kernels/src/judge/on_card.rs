//! Rows of scores that a card looks over: what is launched, and what comes back.

use candle_core::Tensor;

use super::{Further, Judged, Looked, TOP, Wanted};
use crate::card::{Arg, Card, address, count};
use crate::error::Result;
use crate::flat::dims;
use crate::lanes::LANES;
use crate::top::key;
use crate::words::Upload;

/// Scores of a slice, which a block of threads takes (softmax.cu), and of a stretch.
const SLICE: usize = 2048;
const SLICE_THREADS: usize = 256;
const STRETCH: usize = 64 * LANES;

/// Threads of a block that goes over a whole row (draw.cu).
const THREADS: usize = 1024;

/// Bytes of four words: what is known of a row, and what stands in front of entries, a score and its index each.
const QUAD: usize = 16;
const ENTRY: usize = 8;
const DRAWN: usize = QUAD + ENTRY * TOP;

/// Words of what is asked, and of a look.
const ASKED: usize = 2;
const LOOK: usize = 8;

pub(super) fn judge(card: &Card, scores: &Tensor, wanted: &Wanted) -> Result<Judged> {
    let [m, n] = dims("scores", scores)?;
    let (asked, looks) = (wanted.asked.len(), m + wanted.looks.len());
    let drawn = wanted.looks.iter().filter(|look| look.orders()).count();
    // One buffer for everything, so that there is one download.
    let (known, ordered) = (looks * QUAD, looks * QUAD + drawn * DRAWN);
    let all = ordered + asked * size_of::<f32>();
    let buffer = card.scratch(all)?;
    let at = |offset: usize| Arg::Address(buffer.start() + offset as u64);
    let (slices, sums) = (n.div_ceil(SLICE), n.div_ceil(STRETCH) + 1);
    let bests = card.scratch(looks * slices * ENTRY)?;
    let sums = card.scratch(looks * sums * size_of::<f64>())?;
    let met = card.counters(looks)?;

    let (from, [words, look, repeated]) = (address("scores", scores)?, words(card, wanted, 0)?);
    let (grid, sizes) = ([slices, looks, 1], [count(m), count(n)]);
    let args = [from, look, repeated, bests.address(), sizes[0], sizes[1]];
    // SAFETY: the rows of all looks were checked to be there, and there is room for each slice's best score.
    unsafe { card.launch("highest", grid, SLICE_THREADS, &args) }?;
    let [bests, sums, met] = [&bests, &sums, &met].map(|buffer| buffer.address());
    let args = [from, look, repeated, bests, sums, met, at(0), sizes[0], sizes[1]];
    // SAFETY: as above, for the sums and a count of each look's, and for what is known of each.
    unsafe { card.launch("mass", grid, SLICE_THREADS, &args) }?;
    let args = [from, look, repeated, at(known), count(n)];
    // SAFETY: looks that want the likeliest tokens come first, and there is room for them.
    unsafe { card.launch("draw", [drawn, 1, 1], THREADS, &args) }?;
    let args = [from, words, at(ordered), count(asked), count(n)];
    // SAFETY: the scores were checked to be there, and the answers have room behind the rest.
    unsafe { card.launch("ask", [asked.div_ceil(256), 1, 1], 256, &args) }?;

    let bytes = card.download(&buffer, 0, all)?;
    let mut rows = bytes[..known].as_chunks().0.iter().map(|row| {
        let [best, score, low, high] = four(row);
        (best, f32::from_bits(score), f64::from_bits(u64::from(low) | u64::from(high) << 32))
    });
    let asked = bytes[ordered..].as_chunks().0.iter().map(|&answer| f32::from_le_bytes(answer));
    let judged = rows.by_ref().take(m).collect();
    let mut tops = bytes[known..ordered].chunks_exact(DRAWN).map(|top| entries(top).0);
    let looked = rows.map(|(best, score, mass)| {
        // Those that want none come last.
        Looked { best, score, mass, top: tops.next().unwrap_or_default() }
    });
    Ok(Judged { rows: judged, asked: asked.collect(), looks: looked.collect() })
}

pub(super) fn further(
    card: &Card,
    scores: &Tensor,
    wanted: &Wanted,
    look: usize,
    behind: Option<(f32, u32)>,
    most: usize,
) -> Result<Further> {
    let [_, n] = dims("scores", scores)?;
    let buffer = card.scratch(QUAD + most * ENTRY)?;
    let [_, look, repeated] = words(card, wanted, look)?;
    let from = behind.map_or(0, |(score, at)| key(score, at) + 1);
    let scores = address("scores", scores)?;
    let args = [scores, look, repeated, Arg::Words(&[from]), buffer.address(), count(most), count(n)];
    // SAFETY: the look's row was checked to be there, and there is room for most entries.
    unsafe { card.launch("further", [1, 1, 1], THREADS, &args) }?;
    let (next, is_all) = entries(&card.download(&buffer, 0, QUAD + most * ENTRY)?);
    Ok(Further { next, is_all })
}

/// Where a card finds what is asked, the looks from this one on, and the tokens that they name.
fn words(card: &Card, wanted: &Wanted, look: usize) -> Result<[Arg<'static>; 3]> {
    let [words, repeated] = [card.placed(wanted.words())?, card.placed(wanted.repeated())?];
    let looks = words + ((wanted.asked.len() * ASKED + look * LOOK) * size_of::<u32>()) as u64;
    Ok([words, looks, repeated].map(Arg::Address))
}

/// The entries behind their number, and the word behind that.
fn entries(bytes: &[u8]) -> (Vec<(f32, u32)>, bool) {
    let (quads, rest) = bytes.as_chunks();
    let Some((head, quads)) = quads.split_first() else { return Default::default() };
    let [count, is_all, ..] = four(head);
    // An odd number of entries leaves half of four words.
    let mut last = [0; QUAD];
    last[..rest.len()].copy_from_slice(rest);
    let pairs = quads.iter().chain([&last]).map(four).flat_map(|[a, b, c, d]| [(a, b), (c, d)]);
    let entries = pairs.take(count as usize).map(|(score, at)| (f32::from_bits(score), at));
    (entries.collect(), is_all != 0)
}

/// Four words.
fn four(bytes: &[u8; QUAD]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks();
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}
