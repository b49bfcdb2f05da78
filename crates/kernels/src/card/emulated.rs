//! The card's kernels on this CPU: the same sources, compiled as C++ against `shim.h`.
//!
//! The shim runs a block's threads as fibres, so that barriers and warps behave as on a card. It is
//! slow and there for tests: of kernels, of everything that starts them, and, through mutations, of
//! the tests themselves.

use std::collections::hash_map::DefaultHasher;
use std::ffi::c_void;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;

use super::recorder::Launch;
use crate::error::{Error, ErrorKind, Result};

macro_rules! sources {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../", $name)))),*] };
}

/// Every file that the kernels are compiled from, by its place in `src`.
const SOURCES: &[(&str, &str)] = sources![
    "card/card.cuh",
    "card/copy.cuh",
    "card/mma.cuh",
    "card/shim.h",
    "attend.cu",
    "dense.cu",
    "dense_many.cu",
    "draw.cu",
    "elementwise.cu",
    "exp.cuh",
    "forms.cuh",
    "halves.cuh",
    "integer.cu",
    "integer_many.cu",
    "kernels.cu",
    "kv.cu",
    "look.cuh",
    "norm.cu",
    "quantise.cu",
    "rope.cu",
    "round.cu",
    "shared.cu",
    "softmax.cu",
    "text.cuh",
    "tile.cuh",
    "weight.cu",
];

/// A change to a kernel's source, for a test that must notice it.
#[derive(Debug, Clone, Copy)]
pub struct Mutation {
    /// The file in `src`: `norm.cu`.
    pub file: &'static str,
    /// What is replaced; it stands in the file once.
    pub from: &'static str,
    /// What takes its place.
    pub to: &'static str,
}

/// Bytes of shared memory that a block may be given: what every card since compute capability 8.0 has. shim.h has the same.
pub(super) const ROOM: usize = 99 << 10;

/// Looks a kernel up by its name.
type Find = unsafe extern "C" fn(name: *const u8, len: usize) -> Option<Start>;
/// Runs a kernel: the grid, threads a block, bytes of shared memory, pointers to the arguments.
type Start = unsafe extern "C" fn(grid: *const u32, threads: u32, shared: u32, args: *mut *mut c_void);

pub(super) struct Emulated {
    library: Library,
    /// Whether it makes graphs.
    graphs: bool,
}

/// A library is in the process once, with one memory for all blocks, so one kernel runs at a time.
static BUSY: Mutex<()> = Mutex::new(());

/// What is compiled is compiled once.
static COMPILING: Mutex<()> = Mutex::new(());

/// Bytes in this CPU's memory, of which kernels are told the address.
pub(crate) struct Bytes {
    start: *mut u8,
    layout: std::alloc::Layout,
}

// SAFETY: a kernel that writes them runs to its end within a call, one at a time.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Emulated {
    /// Compiles the kernels.
    ///
    /// * `graphs`: whether it makes graphs
    pub(super) fn new(mutations: &[Mutation], graphs: bool) -> Result<Self> {
        let mut files: Vec<(&str, String)> =
            SOURCES.iter().map(|&(name, text)| (name, text.to_owned())).collect();
        for Mutation { file, from, to } in mutations {
            let found = files.iter_mut().find(|(name, _)| name == file).map(|(_, text)| text);
            match found {
                Some(text) if text.matches(from).count() == 1 => *text = text.replace(from, to),
                _ => return Err(broken(format!("{file} does not hold {from:?} once"))),
            }
        }
        let library = compile("kernels.cu", &files)?;
        // SAFETY: the library was compiled from this crate's sources, which run nothing when loaded.
        let library = unsafe { Library::new(&library) }
            .map_err(|cause| broken(format!("{} cannot be loaded: {cause}", library.display())))?;
        Ok(Self { library, graphs })
    }

    /// Runs a launch, whose safety `Card::launch` was promised.
    pub(super) fn launch(&self, launch: &Launch) -> Result<()> {
        let kernel = launch.kernel;
        // SAFETY: the shim defines `find_kernel` with this type.
        let find = unsafe { self.library.get::<Find>(b"find_kernel") }
            .map_err(|cause| broken(format!("the emulated kernels have no directory: {cause}")))?;
        // SAFETY: the name is borrowed for the call.
        let start = unsafe { find(kernel.as_ptr(), kernel.len()) };
        let start = start.ok_or_else(|| broken(format!("there is no kernel {kernel}")))?;
        let _busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the promise.
        unsafe { start(launch.grid.as_ptr(), launch.threads, launch.shared, launch.pointers().as_mut_ptr()) };
        Ok(())
    }

    pub(super) fn graph(self: &Arc<Self>, launches: &[Launch]) -> Result<Graph> {
        if !self.graphs {
            return Err(broken("this card makes no graphs".to_owned()));
        }
        Ok(Graph { machine: Arc::clone(self), launches: launches.to_vec() })
    }
}

