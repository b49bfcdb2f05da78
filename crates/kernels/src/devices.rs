//! Devices that work on one model together, each with weights and pages of its own.
//!
//! They have one page table, which the caller keeps, and the same numbers in every page. Within a forward pass none
//! needs another. What one alone has computed goes to the others when it is committed: all layers at once, and only the
//! rows that are kept.

use std::sync::Arc;
#[cfg(feature = "nccl")]
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;

use crate::Kernels;
#[cfg(feature = "nccl")]
use crate::card::nccl::Group;
#[cfg(feature = "card")]
use crate::cards::Cards;
#[cfg(all(feature = "card", not(feature = "nccl")))]
use crate::error::Lack;
use crate::error::{Error, ErrorKind, Result};
use crate::kv::{KvStore, Move};

/// The most devices that can work together.
const MOST: usize = 64;

/// Devices that work together, in the order of their ranks. Clones share them.
#[derive(Clone, Debug)]
pub struct Devices {
    kernels: Arc<[Kernels]>,
    exchange: Arc<Exchange>,
}

/// How rows come from one device to the others.
#[derive(Debug)]
enum Exchange {
    /// Memory is common, and each reads them where they are.
    Common,
    /// One broadcast for all layers of a path.
    #[cfg(feature = "nccl")]
    Broadcast(Mutex<Group>),
}

/// A path's rows as one device has staged them, and the slots that they are committed to.
#[derive(Debug, Clone)]
pub struct Path<'a> {
    /// Each layer's keys and values, `[m, kv_heads, d]`.
    pub layers: &'a [(Tensor, Tensor)],
    /// The path's rows.
    pub moves: Vec<Move>,
}

impl From<&Kernels> for Devices {
    /// A device that works alone.
    fn from(kernels: &Kernels) -> Self {
        let alone = Kernels { rank: 0, ..kernels.clone() };
        Self { kernels: Arc::new([alone]), exchange: Arc::new(Exchange::Common) }
    }
}

impl From<&Devices> for Devices {
    fn from(devices: &Devices) -> Self {
        devices.clone()
    }
}

impl Devices {
    /// Lets devices work together; their ranks are their places in `kernels`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for none, more than 64, or cards beside this CPU, and as [`Cards::alike`];
    /// [`ErrorKind::Device`] where NCCL is missing or can't join the cards.
    pub fn join(kernels: &[Kernels]) -> Result<Self> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Unsupported, message));
        if kernels.is_empty() || kernels.len() > MOST {
            return refuse(format!("{} devices; 1 to {MOST} can work together", kernels.len()));
        }
        let first = &kernels[0];
        if let Some(other) = kernels.iter().find(|other| other.on_card() != first.on_card()) {
            return refuse(format!("{} and {}; cards work with cards only", first.name(), other.name()));
        }
        #[cfg(feature = "card")]
        let exchange = Exchange::of(kernels)?;
        #[cfg(not(feature = "card"))]
        let exchange = Exchange::Common;
        let ranked = kernels.iter().enumerate();
        let kernels = ranked.map(|(rank, kernels)| Kernels { rank, ..kernels.clone() }).collect();
        Ok(Self { kernels, exchange: Arc::new(exchange) })
    }

    /// Each device, by its rank.
    pub fn each(&self) -> &[Kernels] {
        &self.kernels
    }

    /// Commits a path on every device: its rows go to the same slots everywhere, in every layer. A device that has the
    /// rows writes its own; the others get those of the first that has.
    ///
    /// * `stores`: each device's layers
    /// * `paths`: what each device has staged of the path: all of it, or nothing
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] if there is not one entry a device, [`ErrorKind::Range`] if nobody has the rows, and as
    /// [`Kernels::write`].
    pub fn write(&self, stores: &[Vec<KvStore>], paths: &[Option<Path<'_>>]) -> Result<()> {
        let devices = self.kernels.len();
        if stores.len() != devices || paths.len() != devices {
            let (stores, paths) = (stores.len(), paths.len());
            return Err(Error::shape(format!("{stores} stores and {paths} paths for {devices} devices")));
        }
        let Some(source) = paths.iter().flatten().next() else {
            return Err(Error::range("no device has staged the rows"));
        };
        let each = self.kernels.iter().zip(stores).zip(paths);
        match &*self.exchange {
            Exchange::Common => each.into_iter().try_for_each(|((kernels, stores), path)| {
                write(kernels, stores, path.as_ref().unwrap_or(source))
            }),
            #[cfg(feature = "nccl")]
            Exchange::Broadcast(group) => {
                for ((kernels, stores), path) in each {
                    path.iter().try_for_each(|path| write(kernels, stores, path))?;
                }
                let (having, lacking): (Vec<usize>, Vec<usize>) =
                    (0..devices).partition(|&rank| paths[rank].is_some());
                if lacking.is_empty() {
                    return Ok(());
                }
                let mut group = group.lock().unwrap_or_else(PoisonError::into_inner);
                let rows: Vec<u32> = source.moves.iter().map(|at| at.row).collect();
                let theirs = group.exchange(having[0], &lacking, source.layers, &rows)?;
                lacking.into_iter().zip(theirs).try_for_each(|(rank, layers)| {
                    let moves = source.moves.iter().zip(0..).map(|(at, row)| Move { row, ..*at }).collect();
                    write(&self.kernels[rank], &stores[rank], &Path { layers: &layers, moves })
                })
            }
        }
    }
}

#[cfg(feature = "card")]
impl Exchange {
    /// What lets these devices, all cards or none, work together.
    fn of(kernels: &[Kernels]) -> Result<Self> {
        let cards: Vec<_> = kernels.iter().filter_map(Kernels::card).cloned().collect();
        if cards.len() < 2 {
            return Ok(Self::Common);
        }
        let ordinals: Vec<usize> = cards.iter().filter_map(|card| card.ordinal()).collect();
        if !ordinals.is_empty() {
            Cards::find()?.alike(&ordinals)?;
        }
        #[cfg(feature = "nccl")]
        return Ok(Self::Broadcast(Group::new(cards)?.into()));
        #[cfg(not(feature = "nccl"))]
        if ordinals.is_empty() {
            // This CPU plays them, in its own memory.
            Ok(Self::Common)
        } else {
            Err(Error::device(Lack::Nccl, "several cards need NCCL, which this build does without"))
        }
    }
}

/// Commits a path on the device that has it, or that can read it where it is.
fn write(kernels: &Kernels, stores: &[KvStore], path: &Path<'_>) -> Result<()> {
    let layers: Vec<_> = stores.iter().zip(path.layers).map(|(store, (k, v))| (store, k, v)).collect();
    kernels.write(&layers, &path.moves)
}
