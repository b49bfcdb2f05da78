//! The tensors of a model, by one set of names, from safetensors or GGUF.
//!
//! Files are read by positioned reads and never mapped: a mapped file that another program shortens ends the process
//! with SIGBUS, where a short read is an error like any other. One tensor is in memory at a time, because the
//! kernels repack what they are given. Both formats are reduced to one directory (name → place, type, shape) while
//! opening, so that everything after it, checks included, exists once.
//!
//! Rejected: candle's readers (they trust sizes in the file, and a 4 kB file can abort the process), and renaming in
//! the model code (a second format would double every name there).

mod cast;
mod file;
pub mod gguf;
mod random;
mod safetensors;
mod stored;
mod unread;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use trefoil_kernels::WeightType;

use crate::error::{Error, Result};
use file::ModelFile;
use stored::{ALLOWED, Stored, is_finite};

/// One tensor as the file stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// The type of its elements.
    pub ty: WeightType,
    /// Row-major, `[n, k]` for a matrix that maps `k` inputs to `n` outputs.
    pub shape: Vec<usize>,
    /// Rows one after the other, each in the layout of `ty`.
    pub bytes: Vec<u8>,
}

/// A model's tensors, not yet read.
pub struct Weights {
    files: Vec<ModelFile>,
    entries: HashMap<String, Entry>,
    metadata: Option<gguf::Metadata>,
    dense: Option<WeightType>,
    /// Where the tensors come from, if not from files.
    random: Option<random::Random>,
}

/// Where a tensor lies. Whoever makes one has checked that it lies within its file and that its type is whole.
struct Entry {
    file: usize,
    offset: u64,
    bytes: usize,
    shape: Vec<usize>,
    ty: Stored,
    rows: Rows,
    /// Whether any of it has been read.
    read: AtomicBool,
}

impl Entry {
    fn is_read(&self) -> bool {
        self.read.load(Ordering::Relaxed)
    }
}

/// The order of a matrix's rows in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// As the models want them.
    Straight,
    /// Every head's rows pair dimension `j` with `j + d/2`, as interleaved rotary embeddings want them.
    Interleaved { heads: usize },
}

impl Weights {
    /// Opens a folder with `model.safetensors` or `model.safetensors.index.json`, or one `.gguf` file.
    ///
    /// # Errors
    /// Fails (`ErrorKind::Load`) where no such file is or its directory of tensors is broken, and
    /// (`ErrorKind::Unsupported`) for an element type or a kind of model that cannot be run.
    pub fn open(source: &Path) -> Result<Self> {
        let kind = std::fs::metadata(source)
            .map_err(|cause| Error::load(format!("{} cannot be opened", source.display())).because(cause))?;
        if kind.is_dir() {
            return safetensors::open(source);
        }
        if !is_gguf(source) {
            return Err(Error::load(format!("{} is neither a folder nor a .gguf file", source.display())));
        }
        gguf::open(source)
    }

    /// Seeded numbers for tensors of every name and shape, matrices as `ty` where their rows are whole blocks of it:
    /// to measure what does not depend on the numbers. Nothing is known of a tensor before it is read.
    pub fn random(ty: WeightType, seed: u64) -> Self {
        let random = Some(random::Random::new(ty, seed));
        Self { files: Vec::new(), entries: HashMap::new(), metadata: None, dense: None, random }
    }

