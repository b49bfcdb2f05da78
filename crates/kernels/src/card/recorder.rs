//! Passes whose launches start as one.
//!
//! To ask for the launches of a small pass takes longer than to run them. So they are gathered
//! while the pass is made, and where they are those of an earlier pass but for some arguments, a
//! graph of those starts them all. A pass gets the memory of an earlier one of its kind, so that
//! hardly an argument changes: what does change from step to step is words, at the same places.
//!
//! Nothing is assumed of a pass: every launch is compared with the graph's own, and one of another
//! kernel, grid or size of shared memory makes a new graph. Nor does anything depend on graphs: where the device fails to
//! make or start one, the launches start one by one, then and from then on, and [`Graphs`] says why.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::thread::ThreadId;

use candle_core::Tensor;

use super::launch::Graph;
use super::{Arg, Buffer};
use crate::error::Result;
use crate::pass::{Graphs, Kind, Lease};

/// Passes that are remembered.
const KNOWN: usize = 8;

/// A kernel with its grid and its arguments.
#[derive(Clone, PartialEq)]
pub(crate) struct Launch {
    pub(crate) kernel: &'static str,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    /// Bytes of shared memory beside those that the kernel declares.
    pub(crate) shared: u32,
    /// The arguments, each in words of its own, and where each begins.
    words: Vec<u64>,
    starts: Vec<usize>,
}

impl Launch {
    pub(crate) fn new(
        kernel: &'static str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        args: &[Arg<'_>],
    ) -> Self {
        let (mut words, mut starts) = (Vec::new(), Vec::with_capacity(args.len()));
        for arg in args {
            starts.push(words.len());
            // A short argument comes first in its word: machines are little-endian.
            match *arg {
                Arg::Address(address) => words.push(address),
                Arg::Count(count) => words.push(u64::from(count.cast_unsigned())),
                Arg::Number(number) => words.push(u64::from(number.to_bits())),
                Arg::Words(many) => words.extend_from_slice(many),
            }
        }
        let (grid, [threads, shared]) =
            (grid.map(|blocks| blocks as u32), [threads, shared].map(|count| count as u32));
        Self { kernel, grid, threads, shared, words, starts }
    }

    /// A pointer to each argument. Kernels are given copies: nobody writes through them.
    pub(crate) fn pointers(&self) -> Vec<*mut c_void> {
        self.starts.iter().map(|&at| self.words[at..].as_ptr().cast_mut().cast()).collect()
    }

    /// Whether only arguments differ.
    fn is_like(&self, other: &Self) -> bool {
        (self.kernel, self.grid) == (other.kernel, other.grid)
            && (self.threads, self.shared) == (other.threads, other.shared)
            && (&self.starts, self.words.len()) == (&other.starts, other.words.len())
    }
}

#[derive(Default)]
pub(crate) struct Recorder {
    /// Passes that were made, the last one last.
    known: Vec<Known>,
    /// The pass that a thread makes.
    passes: HashMap<ThreadId, Pass>,
    /// Whether the device has failed to make, change or start a graph: it is not asked again.
    graphs: Graphs,
}

/// A pass that was made: its memory in the order in which it was taken, and its launches.
#[derive(Default)]
struct Known {
    kind: Kind,
    lease: Lease,
    tensors: Vec<Tensor>,
    buffers: Vec<Arc<Buffer>>,
    launches: Vec<Launch>,
    graph: Option<Graph>,
}

/// A pass that is being made.
struct Pass {
    known: Known,
    /// Tensors and buffers that it has taken.
    taken: [usize; 2],
    /// What else they are given, until they have been started.
    held: Vec<Arc<Buffer>>,
    /// Its launches, until they have been started.
    launches: Option<Vec<Launch>>,
}

impl Recorder {
    /// What is known of graphs.
    pub(crate) fn graphs(&self) -> Graphs {
        self.graphs.clone()
    }

