//! Launches: at once, or gathered while a pass is made and started as one.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "emulate")]
use super::emulated;
use super::recorder::{Launch, Recorder};
use super::{Arg, Card, Machine};
use crate::error::Result;
use crate::pass::{Graphs, Kind, Lease};

/// Launches that start as one.
pub(super) enum Graph {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Graph),
    #[cfg(feature = "emulate")]
    Emulated(emulated::Graph),
}

impl Card {
    /// Begins a pass of this thread: what it launches starts when something is downloaded or it ends.
    pub(crate) fn begin(&self, kind: Kind) -> Lease {
        self.recorder().begin(kind)
    }

    /// What is known of its graphs.
    pub(crate) fn graphs(&self) -> Graphs {
        self.recorder().graphs()
    }

    /// Ends this thread's pass.
    pub(crate) fn end(&self) -> Result<()> {
        let started = self.start();
        self.recorder().end();
        started
    }

    /// Starts what this thread's pass has launched.
    pub(super) fn start(&self) -> Result<()> {
        let start = |graph: &Graph| {
            self.launches.fetch_add(1, Ordering::Relaxed);
            graph.start()
        };
        self.recorder().start(|launches| self.graph(launches), start, |launch| self.run(launch))
    }

    pub(super) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn graph(&self, launches: &[Launch]) -> Result<Graph> {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.graph(launches).map(Graph::Cuda),
            #[cfg(feature = "emulate")]
            Machine::Emulated(it) => it.graph(launches).map(Graph::Emulated),
        }
    }

    /// Starts a launch at once.
    fn run(&self, launch: &Launch) -> Result<()> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.launch(launch),
            #[cfg(feature = "emulate")]
            Machine::Emulated(it) => it.launch(launch),
        }
    }

    /// Starts `kernel` on `grid` blocks of `threads` threads; nothing where the grid is empty.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in its order, and what it does with them stays within
    /// buffers and tensors that live until the call returns, or the pass in which it is made ends.
    /// (What is freed later is freed in the same stream, behind the kernel.)
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: usize,
        args: &[Arg<'_>],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_with(kernel, grid, threads, 0, args) }
    }

    /// [`Card::launch`] of a kernel that takes so many bytes of shared memory beside those that it declares, 99 KiB at
    /// most; one that takes some takes some every time.
    ///
    /// # Safety
    /// As [`Card::launch`]; and they are as many as the kernel uses.
    pub(crate) unsafe fn launch_with(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        args: &[Arg<'_>],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let launch = Launch::new(kernel, grid, threads, shared, args);
        let at_once = self.recorder().take(launch);
        at_once.map_or(Ok(()), |launch| self.run(&launch))
    }

    /// [`Card::launch`], whatever pass is being made.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn launch_now(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: usize,
        args: &[Arg<'_>],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.run(&Launch::new(kernel, grid, threads, 0, args))
    }
}

impl Graph {
    /// Gives a launch other arguments.
    pub(super) fn change(&mut self, at: usize, launch: &Launch) -> Result<()> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(graph) => graph.change(at, launch),
            #[cfg(feature = "emulate")]
            Self::Emulated(graph) => graph.change(at, launch),
        }
    }

    /// Starts all launches, in their order.
    pub(super) fn start(&self) -> Result<()> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(graph) => graph.start(),
            #[cfg(feature = "emulate")]
            Self::Emulated(graph) => graph.start(),
        }
    }
}
