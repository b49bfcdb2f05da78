//! Attention of many rows over the same keys: an encoder's own, and every decoder row's over its
//! encoded document.
//!
//! Rows of every branch fold into the query axis, so keys and values are read once a head and
//! block of rows, whatever the number of branches. The rows of several documents share one job.

#[cfg(feature = "card")]
mod on_card;

use std::mem::MaybeUninit;
#[cfg(feature = "card")]
use std::sync::Arc;
use std::sync::OnceLock;

use candle_core::Tensor;
use half::{bf16, f16};

use crate::Kernels;
use crate::attend::{bias_width, grouped};
#[cfg(feature = "card")]
use crate::card::Buffer;
use crate::cut::{Cut, Walk};
use crate::error::{Error, Result};
use crate::flat::{Flat, dims, equal, filled, room, tensor, written};
use crate::isa::Work;
use crate::kv::{PAGE, Put, Side};
use crate::lanes::Lanes;
use crate::pool::Parts;
use crate::stored::{CacheType, Stored};
use crate::tile::{Bias, Query, Tile, see};
use crate::words::{Upload, Words};

/// Rows of a task, at most.
const ROWS: usize = 16;

/// On a card: documents of one launch, and rows of one block.
const DOCUMENTS: usize = 32;
const BLOCK_ROWS: usize = 32;

/// Keys and values of one layer, packed in tiles once for all steps.
#[derive(Clone)]
pub struct SharedKv {
    place: Place,
    ty: CacheType,
    n: usize,
    heads: usize,
    d: usize,
}

/// Keys, `[heads, tiles, d, PAGE]`, and values, `[heads, tiles, PAGE, d]`; on a card each tile lies the other way round.
#[derive(Clone)]
enum Place {
    F32([Vec<f32>; 2]),
    F16([Vec<f16>; 2]),
    Bf16([Vec<bf16>; 2]),
    #[cfg(feature = "card")]
    Card(Arc<[Buffer; 2]>),
}

impl std::fmt::Debug for SharedKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedKv({:?} [{}, {}, {}])", self.ty, self.n, self.heads, self.d)
    }
}

impl SharedKv {
    /// Keys that every row sees.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none; [`Kernels::share`] makes no such value.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Bytes that it keeps in memory.
    pub fn bytes(&self) -> usize {
        2 * self.heads * self.n.div_ceil(PAGE) * PAGE * self.d * self.ty.bytes()
    }
}

/// Which rows of a step see which document, for all of its layers.
#[derive(Debug)]
pub struct Readers {
    groups: Vec<Vec<u32>>,
    /// Blocks (document of its launch, first and number of rows) and then rows, as a card reads them.
    words: OnceLock<Words>,
}

impl Readers {
    /// * `groups`: for each document the rows that see it; each row is some document's, once
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if a row is not there once.
    pub fn new(groups: Vec<Vec<u32>>) -> Result<Self> {
        let made = Self { groups, words: OnceLock::new() };
        let mut seen = vec![false; made.rows()];
        for &row in made.groups.iter().flatten() {
            match seen.get_mut(row as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return Err(Error::shape(format!("row {row} sees two documents"))),
                None => {
                    let rows = made.rows();
                    return Err(Error::shape(format!("row {row} sees a document; there are {rows} rows")));
                }
            }
        }
        Ok(made)
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    /// Blocks of these documents on a card.
    #[cfg(feature = "card")]
    fn blocks(groups: &[Vec<u32>]) -> usize {
        groups.iter().map(|rows| rows.len().div_ceil(BLOCK_ROWS)).sum()
    }
}

impl Upload for Readers {
    fn words(&self) -> &Words {
        self.words.get_or_init(|| {
            let (mut blocks, mut rows) = (Vec::new(), Vec::with_capacity(self.rows()));
            for (document, theirs) in self.groups.iter().enumerate() {
                for block in theirs.chunks(BLOCK_ROWS) {
                    blocks.extend([document % DOCUMENTS, rows.len(), block.len()].map(|word| word as u32));
                    rows.extend_from_slice(block);
                }
            }
            blocks.extend(rows);
            blocks.into()
        })
    }
}

/// Some rows of one head.
struct Shared<'a, T> {
    q: &'a [f32],
    kv: &'a SharedKv,
    sides: &'a [Vec<T>; 2],
    scale: f32,
    /// `[heads, width]` and the rows' positions.
    bias: Option<(&'a [f32], usize, &'a [u32])>,
    heads: usize,
    out: &'a Parts<'a, MaybeUninit<f32>>,
    rows: &'a [u32],
    head: usize,
}

