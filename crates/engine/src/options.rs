//! Options, resolved: every default lives here.

use std::path::PathBuf;

use trefoil_decode::Sampling;
use trefoil_models::CacheType;

use crate::decoding::{BildDefaults, Decoding};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::machine;
use crate::raw::{Raw, Reader};

/// Stop strings a request may have, and bytes each may have.
const STOPS: (usize, usize) = (64, 1024);

/// The largest whole number that every caller's number type holds exactly: 2⁵³ − 1.
const EXACT: u64 = (1 << 53) - 1;

/// Precision in which dense weights are kept, and products computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// As the file has them.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats, and activations rounded to them where they meet weights.
    Bf16,
    /// 16-bit IEEE floats.
    F16,
    /// Blocks of 32 eight-bit integers, each with a scale.
    Q8_0,
}

/// Where a draft model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftSource {
    /// A folder or a `.gguf` file, and where it runs; with the model where not given.
    Model(PathBuf, Option<Device>),
    /// So many of the model's own first decoder layers, under its head.
    Layers(usize),
}

/// How a model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// A folder or a `.gguf` file.
    pub source: PathBuf,
    /// The little model of BiLD and exact speculation.
    pub draft: Option<DraftSource>,
    /// A file with BiLD's thresholds for this pair of models.
    pub tuned: Option<PathBuf>,
    /// Where the model runs: one device, or several cards that share its steps out among them.
    pub devices: Vec<Device>,
    /// Precision of dense weights.
    pub dtype: Dtype,
    /// Threads of a step, the engine's own included.
    pub threads: usize,
    /// Groups of threads that share a step's rows out among them.
    pub workers: usize,
    /// Whether each thread stays on a core of its own.
    pub pin_threads: bool,
    /// Tokens a text may have; the model's own limit, at most [`DEFAULT_CONTEXT`], where not given.
    pub context_length: Option<usize>,
    /// Bytes that weights, caches and logits may take, on the device where the model runs.
    pub memory_limit: Option<u64>,
    /// How caches keep keys and values.
    pub cache_type: CacheType,
    /// Bytes of documents to keep although nobody holds them any more.
    pub document_cache: u64,
    /// The file that remembers what steps cost on this machine.
    pub cost_cache: Option<PathBuf>,
}

/// Workers of a step, at most: each has a thread of its own.
const WORKERS: u64 = 64;

/// Bytes of unclaimed documents where the caller doesn't say.
const DOCUMENT_CACHE: u64 = 256 << 20;

/// The context where neither caller nor model asks for less.
pub const DEFAULT_CONTEXT: usize = 8192;

impl LoadOptions {
    /// The device that was named for the draft model.
    pub(crate) fn draft_device(&self) -> Option<Device> {
        match &self.draft {
            Some(DraftSource::Model(_, device)) => *device,
            _ => None,
        }
    }

    /// Reads and checks load options.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) for an unknown name or a value that is not allowed, naming both.
    pub fn resolve(source: &str, raw: Raw) -> Result<Self> {
        if source.is_empty() || source.contains('\0') {
            return Err(Error::option(
                "the model's source is empty; allowed: a folder, a .gguf file or a hub id",
            ));
        }
        let mut reader = Reader::new("options", raw)?;
        let options = Self {
            source: PathBuf::from(source),
            draft: draft(&mut reader)?,
            tuned: tuned(&mut reader)?,
            devices: Device::list(&mut reader)?,
            dtype: dtype(&mut reader)?,
            threads: reader
                .whole("threads", 1, 1024)?
                .map_or_else(machine::threads, |threads| threads as usize),
            workers: reader.whole("workers", 1, WORKERS)?.map_or(1, |workers| workers as usize),
            pin_threads: reader.flag("pinThreads")?.unwrap_or(false),
            context_length: reader.whole("contextLength", 1, 1 << 24)?.map(|length| length as usize),
            memory_limit: reader.whole("memoryLimit", 0, EXACT)?,
            cost_cache: cost_cache(&mut reader)?,
            cache_type: cache_type(&mut reader)?,
            document_cache: reader.whole("documentCache", 0, EXACT)?.unwrap_or(DOCUMENT_CACHE),
        };
        // Downloads are the caller's business; the option is known so that it may be passed along.
        reader.flag("offline")?;
        reader.finish()?;
        if options.workers > 1 && options.devices.iter().any(|device| matches!(device, Device::Cuda(_))) {
            let message = format!("options.workers is {} on a card; allowed: 1", options.workers);
            return Err(Error::option(message));
        }
        if options.draft.is_none() && options.tuned.is_some() {
            return Err(Error::option(
                "options.tuned is given without options.draft; allowed: both, or neither",
            ));
        }
        Ok(options)
    }
}

fn cost_cache(reader: &mut Reader) -> Result<Option<PathBuf>> {
    match reader.text("costCache")? {
        Some(path) if path.is_empty() || path.contains('\0') => {
            Err(reader.refuse("costCache", &Raw::Text(path), "a file's path"))
        }
        path => Ok(path.map(PathBuf::from)),
    }
}

fn tuned(reader: &mut Reader) -> Result<Option<PathBuf>> {
    match reader.take("tuned") {
        Raw::Absent => Ok(None),
        Raw::Text(path) if !path.is_empty() && !path.contains('\0') => Ok(Some(path.into())),
        other => Err(reader.refuse("tuned", &other, "a file that `trefoil tune` has written")),
    }
}

