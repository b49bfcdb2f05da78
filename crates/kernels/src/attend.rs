//! Attention over a branch's committed prefix and a row's ancestors in the draft.
//!
//! Keys are reduced by logical position, in tiles that begin at multiples of 32: first the
//! committed ones, then the path. A token that is scored deep in a draft and scored again from the
//! cache thus meets the same keys in the same lanes of the same tiles, and gives the same bits.
//!
//! A task takes a few neighbouring rows, one key head and a part of the keys. It walks the tiles
//! outermost, so that a tile is read from memory once for all rows and all query heads of the task.
//! A tile that holds staged rows is gathered into the layout of a page; neighbours share most of it.

mod gathered;
#[cfg(feature = "card")]
mod on_card;

use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::Tensor;
use half::{bf16, f16};

use self::gathered::Gathered;
use crate::Kernels;
use crate::cut::{Cut, Walk};
use crate::error::{Error, Result};
use crate::flat::{Flat, dims, equal, room, tensor, written};
use crate::isa::Work;
use crate::kv::{KvStore, PAGE, staged};
use crate::lanes::Lanes;
use crate::pool::Parts;
use crate::sight::Sight;
use crate::stored::{CacheType, Stored};
use crate::tile::{Bias, Query, SUMS, Tile, fetch, see};

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
    /// `[rows, heads, d]`, or `[parts, rows, heads, d + SUMS]` where each part has a task of its own.
    out: Parts<'a, MaybeUninit<f32>>,
    width: usize,
}

/// Rows `first..first + count` with key head `head`.
struct Attend<'a, T> {
    step: &'a Step<'a, T>,
    first: usize,
    count: usize,
    head: usize,
    cut: Cut,
    /// The only part that it sees, where other tasks see the others.
    part: Option<usize>,
}

/// The positions that a row sees.
fn reach(sight: &Sight, window: Option<usize>, row: usize) -> Range<usize> {
    let end = sight.position(row) + 1;
    window.map_or(0, |window| end.saturating_sub(window))..end
}

/// The positions that some rows see, and what lies between them.
fn reach_of(sight: &Sight, window: Option<usize>, rows: Range<usize>) -> Range<usize> {
    let all = rows.map(|row| reach(sight, window, row));
    all.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

impl<T: Stored> Step<'_, T> {
    /// The keys of a tile that a row sees, as slots.
    fn seen(&self, row: usize, tile: usize) -> (usize, usize) {
        let Range { start, end } = reach(self.sight, self.window, row);
        let slot = |position: usize| position.saturating_sub(tile * PAGE).min(PAGE);
        (slot(start), slot(end))
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

impl<T: Stored> Attend<'_, T> {
    fn rows(&self) -> Range<usize> {
        self.first..self.first + self.count
    }

    /// Query heads that use the key head.
    fn group(&self) -> Range<usize> {
        let count = self.step.heads / self.step.kv_heads;
        self.head * count..(self.head + 1) * count
    }
}

impl<T: Stored> Work for Attend<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Step { q, sight, heads, d, width, .. } = *self.step;
        let mut queries = Vec::with_capacity(self.count * self.group().len());
        for row in self.rows() {
            for head in self.group() {
                let query = row * heads + head;
                let bias = self.step.bias.map(|(table, distances)| Bias {
                    table: &table[head * distances..(head + 1) * distances],
                    origin: sight.position(row) as i64,
                    step: -1,
                });
                let at = self.part.map_or(0, |part| part * sight.rows() * heads) + query;
                // SAFETY: tasks own disjoint rows, heads and parts, and here each is taken once.
                let out = unsafe { self.step.out.part(at * width, width) };
                queries.push(Query::new(&q[query * d..][..d], out, bias));
            }
        }
        if let Some(part) = self.part {
            self.part(l, part, &mut queries);
            queries.into_iter().for_each(Query::finish);
        } else {
            self.cut.walk(l, &self, queries);
        }
    }
}

impl<T: Stored> Walk for Attend<'_, T> {
    #[inline(always)]
    fn part<L: Lanes>(&self, l: L, part: usize, queries: &mut [Query<'_>]) {
        let (step, group) = (self.step, self.group().len());
        let mut gathered = Gathered::new();
        for tile in self.cut.tiles(part, reach_of(step.sight, step.window, self.rows())) {
            for (query, row) in queries.chunks_mut(group).zip(self.rows()) {
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
                    gathered.hold(l, step, row, tile, self.head);
                    while end < self.count
                        && !step.is_page(self.first + end, tile)
                        && gathered.admits(step, self.first + end, tile)
                    {
                        gathered.hold(l, step, self.first + end, tile, self.head);
                        end += 1;
                    }
                    [gathered.k.as_slice(), gathered.v.as_slice()]
                };
                let tile = Tile { k, v, start: tile * PAGE };
                see(l, tile, step.scale, &mut queries[at * group..end * group]);
                at = end;
            }
        }
    }

    fn seen(&self, query: usize) -> Cut {
        let row = self.first + query / self.group().len();
        Cut::of(reach(self.step.sight, self.step.window, row))
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
        let cut = Cut::of(reach_of(sight, window, 0..m));
        let most = (TASK * kv_heads / heads).max(1);
        // Few rows of a long text have a task for each part: they may have fewer key heads than there are threads.
        let rows = |tasks: usize| (m * kv_heads / tasks).clamp(1, most);
        let whole = rows(2 * self.threads());
        let apart = cut.count() > 1 && m.div_ceil(whole) * kv_heads < 4 * self.threads();
        let (parts, rows, width) = if apart {
            (cut.count(), rows((4 * self.threads()).div_ceil(cut.count())), d + SUMS)
        } else {
            (1, whole, d)
        };
        let mut out = room(parts * m * heads * width)?;
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
            width,
        };
        self.pool().run(m.div_ceil(rows) * kv_heads * parts, &|i| {
            let (first, head, part) = (i / parts / kv_heads * rows, i / parts % kv_heads, i % parts);
            let count = rows.min(m - first);
            let seen = || Cut::of(reach_of(sight, window, first..first + count));
            let (cut, part) = if apart { (cut.clone(), Some(part)) } else { (seen(), None) };
            self.found().run(Attend { step: &step, first, count, head, cut, part });
        })?;
        // SAFETY: the tasks have every row, head and part, and each writes what it has.
        let mut out = unsafe { written(out) };
        if apart {
            let seen = |query: usize| Cut::of(reach(sight, window, query / heads));
            out = self.joined(&out, &cut, [m * heads, d], &seen)?;
        }
        tensor(out, &[m, heads * d])
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
