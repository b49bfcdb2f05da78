//! Whole numbers that operations read by row: tokens, rows, pages, the bits of turns.
//!
//! A step has several lists of them, and every layer reads the same ones. A card is handed all of
//! a step's lists in one copy, by [`Kernels::upload`]; a list that was not among them goes alone
//! when it is first read.

use std::ops::Deref;
#[cfg(feature = "card")]
use std::sync::{Arc, OnceLock};

use crate::Kernels;
#[cfg(feature = "card")]
use crate::card::Buffer;
use crate::error::Result;

/// A list of whole numbers, and where on a card it lies once it is there.
#[derive(Clone, Default)]
pub struct Words {
    list: Vec<u32>,
    #[cfg(feature = "card")]
    place: OnceLock<Place>,
}

/// A stretch of what was uploaded with it.
#[cfg(feature = "card")]
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) buffer: Arc<Buffer>,
    pub(crate) at: usize,
}

/// What operations read as a list of words.
pub trait Upload {
    /// The list; the same one until what it stands for changes.
    fn words(&self) -> &Words;
}

impl Upload for Words {
    fn words(&self) -> &Words {
        self
    }
}

#[cfg(feature = "card")]
impl Words {
    /// Where it lies, once it is uploaded.
    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.get()
    }

    /// Says where it lies.
    pub(crate) fn put(&self, place: Place) {
        // A list that stands among the uploaded ones twice keeps its first place, where its words are too.
        let _ = self.place.set(place);
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.list
    }
}

impl From<Vec<u32>> for Words {
    fn from(list: Vec<u32>) -> Self {
        Self {
            list,
            #[cfg(feature = "card")]
            place: OnceLock::new(),
        }
    }
}

impl<const N: usize> From<[u32; N]> for Words {
    fn from(list: [u32; N]) -> Self {
        list.to_vec().into()
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.list.fmt(f)
    }
}

/// What a card was asked for, so far: copies between its memory and this CPU's, and launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// To the card.
    pub uploads: usize,
    /// From the card.
    pub downloads: usize,
    /// Bytes that came from the card.
    pub downloaded: usize,
    /// Launches, those that start as one counted once.
    pub launches: usize,
}

impl Kernels {
    /// Hands a card what the operations of a step will read, and with it what waits for such a copy
    /// ([`Kernels::write`]). Does nothing on a CPU.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) if there is no room, and
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend) if the device fails.
    pub fn upload(&self, lists: &[&dyn Upload]) -> Result<()> {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return card.place(&lists.iter().map(|list| list.words()).collect::<Vec<_>>());
        }
        let _ = lists;
        Ok(())
    }

    /// Does at once what waits for the next upload.
    ///
    /// # Errors
    /// As [`Kernels::upload`].
    pub fn settle(&self) -> Result<()> {
        self.upload(&[])
    }

    /// What a card was asked for; nothing, where there is none.
    pub fn calls(&self) -> Calls {
        #[cfg(feature = "card")]
        if let Some(card) = self.card() {
            return card.calls();
        }
        Calls::default()
    }
}
