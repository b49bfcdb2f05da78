//! Tensors as flat slices: the one place where types, layouts and ranks are checked.

use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};

use candle_core::{Device, Storage, StorageRef, Tensor};

use crate::error::{Error, ErrorKind, Result};
use crate::stored::Stored;

/// The values of a contiguous tensor on the CPU, borrowed.
pub(crate) struct Flat<'a, T = f32> {
    storage: StorageRef<'a>,
    from: usize,
    to: usize,
    ty: PhantomData<T>,
}

impl<'a> Flat<'a> {
    /// Borrows an `f32` tensor, which messages call `name`.
    pub(crate) fn new(name: &str, tensor: &'a Tensor) -> Result<Self> {
        Self::of(name, tensor)
    }
}

impl<'a, T: Stored> Flat<'a, T> {
    /// Borrows `tensor`, which messages call `name`.
    pub(crate) fn of(name: &str, tensor: &'a Tensor) -> Result<Self> {
        let (from, to) = check::<T>(name, tensor)?;
        let (storage, _) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) if cpu.as_slice::<T>()?.len() >= to => {}
            _ => return Err(Error::shape(format!("{name} is not on the CPU"))),
        }
        Ok(Self { storage, from, to, ty: PhantomData })
    }

    pub(crate) fn values(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(cpu) => cpu.as_slice::<T>().map_or(&[], |all| &all[self.from..self.to]),
            // `new` lets only CPU storage through.
            _ => &[],
        }
    }
}

/// Checks that a tensor holds `T`, one number behind the other, and says where in its storage.
pub(crate) fn check<T: Stored>(name: &str, tensor: &Tensor) -> Result<(usize, usize)> {
    if tensor.dtype() != T::DTYPE {
        let (held, taken) = (tensor.dtype(), T::DTYPE);
        return Err(Error::shape(format!("{name} holds {held:?}; {taken:?} is needed")));
    }
    tensor
        .layout()
        .contiguous_offsets()
        .ok_or_else(|| Error::shape(format!("{name} {:?} is not contiguous", tensor.dims())))
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
pub(crate) fn tensor<T: Stored>(values: Vec<T>, dims: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?)
}

/// Zeros that the system backs with memory when they are first touched.
///
/// A failed allocation is an error here; `vec![0.0; count]` would abort the process.
pub(crate) fn zeros<T: Stored>(count: usize) -> Result<Vec<T>> {
    let no_room = || Error::new(ErrorKind::Memory, format!("no memory for {count} numbers"));
    let layout = std::alloc::Layout::array::<T>(count).map_err(|_| no_room())?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout's size is not zero.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return Err(no_room());
    }
    let numbers = std::ptr::slice_from_raw_parts_mut(start.cast(), count);
    // SAFETY: the global allocator gave `count` numbers with this layout, and zero bytes are zero.
    Ok(unsafe { Box::from_raw(numbers) }.into_vec())
}

/// Room for numbers that an operation writes, all of them. To fill it with zeros first would take as long as a norm.
pub(crate) fn room<T>(count: usize) -> Result<Vec<MaybeUninit<T>>> {
    let mut room = Vec::new();
    room.try_reserve_exact(count)
        .map_err(|_| Error::new(ErrorKind::Memory, format!("no memory for {count} numbers")))?;
    // SAFETY: so much was reserved, and such an element may hold anything.
    unsafe { room.set_len(count) };
    Ok(room)
}

/// A part of a [`room`], with one value everywhere.
#[inline(always)]
pub(crate) fn filled<T: Copy>(part: &mut [MaybeUninit<T>], value: T) -> &mut [T] {
    part.fill(MaybeUninit::new(value));
    // SAFETY: all of them are values now.
    unsafe { known(part) }
}

/// The numbers in a part of a [`room`].
///
/// # Safety
/// All of them were written.
#[inline(always)]
pub(crate) unsafe fn known<T>(part: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: they lie as values do, and are values by the caller's promise.
    unsafe { &mut *(std::ptr::from_mut(part) as *mut [T]) }
}

/// The numbers in a [`room`].
///
/// # Safety
/// All of them were written.
pub(crate) unsafe fn written<T>(room: Vec<MaybeUninit<T>>) -> Vec<T> {
    let mut room = ManuallyDrop::new(room);
    // SAFETY: the parts are those of a vector that nobody drops, its elements have the same layout, and the caller
    // promises that they were written.
    unsafe { Vec::from_raw_parts(room.as_mut_ptr().cast(), room.len(), room.capacity()) }
}
