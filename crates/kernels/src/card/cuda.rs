//! An NVIDIA card, through candle's device and its stream.
//!
//! The kernels of all files are one module, compiled when this crate is: machine code for three
//! architectures, and PTX from which the driver makes code for those that came later.

mod graph;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
#[cfg(feature = "nccl")]
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaStorage, DType, Device, Tensor};
use half::{bf16, f16};

pub(super) use graph::Graph;

use super::recorder::Launch;
use crate::cards::unusable;
use crate::error::{Error, ErrorKind, Result};

/// Every kernel, for every architecture.
static MODULE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

pub(super) struct Cuda {
    device: Device,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    /// Kernels, and the bytes of shared memory that each may be given so far.
    functions: Mutex<HashMap<&'static str, (CudaFunction, u32)>>,
    name: String,
    processors: usize,
    room: usize,
    /// Whether a kernel may start before the one before it is done (card.cuh, `begin`).
    overlaps: bool,
}

/// Bytes in the card's memory.
pub(crate) struct Bytes {
    slice: CudaSlice<u8>,
    start: u64,
}

/// Bytes in the card's memory that are not of the stream's pool, whose memory other cards can't reach.
#[cfg(feature = "nccl")]
pub(crate) struct Fixed {
    context: Arc<CudaContext>,
    start: u64,
    len: usize,
}

impl Cuda {
    pub(super) fn new(ordinal: usize) -> Result<Self> {
        let missing = |cause| unusable(&format!("CUDA device {ordinal} cannot be used"), cause);
        // Asked first, and by its own call, because candle's errors don't say what is missing.
        CudaContext::new(ordinal).map_err(missing)?;
        let device = Device::new_cuda_with_stream(ordinal)?;
        let stream = device.as_cuda_device()?.cuda_stream();
        let context = Arc::clone(stream.context());
        // SAFETY: every tensor and buffer of this device is used in its one stream only, in which
        // they are also allocated and freed.
        unsafe { context.disable_event_tracking() };
        let name = context.name().map_err(missing)?;
        let ask = |what| context.attribute(what).map(|found| found.max(1) as usize).map_err(missing);
        let processors = ask(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let room = ask(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let overlaps = ask(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? >= 9;
        let module = context.load_module(Ptx::from_binary(MODULE.to_vec())).map_err(missing)?;
        let functions = Mutex::default();
        let made = Self { device, context, stream, module, functions, name, processors, room, overlaps };
        made.keep_memory().map_err(missing)?;
        Ok(made)
    }

    /// Keeps what is freed for the next allocation: otherwise every download, which waits for the stream, would give
    /// all activations back to the driver, and the next step would ask for them again.
    fn keep_memory(&self) -> std::result::Result<(), DriverError> {
        let mut most = u64::MAX;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the device is this context's, and the attribute is a number of 64 bits.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.context.cu_device())?;
            result::mem_pool::set_attribute(pool, threshold, std::ptr::from_mut(&mut most).cast())
        }
    }

    pub(super) fn device(&self) -> Device {
        self.device.clone()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn processors(&self) -> usize {
        self.processors
    }

    pub(super) fn room(&self) -> usize {
        self.room
    }

    pub(super) fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    #[cfg(feature = "nccl")]
    pub(super) fn stream(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    #[cfg(feature = "nccl")]
    pub(super) fn fixed(&self, len: usize) -> Result<Fixed> {
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: the bytes are written before any are read.
        let start = unsafe { result::malloc_sync(len) }.map_err(|cause| no_room(len, cause))?;
        Ok(Fixed { context: Arc::clone(&self.context), start, len })
    }

    /// # Safety
    /// As `Card::copy`.
    #[cfg(feature = "nccl")]
    pub(super) unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<()> {
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: the caller's promise, and the stream is this context's.
        unsafe { result::memcpy_dtod_async(to, from, len, self.stream.cu_stream()) }.map_err(failed)
    }

    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(failed)
    }

    pub(super) fn zeros(&self, len: usize) -> Result<Bytes> {
        let slice = self.stream.alloc_zeros::<u8>(len).map_err(|cause| no_room(len, cause))?;
        let start = slice.device_ptr(&self.stream).0;
        Ok(Bytes { slice, start })
    }

    pub(super) fn scratch(&self, len: usize) -> Result<Bytes> {
        // SAFETY: the kernel that the bytes are taken for writes them before it or another reads them.
        let slice = unsafe { self.stream.alloc::<u8>(len) }.map_err(|cause| no_room(len, cause))?;
        let start = slice.device_ptr(&self.stream).0;
        Ok(Bytes { slice, start })
    }

    pub(super) fn upload(&self, to: &Bytes, at: usize, bytes: &[u8]) -> Result<()> {
        let len = to.slice.len();
        if at.checked_add(bytes.len()).is_none_or(|end| end > len) {
            return Err(Error::range(format!("{} bytes at {at} of a buffer of {len}", bytes.len())));
        }
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: the bytes fit, and are copied away before the call returns; in this stream, behind whatever read what was
        // there before.
        unsafe { result::memcpy_htod_async(to.start + at as u64, bytes, self.stream.cu_stream()) }
            .map_err(failed)
    }

    pub(super) fn download(&self, from: &Bytes, at: usize, len: usize) -> Result<Vec<u8>> {
        let Some(view) = from.slice.try_slice(at..at + len) else {
            return Err(Error::range(format!("{len} bytes at {at} of a buffer of {}", from.slice.len())));
        };
        self.stream.clone_dtoh(&view).map_err(failed)
    }

    /// `len` bytes from an address on, when all that was launched before is done.
    ///
    /// # Safety
    /// They are there until the call returns.
    pub(super) unsafe fn read(&self, start: u64, len: usize) -> Result<Vec<u8>> {
        self.context.bind_to_thread().map_err(failed)?;
        let mut bytes = vec![0; len];
        // SAFETY: the caller's promise, and the bytes are waited for before anybody reads them or they are freed.
        unsafe { result::memcpy_dtoh_async(&mut bytes, start, self.stream.cu_stream()) }.map_err(failed)?;
        self.stream.synchronize().map_err(failed)?;
        Ok(bytes)
    }

    /// Starts a launch, whose safety `Card::launch` was promised.
    pub(super) fn launch(&self, launch: &Launch) -> Result<()> {
        let function = self.function(launch)?;
        self.context.bind_to_thread().map_err(failed)?;
        let ([x, y, z], mut arguments) = (launch.grid, launch.pointers());
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut early,
            numAttrs: u32::from(self.overlaps),
        };
        // SAFETY: the function and the stream are this context's, and the arguments as promised.
        unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
        .map_err(|cause| unstarted(launch.kernel, cause))
    }

    fn function(&self, &Launch { kernel, shared, .. }: &Launch) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let (function, given) = match functions.entry(kernel) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert((self.module.load_function(kernel).map_err(failed)?, 0)),
        };
        if shared > *given {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared as i32).map_err(failed)?;
            *given = shared;
        }
        Ok(function.cu_function())
    }

    /// A graph of launches, each behind the one before it.
    pub(super) fn graph(&self, launches: &[Launch]) -> Result<Graph> {
        let functions = launches.iter().map(|launch| self.function(launch)).collect::<Result<_>>()?;
        self.context.bind_to_thread().map_err(failed)?;
        Graph::new(Arc::clone(&self.stream), functions, launches, self.overlaps)
    }

    pub(super) fn output(&self, dims: &[usize]) -> Result<Tensor> {
        // SAFETY: the kernel that the tensor is made for writes all of it.
        Ok(unsafe { Tensor::empty(dims, DType::F32, &self.device) }?)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Best effort: what is kept for the next allocation goes back when the process ends, at the latest.
        let _ = self.context.synchronize();
        // SAFETY: the device is this context's.
        let _ = unsafe {
            result::device::get_default_mem_pool(self.context.cu_device())
                .and_then(|pool| result::mem_pool::trim_to(pool, 0))
        };
    }
}

