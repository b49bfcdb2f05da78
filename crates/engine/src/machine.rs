//! What this machine has for models to run on.

use trefoil_kernels::Isa;

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
