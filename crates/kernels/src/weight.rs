//! Weights, packed once when a model loads.
//!
//! Sixteen outputs make a *panel*, one output a lane. A quantised panel is a stream of *units*, one
//! for each block of the file's type (32 or 256 inputs), so a matmul reads memory in one straight
//! line. In a unit, scales come first and then, for each 32 inputs, codes in groups of four inputs:
//! sixteen outputs × four bytes are the 64 bytes that one dot-product instruction takes.
//!
//! | part | bytes | for |
//! | --- | --- | --- |
//! | d | 16 × f16 | all |
//! | m | 16 × f16 | affine, super |
//! | for each 32 inputs: s (and t, or a second s) | 16 × u8 (32 × u8) | super, halves |
//! | nibbles of groups g and g + 4 | 4 × 64 | 4, 5, 6 bits |
//! | bit g of a byte: fifth bit of group g | 64 | 5 bits |
//! | two bits each: upper bits of four groups | 2 × 64 | 6 bits |
//! | codes | 8 × 64 | 8 bits |
//!
//! Memory stays within three per cent of the file's. Expanding to bytes would be simpler and was
//! rejected: a single row is bound by memory, and bytes are twice as many.
//!
//! Dense panels are `[k][16]`.
//!
//! A card holds the same panels of quantised weights: there, sixteen threads are the lanes. Dense
//! weights it holds row by row, as files do, with rows of 16-bit numbers filled up to 32 inputs.

#[cfg(feature = "card")]
use std::sync::Arc;

use half::{bf16, f16};

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::{Buffer, Card};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::{Parsed, Scaling, WeightType};
use crate::lanes::LANES;
use crate::pool::Parts;
use crate::quantise::BLOCK;

/// Bytes of one dot-product operand: sixteen outputs, four inputs.
pub(crate) const GROUP: usize = 4 * LANES;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// An `[n, k]` weight in panels of sixteen outputs.
pub struct Weight {
    ty: WeightType,
    n: usize,
    k: usize,
    place: Place,
}

/// Where the panels are.
enum Place {
    Here(Vec<Line>),
    #[cfg(feature = "card")]
    Card(Arc<Card>, Buffer),
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weight({:?} [{}, {}])", self.ty, self.n, self.k)
    }
}

/// Where the parts of a unit lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnitLayout {
    /// Bytes of d and m.
    pub(crate) head: usize,
    /// Bytes of the scales of each 32 inputs.
    pub(crate) scales: usize,
    /// Bytes of the codes of each 32 inputs.
    pub(crate) codes: usize,
    /// Runs of 32 inputs.
    pub(crate) blocks: usize,
}

impl UnitLayout {
    pub(crate) const fn of(ty: WeightType) -> Self {
        let (head, scales) = match ty.scaling() {
            Scaling::Dense => (0, 0),
            Scaling::Centred(_) => (2 * LANES, 0),
            Scaling::Affine => (4 * LANES, 0),
            Scaling::Super => (4 * LANES, 2 * LANES),
            Scaling::Halves => (2 * LANES, 2 * LANES),
        };
        Self { head, scales, codes: ty.bits() * GROUP, blocks: ty.block_elements() / BLOCK }
    }

    /// Where block `b` begins.
    pub(crate) const fn block(self, b: usize) -> usize {
        self.head + b * (self.scales + self.codes)
    }

    pub(crate) const fn bytes(self) -> usize {
        self.block(self.blocks)
    }
}

/// Bytes that one block of the file's type takes in a panel.
const fn unit_bytes(ty: WeightType) -> usize {
    match ty.scaling() {
        Scaling::Dense => ty.block_bytes() * LANES,
        _ => UnitLayout::of(ty).bytes(),
    }
}