/// Launches that are remembered.
pub(super) struct Graph {
    machine: Arc<Emulated>,
    launches: Vec<Launch>,
}

impl Graph {
    pub(super) fn change(&mut self, at: usize, launch: &Launch) -> Result<()> {
        let found =
            self.launches.get_mut(at).ok_or_else(|| Error::range(format!("launch {at} of a graph")))?;
        *found = launch.clone();
        Ok(())
    }

    pub(super) fn start(&self) -> Result<()> {
        self.launches.iter().try_for_each(|launch| self.machine.launch(launch))
    }
}

impl Bytes {
    pub(super) fn zeros(len: usize) -> Result<Self> {
        let no_room = || Error::new(ErrorKind::Memory, format!("no memory for {len} bytes"));
        let layout = std::alloc::Layout::from_size_align(len.max(1), 64).map_err(|_| no_room())?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        if start.is_null() { Err(no_room()) } else { Ok(Self { start, layout }) }
    }

    /// Bytes that are no numbers until a kernel has written them.
    pub(super) fn unwritten(len: usize) -> Result<Self> {
        let made = Self::zeros(len)?;
        // SAFETY: so many bytes are this value's own.
        unsafe { made.start.write_bytes(0xff, made.layout.size()) };
        Ok(made)
    }

    pub(super) fn len(&self) -> usize {
        self.layout.size()
    }

    pub(super) fn address(&self) -> u64 {
        self.start as u64
    }

    pub(super) fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.check(at, bytes.len())?;
        // SAFETY: the bytes fit, no kernel runs, and only the thread that took the buffer writes there.
        unsafe { self.start.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    pub(super) fn read(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        self.check(at, len)?;
        // SAFETY: the bytes are within, and no kernel runs.
        Ok(unsafe { std::slice::from_raw_parts(self.start.add(at), len) }.to_vec())
    }

    fn check(&self, at: usize, len: usize) -> Result<()> {
        let size = self.layout.size();
        if at.checked_add(len).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::range(format!("{len} bytes at {at} of a buffer of {size}")))
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.start, self.layout) };
    }
}

/// A library that stands in for NCCL.
#[cfg(feature = "nccl")]
pub(super) fn nccl() -> Result<PathBuf> {
    compile("nccl.cpp", &[("nccl.cpp", include_str!("nccl.cpp").to_owned())])
}

/// Compiles the sources, by the one that includes the others, to a library in the folder of temporary files, once for
/// the same sources.
fn compile(main: &str, files: &[(&str, String)]) -> Result<PathBuf> {
    let mut hash = DefaultHasher::new();
    files.hash(&mut hash);
    let name = format!("trefoil-emulated-{:016x}", hash.finish());
    let library = std::env::temp_dir().join(format!("{name}.so"));
    let _compiling = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    if library.exists() {
        return Ok(library);
    }
    let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    let compiled = compile_in(&folder, main, files);
    // Renamed, so that another test that compiles the same never loads half a library.
    let placed = compiled.and_then(|built| {
        std::fs::rename(built, &library).map_err(|cause| broken(format!("{}: {cause}", library.display())))
    });
    // What is left behind is in the folder of temporary files.
    let _ = std::fs::remove_dir_all(&folder);
    placed.map(|()| library)
}

fn compile_in(folder: &Path, main: &str, files: &[(&str, String)]) -> Result<PathBuf> {
    let unwritten = |cause: std::io::Error| broken(format!("{}: {cause}", folder.display()));
    std::fs::create_dir_all(folder.join("card")).map_err(unwritten)?;
    for (name, text) in files {
        std::fs::write(folder.join(name), text).map_err(unwritten)?;
    }
    let built = folder.join("kernels.so");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let flags = [
        "-std=c++17",
        "-O2",
        "-march=native",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        "-fno-strict-aliasing",
        "-x",
        "c++",
    ];
    let output = Command::new(&compiler)
        .args(flags)
        .args(["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", "-I"])
        .args([folder, &folder.join(main), Path::new("-o"), &built])
        .output()
        .map_err(|cause| broken(format!("{compiler} cannot be run: {cause}")))?;
    if output.status.success() {
        return Ok(built);
    }
    Err(broken(format!("{compiler} failed: {}", String::from_utf8_lossy(&output.stderr))))
}

fn broken(message: String) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}
