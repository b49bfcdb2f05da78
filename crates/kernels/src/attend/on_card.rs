//! Attention on a card: which blocks take which rows.
//!
//! With a cache in single precision a warp takes a row and some heads, part by part. With one of sixteen bits, a row's
//! own tile and the one before are walked like that, and the tiles before those by *crowds* on tensor cores: rows that
//! have the same keys there. Where the border lies follows from a row's position, so its bits do too.

use candle_core::Tensor;

use crate::card::{Arg, Card, Joint, PART, address, address_mut, channels, count};
use crate::error::Result;
use crate::flat::dims;
use crate::kv::{KvStore, PAGE};
use crate::sight::Sight;
use crate::stored::CacheType;

/// Queries of one warp.
const QUERIES: usize = 4;

/// Warps of a block, at most.
const WARPS: usize = 8;

/// Rows that see the same keys wherever two of them see a tile of those that crowds take.
struct Crowd {
    rows: Vec<u32>,
    /// The one with the longest path.
    leader: usize,
    /// The tiles that they see, `first..end`.
    first: usize,
    end: usize,
}

/// The end of the tiles of a row that crowds take.
fn shared_end(sight: &Sight, row: usize) -> usize {
    (sight.position(row) / PAGE).saturating_sub(1)
}

/// The staged rows that a row sees in the tiles that crowds take.
fn shared_path(sight: &Sight, row: usize) -> &[u32] {
    let staged = (shared_end(sight, row) * PAGE).saturating_sub(sight.committed(row));
    &sight.path(row)[..staged]
}

/// Crowds of at most so many rows; those that see no tile in common are in none.
fn crowds(sight: &Sight, window: Option<usize>, most: usize) -> Vec<Crowd> {
    let mut crowds: Vec<Crowd> = Vec::new();
    for row in 0..sight.rows() {
        let end = shared_end(sight, row);
        let lowest = window.map_or(0, |window| (sight.position(row) + 1).saturating_sub(window));
        let first = lowest / PAGE;
        if first >= end {
            continue;
        }
        let path = shared_path(sight, row);
        let admits = |crowd: &&mut Crowd| {
            let theirs = shared_path(sight, crowd.leader);
            let common = path.len().min(theirs.len());
            crowd.rows.len() < most
                && sight.branch_of(crowd.leader) == sight.branch_of(row)
                && path[..common] == theirs[..common]
        };
        match crowds.iter_mut().rev().find(admits) {
            Some(crowd) => {
                crowd.rows.push(row as u32);
                crowd.first = crowd.first.min(first);
                if end > crowd.end {
                    (crowd.end, crowd.leader) = (end, row);
                }
            }
            None => crowds.push(Crowd { rows: vec![row as u32], leader: row, first, end }),
        }
    }
    crowds
}

/// Crowds as words for a card: where the rows of each begin, how many they are, its leader and its tiles; then all rows.
fn words(crowds: &[Crowd]) -> Vec<u32> {
    let mut words = Vec::new();
    let mut at = 5 * crowds.len();
    for crowd in crowds {
        words.extend([at, crowd.rows.len(), crowd.leader, crowd.first, crowd.end].map(|word| word as u32));
        at += crowd.rows.len();
    }
    words.extend(crowds.iter().flat_map(|crowd| &crowd.rows));
    words
}

/// What the kernels for a cache type and heads of so many channels are.
struct Kernel {
    name: &'static str,
    /// Queries of a crowd.
    most: usize,
    /// Bytes of shared memory.
    shared: usize,
}

impl Kernel {
    fn new(ty: CacheType, d: usize) -> Result<Self> {
        let channels = channels(d)?;
        let name = match (ty, channels) {
            (CacheType::F32, 2) => "attend_f32_2",
            (CacheType::F32, 4) => "attend_f32_4",
            (CacheType::F32, _) => "attend_f32_8",
            (CacheType::F16, 2) => "attend_f16_2",
            (CacheType::F16, 4) => "attend_f16_4",
            (CacheType::F16, _) => "attend_f16_8",
            (CacheType::Bf16, 2) => "attend_bf16_2",
            (CacheType::Bf16, 4) => "attend_bf16_4",
            (CacheType::Bf16, _) => "attend_bf16_8",
        };
        let (most, width) = (if channels == 8 { 16 } else { 32 }, 32 * channels);
        // Two halves of queries and weights, two stages of keys and values, scores, and two numbers a query.
        let shared = 4 * most * width + 4 * most * PAGE + 8 * PAGE * width + 4 * most * (PAGE + 4) + 8 * most;
        Ok(Self { name, most, shared })
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
    let kernel = Kernel::new(ty, d)?;
    let parts = |tiles: usize| tiles.div_ceil(PART);
    let crowds = match ty {
        CacheType::F32 => Vec::new(),
        CacheType::F16 | CacheType::Bf16 => crowds(sight, window, (kernel.most / group).max(1)),
    };
    let parts = match ty {
        CacheType::F32 => parts((0..m).map(|row| sight.position(row) / PAGE + 1).max().unwrap_or(0)),
        CacheType::F16 | CacheType::Bf16 => {
            parts(crowds.iter().map(|crowd| crowd.end).max().unwrap_or(0)) + 1
        }
    };
    let joint = Joint::new(card, &[m, heads * d], m * heads, d, parts)?;
    let (sight_words, crowd_words) = (card.words(&sight.words())?, words(&crowds));
    let mut args = vec![
        address("q", q)?,
        address("staged keys", k)?,
        address("staged values", v)?,
        address_mut(&store.k)?,
        address_mut(&store.v)?,
        sight_words.address(),
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
    ];
    // A warp takes a row and some heads of a group.
    let items = m * group.div_ceil(QUERIES);
    if ty == CacheType::F32 {
        let warps = items.clamp(1, WARPS);
        // SAFETY: the sight was checked against staged rows and pages, and all shapes agree.
        unsafe { card.launch(kernel.name, [items.div_ceil(warps), kv_heads, parts], 32 * warps, &args) }?;
        return joint.merge(card);
    }
    let together = crowds.len() * group.div_ceil(kernel.most) * kv_heads * (parts - 1);
    let crowd_words = card.words(&crowd_words)?;
    args.extend([crowd_words.address(), count(together)]);
    let grid = [together + (items * kv_heads).div_ceil(WARPS), 1, 1];
    // SAFETY: as above, and crowds are rows of the sight.
    unsafe { card.launch_with(kernel.name, grid, 32 * WARPS, kernel.shared, &args) }?;
    joint.merge(card)
}
