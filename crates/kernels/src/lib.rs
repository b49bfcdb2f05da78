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
#[cfg(feature = "card")]
mod card;
mod cards;
mod cut;
mod dense;
mod devices;
mod elementwise;
mod error;
mod exp;
mod factor;
mod flat;
mod formats;
mod integer;
mod isa;
mod judge;
mod kv;
mod lanes;
mod linear;
mod lines;
mod norm;
mod operand;
mod pass;
#[cfg(feature = "card")]
mod pieces;
mod pool;
mod product;
mod quantise;
mod rope;
mod shared;
mod sight;
mod softmax;
mod stored;
mod tile;
mod top;
mod units;
mod weight;
mod words;

use std::sync::Arc;

use candle_core::Device;

#[cfg(feature = "emulate")]
pub use card::Mutation;
pub use cards::{Card, Cards};
pub use devices::{Devices, Path};
pub use elementwise::Activation;
pub use error::{Error, ErrorKind, Lack, Result};
pub use formats::WeightType;
pub use isa::Isa;
pub use judge::{Further, Judged, Look, Looked, TOP, Wanted};
pub use kv::{KvStore, Move, PAGE};
pub use operand::Operand;
pub use pass::{Graphs, Kind, Lease};
pub use rope::{Rope, Turns};
pub use shared::{Readers, SharedKv};
pub use sight::Sight;
pub use softmax::{best, mass, mass_at, penalise, weigh};
pub use stored::CacheType;
pub use top::{higher, top};
pub use weight::Weight;
pub use words::{Calls, Upload, Words};

/// The most threads that a pool may have.
const THREADS: usize = 1024;

/// The most threads that pack weights for a card.
#[cfg(feature = "card")]
const PACKING: usize = 8;

/// A device, its threads and its instructions: what every operation runs on. Clones share them.
#[derive(Clone)]
pub struct Kernels {
    device: Device,
    pool: Arc<pool::Pool>,
    store: Arc<lines::Store>,
    found: isa::Found,
    /// Its number among devices that work together.
    rank: usize,
    /// Whether activations are rounded as a card rounds them.
    rounds: bool,
    /// Where operations run instead, if not on this CPU.
    #[cfg(feature = "card")]
    card: Option<Arc<card::Card>>,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({}, {} threads, {:?})", self.name(), self.threads(), self.isa())
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
        Ok(Self {
            device: Device::Cpu,
            pool: Arc::new(pool::Pool::new(threads)?),
            store: Arc::default(),
            found,
            rank: 0,
            rounds: false,
            #[cfg(feature = "card")]
            card: None,
        })
    }

    /// The same CPU with activations rounded to weights of sixteen bits before they meet them, as a card's tensor cores
    /// take them: but for the order of sums, what a card computes. With weights of bfloat16 a CPU that multiplies pairs of
    /// them, as AVX-512 BF16 does, has twice the arithmetic, and may take what is below 2^-126 for
    /// zero, the one thing in which instruction sets differ; for half precision it is slow, and there to compare with.
    #[must_use]
    pub fn rounding(&self) -> Self {
        Self { rounds: true, ..self.clone() }
    }

    /// The CUDA device with this number. Weights are packed on this CPU's threads before they go there.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if this build has no CUDA, there is no such device, it has no memory left, or it or its
    /// driver is too old.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Cards::find()?.check(ordinal)?;
        #[cfg(feature = "cuda")]
        return Self::with_card(card::Card::cuda(ordinal)?);
        #[cfg(not(feature = "cuda"))]
        Err(cards::without_cuda())
    }

    /// The kernels of cards, compiled for this CPU: slow, and there for tests.
    ///
    /// * `mutations`: changes to their source, which a test must notice
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if there is no C++ compiler, or it refuses the source.
    #[cfg(feature = "emulate")]
    pub fn emulated(mutations: &[Mutation]) -> Result<Self> {
        Self::with_card(card::Card::emulated(mutations, true)?)
    }

    /// [`Kernels::emulated`], of a card that fails to make graphs.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "emulate")]
    pub fn emulated_without_graphs() -> Result<Self> {
        Self::with_card(card::Card::emulated(&[], false)?)
    }

    #[cfg(feature = "card")]
    fn with_card(card: card::Card) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(PACKING));
        let host = Self::cpu(threads)?;
        Ok(Self { device: card.device(), card: Some(Arc::new(card)), ..host })
    }

    /// Where tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `cpu`, or what the card's maker calls it.
    #[cfg_attr(
        not(feature = "card"),
        expect(clippy::unnecessary_literal_bound, reason = "a card has a name of its own")
    )]
    pub fn name(&self) -> &str {
        #[cfg(feature = "card")]
        if let Some(card) = &self.card {
            return card.name();
        }
        "cpu"
    }

    /// Whether operations run on a card, so that reading a tensor is a download.
    pub fn on_card(&self) -> bool {
        #[cfg(feature = "card")]
        return self.card.is_some();
        #[cfg(not(feature = "card"))]
        return false;
    }

    /// Free bytes and all bytes of the device's own memory; none where it is the CPU's.
    ///
    /// # Errors
    /// [`ErrorKind::Backend`] if the device does not say.
    pub fn memory(&self) -> Result<Option<(usize, usize)>> {
        #[cfg(feature = "card")]
        if let Some(card) = &self.card {
            return card.memory();
        }
        Ok(None)
    }

    /// Bytes of the device's memory that one operation takes beside operands and results, at most.
    pub fn scratch(&self) -> usize {
        #[cfg(feature = "card")]
        if self.card.is_some() {
            return linear::scratch();
        }
        0
    }

    /// Whether attention takes heads of so many channels.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] above 256 on a card.
    #[cfg_attr(not(feature = "card"), expect(unused_variables, reason = "the CPU takes any"))]
    pub fn check_heads(&self, channels: usize) -> Result<()> {
        #[cfg(feature = "card")]
        if self.card.is_some() {
            card::Shape::new(channels)?;
        }
        Ok(())
    }

    /// Threads that work on an operation.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instructions in use.
    pub fn isa(&self) -> Isa {
        self.found.isa()
    }

    /// Its number among the [`Devices`] that it works with; 0 where it works alone.
    pub fn rank(&self) -> usize {
        self.rank
    }

    fn pool(&self) -> &pool::Pool {
        &self.pool
    }

    fn found(&self) -> isa::Found {
        self.found
    }

    /// The card that operations run on, if they do not run on this CPU.
    #[cfg(feature = "card")]
    fn card(&self) -> Option<&Arc<card::Card>> {
        self.card.as_ref()
    }
}

fn check(threads: usize) -> Result<()> {
    if threads == 0 || threads > THREADS {
        let message = format!("{threads} threads; 1 to {THREADS} are allowed");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(())
}