impl Weight {
    /// Packs a weight from a file's bytes.
    ///
    /// * `bytes`: `n` rows of `k` elements in `ty`'s blocks, row after row
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] if `n` or `k` is 0, `k` is not a whole number of blocks, or `bytes`
    /// has another length than [`WeightType::bytes`]; [`ErrorKind::Memory`] if there is no room.
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
    /// [`ErrorKind::Shape`] if `n` or `k` is 0, `k` is not a whole number of blocks or the bytes cannot be counted;
    /// [`ErrorKind::Memory`] if there is no room.
    #[cfg_attr(not(feature = "card"), expect(unused_variables, reason = "every weight is here"))]
    pub fn zeros(kernels: &Kernels, ty: WeightType, n: usize, k: usize) -> Result<Self> {
        let block = ty.block_elements();
        if n == 0 || k == 0 || !k.is_multiple_of(block) {
            return Err(Error::shape(format!(
                "a {ty:?} weight cannot be [{n}, {k}]: rows are one or more blocks of {block}, and at least one"
            )));
        }
        let panel_bytes = (k / block).checked_mul(unit_bytes(ty));
        let bytes = panel_bytes.and_then(|bytes| bytes.checked_mul(n.div_ceil(LANES)));
        let bytes = bytes.filter(|_| ty.bytes(n, k).is_some()).ok_or_else(|| {
            Error::shape(format!("a {ty:?} weight [{n}, {k}] has more bytes than fit in memory"))
        })?;
        #[cfg(feature = "card")]
        if let Some(card) = kernels.card() {
            let bytes = if ty.is_dense() {
                n.next_multiple_of(LANES) * stride(ty, k) * ty.block_bytes()
            } else {
                bytes
            };
            return Ok(Self { ty, n, k, place: Place::Card(Arc::clone(card), card.zeros(bytes)?) });
        }
        let lines = zeroed(bytes.div_ceil(size_of::<Line>()))?;
        Ok(Self { ty, n, k, place: Place::Here(lines) })
    }

    /// Packs rows into panels of zeros.
    ///
    /// * `first`: the first of the rows; a multiple of [`Weight::ROWS`]
    /// * `bytes`: whole rows as [`Weight::pack`] takes them; a multiple of [`Weight::ROWS`] rows, but at the end
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for other rows.
    pub fn pack_rows(&mut self, kernels: &Kernels, first: usize, bytes: &[u8]) -> Result<()> {
        let (ty, n, row_bytes, panel_bytes) = (self.ty, self.n, self.row_bytes(), self.panel_bytes());
        let rows = bytes.len() / row_bytes;
        let end = first.saturating_add(rows);
        let whole = first.is_multiple_of(LANES) && (rows.is_multiple_of(LANES) || end == n);
        if !whole || end > n || !bytes.len().is_multiple_of(row_bytes) {
            let message = format!(
                "{} bytes are no rows from row {first} on of a {ty:?} weight [{n}, {}]",
                bytes.len(),
                self.k
            );
            return Err(Error::shape(message));
        }
        let pack = |panels: &mut [u8]| {
            let out = Parts::new(panels);
            kernels.pool().run(rows.div_ceil(LANES), &|p| {
                // SAFETY: panels are disjoint.
                let panel = unsafe { out.part(p * panel_bytes, panel_bytes) };
                for (lane, row) in bytes.chunks_exact(row_bytes).skip(p * LANES).take(LANES).enumerate() {
                    let units = panel.chunks_exact_mut(unit_bytes(ty));
                    for (unit, block) in units.zip(row.chunks_exact(ty.block_bytes())) {
                        put(ty, unit, lane, block);
                    }
                }
            })
        };
        match &mut self.place {
            Place::Here(lines) => pack(&mut line_bytes_mut(lines)[first / LANES * panel_bytes..]),
            #[cfg(feature = "card")]
            Place::Card(card, buffer) if ty.is_dense() => {
                let to = stride(ty, self.k) * ty.block_bytes();
                let mut padded = vec![0; rows * to];
                for (row, to) in bytes.chunks_exact(row_bytes).zip(padded.chunks_exact_mut(to)) {
                    to[..row_bytes].copy_from_slice(row);
                }
                card.upload(buffer, first * to, &padded)
            }
            #[cfg(feature = "card")]
            Place::Card(card, buffer) => {
                let mut panels = vec![0; rows.div_ceil(LANES) * panel_bytes];
                pack(&mut panels)?;
                card.upload(buffer, first / LANES * panel_bytes, &panels)
            }
        }
    }

    /// Rows that are packed together.
    pub const ROWS: usize = LANES;

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
            Place::Here(lines) => size_of_val(lines.as_slice()),
            #[cfg(feature = "card")]
            Place::Card(_, buffer) => buffer.len(),
        }
    }

    /// Row `i`, `[k]`, in single precision.
    ///
    /// # Errors
    /// [`ErrorKind::Range`] if `i` is not below `n`.
    pub fn row(&self, i: usize) -> Result<Vec<f32>> {
        if i >= self.n {
            return Err(Error::range(format!("row {i} of a weight with {} rows", self.n)));
        }
        let mut out = vec![0.0; self.k];
        let read = |unit_bytes, lane, panel: &[u8], out: &mut [f32]| {
            let units = panel.chunks_exact(unit_bytes);
            for (unit, out) in units.zip(out.chunks_exact_mut(self.ty.block_elements())) {
                get(self.ty, unit, lane, out);
            }
        };
        match &self.place {
            Place::Here(_) => read(unit_bytes(self.ty), i % LANES, self.panels(i / LANES, 1), &mut out),
            #[cfg(feature = "card")]
            Place::Card(card, buffer) if self.ty.is_dense() => {
                let from = i * stride(self.ty, self.k) * self.ty.block_bytes();
                let row = card.download(buffer, from, self.row_bytes())?;
                read(self.ty.block_bytes(), 0, &row, &mut out);
            }
            #[cfg(feature = "card")]
            Place::Card(card, buffer) => {
                let bytes = self.panel_bytes();
                let panel = card.download(buffer, i / LANES * bytes, bytes)?;
                read(unit_bytes(self.ty), i % LANES, &panel, &mut out);
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
        self.k / self.ty.block_elements() * unit_bytes(self.ty)
    }

    /// The bytes of `count` panels from panel `first` on; none where they are on a card.
    pub(crate) fn panels(&self, first: usize, count: usize) -> &[u8] {
        let bytes = self.panel_bytes();
        match &self.place {
            Place::Here(lines) => &line_bytes(lines)[first * bytes..(first + count) * bytes],
            #[cfg(feature = "card")]
            Place::Card(..) => &[],
        }
    }
}

/// Numbers from one row of a dense weight to the next on a card.
#[cfg(feature = "card")]
pub(crate) fn stride(ty: WeightType, k: usize) -> usize {
    if ty == WeightType::F32 { k } else { k.next_multiple_of(BLOCK) }
}

/// Zeroed lines, or an error where the allocator would abort.
fn zeroed(count: usize) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    lines.try_reserve_exact(count).map_err(|_| {
        Error::new(
            ErrorKind::Memory,
            format!("no memory for a weight of {} bytes", count * size_of::<Line>()),
        )
    })?;
    lines.resize(count, Line([0; 64]));
    Ok(lines)
}

