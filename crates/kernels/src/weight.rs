//! Weights, packed once when a model loads.
//!
//! Sixteen outputs make a *panel*, one output a lane. A quantised panel is a stream of *units*, one
//! for each block of the file's type (32 or 256 inputs), so a matmul reads memory in one straight
//! line; `units.rs` says what is in them.
//!
//! Memory stays within three per cent of the file's. Expanding to bytes would be simpler and was
//! rejected: a single row is bound by memory, and bytes are twice as many.
//!
//! Dense panels are `[k][16]`, and `[k / 2][16][2]` in bfloat16. Three of them are a *bundle* and take turns, unit by unit, so
//! that a thread that walks them side by side reads one line of memory too; the last bundle may have fewer.
//!
//! A card holds the same panels of quantised weights: there, sixteen threads are the lanes. Of dense
//! weights it holds those of sixteen bits in pieces of eight outputs and 64 inputs (round.cu), and
//! single precision row by row, as files do.

#[cfg(feature = "card")]
use std::sync::Arc;

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Buffer, Card};
use crate::error::{Error, Result};
use crate::formats::WeightType;
use crate::lanes::LANES;
use crate::lines::Lines;
#[cfg(feature = "card")]
use crate::pieces;
use crate::pool::Parts;
use crate::units::{BUNDLE, get, put, unit_bytes, unit_inputs};

/// An `[n, k]` weight in panels of sixteen outputs.
pub struct Weight {
    ty: WeightType,
    n: usize,
    k: usize,
    place: Place,
}

/// Where the panels are.
enum Place {
    Here(Lines),
    #[cfg(feature = "card")]
    Card(Arc<Card>, Buffer),
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weight({:?} [{}, {}])", self.ty, self.n, self.k)
    }
}

impl Weight {
    /// Packs a weight from a file's bytes.
    ///
    /// * `bytes`: `n` rows of `k` elements in `ty`'s blocks, row after row
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if `n` or `k` is 0, `k` is not a whole number of blocks, or `bytes` has
    /// another length than [`WeightType::bytes`]; [`ErrorKind::Memory`](crate::ErrorKind::Memory) if there is no room.
    pub fn pack(kernels: &Kernels, ty: WeightType, n: usize, k: usize, bytes: &[u8]) -> Result<Self> {
        let mut weight = Self::zeros(kernels, ty, n, k)?;
        let wanted = weight.row_bytes() * n;
        if wanted != bytes.len() {
            let message =
                format!("a {ty:?} weight [{n}, {k}] has {} bytes; {wanted} are needed", bytes.len());
            return Err(Error::shape(message));
        }
        weight.pack_rows(kernels, 0, bytes)?;
        Ok(weight)
    }

    /// A weight of zeros, to be packed some rows at a time, so that a file's bytes are never in memory as a whole.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) if `n` or `k` is 0, `k` is not a whole number of blocks or the bytes
    /// cannot be counted; [`ErrorKind::Memory`](crate::ErrorKind::Memory) if there is no room.
    pub fn zeros(kernels: &Kernels, ty: WeightType, n: usize, k: usize) -> Result<Self> {
        let block = ty.block_elements();
        if n == 0 || k == 0 || !k.is_multiple_of(block) {
            return Err(Error::shape(format!(
                "a {ty:?} weight cannot be [{n}, {k}]: rows are one or more blocks of {block}, and at least one"
            )));
        }
        let panel_bytes = k.div_ceil(unit_inputs(ty)).checked_mul(unit_bytes(ty));
        let bytes = panel_bytes.and_then(|bytes| bytes.checked_mul(n.div_ceil(LANES)));
        let bytes = bytes.filter(|_| ty.bytes(n, k).is_some()).ok_or_else(|| {
            Error::shape(format!("a {ty:?} weight [{n}, {k}] has more bytes than fit in memory"))
        })?;
        #[cfg(feature = "card")]
        if let Some(card) = kernels.card() {
            let bytes = match ty {
                WeightType::F32 => n * k * ty.block_bytes(),
                WeightType::F16 | WeightType::Bf16 => n.div_ceil(pieces::ROWS) * pieces::eight_bytes(k),
                _ => bytes,
            };
            return Ok(Self { ty, n, k, place: Place::Card(Arc::clone(card), card.zeros(bytes)?) });
        }
        Ok(Self { ty, n, k, place: Place::Here(kernels.store.zeros(bytes)?) })
    }

