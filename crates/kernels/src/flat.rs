//! Tensors as flat slices: the one place where types, layouts and ranks are checked.

use candle_core::{DType, Device, Storage, StorageRef, Tensor};

use crate::error::{Error, ErrorKind, Result};

/// The values of a contiguous `f32` tensor on the CPU, borrowed.
pub(crate) struct Flat<'a> {
    storage: StorageRef<'a>,
    from: usize,
    to: usize,
}

impl<'a> Flat<'a> {
    /// Borrows `tensor`, which messages call `name`.
    pub(crate) fn new(name: &str, tensor: &'a Tensor) -> Result<Self> {
        if tensor.dtype() != DType::F32 {
            return Err(Error::shape(format!("{name} holds {:?}; kernels take F32", tensor.dtype())));
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Some((from, to)) = layout.contiguous_offsets() else {
            return Err(Error::shape(format!("{name} {:?} is not contiguous", tensor.dims())));
        };
        match &*storage {
            Storage::Cpu(cpu) if cpu.as_slice::<f32>()?.len() >= to => {}
            _ => return Err(Error::shape(format!("{name} is not on the CPU"))),
        }
        Ok(Self { storage, from, to })
    }

    pub(crate) fn values(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(cpu) => cpu.as_slice::<f32>().map_or(&[], |all| &all[self.from..self.to]),
            // `new` lets only CPU storage through.
            _ => &[],
        }
    }
}

/// The dimensions of `tensor`, which must have `N` of them.
pub(crate) fn dims<const N: usize>(name: &str, tensor: &Tensor) -> Result<[usize; N]> {
    tensor.dims().try_into().map_err(|_| {
        Error::shape(format!("{name} {:?} has rank {}; {N} is needed", tensor.dims(), tensor.rank()))
    })
}

/// Checks that one dimension is what another value says.
pub(crate) fn equal(name: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::shape(format!("{name} is {got}; {wanted} is needed")))
}

/// Wraps an operation's output.
pub(crate) fn tensor(values: Vec<f32>, dims: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// Zeros that the system backs with memory when they are first touched.
///
/// A failed allocation is an error here; `vec![0.0; count]` would abort the process.
pub(crate) fn zeros(count: usize) -> Result<Vec<f32>> {
    let no_room = || Error::new(ErrorKind::Memory, format!("no memory for {count} numbers"));
    let layout = std::alloc::Layout::array::<f32>(count).map_err(|_| no_room())?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout's size is not zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return Err(no_room());
    }
    let numbers = std::ptr::slice_from_raw_parts_mut(start.cast(), count);
    // SAFETY: the global allocator gave `count` numbers with this layout, and zero bytes are 0.0.
    Ok(unsafe { Box::from_raw(numbers) }.into_vec())
}
