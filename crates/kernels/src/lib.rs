//! Row-invariant tensor operations for the models of Trefoil.
//!
//! # The promise
//! A row's result has the same bits whatever other rows share the call, however many there are, on
//! any number of threads and on every instruction set. Reductions run in a fixed order; matrix
//! products split over outputs only; activations are quantised row by row; attention reduces keys
//! by logical position. Decoding several tokens in one step is therefore bit-identical to decoding
//! them one by one.
//!
//! # How
//! Activations are contiguous `f32` tensors of candle. Operations read their storage directly:
//! candle's custom operations take at most three tensors and return candle's own error, where
//! attention takes five and every shape gets a typed one. Writing in place goes through
//! `InplaceOp2`, which locks the storage.
//!
//! Each kernel is written once over sixteen lanes and compiled for every instruction set; see
//! [`Isa`]. One file holds one operation.

#![expect(
    clippy::inline_always,
    reason = "code over lanes must become part of the function that enables its instructions"
)]

mod attend;
mod cards;
mod dense;
mod elementwise;
mod error;
mod exp;
mod flat;
mod formats;
mod integer;
mod isa;
mod kv;
mod lanes;
mod linear;
mod norm;
mod pool;
mod quantise;
mod rope;
mod shared;
mod sight;
mod softmax;
mod stored;
mod tile;
mod weight;

use std::sync::Arc;

use candle_core::Device;

pub use cards::{Card, Cards};
pub use elementwise::Activation;
pub use error::{Error, ErrorKind, Lack, Result};
pub use formats::WeightType;
pub use isa::Isa;
pub use kv::{KvStore, Move, PAGE};
pub use rope::Rope;
pub use shared::SharedKv;
pub use sight::Sight;
pub use softmax::mass;
pub use stored::CacheType;
pub use weight::Weight;

/// The most threads that a pool may have.
const THREADS: usize = 1024;

/// A device, its threads and its instructions: what every operation runs on. Clones share them.
#[derive(Clone)]
pub struct Kernels {
    device: Device,
    pool: Arc<pool::Pool>,
    found: isa::Found,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels(cpu, {} threads, {:?})", self.threads(), self.isa())
    }
}

impl Kernels {
    /// The CPU with `threads` threads, the caller's own among them, and its best instructions.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if `threads` is 0 or above 1024, or a thread cannot be started.
    pub fn cpu(threads: usize) -> Result<Self> {
        Self::cpu_with(threads, Isa::detect())
    }

    /// [`Kernels::cpu`] with the calling thread and every other one tied to a core, as far as there are cores.
    ///
    /// # Errors
    /// As [`Kernels::cpu`].
    pub fn cpu_pinned(threads: usize) -> Result<Self> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let unpinned = Self::cpu(1)?;
        check(threads)?;
        Ok(Self { pool: Arc::new(pool::Pool::on(threads, &cores)?), ..unpinned })
    }

    /// [`Kernels::cpu`] with chosen instructions.
    ///
    /// # Errors
    /// As [`Kernels::cpu`], and [`ErrorKind::Unsupported`] if this CPU lacks `isa`.
    pub fn cpu_with(threads: usize, isa: Isa) -> Result<Self> {
        check(threads)?;
        let found = isa::Found::new(isa)?;
        Ok(Self { device: Device::Cpu, pool: Arc::new(pool::Pool::new(threads)?), found })
    }

    /// The card of this ordinal.
    ///
    /// # Errors
    /// [`ErrorKind::Device`]: this build has no CUDA.
    pub fn cuda(_ordinal: usize) -> Result<Self> {
        Err(Error::device(Lack::Build, "this build has no CUDA"))
    }

    /// The memory of the card in bytes, free and in all; none on the CPU.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] where the driver does not answer.
    pub fn memory(&self) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }

    /// Where tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Threads that work on an operation.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instructions in use.
    pub fn isa(&self) -> Isa {
        self.found.isa()
    }

    fn pool(&self) -> &pool::Pool {
        &self.pool
    }

    fn found(&self) -> isa::Found {
        self.found
    }
}

fn check(threads: usize) -> Result<()> {
    if threads == 0 || threads > THREADS {
        let message = format!("{threads} threads; 1 to {THREADS} are allowed");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(())
}
