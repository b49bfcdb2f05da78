//! A card: the device on which operations run that do not run on this CPU.
//!
//! An operation checks its shapes once, for the CPU and for cards; then a card is handed addresses
//! and sizes. Activations are the same `f32` tensors, on the card. Everything runs in one stream,
//! so what is launched first is done first, and nothing has to be waited for but a download.
//!
//! There are two machines. [`cuda`] is an NVIDIA card. [`emulated`] compiles the very same kernels
//! for this CPU, thread for thread, so that kernels and all that leads to them are tested where no
//! card is.

mod address;
#[cfg(feature = "cuda")]
mod cuda;
mod due;
#[cfg(feature = "emulate")]
mod emulated;
mod joint;
mod launch;
#[cfg(feature = "nccl")]
pub(crate) mod nccl;
mod recorder;

use address::elsewhere;
pub(crate) use address::{address, address_mut, start, start_mut};
pub(crate) use due::{Change, Due, LAYERS};
#[cfg(feature = "emulate")]
pub use emulated::Mutation;
pub(crate) use joint::{Joint, Shape};
use recorder::Recorder;

#[cfg(feature = "nccl")]
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::words::{Calls, Place, Words};

/// A device's own memory, its kernels and its one stream.
pub(crate) struct Card {
    due: Mutex<Due>,
    recorder: Mutex<Recorder>,
    uploads: AtomicUsize,
    downloads: AtomicUsize,
    downloaded: AtomicUsize,
    launches: AtomicUsize,
    counters: Mutex<Option<Arc<Buffer>>>,
    /// Dropped behind all that holds its memory.
    machine: Machine,
}

enum Machine {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Cuda),
    #[cfg(feature = "emulate")]
    Emulated(Arc<emulated::Emulated>),
}

/// Bytes on a card.
pub(crate) enum Buffer {
    #[cfg(feature = "cuda")]
    Cuda(cuda::Bytes),
    /// In reach of other cards.
    #[cfg(all(feature = "cuda", feature = "nccl"))]
    Fixed(cuda::Fixed),
    #[cfg(feature = "emulate")]
    Emulated(emulated::Bytes),
}

/// What a kernel is given.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// An address on the card; 0 is none.
    Address(u64),
    Count(i32),
    Number(f32),
    /// A structure of words, by value.
    Words(&'a [u64]),
}

