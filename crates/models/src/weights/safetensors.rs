//! Safetensors: one file, or shards listed by an index.
//!
//! The `safetensors` crate parses the header and checks that shapes, types and offsets agree and leave no gap; that
//! they end where the file does is checked here, because the crate wants the whole file in memory for it.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path};

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use super::file::ModelFile;
use super::stored::Stored;
use super::{Entry, Rows, WeightType, Weights};
use crate::error::{Error, Result};

/// The format allows 100 MB; published models stay under one, and parsing takes many times the header's length.
const LARGEST_HEADER: u64 = 32 << 20;
const LARGEST_INDEX: u64 = 32 << 20;
/// A header's length comes first.
const PREFIX: u64 = 8;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// T5 checkpoints of some writers hold the shared embedding only under its users' names.
const SHARED: &str = "shared.weight";
const SHARED_COPIES: [&str; 2] = ["decoder.embed_tokens.weight", "encoder.embed_tokens.weight"];

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

pub(super) fn open(folder: &Path) -> Result<Weights> {
    let mut weights =
        Weights { files: Vec::new(), entries: HashMap::new(), metadata: None, dense: None, random: None };
    if folder.join(SINGLE).exists() {
        add(&mut weights, &folder.join(SINGLE))?;
    } else if folder.join(INDEX).exists() {
        open_shards(&mut weights, folder)?;
    } else {
        // A link that leads nowhere, or in a circle, does not exist either; opening it says why.
        for name in [SINGLE, INDEX] {
            if folder.join(name).is_symlink() {
                ModelFile::open(&folder.join(name))?;
            }
        }
        return Err(Error::load(format!("{} holds neither {SINGLE} nor {INDEX}", folder.display())));
    }
    for copy in SHARED_COPIES {
        if !weights.has(SHARED)
            && let Some(entry) = weights.entries.remove(copy)
        {
            weights.entries.insert(SHARED.to_owned(), entry);
        }
    }
    Ok(weights)
}

fn open_shards(weights: &mut Weights, folder: &Path) -> Result<()> {
    let path = folder.join(INDEX);
    let file = ModelFile::open(&path)?;
    if file.len() > LARGEST_INDEX {
        let message = format!("{} has {} bytes; allowed are {LARGEST_INDEX}", path.display(), file.len());
        return Err(Error::load(message));
    }
    let bytes = file.read(0, file.len() as usize, "the index")?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|cause| {
        Error::load(format!("{} is not an index of shards", path.display())).because(cause)
    })?;
    let shards: BTreeSet<_> = index.weight_map.values().map(String::as_str).collect();
    let mut numbers = HashMap::new();
    for shard in shards {
        if !is_plain(shard) {
            let message =
                format!("{} names the shard {shard:?}; allowed are plain file names", path.display());
            return Err(Error::load(message));
        }
        numbers.insert(shard, weights.files.len());
        add(weights, &folder.join(shard))?;
    }
    for (name, shard) in &index.weight_map {
        let listed = numbers.get(shard.as_str()).copied();
        if weights.entries.get(name).map(|entry| entry.file) != listed {
            let message =
                format!("{} lists tensor {name:?} in {shard:?}, which does not hold it", path.display());
            return Err(Error::load(message));
        }
    }
    Ok(())
}

/// Whether this is the name of a file in the same folder, on any system.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

/// Adds the tensors of one file.
fn add(weights: &mut Weights, path: &Path) -> Result<()> {
    let file = ModelFile::open(path)?;
    let (start, header) = header(&file)?;
    let end = start.checked_add(header.data_len() as u64);
    if end != Some(file.len()) {
        let (path, len, data) = (path.display(), file.len(), header.data_len());
        return Err(Error::load(format!("{path} has {len} bytes; its header describes {start} + {data}")));
    }
    for (name, info) in header.tensors() {
        let (first, last) = info.data_offsets;
        let entry = Entry {
            file: weights.files.len(),
            offset: start + first as u64,
            bytes: last - first,
            shape: info.shape.clone(),
            ty: stored(info.dtype),
            rows: Rows::Straight,
            read: false.into(),
        };
        if weights.entries.insert(name.clone(), entry).is_some() {
            return Err(Error::load(format!("{}: tensor {name:?} appears in two shards", path.display())));
        }
    }
    weights.files.push(file);
    Ok(())
}

/// Reads the header: where the data starts, and what it is.
fn header(file: &ModelFile) -> Result<(u64, Metadata)> {
    let path = file.path().display();
    let prefix = file.read(0, PREFIX as usize, "the header's length")?;
    let len = prefix.iter().rev().fold(0, |len, &byte| len << 8 | u64::from(byte));
    if len > LARGEST_HEADER {
        return Err(Error::load(format!("{path} has a header of {len} bytes; allowed are {LARGEST_HEADER}")));
    }
    let bytes = file.read(PREFIX, len as usize, "the header")?;
    let header = serde_json::from_slice(&bytes)
        .map_err(|cause| Error::load(format!("{path} has a broken header: {cause}")).because(cause))?;
    Ok((PREFIX + len, header))
}

fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::F32 => Stored::Weight(WeightType::F32),
        Dtype::F16 => Stored::Weight(WeightType::F16),
        Dtype::BF16 => Stored::Weight(WeightType::Bf16),
        other => Stored::Other(other.to_string()),
    }
}
