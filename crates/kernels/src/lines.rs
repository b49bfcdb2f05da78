//! Memory for weights: whole cache lines, in large pages where the system has some.

use std::ops::{Deref, DerefMut};

use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes, as many as fill whole lines.
#[derive(Debug)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// Zeros, at least so many, or an error where the allocator would abort.
    pub(crate) fn zeroed(bytes: usize) -> Result<Self> {
        let count = bytes.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).map_err(|_| {
            let bytes = count * size_of::<Line>();
            Error::new(ErrorKind::Memory, format!("no memory for a weight of {bytes} bytes"))
        })?;
        #[cfg(target_os = "linux")]
        prefer_large_pages(lines.as_ptr(), count);
        lines.resize(count, Line([0; 64]));
        Ok(Self(lines))
    }
}

/// Asks the system for large pages before the first ones are touched. A step reads every weight once, and looking up where
/// small pages lie takes it up to a twentieth of its time; the allocator asks for some of its memory only.
#[cfg(target_os = "linux")]
fn prefer_large_pages(start: *const Line, count: usize) {
    /// What x86-64 and most ARM systems have.
    const LARGE: usize = 2 << 20;
    let end = start.wrapping_add(count).addr().next_multiple_of(LARGE);
    let start = start.map_addr(|start| start / LARGE * LARGE);
    // SAFETY: this changes no byte, neither here nor of the neighbours, who may share the first and the last page. It is a
    // wish: what is not mapped there, and a system without such pages, are refused, and nothing comes of it.
    let _refused = unsafe { libc::madvise(start.cast_mut().cast(), end - start.addr(), libc::MADV_HUGEPAGE) };
}

impl Deref for Lines {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a `Line` is 64 plain bytes, without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), size_of_val(self.0.as_slice())) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: a `Line` is 64 plain bytes, without padding, and any byte is valid in it.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), size_of_val(self.0.as_slice())) }
    }
}
