//! The models that the binary carries, on disk for as long as they are read.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::ZlibDecoder;
use serde::Deserialize;
use trefoil_engine::text::Tokenizer;
use trefoil_models::Token;

use crate::Result;

/// A model's folder in the repository, and its files, packed.
type Carried = (&'static str, &'static [(&'static str, &'static [u8])]);

static CARRIED: &[Carried] = &include!(concat!(env!("OUT_DIR"), "/carried.rs"));

/// A folder of the system's temporary ones, gone when this is.
pub(crate) struct Folder(PathBuf);

/// A model on disk, and prompts for it.
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) source: PathBuf,
    pub(crate) prompts: Vec<Vec<Token>>,
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<Token>,
}

/// A line of a trained model's goldens.
#[derive(Deserialize)]
struct Line {
    #[serde(alias = "de")]
    context: String,
}

impl Folder {
    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("trefoil-gpu-check-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Writes the carried models out; gives them with at most so many prompts each.
    pub(crate) fn models(&self, most: usize) -> Result<Vec<Model>> {
        CARRIED
            .iter()
            .map(|&(name, files)| {
                let folder = self.0.join(name);
                std::fs::create_dir_all(&folder)?;
                for (file, packed) in files {
                    std::fs::write(folder.join(file), unpack(file, packed)?)?;
                }
                let gguf = folder.join("model.gguf");
                let mut prompts = prompts(&folder)?;
                prompts.truncate(most);
                let source = if gguf.exists() { gguf } else { folder };
                Ok(Model { name: name.to_owned(), source, prompts })
            })
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Temporary folders are emptied by the system too.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What `build.rs` has packed.
fn unpack(name: &str, packed: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ZlibDecoder::new(packed).read_to_end(&mut bytes)?;
    if name.ends_with(".safetensors") {
        let (lower, upper) = bytes.split_at(bytes.len().div_ceil(2));
        bytes = (0..bytes.len()).map(|at| if at % 2 == 0 { lower[at / 2] } else { upper[at / 2] }).collect();
    }
    Ok(bytes)
}

fn prompts(folder: &Path) -> Result<Vec<Vec<Token>>> {
    let golden = folder.join("golden.json");
    if golden.exists() {
        let golden: Golden = serde_json::from_slice(&std::fs::read(golden)?)?;
        return Ok(golden.cases.into_iter().map(|case| case.prompt).collect());
    }
    let tokenizer = Tokenizer::from_folder(folder)?;
    let lines = std::fs::read_to_string(folder.join("golden.jsonl"))?;
    lines
        .lines()
        .map(|line| {
            let line: Line = serde_json::from_str(line)?;
            Ok(tokenizer.encode(&line.context, true)?)
        })
        .collect()
}