impl<T: Stored> Work for Shared<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let d = self.kv.d;
        let queries: Vec<_> = self
            .rows
            .iter()
            .map(|&row| {
                let at = (row as usize * self.heads + self.head) * d;
                let bias = self.bias.map(|(table, width, positions)| Bias {
                    table: &table[self.head * width..(self.head + 1) * width],
                    origin: (width / 2) as i64 - i64::from(positions[row as usize]),
                    step: 1,
                });
                // SAFETY: tasks own disjoint rows and heads, and here each is taken once.
                let out = unsafe { self.out.part(at, d) };
                Query::new(&self.q[at..at + d], out, bias)
            })
            .collect();
        Cut::of(0..self.kv.n).walk(l, &self, queries);
    }
}

impl<T: Stored> Walk for Shared<'_, T> {
    #[inline(always)]
    fn part<L: Lanes>(&self, l: L, part: usize, queries: &mut [Query<'_>]) {
        let SharedKv { n, heads, d, .. } = *self.kv;
        let kv_head = self.head / (self.heads / heads);
        for tile in Cut::of(0..n).tiles(part, 0..n) {
            for query in &mut *queries {
                (query.from, query.to) = (0, PAGE.min(n - tile * PAGE));
            }
            let len = d * PAGE;
            let at = (kv_head * n.div_ceil(PAGE) + tile) * len;
            let [k, v] = self.sides.each_ref().map(|side| &side[at..at + len]);
            see(l, Tile { k, v, start: tile * PAGE }, self.scale, queries);
        }
    }

    fn seen(&self, _: usize) -> Cut {
        Cut::of(0..self.kv.n)
    }
}

impl Kernels {
    /// Keys and values, `[n, heads, d]`, in tiles.
    fn packed<T: Stored>(&self, sides: [&[f32]; 2], [n, heads, d]: [usize; 3]) -> Result<[Vec<T>; 2]> {
        let (tiles, tile) = (n.div_ceil(PAGE), PAGE * d);
        let [mut k, mut v] = [room(heads * tiles * tile)?, room(heads * tiles * tile)?];
        let to = [(Side::Keys, Parts::new(&mut k)), (Side::Values, Parts::new(&mut v))];
        self.pool().run(heads, &|head| {
            for ((side, to), from) in to.iter().zip(sides) {
                // SAFETY: heads are disjoint.
                let to = filled(unsafe { to.part(head * tiles * tile, tiles * tile) }, T::default());
                for (position, x) in from.chunks_exact(d).skip(head).step_by(heads).enumerate() {
                    let (to, slot) = (&mut to[position / PAGE * tile..][..tile], position % PAGE);
                    self.found().run(Put { side: *side, x, tile: to, slot });
                }
            }
        })?;
        // SAFETY: the tasks have every head, and fill it.
        Ok([k, v].map(|side| unsafe { written(side) }))
    }