    /// Packs rows into panels of zeros.
    ///
    /// * `first`: the first of the rows; a multiple of [`Weight::ROWS`]
    /// * `bytes`: whole rows as [`Weight::pack`] takes them; a multiple of [`Weight::ROWS`] rows, but at the end
    ///
    /// # Errors
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for other rows.
    pub fn pack_rows(&mut self, kernels: &Kernels, first: usize, bytes: &[u8]) -> Result<()> {
        let (ty, n, row_bytes, panel_bytes) = (self.ty, self.n, self.row_bytes(), self.panel_bytes());
        let rows = bytes.len() / row_bytes;
        let end = first.saturating_add(rows);
        let whole = first.is_multiple_of(Self::ROWS) && (rows.is_multiple_of(Self::ROWS) || end == n);
        if !whole || end > n || !bytes.len().is_multiple_of(row_bytes) {
            let message = format!(
                "{} bytes are no rows from row {first} on of a {ty:?} weight [{n}, {}]",
                bytes.len(),
                self.k
            );
            return Err(Error::shape(message));
        }
        let unit_blocks = unit_inputs(ty) / ty.block_elements();
        let pack = |panels: &mut [u8]| {
            let out = Parts::new(panels);
            let beside = beside(ty);
            kernels.pool().run(rows.div_ceil(beside * LANES), &|at| {
                let count = beside.min(rows.div_ceil(LANES) - at * beside);
                // SAFETY: bundles are disjoint.
                let bundle = unsafe { out.part(at * beside * panel_bytes, count * panel_bytes) };
                let rows = bytes.chunks_exact(row_bytes).skip(at * beside * LANES).take(count * LANES);
                for (row, inputs) in rows.enumerate() {
                    let units = bundle.chunks_exact_mut(unit_bytes(ty)).skip(row / LANES).step_by(count);
                    for (unit, block) in units.zip(inputs.chunks(unit_blocks * ty.block_bytes())) {
                        put(ty, unit, row % LANES, block);
                    }
                }
            })
        };
        match &mut self.place {
            Place::Here(lines) => pack(&mut lines[first / LANES * panel_bytes..]),
            #[cfg(feature = "card")]
            Place::Card(card, buffer) if ty == WeightType::F32 => {
                card.upload(buffer, first * row_bytes, bytes)
            }
            #[cfg(feature = "card")]
            Place::Card(card, buffer) if ty.is_dense() => {
                let (eights, eight_bytes) = (rows.div_ceil(pieces::ROWS), pieces::eight_bytes(self.k));
                let mut packed = vec![0; eights * eight_bytes];
                let out = Parts::new(&mut packed);
                kernels.pool().run(eights, &|eight| {
                    // SAFETY: eights of rows are disjoint.
                    let to = unsafe { out.part(eight * eight_bytes, eight_bytes) };
                    let rows = bytes.chunks_exact(row_bytes).skip(eight * pieces::ROWS).take(pieces::ROWS);
                    for (at, row) in rows.enumerate() {
                        pieces::put_row(to, at, row);
                    }
                })?;
                card.upload(buffer, first / pieces::ROWS * eight_bytes, &packed)
            }
            #[cfg(feature = "card")]
            Place::Card(card, buffer) => {
                let mut panels = vec![0; rows.div_ceil(LANES) * panel_bytes];
                pack(&mut panels)?;
                card.upload(buffer, first / LANES * panel_bytes, &panels)
            }
        }
    }