fn line_bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a `Line` is 64 plain bytes, without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn line_bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: a `Line` is 64 plain bytes, without padding, and any byte is valid in it.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

/// Places `block` of a file as `lane` of a unit of zeros.
fn put(ty: WeightType, unit: &mut [u8], lane: usize, block: &[u8]) {
    if ty.is_dense() {
        let bytes = ty.block_bytes();
        unit[lane * bytes..(lane + 1) * bytes].copy_from_slice(block);
        return;
    }
    let layout = UnitLayout::of(ty);
    let parsed = Parsed::new(ty, block);
    unit[2 * lane..2 * lane + 2].copy_from_slice(&parsed.d);
    if matches!(ty.scaling(), Scaling::Affine | Scaling::Super) {
        unit[2 * (LANES + lane)..2 * (LANES + lane) + 2].copy_from_slice(&parsed.m);
    }
    for b in 0..layout.blocks {
        let (scales, codes) = unit[layout.block(b)..layout.block(b + 1)].split_at_mut(layout.scales);
        match ty.scaling() {
            Scaling::Super => {
                scales[lane] = parsed.scales[b];
                scales[LANES + lane] = parsed.mins[b];
            }
            Scaling::Halves => {
                scales[lane] = parsed.scales[2 * b];
                scales[LANES + lane] = parsed.scales[2 * b + 1];
            }
            _ => {}
        }
        let (parsed, _) = parsed.codes[b * BLOCK..(b + 1) * BLOCK].as_chunks::<4>();
        for (group, code) in parsed.iter().enumerate().take(if ty.bits() == 8 { 8 } else { 4 }) {
            for (byte, to) in codes[group * GROUP + 4 * lane..][..4].iter_mut().enumerate() {
                *to = if ty.bits() == 8 {
                    code[byte]
                } else {
                    code[byte] & 15 | (parsed[group + 4][byte] & 15) << 4
                };
            }
        }
        // The bits above the nibbles: five-bit codes have one, six-bit codes two.
        let (planes, bits) = match ty.bits() {
            5 => (1, 1),
            6 => (2, 2),
            _ => (0, 0),
        };
        for plane in 0..planes {
            let groups = &parsed[plane * 4 * (planes - 1)..][..8 / planes];
            for (byte, to) in codes[(4 + plane) * GROUP + 4 * lane..][..4].iter_mut().enumerate() {
                *to = groups.iter().rev().fold(0, |above, code| above << bits | code[byte] >> 4);
            }
        }
    }
}