    /// Packs keys and values that many rows will see.
    ///
    /// * `k`, `v`: `[n, heads, d]`
    /// * `ty`: how their numbers are kept
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if the shapes differ or a dimension is 0.
    pub fn share(&self, k: &Tensor, v: &Tensor, ty: CacheType) -> Result<SharedKv> {
        let [n, heads, d] = dims("shared keys", k)?;
        if k.dims() != v.dims() || n == 0 || heads == 0 || d == 0 {
            return Err(Error::shape(format!(
                "shared keys {:?} and values {:?} must be equal in shape, with no dimension 0",
                k.dims(),
                v.dims()
            )));
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card::share(card, [k, v], [n, heads, d], ty);
        }
        let (keys, values) = (Flat::new("shared keys", k)?, Flat::new("shared values", v)?);
        let (sides, sizes) = ([keys.values(), values.values()], [n, heads, d]);
        let place = match ty {
            CacheType::F32 => Place::F32(self.packed(sides, sizes)?),
            CacheType::F16 => Place::F16(self.packed(sides, sizes)?),
            CacheType::Bf16 => Place::Bf16(self.packed(sides, sizes)?),
        };
        Ok(SharedKv { place, ty, n, heads, d })
    }

    /// Attention of every row over all keys of its document.
    ///
    /// * `q`: `[m, heads, d]`
    /// * `documents`: keys and values, with as many heads each
    /// * `readers`: the rows that see each of them
    /// * `scale`: multiplies q · k
    /// * `bias`: a table `[heads, 2R + 1]`, added by key position − row position + R, the ends
    ///   serving all beyond; and the rows' positions, `[m]`
    ///
    /// Returns `[m, heads · d]`.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if shapes or the documents' types disagree.
    pub fn attend_shared(
        &self,
        q: &Tensor,
        documents: &[&SharedKv],
        readers: &Readers,
        scale: f32,
        bias: Option<(&Tensor, &Words)>,
    ) -> Result<Tensor> {
        let [m, heads, d] = dims("q", q)?;
        for kv in documents {
            if kv.ty != documents[0].ty {
                let (ty, other) = (documents[0].ty, kv.ty);
                return Err(Error::shape(format!("documents in {ty:?} and {other:?} of one call")));
            }
            equal("channels of q", d, kv.d)?;
            equal("heads of a document", kv.heads, documents[0].heads)?;
            grouped(heads, kv.heads)?;
        }
        equal("the number of documents", documents.len(), readers.groups.len())?;
        equal("the number of reading rows", readers.rows(), m)?;
        if let Some((table, positions)) = bias {
            let width = bias_width(table, heads)?;
            if width % 2 == 0 {
                return Err(Error::shape(format!(
                    "the bias has {width} entries a head; an odd number is needed"
                )));
            }
            equal("the number of positions", positions.len(), m)?;
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return on_card::attend(card, q, documents, readers, scale, bias);
        }
        let table = bias.map(|(table, _)| Flat::new("the bias", table)).transpose()?;
        let bias = table.as_ref().zip(bias).map(|(flat, (table, positions))| {
            let values = flat.values();
            (values, values.len() / table.dims()[0], &positions[..])
        });
        let q = Flat::new("q", q)?;
        let mut out = room(m * heads * d)?;
        let (q, parts) = (q.values(), Parts::new(&mut out));
        let most = (m * heads / (2 * self.threads())).clamp(1, ROWS);
        let blocks: Vec<(&SharedKv, &[u32])> = documents
            .iter()
            .zip(&readers.groups)
            .flat_map(|(&kv, rows)| rows.chunks(most).map(move |rows| (kv, rows)))
            .collect();
        self.pool().run(blocks.len() * heads, &|i| {
            let ((kv, rows), head) = (blocks[i % blocks.len()], i / blocks.len());
            macro_rules! run {
                ($sides:expr) => {
                    self.found().run(Shared {
                        q,
                        kv,
                        sides: $sides,
                        scale,
                        bias,
                        heads,
                        out: &parts,
                        rows,
                        head,
                    })
                };
            }
            match &kv.place {
                Place::F32(sides) => run!(sides),
                Place::F16(sides) => run!(sides),
                Place::Bf16(sides) => run!(sides),
                // Those on a card were taken there.
                #[cfg(feature = "card")]
                Place::Card(_) => {}
            }
        })?;
        // SAFETY: every row is some document's, and the tasks have every row and head.
        tensor(unsafe { written(out) }, &[m, heads * d])
    }
}