impl Bytes {
    pub(super) fn len(&self) -> usize {
        self.slice.len()
    }

    pub(super) fn address(&self) -> u64 {
        self.start
    }
}

#[cfg(feature = "nccl")]
impl Fixed {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn address(&self) -> u64 {
        self.start
    }
}

#[cfg(feature = "nccl")]
impl Drop for Fixed {
    fn drop(&mut self) {
        // A card that fails here has failed for all that comes, which says so.
        let _ = self.context.bind_to_thread().and_then(|()| self.context.synchronize());
        // SAFETY: its own, and nothing that uses it is under way.
        let _ = unsafe { result::memory_free(self.start) };
    }
}

/// The address of number `from` of a tensor's storage.
pub(super) fn start<T: CudaDType>(storage: &CudaStorage, from: usize) -> Result<u64> {
    let slice = storage.as_cuda_slice::<T>()?;
    let stream = storage.device().cuda_stream();
    Ok(slice.device_ptr(&stream).0 + (from * size_of::<T>()) as u64)
}

/// [`start`] of a store, whatever it keeps.
pub(super) fn start_of(storage: &CudaStorage, from: usize) -> Result<u64> {
    match storage.dtype() {
        DType::F16 => start::<f16>(storage, from),
        DType::BF16 => start::<bf16>(storage, from),
        _ => start::<f32>(storage, from),
    }
}

fn unstarted(what: &str, cause: DriverError) -> Error {
    Error::new(ErrorKind::Backend, format!("{what} could not be started: {cause}"))
}

fn failed(cause: DriverError) -> Error {
    Error::new(ErrorKind::Backend, format!("the CUDA device failed: {cause}"))
}

fn no_room(len: usize, cause: DriverError) -> Error {
    Error::new(ErrorKind::Memory, format!("no memory for {len} bytes on the card: {cause}"))
}
