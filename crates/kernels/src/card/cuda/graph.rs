//! Launches that the driver starts at one call.

use std::ptr;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::sys::{self, CUDA_KERNEL_NODE_PARAMS};
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DriverError};

use super::failed;
use crate::card::recorder::Launch;
use crate::error::Result;

/// What a kernel waits for, as an edge's port and type: that all blocks of the one before have said that it may start, or
/// that it is done.
const EARLY: (u8, u8) = (
    sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC as u8,
    sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8,
);
const DONE: (u8, u8) = (0, sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_DEFAULT as u8);

/// A chain of kernels, in the form in which it starts.
pub(in crate::card) struct Graph {
    stream: Arc<CudaStream>,
    template: sys::CUgraph,
    executable: sys::CUgraphExec,
    /// Each launch's node and function.
    nodes: Vec<(sys::CUgraphNode, sys::CUfunction)>,
}

// SAFETY: the driver's handles are good on every thread, one at a time, which `&mut` and the recorder's lock see to.
unsafe impl Send for Graph {}

impl Graph {
    /// The context of `stream` must be this thread's. `overlaps`: whether a kernel may start before the one before it is
    /// done.
    pub(super) fn new(
        stream: Arc<CudaStream>,
        functions: Vec<sys::CUfunction>,
        launches: &[Launch],
        overlaps: bool,
    ) -> Result<Self> {
        let mut made =
            Self { stream, template: ptr::null_mut(), executable: ptr::null_mut(), nodes: Vec::new() };
        // SAFETY: the pointer is good for one handle.
        done(unsafe { sys::cuGraphCreate(&raw mut made.template, 0) })?;
        for (function, launch) in functions.into_iter().zip(launches) {
            let mut arguments = launch.pointers();
            let node = parameters(function, launch, &mut arguments);
            let mut handle = ptr::null_mut();
            // SAFETY: the graph is this one's own, and the driver copies the arguments.
            done(unsafe {
                sys::cuGraphAddKernelNode_v2(&raw mut handle, made.template, ptr::null(), 0, &raw const node)
            })?;
            if let Some((before, _)) = made.nodes.last() {
                let (port, kind) = if overlaps { EARLY } else { DONE };
                let edge =
                    sys::CUgraphEdgeData { from_port: port, to_port: 0, type_: kind, reserved: [0; 5] };
                // SAFETY: both nodes are this graph's own.
                done(unsafe {
                    sys::cuGraphAddDependencies_v2(
                        made.template,
                        ptr::from_ref(before),
                        &raw const handle,
                        &raw const edge,
                        1,
                    )
                })?;
            }
            made.nodes.push((handle, function));
        }
        // SAFETY: the graph is whole.
        done(unsafe { sys::cuGraphInstantiateWithFlags(&raw mut made.executable, made.template, 0) })?;
        Ok(made)
    }

    /// Gives a launch other arguments; those of launches that run already stay.
    pub(in crate::card) fn change(&mut self, at: usize, launch: &Launch) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(failed)?;
        let (node, function) = self.nodes[at];
        let mut arguments = launch.pointers();
        let parameters = parameters(function, launch, &mut arguments);
        // SAFETY: the node is this graph's, its kernel stays, and the driver copies the arguments.
        done(unsafe { sys::cuGraphExecKernelNodeSetParams_v2(self.executable, node, &raw const parameters) })
    }

    /// Starts all launches, in their order, behind whatever is in the stream.
    pub(in crate::card) fn start(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(failed)?;
        // SAFETY: the graph and the stream are of one context; arguments are those that `Card::launch` was promised.
        done(unsafe { sys::cuGraphLaunch(self.executable, self.stream.cu_stream()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Best effort: the driver keeps what still runs, and frees the rest when the process ends, at the latest.
        let _ = self.stream.context().bind_to_thread();
        if !self.executable.is_null() {
            // SAFETY: made here, and not destroyed yet.
            let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
        if !self.template.is_null() {
            // SAFETY: as above.
            let _ = unsafe { sys::cuGraphDestroy(self.template) };
        }
    }
}

fn parameters(
    func: sys::CUfunction,
    launch: &Launch,
    arguments: &mut [*mut std::ffi::c_void],
) -> CUDA_KERNEL_NODE_PARAMS {
    let [x, y, z] = launch.grid;
    CUDA_KERNEL_NODE_PARAMS {
        func,
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: launch.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared,
        kernelParams: arguments.as_mut_ptr(),
        extra: ptr::null_mut(),
        kern: ptr::null_mut(),
        ctx: ptr::null_mut(),
    }
}

fn done(result: sys::CUresult) -> Result<()> {
    result.result().map_err(|cause: DriverError| failed(cause))
}
