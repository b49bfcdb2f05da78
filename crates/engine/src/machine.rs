//! What this machine has for models to run on.

use trefoil_kernels::{Cards, Isa};

use crate::error::Result;
use crate::place::Place;

/// What this engine is and what its machine has, before anything is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The engine's version.
    pub version: &'static str,
    /// The instructions that kernels use.
    pub instructions: &'static str,
    /// Threads of a step, where a caller says nothing else.
    pub threads: usize,
    /// The machine's memory in bytes, and how much of it is free, where the system says.
    pub memory: Option<(u64, u64)>,
}

impl Machine {
    /// Looks.
    pub fn look() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            instructions: Isa::detect().name(),
            threads: threads(),
            memory: memory(),
        }
    }
}

/// What a card that was tried out is good for.
#[derive(Clone, Debug, PartialEq)]
pub struct Usable {
    /// Bytes that a model may take.
    pub memory: u64,
    /// Why small steps start launch by launch there, where they do not start as one.
    pub graph_failure: Option<String>,
}

/// Tries a card out: gives the driver and its cards, where there are any, and what the card of this ordinal is good for, or
/// why it can't be used (`Device`).
///
/// A driver that is broken can end the process, so this runs in one that may end.
pub fn probe(ordinal: usize) -> (Option<Cards>, Result<Usable>) {
    let tried = || {
        let place = Place::card(ordinal)?;
        let kernels = &place.devices.each()[0];
        kernels.try_graphs()?;
        let graph_failure = kernels.graphs().failure().map(str::to_owned);
        Ok(Usable { memory: place.memory.unwrap_or_default(), graph_failure })
    };
    match Cards::find() {
        Ok(cards) => (Some(cards), tried()),
        Err(error) => (None, Err(error.into())),
    }
}

/// Threads of a step: one a core.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The machine's memory in bytes, and how much of it is free, where the system says.
pub(crate) fn memory() -> Option<(u64, u64)> {
    let system = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
    );
    Some((system.total_memory(), system.available_memory())).filter(|&(total, _)| total > 0)
}
