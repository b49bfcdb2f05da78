//! Keys and values that a branch has committed, in pages.
//!
//! A page holds 32 positions and is the tile that attention reduces by, so where a tile begins
//! depends on the logical position alone. Keys lie channel by channel: sixteen positions are one
//! vector, and a score needs no sum across lanes. Values lie position by position, since there
//! the lanes are channels. On a card it is the other way round: there a lane takes sixteen bytes of a key, or of a
//! channel's values.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};
use half::{bf16, f16};

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Card, Change, LAYERS, start, start_mut};
use crate::error::{Error, ErrorKind, Result};
use crate::flat::{check, dims, equal, tensor, zeros};
use crate::isa::{Found, Work};
use crate::lanes::{LANES, Lanes};
use crate::stored::{CacheType, Stored};

/// Positions a page.
pub const PAGE: usize = 32;

/// One layer's pages. Which branch a page belongs to is the caller's table.
#[derive(Debug, Clone)]
pub struct KvStore {
    /// Keys: `[pages, kv_heads, d, PAGE]`; on a card `[pages, kv_heads, PAGE, d]`.
    pub k: Tensor,
    /// Values: `[pages, kv_heads, PAGE, d]`; on a card `[pages, kv_heads, d, PAGE]`.
    pub v: Tensor,
}

/// A staged row and the slot that it is committed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// A row of the step.
    pub row: u32,
    /// The page that takes it.
    pub page: u32,
    /// Its slot there, below [`PAGE`].
    pub offset: u32,
}

impl KvStore {
    /// Pages of zeros. The system hands out the memory when a page is first written.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) if there is no room.
    pub fn new(kernels: &Kernels, pages: usize, kv_heads: usize, d: usize, ty: CacheType) -> Result<Self> {
        fn here<T: Stored>(count: usize, k: &[usize], v: &[usize]) -> Result<KvStore> {
            Ok(KvStore { k: tensor(zeros::<T>(count)?, k)?, v: tensor(zeros::<T>(count)?, v)? })
        }
        let count = [pages, kv_heads, d, PAGE].iter().try_fold(1_usize, |n, dim| n.checked_mul(*dim));
        let count = count.ok_or_else(|| {
            Error::shape(format!("a store of {pages} pages × {kv_heads} heads × {d} does not fit in memory"))
        })?;
        let (mut k, mut v) = (&[pages, kv_heads, d, PAGE], &[pages, kv_heads, PAGE, d]);
        if kernels.on_card() {
            (k, v) = (v, k);
        }
        if !kernels.device().is_cpu() {
            let zeros = |dims| {
                Tensor::zeros(dims, ty.dtype(), kernels.device()).map_err(|cause| {
                    Error::new(ErrorKind::Memory, format!("no memory for a store of {pages} pages: {cause}"))
                })
            };
            return Ok(Self { k: zeros(k)?, v: zeros(v)? });
        }
        match ty {
            CacheType::F32 => here::<f32>(count, k, v),
            CacheType::F16 => here::<f16>(count, k, v),
            CacheType::Bf16 => here::<bf16>(count, k, v),
        }
    }

    /// How it keeps its numbers.
    pub(crate) fn ty(&self) -> Result<CacheType> {
        CacheType::of(self.k.dtype())
    }

    /// Whether pages of both are alike.
    #[cfg(feature = "card")]
    fn is_like(&self, other: &Self) -> bool {
        self.k.dims() == other.k.dims() && self.k.dtype() == other.k.dtype()
    }

    /// Pages, heads and channels a head.
    pub(crate) fn sizes(&self) -> Result<[usize; 3]> {
        let [pages, heads, rows, columns] = dims("the key store", &self.k)?;
        // The other way round on a card.
        let d = if columns == PAGE { rows } else { columns };
        equal("positions a page", rows * columns, d * PAGE)?;
        if self.v.dims() != [pages, heads, columns, rows] {
            return Err(Error::shape(format!(
                "the value store is {:?}; {:?} is needed",
                self.v.dims(),
                [pages, heads, columns, rows]
            )));
        }
        Ok([pages, heads, d])
    }
}

/// A tile's keys, `[d, PAGE]`, or its values, `[PAGE, d]`.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Keys,
    Values,
}

