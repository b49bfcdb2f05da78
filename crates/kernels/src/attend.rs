//! Attention over a branch's committed prefix and a row's ancestors in the draft.
//!
//! Keys are reduced by logical position, in tiles that begin at multiples of 32: first the
//! committed ones, then the path. A token that is scored deep in a draft and scored again from the
//! cache thus meets the same keys in the same lanes of the same tiles, and gives the same bits.
//!
//! A task takes a few neighbouring rows and one key head. It walks the tiles outermost, so that a
//! tile is read from memory once for all rows and all query heads of the task. A tile that holds
//! staged rows is gathered into the layout of a page; neighbours share most of it.

#[cfg(feature = "card")]
mod on_card;

use std::mem::MaybeUninit;

use candle_core::Tensor;
use half::{bf16, f16};

use crate::Kernels;
use crate::error::{Error, Result};
use crate::flat::{Flat, dims, equal, room, tensor, written};
use crate::isa::Work;
use crate::kv::{KvStore, PAGE, Side, staged};
use crate::lanes::Lanes;
use crate::pool::Parts;
use crate::sight::Sight;
use crate::stored::{CacheType, Stored};
use crate::tile::{Bias, Query, Tile, fetch, see};

/// Queries of a task, at most: as many as stay in a first-level cache.
const TASK: usize = 48;

