//! Numbers as a cache keeps them: whole, or rounded to half the bytes.

use candle_core::{CpuStorage, WithDType};
use half::f16;

use crate::lanes::{LANES, Lanes};

/// How a cache keeps its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheType {
    /// Single precision.
    F32,
    /// Half precision: half the memory, and as exact as quantised weights deserve.
    F16,
}

impl CacheType {
    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// A number that a cache keeps. Zero bytes are zero.
pub(crate) trait Stored: WithDType + Default {
    /// The nearest kept number, ties to even.
    fn narrow(x: f32) -> Self;
    fn wide(self) -> f32;
    /// Sixteen of them, widened.
    fn lanes<L: Lanes>(l: L, x: &[Self; LANES]) -> L::F;
    /// A tensor's numbers, where they are of this type.
    fn of(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Stored for f32 {
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
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
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
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
