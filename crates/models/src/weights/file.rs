//! A file that is only ever read in places.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A model file and its length when it was opened.
pub(super) struct ModelFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl ModelFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |cause| Error::load(format!("{} cannot be opened", path.display())).because(cause);
        // Asked before opening: to open a named pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(failed)?;
        if !kind.is_file() {
            return Err(Error::load(format!("{} is not a file", path.display())));
        }
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        Ok(Self { file, path: path.to_owned(), len })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads `bytes` bytes at `offset`. `what` names them in an error.
    pub(super) fn read(&self, offset: u64, bytes: usize, what: &str) -> Result<Vec<u8>> {
        let end = offset.checked_add(bytes as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(Error::load(format!(
                "{}: {what} takes {bytes} bytes at {offset}; the file has {}",
                self.path.display(),
                self.len
            )));
        }
        let mut buffer = vec![0; bytes];
        self.fill(&mut buffer, offset).map_err(|cause| {
            Error::load(format!("{}: {what} cannot be read", self.path.display())).because(cause)
        })?;
        Ok(buffer)
    }

    #[cfg(unix)]
    fn fill(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(not(unix))]
    fn fill(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}