impl Side {
    /// Puts a position's numbers, `[d]`, into a slot of a tile, rounded to what the tile keeps.
    #[inline(always)]
    pub(crate) fn put<L: Lanes, T: Stored>(self, l: L, x: &[f32], tile: &mut [T], slot: usize) {
        for (at, some) in (0..).step_by(LANES).zip(x.chunks(LANES)) {
            let mut vector = [0.0; LANES];
            let vector = some.first_chunk().unwrap_or_else(|| {
                vector[..some.len()].copy_from_slice(some);
                &vector
            });
            let kept = &T::narrow(l, vector)[..some.len()];
            match self {
                Self::Keys => {
                    for (kept, to) in kept.iter().zip(tile[at * PAGE + slot..].iter_mut().step_by(PAGE)) {
                        *to = *kept;
                    }
                }
                Self::Values => tile[slot * x.len() + at..][..kept.len()].copy_from_slice(kept),
            }
        }
    }
}

/// [`Side::put`], by itself.
pub(crate) struct Put<'a, T> {
    pub(crate) side: Side,
    pub(crate) x: &'a [f32],
    pub(crate) tile: &'a mut [T],
    pub(crate) slot: usize,
}

impl<T: Stored> Work for Put<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        self.side.put(l, self.x, self.tile, self.slot);
    }
}

/// Copies staged rows, `[m, heads, d]`, into their slots, rounded to what the store keeps.
struct Write<'a> {
    moves: &'a [Move],
    /// Heads, and channels a head.
    sizes: [usize; 2],
    side: Side,
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(
        &self,
        store: &mut CpuStorage,
        to: &Layout,
        staged: &CpuStorage,
        from: &Layout,
    ) -> candle_core::Result<()> {
        let (Some((to, end)), Some((from, _))) = (to.contiguous_offsets(), from.contiguous_offsets()) else {
            candle_core::bail!("staged rows or the store are not contiguous");
        };
        let staged = &staged.as_slice::<f32>()?[from..];
        match CacheType::of(store.dtype()).map_err(candle_core::Error::wrap)? {
            CacheType::F32 => self.put(f32::of(store).map(|store| &mut store[to..end]), staged),
            CacheType::F16 => self.put(f16::of(store).map(|store| &mut store[to..end]), staged),
            CacheType::Bf16 => self.put(bf16::of(store).map(|store| &mut store[to..end]), staged),
        }
    }
}

impl Write<'_> {
    fn put<T: Stored>(&self, store: Option<&mut [T]>, staged: &[f32]) -> candle_core::Result<()> {
        let Some(store) = store else { candle_core::bail!("the store is of another type") };
        let [heads, d] = self.sizes;
        for at in self.moves {
            let (row, page, offset) = (at.row as usize, at.page as usize, at.offset as usize);
            for h in 0..heads {
                let x = &staged[(row * heads + h) * d..][..d];
                let tile = &mut store[(page * heads + h) * d * PAGE..][..d * PAGE];
                Found::best().run(Put { side: self.side, x, tile, slot: offset });
            }
        }
        Ok(())
    }
}

/// Copies one page over another.
struct CopyPage {
    from: u32,
    to: u32,
    /// Numbers in a page.
    len: usize,
}

impl InplaceOp1 for CopyPage {
    fn name(&self) -> &'static str {
        "copy_page"
    }

    fn cpu_fwd(&self, store: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("the store is not contiguous");
        };
        let from = self.from as usize * self.len;
        let (source, target) = (from..from + self.len, self.to as usize * self.len);
        match store {
            CpuStorage::F32(store) => store[start..end].copy_within(source, target),
            CpuStorage::F16(store) => store[start..end].copy_within(source, target),
            CpuStorage::BF16(store) => store[start..end].copy_within(source, target),
            _ => candle_core::bail!("the store holds neither F32, F16 nor BF16"),
        }
        Ok(())
    }
}

impl Kernels {
    /// Commits staged rows: copies each to its slot, in every layer. On a card that waits for the next upload, in
    /// front of whatever reads it: commits of many branches are one launch.
    ///
    /// * `layers`: each layer's store, and the keys and values that it stages, `[m, kv_heads, d]`
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if the shapes do not fit the stores,
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if a move names a row, page or slot that does
    /// not exist, and [`ErrorKind::Backend`](crate::ErrorKind::Backend) if staged rows are a view
    /// of the store; nothing is written then.
    pub fn write(&self, layers: &[(&KvStore, &Tensor, &Tensor)], moves: &[Move]) -> Result<()> {
        for (store, k, v) in layers {
            let [pages, heads, d] = store.sizes()?;
            let [m, ..] = staged(k, v, heads, d)?;
            for at in moves {
                if at.row as usize >= m || at.page as usize >= pages || at.offset as usize >= PAGE {
                    return Err(Error::range(format!(
                        "{at:?} leaves a step of {m} rows, a store of {pages} pages or a page of {PAGE}"
                    )));
                }
            }
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            let alike = |(a, ..): &(&KvStore, _, _), (b, ..): &(&KvStore, _, _)| a.is_like(b);
            let mut launches = layers.chunk_by(alike).flat_map(|some| some.chunks(LAYERS));
            return launches.try_for_each(|some| write(card, some, moves));
        }
        for (store, k, v) in layers {
            let [_, heads, d] = store.sizes()?;
            let sizes = [heads, d];
            store.k.inplace_op2(k, &Write { moves, sizes, side: Side::Keys })?;
            store.v.inplace_op2(v, &Write { moves, sizes, side: Side::Values })?;
        }
        Ok(())
    }