    /// Begins a pass, with the memory of one of its kind that nobody stands on.
    pub(crate) fn begin(&mut self, kind: Kind) -> Lease {
        let free = |known: &Known| known.kind == kind && Arc::strong_count(&known.lease) == 1;
        let known = match self.known.iter().position(free) {
            Some(at) => self.known.remove(at),
            None => Known { kind, ..Known::default() },
        };
        let lease = Arc::clone(&known.lease);
        let pass = Pass { known, taken: [0; 2], held: Vec::new(), launches: Some(Vec::new()) };
        self.passes.insert(std::thread::current().id(), pass);
        lease
    }

    /// Ends this thread's pass, whose launches have been started, and remembers it.
    pub(crate) fn end(&mut self) {
        if let Some(Pass { mut known, taken, .. }) = self.passes.remove(&std::thread::current().id()) {
            known.tensors.truncate(taken[0]);
            known.buffers.truncate(taken[1]);
            if self.known.len() == KNOWN {
                self.known.remove(0);
            }
            self.known.push(known);
        }
    }

    /// Takes a launch, unless this thread makes no pass or the pass's launches have been started.
    pub(crate) fn take(&mut self, launch: Launch) -> Option<Launch> {
        match self.pass().and_then(|pass| pass.launches.as_mut()) {
            Some(launches) => {
                launches.push(launch);
                None
            }
            None => Some(launch),
        }
    }

    /// A tensor that the pass may write; `make` makes it where an earlier one had none of its shape in this place.
    pub(crate) fn tensor(&mut self, dims: &[usize], make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let Some(pass) = self.pass() else { return make() };
        let Pass { known: Known { tensors, .. }, taken: [at, _], .. } = pass;
        if tensors.get(*at).is_none_or(|tensor| tensor.dims() != dims) {
            tensors.truncate(*at);
            tensors.push(make()?);
        }
        *at += 1;
        Ok(tensors[*at - 1].clone())
    }

    /// As [`Recorder::tensor`], of at least `len` bytes.
    pub(crate) fn buffer(
        &mut self,
        len: usize,
        make: impl FnOnce(usize) -> Result<Buffer>,
    ) -> Result<Arc<Buffer>> {
        let Some(pass) = self.pass() else { return Ok(Arc::new(make(len)?)) };
        let Pass { known: Known { buffers, .. }, taken: [_, at], .. } = pass;
        if buffers.get(*at).is_none_or(|buffer| buffer.len() < len) {
            buffers.truncate(*at);
            // Some more, because lists of words grow with their text.
            buffers.push(Arc::new(make(len.next_power_of_two())?));
        }
        *at += 1;
        Ok(Arc::clone(&buffers[*at - 1]))
    }

    /// Keeps a buffer for as long as this thread's pass may take to start.
    pub(crate) fn hold(&mut self, buffer: &Arc<Buffer>) {
        if let Some(pass) = self.pass() {
            pass.held.push(Arc::clone(buffer));
        }
    }

    /// Starts what this thread's pass has gathered: by its graph, where an earlier pass had the same launches.
    ///
    /// * `graph`: makes one
    /// * `start`: starts one
    /// * `launch`: starts one launch
    pub(crate) fn start(
        &mut self,
        graph: impl FnOnce(&[Launch]) -> Result<Graph>,
        start: impl FnOnce(&Graph) -> Result<()>,
        launch: impl FnMut(&Launch) -> Result<()>,
    ) -> Result<()> {
        let Self { passes, graphs, .. } = self;
        let Some(pass) = passes.get_mut(&std::thread::current().id()) else { return Ok(()) };
        let Some(launches) = pass.launches.take() else { return Ok(()) };
        let known = &mut pass.known;
        let before = std::mem::replace(&mut known.launches, launches);
        let (launches, kept) = (known.launches.as_slice(), known.graph.take());
        let alike = before.len() == launches.len()
            && before.iter().zip(launches).all(|(before, after)| before.is_like(after));
        if alike && !launches.is_empty() && graphs.failure().is_none() {
            let ready = match kept {
                Some(graph) => changed(graph, &before, launches).map_err(|cause| format!("changed: {cause}")),
                None => graph(launches).map_err(|cause| format!("made: {cause}")),
            };
            let started = ready.and_then(|graph| match start(&graph) {
                Ok(()) => Ok(graph),
                Err(cause) => Err(format!("started: {cause}")),
            });
            match started {
                Ok(graph) => {
                    known.graph = Some(graph);
                    return Ok(());
                }
                // Whatever is wrong beside the graph, the launches say too. To start them again would be no harm: they
                // read nothing that they have written but what they write anew.
                Err(why) => graphs.fail(format!("a graph could not be {why}")),
            }
        }
        launches.iter().try_for_each(launch)
    }

