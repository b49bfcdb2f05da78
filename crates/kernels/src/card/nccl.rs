//! NCCL, by which cards hand numbers to each other.
//!
//! The library is looked for when cards are first joined: what runs on one card, or on none, does without it.
//! (cudarc's binding would link it, as it links all that candle uses, so that nothing could be loaded where it is
//! missing.) All cards are driven from one thread, so every exchange is a group of calls, one a card; it takes its turn in
//! the cards' streams, and nobody waits for it.

use std::env;
use std::ffi::{CStr, OsStr, OsString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use candle_core::{IndexOp, Tensor};
use libloading::Library;

use super::{Arg, Buffer, Card, count, start, start_mut};
use crate::error::{Error, ErrorKind, Lack, Result};
use crate::flat::dims;
use crate::words::Words;

/// The library's name where `TREFOIL_NCCL` gives no other.
const LIBRARY: &str = "libnccl.so.2";

/// `ncclUint8`.
const BYTES: c_int = 1;

/// Layers of one launch, as `gather_rows` takes them.
const LAYERS: usize = 64;

/// Each layer's keys and values.
type Layers = Vec<(Tensor, Tensor)>;

/// `ncclComm_t`: a card's part in a group.
type Comm = *mut c_void;
/// `ncclResult_t`; 0 is success.
type Status = c_int;

/// What is called of the library, as `nccl.h` declares it.
struct Api {
    init: unsafe extern "C" fn(*mut Comm, c_int, *const c_int) -> Status,
    destroy: unsafe extern "C" fn(Comm) -> Status,
    begin: unsafe extern "C" fn() -> Status,
    end: unsafe extern "C" fn() -> Status,
    broadcast:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status,
    describe: unsafe extern "C" fn(Status) -> *const c_char,
    last: unsafe extern "C" fn(Comm) -> *const c_char,
    /// Everything above lies in it.
    _library: Library,
}

/// Cards that exchange, each with a buffer of its own for it.
pub(crate) struct Group {
    api: Api,
    comms: Vec<Comm>,
    buffers: Vec<Buffer>,
    cards: Vec<Arc<Card>>,
}

// SAFETY: a group is used by one thread at a time, by whichever; it has no thread's state.
unsafe impl Send for Group {}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Group({} cards)", self.cards.len())
    }
}

impl Api {
    fn open(library: &OsStr) -> Result<Self> {
        let missing = |cause: libloading::Error| {
            lacking(format!("several cards need NCCL, and {} can't be loaded: {cause}", library.display()))
        };
        // SAFETY: what NCCL runs when it is loaded is for any process.
        let library = unsafe { Library::new(library) }.map_err(missing)?;
        macro_rules! find {
            ($name:literal) => {
                // SAFETY: the field has the type that `nccl.h` gives the function.
                *unsafe { library.get($name) }.map_err(missing)?
            };
        }
        Ok(Self {
            init: find!(b"ncclCommInitAll"),
            destroy: find!(b"ncclCommDestroy"),
            begin: find!(b"ncclGroupStart"),
            end: find!(b"ncclGroupEnd"),
            broadcast: find!(b"ncclBroadcast"),
            describe: find!(b"ncclGetErrorString"),
            last: find!(b"ncclGetLastError"),
            _library: library,
        })
    }

    /// What went wrong, where something did.
    fn check(&self, status: Status) -> std::result::Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: both give texts that live until the next call, and the latter takes no group too.
        let [what, why] = unsafe { [(self.describe)(status), (self.last)(null_mut())] };
        let text = |text: *const c_char| {
            // SAFETY: NCCL's texts end in a zero.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let said = [what, why].into_iter().filter_map(text).filter(|said| !said.is_empty());
        Err(said.collect::<Vec<_>>().join(": "))
    }

    /// Starts `call`s as one: nothing moves before all are made.
    fn together(&self, call: impl FnOnce() -> std::result::Result<(), String>) -> Result<()> {
        // SAFETY: every group that begins ends below, whatever happens in between.
        let begun = self.check(unsafe { (self.begin)() });
        let called = begun.and_then(|()| call());
        // SAFETY: as above.
        let ended = self.check(unsafe { (self.end)() });
        called
            .and(ended)
            .map_err(|said| Error::new(ErrorKind::Backend, format!("NCCL could not exchange rows: {said}")))
    }
}

impl Group {
    /// Joins cards; the first is number 0.
    pub(crate) fn new(cards: Vec<Arc<Card>>) -> Result<Self> {
        Self::by(&library(&cards[0])?, cards)
    }

    fn by(library: &OsStr, cards: Vec<Arc<Card>>) -> Result<Self> {
        let api = Api::open(library)?;
        let ordinals: Vec<c_int> =
            cards.iter().enumerate().map(|(at, card)| card.ordinal().unwrap_or(at) as c_int).collect();
        let mut comms = vec![null_mut(); cards.len()];
        // SAFETY: there is room for as many as there are cards, and the names of as many.
        let status = unsafe { (api.init)(comms.as_mut_ptr(), comms.len() as c_int, ordinals.as_ptr()) };
        api.check(status).map_err(|said| lacking(format!("NCCL can't join the cards: {said}")))?;
        Ok(Self { api, comms, buffers: Vec::new(), cards })
    }

