//! Where tensors begin, for kernels that read or write them.

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::Arg;
#[cfg(feature = "cuda")]
use super::cuda;
use crate::error::{Error, Result};
use crate::flat::check;

/// Where the numbers of a contiguous `f32` tensor begin, which messages call `name`.
pub(crate) fn address(name: &str, tensor: &Tensor) -> Result<Arg<'static>> {
    start(name, tensor).map(Arg::Address)
}

/// [`address`], as a number.
pub(crate) fn start(name: &str, tensor: &Tensor) -> Result<u64> {
    let (from, _) = check::<f32>(name, tensor)?;
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(cpu.as_slice::<f32>()?[from..].as_ptr() as u64),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => cuda::start::<f32>(storage, from),
        _ => Err(elsewhere(name)),
    }
}

/// The address of a tensor that a kernel will write: of an output, or of a store.
pub(crate) fn address_mut(tensor: &Tensor) -> Result<Arg<'static>> {
    start_mut(tensor).map(Arg::Address)
}

/// [`address_mut`], as a number.
pub(crate) fn start_mut(tensor: &Tensor) -> Result<u64> {
    let found = Start(AtomicU64::new(0));
    tensor.inplace_op1(&found)?;
    Ok(found.0.into_inner())
}

pub(super) fn elsewhere(name: &str) -> Error {
    Error::shape(format!("{name} is on another device"))
}

/// Where a tensor begins that will be written.
struct Start(AtomicU64);

impl InplaceOp1 for Start {
    fn name(&self) -> &'static str {
        "address"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        fn start<T: WithDType>(numbers: &mut [T], from: usize) -> u64 {
            numbers[from..].as_mut_ptr() as u64
        }
        let from = layout.start_offset();
        let address = match storage {
            CpuStorage::F32(numbers) => start::<f32>(numbers, from),
            CpuStorage::F16(numbers) => start::<f16>(numbers, from),
            CpuStorage::BF16(numbers) => start::<bf16>(numbers, from),
            _ => candle_core::bail!("the store holds neither F32, F16 nor BF16"),
        };
        self.0.store(address, Ordering::Relaxed);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let address = cuda::start_of(storage, layout.start_offset());
        let address = address.map_err(|error| candle_core::Error::Msg(error.to_string()))?;
        self.0.store(address, Ordering::Relaxed);
        Ok(())
    }
}