/// Reads `lane` of a unit into numbers; the inverse of [`put`].
fn get(ty: WeightType, unit: &[u8], lane: usize, out: &mut [f32]) {
    let half = |at: usize| f16::from_le_bytes([unit[2 * at], unit[2 * at + 1]]).to_f32();
    match ty {
        WeightType::F32 => {
            let at = 4 * lane;
            out[0] = f32::from_le_bytes([unit[at], unit[at + 1], unit[at + 2], unit[at + 3]]);
            return;
        }
        WeightType::F16 => {
            out[0] = half(lane);
            return;
        }
        WeightType::Bf16 => {
            out[0] = bf16::from_le_bytes([unit[2 * lane], unit[2 * lane + 1]]).to_f32();
            return;
        }
        _ => {}
    }
    let layout = UnitLayout::of(ty);
    let d = half(lane);
    for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        let (scales, codes) = unit[layout.block(b)..layout.block(b + 1)].split_at(layout.scales);
        for (i, out) in out.iter_mut().enumerate() {
            let code = code(ty, codes, i / 4, 4 * lane + i % 4);
            *out = match ty.scaling() {
                Scaling::Dense => 0.0,
                Scaling::Centred(offset) => d * (i32::from(code) - offset) as f32,
                Scaling::Affine => d * f32::from(code) + half(LANES + lane),
                Scaling::Super => {
                    let floor = half(LANES + lane) * f32::from(scales[LANES + lane]);
                    d * f32::from(scales[lane]) * f32::from(code) + floor
                }
                Scaling::Halves => {
                    let scale = scales[i / 16 * LANES + lane] as i8;
                    d * f32::from(scale) * (i32::from(code) - 32) as f32
                }
            };
        }
    }
}

fn code(ty: WeightType, codes: &[u8], group: usize, byte: usize) -> u8 {
    if ty.bits() == 8 {
        return codes[group * GROUP + byte];
    }
    let nibble = codes[group % 4 * GROUP + byte] >> (group / 4 * 4) & 15;
    match ty.bits() {
        5 => nibble | (codes[4 * GROUP + byte] >> group & 1) << 4,
        6 => nibble | (codes[(4 + group / 4) * GROUP + byte] >> (2 * (group % 4)) & 3) << 4,
        _ => nibble,
    }
}