    /// Rows that are packed together, at most.
    pub const ROWS: usize = BUNDLE * LANES;

    /// Bytes of a row in a file.
    fn row_bytes(&self) -> usize {
        self.k / self.ty.block_elements() * self.ty.block_bytes()
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// How the file stored it.
    pub fn ty(&self) -> WeightType {
        self.ty
    }

    /// Bytes that it keeps in memory.
    pub fn bytes(&self) -> usize {
        match &self.place {
            Place::Here(lines) => lines.len(),
            #[cfg(feature = "card")]
            Place::Card(_, buffer) => buffer.len(),
        }
    }

    /// Row `i`, `[k]`, in single precision.
    ///
    /// # Errors
    /// [`ErrorKind::Range`](crate::ErrorKind::Range) if `i` is not below `n`.
    pub fn row(&self, i: usize) -> Result<Vec<f32>> {
        if i >= self.n {
            return Err(Error::range(format!("row {i} of a weight with {} rows", self.n)));
        }
        let mut out = vec![0.0; self.k];
        let read = |unit_bytes, apart, lane, panel: &[u8], out: &mut [f32]| {
            let units = panel.chunks(unit_bytes).step_by(apart);
            for (unit, out) in units.zip(out.chunks_mut(unit_inputs(self.ty))) {
                get(self.ty, unit, lane, out);
            }
        };
        match &self.place {
            Place::Here(_) => {
                let (bundle, count) = self.bundle(i / LANES);
                let at = i / LANES % beside(self.ty) * unit_bytes(self.ty);
                read(unit_bytes(self.ty), count, i % LANES, &bundle[at..], &mut out);
            }
            #[cfg(feature = "card")]
            Place::Card(card, buffer) if self.ty.is_dense() => {
                let row = if self.ty == WeightType::F32 {
                    card.download(buffer, i * self.row_bytes(), self.row_bytes())?
                } else {
                    let bytes = pieces::eight_bytes(self.k);
                    let packed = card.download(buffer, i / pieces::ROWS * bytes, bytes)?;
                    pieces::row(&packed, i % pieces::ROWS, self.row_bytes())
                };
                read(unit_bytes(self.ty) / LANES, 1, 0, &row, &mut out);
            }
            #[cfg(feature = "card")]
            Place::Card(card, buffer) => {
                let bytes = self.panel_bytes();
                let panel = card.download(buffer, i / LANES * bytes, bytes)?;
                read(unit_bytes(self.ty), 1, i % LANES, &panel, &mut out);
            }
        }
        Ok(out)
    }

    /// The panels on a card; none where they are here.
    #[cfg(feature = "card")]
    pub(crate) fn on_card(&self) -> Option<&Buffer> {
        match &self.place {
            Place::Here(_) => None,
            Place::Card(_, buffer) => Some(buffer),
        }
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        self.k.div_ceil(unit_inputs(self.ty)) * unit_bytes(self.ty)
    }

    /// The bytes of the bundle that panel `at` is in, and its panels: they take turns, unit by unit. None where they are on a
    /// card.
    pub(crate) fn bundle(&self, at: usize) -> (&[u8], usize) {
        let beside = beside(self.ty);
        let first = at / beside * beside;
        let count = beside.min(self.n.div_ceil(LANES) - first);
        (self.panels(first, count), count)
    }

    /// The bytes of `count` panels from panel `first` on, whole bundles; none where they are on a card.
    pub(crate) fn panels(&self, first: usize, count: usize) -> &[u8] {
        let bytes = self.panel_bytes();
        match &self.place {
            Place::Here(lines) => &lines[first * bytes..(first + count) * bytes],
            #[cfg(feature = "card")]
            Place::Card(..) => &[],
        }
    }
}

/// Panels that take turns in memory.
fn beside(ty: WeightType) -> usize {
    if ty.is_dense() { BUNDLE } else { 1 }
}