/// The operands of one call.
struct Step<'a, T> {
    q: &'a [f32],
    staged: [&'a [f32]; 2],
    store: [&'a [T]; 2],
    sight: &'a Sight,
    scale: f32,
    window: Option<usize>,
    /// `[heads, distances]`.
    bias: Option<(&'a [f32], usize)>,
    heads: usize,
    kv_heads: usize,
    d: usize,
    out: Parts<'a, MaybeUninit<f32>>,
}

/// Rows `first..first + count` with key head `head`.
struct Attend<'a, T> {
    step: &'a Step<'a, T>,
    first: usize,
    count: usize,
    head: usize,
}

/// A tile in a page's layout that holds staged rows, rounded as a page would keep them.
struct Gathered<T> {
    k: Vec<T>,
    v: Vec<T>,
    branch: usize,
    tile: usize,
    /// The staged rows that it holds after the committed positions.
    path: Vec<u32>,
}

impl<T: Stored> Step<'_, T> {
    /// The first position that a row sees.
    fn lowest(&self, row: usize) -> usize {
        let position = self.sight.position(row);
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// The keys of a tile that a row sees, as slots.
    fn seen(&self, row: usize, tile: usize) -> (usize, usize) {
        let start = tile * PAGE;
        let from = self.lowest(row).saturating_sub(start).min(PAGE);
        let to = (self.sight.position(row) + 1).saturating_sub(start).min(PAGE);
        (from, to)
    }

    /// Whether all 32 keys of a tile are committed on the row's branch.
    fn is_page(&self, row: usize, tile: usize) -> bool {
        (tile + 1) * PAGE <= self.sight.committed(row)
    }

    /// The part of a row's path that lies in a tile.
    fn path(&self, row: usize, tile: usize) -> &[u32] {
        let (len, path) = (self.sight.committed(row), self.sight.path(row));
        let from = (tile * PAGE).saturating_sub(len).min(path.len());
        let to = ((tile + 1) * PAGE).saturating_sub(len).min(path.len());
        &path[from..to]
    }

    fn page(&self, page: usize, head: usize) -> [&[T]; 2] {
        let len = self.d * PAGE;
        let at = (page * self.kv_heads + head) * len;
        [&self.store[0][at..at + len], &self.store[1][at..at + len]]
    }
}

impl<T: Stored> Gathered<T> {
    /// Makes the tile hold everything that `row` sees of it.
    fn hold(&mut self, step: &Step<'_, T>, row: usize, tile: usize, head: usize) {
        let d = step.d;
        let committed = step.sight.committed(row).saturating_sub(tile * PAGE);
        let branch = step.sight.branch_of(row);
        if self.tile != tile || self.branch != branch {
            (self.tile, self.branch) = (tile, branch);
            self.path.clear();
            self.k.resize(d * PAGE, T::default());
            self.v.resize(d * PAGE, T::default());
            if committed > 0 {
                let [k, v] = step.page(step.sight.page(row, tile), head);
                self.k.copy_from_slice(k);
                self.v[..committed * d].copy_from_slice(&v[..committed * d]);
            }
        }
        let path = step.path(row, tile);
        let common = common(&self.path, path);
        if common == path.len() {
            return;
        }
        self.path.truncate(common);
        for (slot, &staged) in (committed + common..).zip(&path[common..]) {
            let at = (staged as usize * step.kv_heads + head) * d;
            let [k, v] = step.staged.map(|rows| &rows[at..at + d]);
            Side::Keys.put(k, &mut self.k, slot);
            Side::Values.put(v, &mut self.v, slot);
            self.path.push(staged);
        }
    }

    /// Whether `row` can be added without overwriting what earlier rows of the run see.
    fn admits(&self, step: &Step<'_, T>, row: usize, tile: usize) -> bool {
        let path = step.path(row, tile);
        self.branch == step.sight.branch_of(row)
            && common(&self.path, path) == path.len().min(self.path.len())
    }
}

/// How long the common beginning is.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<T: Stored> Work for Attend<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let step = self.step;
        let (d, group) = (step.d, step.heads / step.kv_heads);
        let rows = self.first..self.first + self.count;
        let mut queries = Vec::with_capacity(self.count * group);
        for row in rows.clone() {
            for head in self.head * group..(self.head + 1) * group {
                let at = (row * step.heads + head) * d;
                let bias = step.bias.map(|(table, distances)| Bias {
                    table: &table[head * distances..(head + 1) * distances],
                    origin: step.sight.position(row) as i64,
                    step: -1,
                });
                // SAFETY: tasks own disjoint rows and heads, and here each is taken once.
                let out = unsafe { step.out.part(at, d) };
                queries.push(Query::new(&step.q[at..at + d], out, bias));
            }
        }
        let first = rows.clone().map(|row| step.lowest(row) / PAGE).min().unwrap_or(0);
        let last = rows.clone().map(|row| step.sight.position(row) / PAGE).max().unwrap_or(0);
        let mut gathered =
            Gathered { k: Vec::new(), v: Vec::new(), branch: usize::MAX, tile: usize::MAX, path: Vec::new() };
        for tile in first..=last {
            for (query, row) in queries.chunks_mut(group).zip(rows.clone()) {
                let (from, to) = step.seen(row, tile);
                for query in query {
                    (query.from, query.to) = (from, to);
                }
            }
            let mut at = 0;
            while at < self.count {
                let row = self.first + at;
                let (from, to) = step.seen(row, tile);
                let mut end = at + 1;
                let [k, v] = if from >= to {
                    at = end;
                    continue;
                } else if step.is_page(row, tile) {
                    let page = step.sight.page(row, tile);
                    while end < self.count
                        && step.is_page(self.first + end, tile)
                        && step.sight.page(self.first + end, tile) == page
                    {
                        end += 1;
                    }
                    // A page is too short for the hardware to see where reading goes on.
                    if step.is_page(row, tile + 1) {
                        for side in step.page(step.sight.page(row, tile + 1), self.head) {
                            fetch(l, side);
                        }
                    }
                    step.page(page, self.head)
                } else {
                    gathered.hold(step, row, tile, self.head);
                    while end < self.count
                        && !step.is_page(self.first + end, tile)
                        && gathered.admits(step, self.first + end, tile)
                    {
                        gathered.hold(step, self.first + end, tile, self.head);
                        end += 1;
                    }
                    [gathered.k.as_slice(), gathered.v.as_slice()]
                };
                let tile = Tile { k, v, start: tile * PAGE };
                see(l, tile, step.scale, &mut queries[at * group..end * group]);
                at = end;
            }
        }
        for query in queries {
            query.finish();
        }
    }
}

