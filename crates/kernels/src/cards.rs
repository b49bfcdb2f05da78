//! The graphics cards of this machine, before any of them is used.

use crate::error::{Error, Lack, Result};

/// The driver, and the cards that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cards {
    /// The newest CUDA that the driver runs: major and minor.
    pub driver: (usize, usize),
    /// Cards by ordinal.
    pub cards: Vec<Card>,
}

/// A card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// What its maker calls it.
    pub name: String,
    /// Its compute capability: major and minor.
    pub capability: (usize, usize),
    /// Its memory in bytes.
    pub memory: u64,
}

impl Cards {
    /// Asks the driver; no card is touched.
    ///
    /// # Errors
    /// [`ErrorKind::Device`](crate::ErrorKind::Device) where this build has no CUDA or the driver does not answer.
    pub fn find() -> Result<Self> {
        Err(Error::device(Lack::Build, "this build has no CUDA"))
    }
}
