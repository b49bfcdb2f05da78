//! GGUF, versions 2 and 3, little endian.
//!
//! A GGUF file is written by strangers, and every count, length and offset in it is a number that an attacker may
//! choose. Two rules keep the reader safe: nothing is allocated or skipped by a number from the file before that
//! number has been compared with the bytes that are left, and every product is checked.
//!
//! # Source
//! The GGUF specification (`docs/gguf.md` of ggml).

mod cursor;
mod metadata;
mod names;

use std::collections::HashMap;
use std::path::Path;

pub use metadata::{Array, Metadata, Value};

use super::file::ModelFile;
use super::stored::{ALLOWED, Stored, ggml_type};
use super::{Entry, Weights};
use crate::error::{Error, Result};
use cursor::Cursor;

const MAGIC: &[u8] = b"GGUF";
const DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Far more than any model has, and few enough to list in memory.
const MOST_TENSORS: u64 = 1 << 16;
const LARGEST_ALIGNMENT: u64 = 1 << 16;
/// Name length, dimension count, one dimension, type and offset.
const SMALLEST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

pub(super) fn open(path: &Path) -> Result<Weights> {
    let file = ModelFile::open(path)?;
    let mut cursor = Cursor::new(&file);
    if cursor.take(4, "the magic number")? != MAGIC {
        return Err(Error::load(format!(
            "{} is not a GGUF file: it does not begin with GGUF",
            path.display()
        )));
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        version if version.swap_bytes() == 2 || version.swap_bytes() == 3 => {
            return Err(Error::unsupported(format!(
                "{} is big-endian; only little-endian is read",
                path.display()
            )));
        }
        version => {
            let message = format!("{} has GGUF version {version}; allowed are 2 and 3", path.display());
            return Err(Error::unsupported(message));
        }
    }
    let tensors = cursor.count(SMALLEST_TENSOR, "tensors")?;
    if tensors > MOST_TENSORS {
        let message = format!("{} has {tensors} tensors; allowed are {MOST_TENSORS}", path.display());
        return Err(Error::load(message));
    }
    let metadata = Metadata::read(&mut cursor, path)?;
    if metadata.get("split.count").and_then(Value::unsigned).is_some_and(|count| count > 1) {
        let message =
            format!("{} is one part of a split model; merge the parts into one file", path.display());
        return Err(Error::unsupported(message));
    }
    // Checked again: the metadata has used up bytes since the count was read.
    cursor.check_count(tensors, SMALLEST_TENSOR, "tensors")?;
    let mut found = Vec::with_capacity(tensors as usize);
    for _ in 0..tensors {
        found.push(tensor(&mut cursor, path)?);
    }
    let alignment = alignment(&metadata)?;
    let start = cursor.position().next_multiple_of(alignment);
    place(&mut found, start, alignment, &file)?;
    let entries = directory(found, &metadata)?;
    Ok(Weights { files: vec![file], entries, metadata: Some(metadata), dense: None, random: None })
}

/// Reads one tensor's description; its offset is still relative to the data's start.
fn tensor(cursor: &mut Cursor<'_>, path: &Path) -> Result<(String, Entry)> {
    let name = cursor.text("a tensor's name")?;
    let broken = |what: String| Error::load(format!("{}: tensor {name:?} {what}", path.display()));
    let dimensions = cursor.u32("a tensor's dimension count")?;
    if dimensions == 0 || dimensions > DIMENSIONS {
        return Err(broken(format!("has {dimensions} dimensions; allowed are 1 to {DIMENSIONS}")));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        shape.push(cursor.u64("a tensor's shape")?);
    }
    let ty = cursor.u32("a tensor's type")?;
    let offset = cursor.u64("a tensor's offset")?;

    let ty = ggml_type(ty).map_err(|ty| {
        Error::unsupported(format!(
            "{}: tensor {name:?} has type {ty}; allowed are {ALLOWED}",
            path.display()
        ))
    })?;
    let (block, block_bytes) = (ty.block_elements() as u64, ty.block_bytes() as u64);
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let bytes = elements.filter(|&n| n > 0).and_then(|n| (n / block).checked_mul(block_bytes));
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| broken(format!("has the impossible shape {shape:?}")))?;
    if shape[0] % block != 0 {
        return Err(broken(format!("has rows of {} elements; {ty:?} takes multiples of {block}", shape[0])));
    }
    // GGUF lists the fastest dimension first. Every factor fits, because the product of all does.
    let shape = shape.iter().rev().map(|&n| n as usize).collect();
    let (ty, rows) = (Stored::Weight(ty), super::Rows::Straight);
    Ok((name, Entry { file: 0, offset, bytes, shape, ty, rows, read: false.into() }))
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    value.unsigned().filter(|&n| n.is_power_of_two() && n <= LARGEST_ALIGNMENT).ok_or_else(|| {
        let file = metadata.file();
        Error::load(format!(
            "{file}: general.alignment is {value}; allowed are powers of two from 1 to {LARGEST_ALIGNMENT}"
        ))
    })
}

/// Makes offsets absolute, and checks that they are aligned, within the file and free of overlap.
fn place(tensors: &mut [(String, Entry)], start: u64, alignment: u64, file: &ModelFile) -> Result<()> {
    let broken =
        |name: &str, what: String| Error::load(format!("{}: tensor {name:?} {what}", file.path().display()));
    for (name, entry) in tensors.iter_mut() {
        if entry.offset % alignment != 0 {
            let what = format!("has offset {}; allowed are multiples of {alignment}", entry.offset);
            return Err(broken(name, what));
        }
        let absolute = start.checked_add(entry.offset);
        let end = absolute.and_then(|at| at.checked_add(entry.bytes as u64));
        match (absolute, end) {
            (Some(at), Some(end)) if end <= file.len() => entry.offset = at,
            _ => {
                let (bytes, len) = (entry.bytes, file.len());
                let what = format!("takes {bytes} bytes at {start} + {}; the file has {len}", entry.offset);
                return Err(broken(name, what));
            }
        }
    }
    let mut order: Vec<_> = tensors.iter().map(|(name, entry)| (entry.offset, entry.bytes, name)).collect();
    order.sort_unstable();
    for pair in order.windows(2) {
        if pair[0].0 + pair[0].1 as u64 > pair[1].0 {
            return Err(broken(pair[1].2, format!("overlaps {:?}", pair[0].2)));
        }
    }
    Ok(())
}

/// Files the tensors under their published names.
fn directory(tensors: Vec<(String, Entry)>, metadata: &Metadata) -> Result<HashMap<String, Entry>> {
    let architecture = metadata.get("general.architecture").and_then(Value::text).unwrap_or_default();
    let gated = tensors.iter().any(|(name, _)| name == "enc.blk.0.ffn_gate.weight");
    let mut entries = HashMap::with_capacity(tensors.len());
    for (name, mut entry) in tensors {
        let published = match name.as_str() {
            "token_embd.weight" => names::embedding(architecture).to_owned(),
            name => names::published(name, gated),
        };
        entry.rows = names::rows(architecture, &published, metadata);
        if entries.insert(published, entry).is_some() {
            return Err(Error::load(format!("{}: tensor {name:?} appears twice", metadata.file())));
        }
    }
    Ok(entries)
}