fn draft(reader: &mut Reader) -> Result<Option<DraftSource>> {
    let found = reader.take("draft");
    let path = |text: &str| Some(PathBuf::from(text)).filter(|_| !text.is_empty() && !text.contains('\0'));
    let source = match &found {
        Raw::Absent => return Ok(None),
        Raw::Text(text) => path(text).map(|path| DraftSource::Model(path, None)),
        Raw::Map(_) => {
            let mut inner = Reader::new("options.draft", found.clone())?;
            let layers = inner.whole("layers", 1, 1 << 16)?;
            let (model, device) = (inner.text("model")?, Device::named(&mut inner)?);
            inner.finish()?;
            match (layers, model, device) {
                (Some(layers), None, None) => Some(DraftSource::Layers(layers as usize)),
                (None, Some(model), device) => path(&model).map(|path| DraftSource::Model(path, device)),
                _ => None,
            }
        }
        _ => None,
    };
    let allowed = "a folder, a .gguf file, a hub id, { layers } or { model, device }";
    source.map(Some).ok_or_else(|| reader.refuse("draft", &found, allowed))
}

fn dtype(reader: &mut Reader) -> Result<Dtype> {
    match reader.text("dtype")?.as_deref() {
        None | Some("auto") => Ok(Dtype::Auto),
        Some("f32") => Ok(Dtype::F32),
        Some("bf16") => Ok(Dtype::Bf16),
        Some("f16") => Ok(Dtype::F16),
        Some("q8_0") => Ok(Dtype::Q8_0),
        Some(other) => {
            Err(reader.refuse("dtype", &Raw::Text(other.into()), "'auto', 'f32', 'bf16', 'f16' or 'q8_0'"))
        }
    }
}

fn cache_type(reader: &mut Reader) -> Result<CacheType> {
    match reader.text("cacheType")?.as_deref() {
        None | Some("f32") => Ok(CacheType::F32),
        Some("f16") => Ok(CacheType::F16),
        Some("bf16") => Ok(CacheType::Bf16),
        Some(other) => Err(reader.refuse("cacheType", &Raw::Text(other.into()), "'f32', 'f16' or 'bf16'")),
    }
}

/// How a text is written.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Which decoding runs.
    pub decoding: Decoding,
    /// Tokens to write, at most; up to the context's end where not given.
    pub max_tokens: Option<usize>,
    /// Texts that end the writing; they are not part of it.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether tentative text is sent too.
    pub eager: bool,
}

impl GenerateOptions {
    /// Reads and checks options of a generation.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) for an unknown name or a value that is not allowed, naming both.
    pub fn resolve(raw: Raw) -> Result<Self> {
        Self::resolve_for(raw, &BildDefaults::default())
    }

    /// [`GenerateOptions::resolve`] for a pair of models with thresholds of its own.
    ///
    /// # Errors
    /// As [`GenerateOptions::resolve`].
    pub(crate) fn resolve_for(raw: Raw, defaults: &BildDefaults) -> Result<Self> {
        let mut reader = Reader::new("options", raw)?;
        let options = Self {
            decoding: Decoding::resolve(&mut reader, defaults)?,
            max_tokens: reader.whole("maxTokens", 0, u64::from(u32::MAX))?.map(|limit| limit as usize),
            stop: stop(&mut reader)?,
            sampling: sampling(&mut reader)?,
            eager: eager(&mut reader)?,
        };
        reader.finish()?;
        Ok(options)
    }
}

fn sampling(reader: &mut Reader) -> Result<Sampling> {
    let plain = Sampling::default();
    let or = |value: Option<f64>, default: f32| value.map_or(default, |value| value as f32);
    Ok(Sampling {
        temperature: or(reader.number("temperature", 0.0, 100.0)?, plain.temperature),
        top_k: reader.whole("topK", 0, u64::from(u32::MAX))?.map_or(plain.top_k, |k| k as usize),
        top_p: or(reader.number("topP", 0.0, 1.0)?, plain.top_p),
        min_p: or(reader.number("minP", 0.0, 1.0)?, plain.min_p),
        repetition_penalty: or(reader.number("repetitionPenalty", 0.01, 100.0)?, plain.repetition_penalty),
        seed: reader.whole("seed", 0, EXACT)?.unwrap_or(plain.seed),
        logprobs: reader.flag("logprobs")?.unwrap_or(plain.logprobs),
    })
}

fn eager(reader: &mut Reader) -> Result<bool> {
    match reader.text("events")?.as_deref() {
        None | Some("committed") => Ok(false),
        Some("eager") => Ok(true),
        Some(other) => Err(reader.refuse("events", &Raw::Text(other.into()), "'committed' or 'eager'")),
    }
}

fn stop(reader: &mut Reader) -> Result<Vec<String>> {
    let found = reader.take("stop");
    let allowed = format!("a non-empty string of at most {} bytes, or up to {} of them", STOPS.1, STOPS.0);
    let items = match &found {
        Raw::Absent => Vec::new(),
        Raw::List(items) => items.clone(),
        single => vec![single.clone()],
    };
    if items.len() > STOPS.0 {
        return Err(reader.refuse("stop", &found, allowed));
    }
    let texts = items.into_iter().map(|item| match item {
        Raw::Text(text) if !text.is_empty() && text.len() <= STOPS.1 => Ok(text),
        other => Err(reader.refuse("stop", &other, &allowed)),
    });
    texts.collect()
}
