//! Numbers as a cache keeps them: whole, or rounded to half the bytes.

use candle_core::{CpuStorage, DType, WithDType};
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::lanes::{LANES, Lanes};

/// How a cache keeps its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheType {
    /// Single precision.
    F32,
    /// Half precision: half the memory, and as exact as quantised weights deserve.
    F16,
    /// The upper half of single precision: half the memory, an eighth of half precision's exactness, and no number too
    /// large for it.
    Bf16,
}

impl CacheType {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The type of a store's tensors.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// What tensors of a type keep.
    pub(crate) fn of(dtype: DType) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|ty| ty.dtype() == dtype);
        found.ok_or_else(|| Error::shape(format!("the store is of {dtype:?}; F32, F16 or BF16 is needed")))
    }
}

/// A number that a cache keeps. Zero bytes are zero.
pub(crate) trait Stored: WithDType + Default {
    /// The nearest kept numbers, ties to even.
    fn narrow<L: Lanes>(l: L, x: &[f32; LANES]) -> [Self; LANES];
    fn wide(self) -> f32;
    /// Sixteen of them, widened.
    fn lanes<L: Lanes>(l: L, x: &[Self; LANES]) -> L::F;
    /// A tensor's numbers, where they are of this type.
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Stored for f32 {
    #[inline(always)]
    fn narrow<L: Lanes>(_: L, x: &[f32; LANES]) -> [Self; LANES] {
        *x
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, x: &[Self; LANES]) -> L::F {
        l.load(x)
    }
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(values) = storage { Some(values) } else { None }
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn narrow<L: Lanes>(l: L, x: &[f32; LANES]) -> [Self; LANES] {
        l.to_half(l.load(x))
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, x: &[Self; LANES]) -> L::F {
        l.half(&x.map(Self::to_le_bytes).as_flattened().as_chunks().0[0])
    }
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F16(values) = storage { Some(values) } else { None }
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn narrow<L: Lanes>(_: L, x: &[f32; LANES]) -> [Self; LANES] {
        x.map(Self::from_f32)
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn lanes<L: Lanes>(l: L, x: &[Self; LANES]) -> L::F {
        l.bfloat(&x.map(Self::to_le_bytes).as_flattened().as_chunks().0[0])
    }
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::BF16(values) = storage { Some(values) } else { None }
    }
}