    /// Gives rows of staged keys and values, which card `root` has, to the cards `lacking`, all layers at once.
    ///
    /// * `layers`: each layer's keys and values, `[m, kv_heads, d]`
    ///
    /// Returns the rows alone, `[rows, kv_heads, d]`, for each layer and card.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] if layers differ in shape, and [`ErrorKind::Backend`] if NCCL or a card fails.
    pub(crate) fn exchange(
        &mut self,
        root: usize,
        lacking: &[usize],
        layers: &[(Tensor, Tensor)],
        rows: &[u32],
    ) -> Result<Vec<Layers>> {
        let Some((k, _)) = layers.first() else { return Ok(vec![Vec::new(); lacking.len()]) };
        let [_, heads, d] = dims("staged keys", k)?;
        if layers.iter().any(|(other, _)| other.dims() != k.dims()) {
            return Err(Error::shape("layers of different shapes can't be exchanged"));
        }
        // Keys before values.
        let packed = [layers.len(), 2, rows.len(), heads, d];
        let theirs = self.broadcast(root, lacking, &packed, |card, to| {
            let list = Words::from(rows.to_vec());
            let rows_at = Arg::Address(card.words(&list)?);
            for (at, some) in layers.chunks(LAYERS).enumerate() {
                let mut places = [0; 4 * LAYERS];
                for (index, (k, v)) in some.iter().enumerate() {
                    places[index] = start("staged keys", k)?;
                    places[LAYERS + index] = start("staged values", v)?;
                }
                let to = to + (at * LAYERS * 2 * rows.len() * heads * d * size_of::<f32>()) as u64;
                let args = [Arg::Words(&places), rows_at, Arg::Address(to), count(heads * d)];
                // SAFETY: the rows have been committed on this card, so they are there, and `to` has room for them.
                unsafe { card.launch("gather_rows", [rows.len(), some.len(), 1], 256, &args) }?;
            }
            Ok(())
        })?;
        let each = |packed: Tensor| {
            let layer = |at| Ok((packed.i((at, 0))?, packed.i((at, 1))?));
            (0..layers.len()).map(layer).collect()
        };
        theirs.into_iter().map(each).collect()
    }

    /// Gives cards the numbers, in a tensor of `dims`, that `fill` puts at an address of card `root`.
    ///
    /// * `wanted`: the numbers of the cards that get them
    fn broadcast(
        &mut self,
        root: usize,
        wanted: &[usize],
        dims: &[usize],
        fill: impl FnOnce(&Card, u64) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let len = dims.iter().product::<usize>() * size_of::<f32>();
        if self.buffers.first().is_none_or(|buffer| buffer.len() < len) {
            self.buffers.clear();
            let len = len.next_power_of_two();
            self.buffers = self.cards.iter().map(|card| card.fixed(len)).collect::<Result<_>>()?;
        }
        let starts: Vec<u64> = self.buffers.iter().map(Buffer::start).collect();
        fill(&self.cards[root], starts[root])?;
        let api = &self.api;
        api.together(|| {
            for ((card, &comm), &start) in self.cards.iter().zip(&self.comms).zip(&starts) {
                let at = start as *mut c_void;
                // SAFETY: every card's buffer has room for the bytes, is its alone, and outlives what its stream does
                // with it: it is freed when the stream is done.
                let status =
                    unsafe { (api.broadcast)(at, at, len, BYTES, root as c_int, comm, card.stream()) };
                api.check(status)?;
            }
            Ok(())
        })?;
        // The next exchange takes the buffers again; a tensor stays for as long as it is asked for.
        let taken = wanted.iter().map(|&rank| {
            let tensor = self.cards[rank].output(dims)?;
            // SAFETY: buffer and tensor have so many bytes each, and are two.
            unsafe { self.cards[rank].copy(starts[rank], start_mut(&tensor)?, len) }?;
            Ok(tensor)
        });
        taken.collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Waits for the streams.
        self.buffers.clear();
        for &comm in &self.comms {
            // SAFETY: the group's own, and nothing is under way. There is nobody to tell of a failure.
            let _ = unsafe { (self.api.destroy)(comm) };
        }
    }
}

/// The library for such cards: one of this machine, or one that stands in for it where this CPU plays the cards.
fn library(card: &Card) -> Result<OsString> {
    #[cfg(feature = "emulate")]
    if card.ordinal().is_none() {
        return super::emulated::nccl().map(Into::into);
    }
    let _ = card;
    Ok(env::var_os("TREFOIL_NCCL").unwrap_or_else(|| LIBRARY.into()))
}

fn lacking(message: String) -> Error {
    Error::device(Lack::Nccl, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_a_typed_error() {
        let error = Api::open(OsStr::new("/no/such/libnccl.so")).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Device(Lack::Nccl));
        let said = error.to_string();
        assert!(
            said.starts_with("several cards need NCCL, and /no/such/libnccl.so can't be loaded: "),
            "{said}"
        );
    }

    /// Everything that is called is there, and what goes wrong is said in its words.
    #[test]
    #[ignore = "needs NCCL, which TREFOIL_NCCL names: npm run test:cuda"]
    fn the_library_is_bound_as_it_is() {
        let api = Api::open(&env::var_os("TREFOIL_NCCL").unwrap()).unwrap();
        let mut comms = [null_mut(); 2];
        // SAFETY: two cards, neither of which exists, and room for two.
        let status = unsafe { (api.init)(comms.as_mut_ptr(), 2, [1000, 1001].as_ptr()) };
        let said = api.check(status).unwrap_err();
        assert!(said.len() > 20 && said.contains(": "), "{said}");
        assert!(api.together(|| Ok(())).is_ok());
        // SAFETY: no buffers, no card: refused before anything is read.
        let refused = unsafe { (api.broadcast)(null_mut(), null_mut(), 8, BYTES, 0, null_mut(), null_mut()) };
        assert!(api.check(refused).is_err());
    }
}