    /// Copies page `from` over page `to`, in every layer, so that two branches that share a beginning can go on apart.
    /// On a card that waits as [`Kernels::write`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if a page does not exist; nothing is copied then.
    pub fn copy_page(&self, layers: &[KvStore], from: u32, to: u32) -> Result<()> {
        for store in layers {
            let [pages, ..] = store.sizes()?;
            if from.max(to) as usize >= pages {
                return Err(Error::range(format!("page {from} to page {to} of a store with {pages} pages")));
            }
        }
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            let mut launches = layers.chunk_by(KvStore::is_like).flat_map(|some| some.chunks(LAYERS));
            return launches.try_for_each(|some| copy_page(card, some, [from, to]));
        }
        for store in layers {
            let [_, heads, d] = store.sizes()?;
            let copy = CopyPage { from, to, len: heads * d * PAGE };
            store.k.inplace_op1(&copy)?;
            store.v.inplace_op1(&copy)?;
        }
        Ok(())
    }
}

/// Checks staged keys and values against each other and the store; returns `[m, heads, d]`.
pub(crate) fn staged(k: &Tensor, v: &Tensor, heads: usize, d: usize) -> Result<[usize; 3]> {
    let sizes = dims("staged keys", k)?;
    if sizes != dims("staged values", v)? {
        return Err(Error::shape(format!("staged keys {:?} and values {:?} differ", k.dims(), v.dims())));
    }
    // A wrong type or layout is found before anything is written.
    check::<f32>("staged keys", k)?;
    check::<f32>("staged values", v)?;
    equal("heads of the staged keys", sizes[1], heads)?;
    equal("channels of the staged keys", sizes[2], d)?;
    Ok(sizes)
}

/// Layers whose stores are alike.
#[cfg(feature = "card")]
fn write(card: &Card, layers: &[(&KvStore, &Tensor, &Tensor)], moves: &[Move]) -> Result<()> {
    let store = layers[0].0;
    let [_, heads, d] = store.sizes()?;
    let (mut places, mut held) = (vec![0; 4 * LAYERS], Vec::with_capacity(4 * layers.len()));
    for (index, (store, k, v)) in layers.iter().enumerate() {
        let layer = [
            start("staged keys", k)?,
            start("staged values", v)?,
            start_mut(&store.k)?,
            start_mut(&store.v)?,
        ];
        for (side, place) in layer.into_iter().enumerate() {
            places[side * LAYERS + index] = place;
        }
        held.extend([k, v, &store.k, &store.v].map(Clone::clone));
    }
    if moves.iter().any(|at| !card.due().takes_write(at.page, at.offset)) {
        card.place(&[])?;
    }
    card.due().write(Change {
        kernel: match store.ty()? {
            CacheType::F32 => "write_f32",
            CacheType::F16 => "write_f16",
            CacheType::Bf16 => "write_bf16",
        },
        places,
        grid: [layers.len(), 1],
        threads: (heads * d).next_multiple_of(32).clamp(32, 256),
        sizes: [heads, d],
        held,
        words: moves.iter().flat_map(|at| [at.row, at.page, at.offset]).collect(),
    });
    Ok(())
}

/// In layers whose stores are alike.
#[cfg(feature = "card")]
fn copy_page(card: &Card, layers: &[KvStore], [from, to]: [u32; 2]) -> Result<()> {
    let [_, heads, d] = layers[0].sizes()?;
    let words = heads * d * PAGE * layers[0].k.dtype().size_in_bytes() / size_of::<u32>();
    let (mut places, mut held) = (vec![0; 2 * LAYERS], Vec::with_capacity(2 * layers.len()));
    for (index, store) in layers.iter().enumerate() {
        (places[index], places[LAYERS + index]) = (start_mut(&store.k)?, start_mut(&store.v)?);
        held.extend([store.k.clone(), store.v.clone()]);
    }
    if !card.due().takes_copy(from, to) {
        card.place(&[])?;
    }
    card.due().copy(Change {
        kernel: "copy_page",
        places,
        grid: [words.div_ceil(256), 2 * layers.len()],
        threads: 256,
        sizes: [layers.len(), words],
        held,
        words: vec![from, to],
    });
    Ok(())
}