    /// The shape of a tensor, row-major.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// All names, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Bytes of all tensors in the types that they are read as.
    pub fn total_bytes(&self) -> u64 {
        let bytes = |(name, entry): (&String, &Entry)| match entry.ty {
            Stored::Weight(ty) => {
                let read = cast::target(ty, self.dense, name, &entry.shape);
                let blocks = entry.bytes / ty.block_bytes() * ty.block_elements() / read.block_elements();
                (blocks * read.block_bytes()) as u64
            }
            Stored::Other(_) => entry.bytes as u64,
        };
        self.entries.iter().map(bytes).sum()
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.entries.values().map(|entry| entry.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// What a GGUF file says about its model; nothing for safetensors.
    pub fn metadata(&self) -> Option<&gguf::Metadata> {
        self.metadata.as_ref()
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// Fails (`ErrorKind::Load`) for a missing tensor, another shape than `expected`, a file that has become
    /// shorter, and weights or scales that are not finite.
    pub fn read(&self, name: &str, expected: &[usize]) -> Result<RawTensor> {
        let rows = expected.first().copied().unwrap_or(1);
        self.read_rows(name, expected, 0..rows)
    }

    /// [`Weights::read`] of some rows only. Where a file has them in another order, they are all read to find them.
    ///
    /// # Errors
    /// As [`Weights::read`], and for rows beyond the last.
    pub fn read_rows(&self, name: &str, expected: &[usize], rows: Range<usize>) -> Result<RawTensor> {
        if let Some(random) = &self.random {
            return random.rows(name, expected, rows);
        }
        let entry = self.entries.get(name).ok_or_else(|| Error::load(format!("tensor {name} is missing")))?;
        if entry.shape != expected {
            return Err(Error::load(format!(
                "tensor {name} has shape {:?}; expected {expected:?}",
                entry.shape
            )));
        }
        let ty = match &entry.ty {
            Stored::Weight(ty) => *ty,
            Stored::Other(ty) => {
                return Err(Error::unsupported(format!(
                    "tensor {name} has type {ty}; allowed are {ALLOWED}"
                )));
            }
        };
        let all = expected.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > all {
            return Err(Error::internal(format!("rows {rows:?} of tensor {name}, which has {all}")));
        }
        entry.read.store(true, Ordering::Relaxed);
        // A vector of a quantised type has no rows of its own; it is read whole.
        let at = |row: usize| if row == all { entry.bytes } else { row * (entry.bytes / all) };
        let wanted = at(rows.start)..at(rows.end);
        let file = &self.files[entry.file];
        let bytes = match entry.rows {
            Rows::Straight => file.read(entry.offset + wanted.start as u64, wanted.len(), name)?,
            Rows::Interleaved { heads } => {
                let bytes = file.read(entry.offset, entry.bytes, name)?;
                let straight = straighten(&bytes, expected, heads).ok_or_else(|| {
                    Error::load(format!("tensor {name} of {expected:?} has no {heads} even heads"))
                })?;
                straight[wanted].to_vec()
            }
        };
        if !is_finite(ty, &bytes) {
            return Err(Error::load(format!("tensor {name} holds NaN or infinite values")));
        }
        let shape = std::iter::once(rows.len()).chain(expected.iter().skip(1).copied()).collect();
        let raw = RawTensor { ty, shape, bytes };
        cast::cast(raw, cast::target(ty, self.dense, name, expected))
    }

    /// Has dense tensors read as `ty`: another dense type, or 8-bit blocks for matrices whose rows are whole ones.
    /// Quantised tensors keep their own type.
    pub fn read_dense_as(&mut self, ty: WeightType) {
        self.dense = Some(ty);
    }

    /// The type that most elements are read as.
    pub fn main_type(&self) -> Option<WeightType> {
        let mut elements: HashMap<WeightType, u64> = HashMap::new();
        for (name, entry) in &self.entries {
            if let Stored::Weight(ty) = entry.ty {
                let ty = cast::target(ty, self.dense, name, &entry.shape);
                *elements.entry(ty).or_default() += entry.shape.iter().map(|&n| n as u64).product::<u64>();
            }
        }
        elements.into_iter().max_by_key(|&(_, count)| count).map(|(ty, _)| ty)
    }
}

fn is_gguf(source: &Path) -> bool {
    source.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Puts the rows of interleaved heads (0, d/2, 1, d/2 + 1, …) back into their own order (0, 1, …, d − 1).
///
/// A row is a whole range of bytes in every type, so quantised weights move as they are.
fn straighten(bytes: &[u8], shape: &[usize], heads: usize) -> Option<Vec<u8>> {
    let rows = *shape.first()?;
    let head = rows.checked_div(heads)?;
    if head == 0 || head % 2 != 0 || head * heads != rows || !bytes.len().is_multiple_of(rows) {
        return None;
    }
    let width = bytes.len() / rows;
    let mut straight = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (start, within) = (row - row % head, row % head);
        let from = start + 2 * (within % (head / 2)) + within / (head / 2);
        straight.extend_from_slice(&bytes[from * width..][..width]);
    }
    Some(straight)
}