impl Card {
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self::new(Machine::Cuda(cuda::Cuda::new(ordinal)?)))
    }

    #[cfg(feature = "emulate")]
    pub(crate) fn emulated(mutations: &[Mutation], graphs: bool) -> Result<Self> {
        Ok(Self::new(Machine::Emulated(emulated::Emulated::new(mutations, graphs)?.into())))
    }

    fn new(machine: Machine) -> Self {
        Self {
            due: Mutex::default(),
            recorder: Mutex::default(),
            uploads: AtomicUsize::new(0),
            downloads: AtomicUsize::new(0),
            downloaded: AtomicUsize::new(0),
            launches: AtomicUsize::new(0),
            counters: Mutex::default(),
            machine,
        }
    }

    /// Where its tensors live.
    pub(crate) fn device(&self) -> Device {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.device(),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => Device::Cpu,
        }
    }

    /// What its maker calls it.
    pub(crate) fn name(&self) -> &str {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.name(),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => "emulated",
        }
    }

    /// How many blocks run side by side, at least.
    pub(crate) fn processors(&self) -> usize {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.processors(),
            // An odd number, so that shares end where nothing else does, and more than the fewest shares that there are.
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => 11,
        }
    }

    /// Bytes of shared memory that a block may be given.
    pub(crate) fn room(&self) -> usize {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.room(),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => emulated::ROOM,
        }
    }

    /// Its number on this machine; none where this CPU plays it.
    pub(crate) fn ordinal(&self) -> Option<usize> {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => Some(cuda.ordinal()),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => None,
        }
    }

    /// Its stream, as CUDA's libraries take it.
    #[cfg(feature = "nccl")]
    pub(crate) fn stream(&self) -> *mut c_void {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.stream(),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => std::ptr::null_mut(),
        }
    }

    /// Free bytes and all bytes; none where memory is the CPU's.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, reason = "an NVIDIA card can fail to answer")
    )]
    pub(crate) fn memory(&self) -> Result<Option<(usize, usize)>> {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.memory().map(Some),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => Ok(None),
        }
    }

    /// `len` bytes of zeros.
    pub(crate) fn zeros(&self, len: usize) -> Result<Buffer> {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.zeros(len.max(1)).map(Buffer::Cuda),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => emulated::Bytes::zeros(len).map(Buffer::Emulated),
        }
    }

    /// At least `len` bytes that a kernel will write before any are read.
    pub(crate) fn scratch(&self, len: usize) -> Result<Arc<Buffer>> {
        self.recorder().buffer(len, |len| match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.scratch(len.max(1)).map(Buffer::Cuda),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => emulated::Bytes::unwritten(len).map(Buffer::Emulated),
        })
    }

    /// So many whole numbers that are 0 whenever no kernel runs: one that counts in them leaves them so.
    pub(crate) fn counters(&self, len: usize) -> Result<Arc<Buffer>> {
        let bytes = len * size_of::<i32>();
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match &*counters {
            Some(found) if found.len() >= bytes => Arc::clone(found),
            _ => Arc::clone(counters.insert(Arc::new(self.zeros(bytes.next_power_of_two())?))),
        };
        self.recorder().hold(&found);
        Ok(found)
    }

    /// `len` bytes that other cards can reach, and that stay until the stream is done.
    #[cfg(feature = "nccl")]
    pub(crate) fn fixed(&self, len: usize) -> Result<Buffer> {
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.fixed(len.max(1)).map(Buffer::Fixed),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => emulated::Bytes::zeros(len).map(Buffer::Emulated),
        }
    }

    /// Copies `len` bytes on the card.
    ///
    /// # Safety
    /// Both addresses have so many bytes, and they do not overlap.
    #[cfg(feature = "nccl")]
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::unnecessary_wraps, reason = "an NVIDIA card can fail to answer")
    )]
    pub(crate) unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<()> {
        match &self.machine {
            #[cfg(feature = "cuda")]
            // SAFETY: the caller's promise.
            Machine::Cuda(cuda) => unsafe { cuda.copy(from, to, len) },
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => {
                // SAFETY: the caller's promise; addresses are this CPU's.
                unsafe { (to as *mut u8).copy_from_nonoverlapping(from as *const u8, len) };
                Ok(())
            }
        }
    }

    /// Writes `bytes` at `at` of `buffer`, which must have room for them.
    pub(crate) fn upload(&self, buffer: &Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        match (&self.machine, buffer) {
            #[cfg(feature = "cuda")]
            (Machine::Cuda(cuda), Buffer::Cuda(to)) => cuda.upload(to, at, bytes),
            #[cfg(feature = "emulate")]
            (Machine::Emulated(_), Buffer::Emulated(to)) => to.write(at, bytes),
            #[cfg(all(feature = "cuda", any(feature = "emulate", feature = "nccl")))]
            _ => Err(elsewhere("a buffer")),
        }
    }

    /// `len` bytes of `buffer` from `at` on, when all that was launched before is done.
    pub(crate) fn download(&self, buffer: &Buffer, at: usize, len: usize) -> Result<Vec<u8>> {
        self.start()?;
        self.note_download(len);
        match (&self.machine, buffer) {
            #[cfg(feature = "cuda")]
            (Machine::Cuda(cuda), Buffer::Cuda(from)) => cuda.download(from, at, len),
            #[cfg(feature = "emulate")]
            (Machine::Emulated(_), Buffer::Emulated(from)) => from.read(at, len),
            #[cfg(all(feature = "cuda", any(feature = "emulate", feature = "nccl")))]
            _ => Err(elsewhere("a buffer")),
        }
    }

    /// `count` numbers of a contiguous tensor from number `from` on, which it has.
    pub(crate) fn numbers(&self, tensor: &Tensor, from: usize, count: usize) -> Result<Vec<f32>> {
        self.start()?;
        let len = count * size_of::<f32>();
        self.note_download(len);
        match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => {
                let start = start("scores", tensor)? + (from * size_of::<f32>()) as u64;
                // SAFETY: the tensor has these numbers, and lives until the call returns.
                let bytes = unsafe { cuda.read(start, len) }?;
                Ok(bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect())
            }
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => Ok(tensor.flatten_all()?.narrow(0, from, count)?.to_vec1()?),
        }
    }

    fn note_download(&self, bytes: usize) {
        self.downloads.fetch_add(1, Ordering::Relaxed);
        self.downloaded.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What it was asked for.
    pub(crate) fn calls(&self) -> Calls {
        let [uploads, downloads, downloaded, launches] =
            [&self.uploads, &self.downloads, &self.downloaded, &self.launches]
                .map(|calls| calls.load(Ordering::Relaxed));
        Calls { uploads, downloads, downloaded, launches }
    }

    /// Where `words` lie on the card: there by now, or uploaded alone. What was due is started before anything reads
    /// them.
    pub(crate) fn words(&self, words: &Words) -> Result<u64> {
        if self.due().waits() {
            self.place(&[words])?;
        }
        self.placed(words)
    }

    /// [`Card::words`] of a list that says nothing of caches, so that what is due may wait.
    pub(crate) fn placed(&self, words: &Words) -> Result<u64> {
        if words.place().is_none() {
            self.place(&[words])?;
        }
        let place = words.place().ok_or_else(|| elsewhere("a list"))?;
        Ok(place.buffer.start() + (place.at * size_of::<u32>()) as u64)
    }

    /// Uploads what is due and the lists that are not on the card yet, in one copy; then starts what was due.
    pub(crate) fn place(&self, lists: &[&Words]) -> Result<()> {
        let due = std::mem::take(&mut *self.due());
        let (mut words, mut places) = (Vec::new(), Vec::with_capacity(lists.len()));
        for list in lists.iter().filter(|list| list.place().is_none()) {
            places.push((list, words.len()));
            words.extend_from_slice(list);
        }
        // Last, so that how much is due moves no list.
        let due_at = words.len();
        words.extend(due.words());
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let buffer = self.scratch(bytes.len())?;
        if !bytes.is_empty() {
            self.upload(&buffer, 0, &bytes)?;
        }
        due.launch(self, buffer.start() + (due_at * size_of::<u32>()) as u64)?;
        for (list, at) in places {
            list.put(Place { buffer: Arc::clone(&buffer), at });
        }
        Ok(())
    }

    /// What waits for the next upload.
    pub(crate) fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tensor whose numbers a kernel will write, all of them.
    pub(crate) fn output(&self, dims: &[usize]) -> Result<Tensor> {
        self.recorder().tensor(dims, || match &self.machine {
            #[cfg(feature = "cuda")]
            Machine::Cuda(cuda) => cuda.output(dims),
            #[cfg(feature = "emulate")]
            Machine::Emulated(_) => Ok(Tensor::full(f32::NAN, dims, &Device::Cpu)?),
        })
    }
}

impl Buffer {
    /// Its bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(bytes) => bytes.len(),
            #[cfg(all(feature = "cuda", feature = "nccl"))]
            Self::Fixed(bytes) => bytes.len(),
            #[cfg(feature = "emulate")]
            Self::Emulated(bytes) => bytes.len(),
        }
    }

    /// Where it begins, as an argument.
    pub(crate) fn address(&self) -> Arg<'static> {
        Arg::Address(self.start())
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> u64 {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(bytes) => bytes.address(),
            #[cfg(all(feature = "cuda", feature = "nccl"))]
            Self::Fixed(bytes) => bytes.address(),
            #[cfg(feature = "emulate")]
            Self::Emulated(bytes) => bytes.address(),
        }
    }
}

/// A count as kernels take it; shapes are checked long before one could be larger.
pub(crate) fn count(n: usize) -> Arg<'static> {
    Arg::Count(n as i32)
}