impl Kernels {
    /// Attention of every row over its branch's committed keys and its path of staged ones.
    ///
    /// * `q`: `[m, heads, d]`, contiguous; query head h uses key head `h / (heads / kv_heads)`
    /// * `staged_k`, `staged_v`: `[m, kv_heads, d]`, this step's own keys and values
    /// * `store`: this layer's committed ones
    /// * `sight`: one row for each of the m
    /// * `scale`: multiplies q · k
    /// * `window`: a row at position p sees keys at positions above p − window only
    /// * `bias`: `[heads, D]`, added by distance p − key, the last entry serving all beyond
    ///
    /// Returns `[m, heads · d]`.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if shapes disagree, a window or a bias table
    /// is empty; [`ErrorKind::Range`](crate::ErrorKind::Range) if `sight` names pages, rows or
    /// branches that do not exist.
    pub fn attend(
        &self,
        q: &Tensor,
        staged_k: &Tensor,
        staged_v: &Tensor,
        store: &KvStore,
        sight: &Sight,
        scale: f32,
        window: Option<usize>,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let [m, heads, d] = dims("q", q)?;
        let [pages, kv_heads, _] = store.sizes()?;
        let [rows, ..] = staged(staged_k, staged_v, kv_heads, d)?;
        equal("the number of staged rows", rows, m)?;
        equal("the rows of the sight", sight.rows(), m)?;
        grouped(heads, kv_heads)?;
        if window == Some(0) {
            return Err(Error::shape("a window of 0; at least 1 is needed, the row itself"));
        }
        sight.check(m, pages)?;
        if let Some(bias) = bias {
            bias_width(bias, heads)?;
        }
        let staged = [staged_k, staged_v];
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card::attend(card, q, staged, store, sight, scale, window, bias);
        }
        match store.ty()? {
            CacheType::F32 => self.attend_to::<f32>(q, staged, store, sight, scale, window, bias),
            CacheType::F16 => self.attend_to::<f16>(q, staged, store, sight, scale, window, bias),
            CacheType::Bf16 => self.attend_to::<bf16>(q, staged, store, sight, scale, window, bias),
        }
    }

    fn attend_to<T: Stored>(
        &self,
        q: &Tensor,
        [staged_k, staged_v]: [&Tensor; 2],
        store: &KvStore,
        sight: &Sight,
        scale: f32,
        window: Option<usize>,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let [m, heads, d] = dims("q", q)?;
        let [_, kv_heads, _] = store.sizes()?;
        let distances = bias.map(|bias| bias_width(bias, heads)).transpose()?;
        let bias = bias.map(|bias| Flat::new("the bias", bias)).transpose()?;
        let (q, k, v) =
            (Flat::new("q", q)?, Flat::new("staged keys", staged_k)?, Flat::new("staged values", staged_v)?);
        let (pages_k, pages_v) =
            (Flat::<T>::of("the key store", &store.k)?, Flat::<T>::of("the value store", &store.v)?);
        let mut out = room(m * heads * d)?;
        let step = Step {
            q: q.values(),
            staged: [k.values(), v.values()],
            store: [pages_k.values(), pages_v.values()],
            sight,
            scale,
            window,
            bias: bias.as_ref().map(Flat::values).zip(distances),
            heads,
            kv_heads,
            d,
            out: Parts::new(&mut out),
        };
        let most = (TASK * kv_heads / heads).max(1);
        let rows = (m * kv_heads / (2 * self.threads())).clamp(1, most);
        self.pool().run(m.div_ceil(rows) * kv_heads, &|i| {
            let (first, head) = (i / kv_heads * rows, i % kv_heads);
            self.found().run(Attend { step: &step, first, count: rows.min(m - first), head });
        })?;
        // SAFETY: the tasks have every row and head, and each writes what it has.
        tensor(unsafe { written(out) }, &[m, heads * d])
    }
}

/// Checks that query heads divide evenly among key heads.
pub(crate) fn grouped(heads: usize, kv_heads: usize) -> Result<()> {
    if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::shape(format!("{heads} query heads do not divide among {kv_heads} key heads")));
    }
    Ok(())
}

/// Checks a bias table's shape and returns its width.
pub(crate) fn bias_width(bias: &Tensor, heads: usize) -> Result<usize> {
    let [rows, width] = dims("the bias", bias)?;
    equal("the bias's heads", rows, heads)?;
    if width == 0 {
        return Err(Error::shape("the bias has no entries; at least 1 a head is needed"));
    }
    Ok(width)
}
