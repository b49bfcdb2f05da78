//! Memory for weights: whole cache lines, cut one after another from mappings of their own.
//!
//! An allocator's memory was rejected. It asks for large pages for some of it only, and a step that looks up where small
//! pages lie takes up to a twentieth longer; it leaves gaps, and keeps what a model leaves until somebody asks for memory
//! again. A mapping goes back to the system with the last weight in it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::{MmapMut, MmapRaw};

use crate::error::{Error, ErrorKind, Result};
use crate::lanes::LINE;

/// Bytes of a mapping, unless one weight has more. What is never touched of the last one takes no memory.
const MAPPING: usize = 64 << 20;

/// Smaller weights are the allocator's: they stay in caches, and a mapping of many pages would be a waste for a test's.
const SMALL: usize = 64 << 10;

/// Where the lines of one model's weights come from.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// The mapping that has room left, and how much of it is taken.
    open: Mutex<(Weak<MmapRaw>, usize)>,
}

/// Bytes, as many as fill whole lines.
#[derive(Debug)]
pub(crate) enum Lines {
    Own(Vec<Line>),
    Cut { map: Arc<MmapRaw>, from: usize, len: usize },
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; LINE]);

impl Store {
    /// Zeros, at least so many, or an error where the allocator would abort.
    pub(crate) fn zeros(&self, bytes: usize) -> Result<Lines> {
        let missing = || Error::new(ErrorKind::Memory, format!("no memory for a weight of {bytes} bytes"));
        let count = bytes.div_ceil(LINE);
        if bytes < SMALL {
            let mut lines = Vec::new();
            lines.try_reserve_exact(count).map_err(|_| missing())?;
            lines.resize(count, Line([0; LINE]));
            return Ok(Lines::Own(lines));
        }
        let len = count.checked_mul(LINE).ok_or_else(missing)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (map, from) = match open.0.upgrade() {
            Some(map) if len <= map.len() - open.1 => (map, open.1),
            _ => {
                let map = MmapMut::map_anon(len.max(MAPPING)).map_err(|_| missing())?;
                // Before it is touched. A system without such pages refuses, and nothing comes of it.
                #[cfg(target_os = "linux")]
                let _refused = map.advise(memmap2::Advice::HugePage);
                (Arc::new(map.into()), 0)
            }
        };
        *open = (Arc::downgrade(&map), from + len);
        Ok(Lines::Cut { map, from, len })
    }
}

impl Deref for Lines {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            // SAFETY: a `Line` is plain bytes, without padding.
            Self::Own(lines) => unsafe {
                std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines.as_slice()))
            },
            // SAFETY: the mapping is as long, lives as long, and was zeros when it was made; no part is cut twice.
            Self::Cut { map, from, len } => unsafe {
                std::slice::from_raw_parts(map.as_ptr().add(*from), *len)
            },
        }
    }
}

impl DerefMut for Lines {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as above, and any byte is valid in a `Line`.
            Self::Own(lines) => unsafe {
                std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines.as_slice()))
            },
            // SAFETY: as above; nobody else has this part.
            Self::Cut { map, from, len } => unsafe {
                std::slice::from_raw_parts_mut(map.as_mut_ptr().add(*from), *len)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zeros_of_their_own_on_whole_cache_lines() {
        let store = Store::default();
        let sizes = [1, 64, SMALL - 1, SMALL, SMALL + 1, MAPPING / 2, MAPPING - SMALL, MAPPING + 1, SMALL];
        let mut all: Vec<_> = sizes.iter().map(|&bytes| store.zeros(bytes).unwrap()).collect();
        for (at, (lines, bytes)) in all.iter_mut().zip(sizes).enumerate() {
            assert!(lines.len() >= bytes && lines.len() < bytes + LINE);
            assert!(lines.as_ptr().addr().is_multiple_of(LINE));
            assert!(lines[0] == 0 && lines[bytes - 1] == 0);
            let last = lines.len() - 1;
            (lines[0], lines[last]) = (at as u8 + 1, at as u8 + 1);
        }
        for (at, lines) in all.iter().enumerate() {
            assert!(lines[0] == at as u8 + 1 && lines[lines.len() - 1] == at as u8 + 1);
        }
    }

    #[test]
    fn a_mapping_is_shared_and_goes_with_its_last_lines() {
        let store = Store::default();
        let first = store.zeros(SMALL).unwrap();
        let second = store.zeros(SMALL).unwrap();
        assert_eq!(first.as_ptr().wrapping_add(SMALL), second.as_ptr());
        drop(first);
        assert!(store.open.lock().unwrap().0.upgrade().is_some());
        drop(second);
        assert!(store.open.lock().unwrap().0.upgrade().is_none());
    }

    #[test]
    fn what_no_memory_holds_is_an_error() {
        for bytes in [usize::MAX, isize::MAX as usize, usize::MAX / 4] {
            assert_eq!(Store::default().zeros(bytes).unwrap_err().kind(), ErrorKind::Memory);
        }
    }
}