    fn pass(&mut self) -> Option<&mut Pass> {
        self.passes.get_mut(&std::thread::current().id())
    }
}

/// A graph of the launches `before` as one of those `after`, which are like them.
fn changed(mut graph: Graph, before: &[Launch], after: &[Launch]) -> Result<Graph> {
    for (at, (before, after)) in before.iter().zip(after).enumerate() {
        if before != after {
            graph.change(at, after)?;
        }
    }
    Ok(graph)
}

#[cfg(all(test, feature = "emulate"))]
mod tests {
    use super::super::emulated::Emulated;
    use super::*;
    use crate::error::Error;

    /// Steps of two launches each: how many graphs were made and started, and launches started alone, in each.
    fn steps(
        recorder: &mut Recorder,
        grids: &[usize],
        make: impl Fn(&[Launch]) -> Result<Graph>,
    ) -> Vec<[usize; 3]> {
        let step = |&blocks: &usize| {
            let (mut made, mut started, mut alone) = (0, 0, 0);
            drop(recorder.begin([0; 4]));
            for grid in [[1; 3], [blocks, 1, 1]] {
                assert!(recorder.take(Launch::new("none of this name", grid, 32, 64, &[])).is_none());
            }
            let graph = |launches: &[Launch]| {
                made += 1;
                make(launches)
            };
            let start = |graph: &Graph| {
                started += 1;
                graph.start()
            };
            let launch = |_: &Launch| {
                alone += 1;
                Ok(())
            };
            assert!(recorder.start(graph, start, launch).is_ok());
            recorder.end();
            [made, started, alone]
        };
        grids.iter().map(step).collect()
    }

    #[test]
    fn a_device_without_graphs_starts_launches_one_by_one() {
        let mut recorder = Recorder::default();
        let found = steps(&mut recorder, &[1, 2, 2, 2, 1, 1], |_| Err(Error::range("no graph")));
        assert_eq!(found, [[0, 0, 2], [0, 0, 2], [1, 0, 2], [0, 0, 2], [0, 0, 2], [0, 0, 2]]);
        assert_eq!(recorder.graphs().failure(), Some("a graph could not be made: no graph"));
    }

    #[test]
    fn a_graph_that_does_not_start_is_the_last() {
        let machine = Arc::new(Emulated::new(&[], true).unwrap());
        let mut recorder = Recorder::default();
        let found = steps(&mut recorder, &[3; 4], |launches| machine.graph(launches).map(Graph::Emulated));
        assert_eq!(found, [[0, 0, 2], [1, 1, 2], [0, 0, 2], [0, 0, 2]]);
        let said = "a graph could not be started: there is no kernel none of this name";
        assert_eq!(recorder.graphs().failure(), Some(said));
    }

    #[test]
    fn a_launch_is_alike_by_all_but_arguments() {
        let launch =
            |grid, threads, shared, args: &[Arg<'_>]| Launch::new("attend", grid, threads, shared, args);
        let one = launch([3, 1, 1], 256, 4096, &[Arg::Count(1)]);
        assert!(one.is_like(&launch([3, 1, 1], 256, 4096, &[Arg::Count(2)])));
        assert!(!one.is_like(&launch([4, 1, 1], 256, 4096, &[Arg::Count(1)])));
        assert!(!one.is_like(&launch([3, 1, 1], 128, 4096, &[Arg::Count(1)])));
        assert!(!one.is_like(&launch([3, 1, 1], 256, 8192, &[Arg::Count(1)])));
        assert!(!one.is_like(&launch([3, 1, 1], 256, 4096, &[Arg::Words(&[1, 2]), Arg::Count(1)])));
    }
}
