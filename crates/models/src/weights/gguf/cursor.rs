//! Reading a header whose length nobody knows, from a file that may lie about everything.

use crate::error::{Error, Result};
use crate::weights::file::ModelFile;

/// Bytes fetched at a time.
const CHUNK: usize = 1 << 20;
/// More than any real header (the largest vocabularies take about 16 MB), and little enough to hold in memory.
const LARGEST_HEADER: u64 = 128 << 20;

/// A position in a file's header.
pub(super) struct Cursor<'a> {
    file: &'a ModelFile,
    /// The end of what may be read: the file's, or the largest header's.
    end: u64,
    buffer: Vec<u8>,
    /// The position within `buffer`.
    at: usize,
    /// The file offset just behind `buffer`.
    fetched: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a ModelFile) -> Self {
        Self { file, end: file.len().min(LARGEST_HEADER), buffer: Vec::new(), at: 0, fetched: 0 }
    }

    /// The file offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.fetched - (self.buffer.len() - self.at) as u64
    }

    /// The next `bytes` bytes. `what` names them in an error.
    pub(super) fn take(&mut self, bytes: usize, what: &str) -> Result<&[u8]> {
        if bytes as u64 > self.remaining() {
            return Err(self.short(bytes as u64, what));
        }
        let held = self.buffer.len() - self.at;
        if held < bytes {
            self.buffer.drain(..self.at);
            self.at = 0;
            let wanted = (bytes - held).max(CHUNK).min((self.end - self.fetched) as usize);
            self.buffer.extend(self.file.read(self.fetched, wanted, what)?);
            self.fetched += wanted as u64;
        }
        let taken = &self.buffer[self.at..self.at + bytes];
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string: its length, then its bytes.
    pub(super) fn text(&mut self, what: &str) -> Result<String> {
        let len = self.count(1, what)? as usize;
        let bytes = self.take(len, what)?.to_vec();
        String::from_utf8(bytes).map_err(|cause| {
            Error::load(format!("{}: {what} is not UTF-8", self.file.path().display())).because(cause)
        })
    }

    /// A count of things that take at least `size` bytes each.
    pub(super) fn count(&mut self, size: u64, what: &str) -> Result<u64> {
        let count = self.u64(what)?;
        self.check_count(count, size, what)?;
        Ok(count)
    }

    /// Fails where `count` things of at least `size` bytes each cannot be left in the file.
    pub(super) fn check_count(&self, count: u64, size: u64, what: &str) -> Result<()> {
        let bytes = count.saturating_mul(size);
        if bytes > self.remaining() { Err(self.short(bytes, what)) } else { Ok(()) }
    }

    fn remaining(&self) -> u64 {
        self.end - self.position()
    }

    fn short(&self, bytes: u64, what: &str) -> Error {
        let (path, position, left) = (self.file.path().display(), self.position(), self.remaining());
        Error::load(format!("{path}: {what} at {position} takes at least {bytes} bytes; {left} are left"))
    }
}
