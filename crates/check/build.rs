//! Packs the models that the binary carries: every fixture, and every one that is trained. The same bytes are packed once.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// Folders in which every model is carried, at whatever depth.
const FOLDERS: [&str; 2] = ["fixtures", "models"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let (mut list, mut packed) = (String::from("[\n"), Vec::new());
    for folder in FOLDERS {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
        for model in models(&root.join(folder))? {
            writeln!(list, "    ({:?}, &[", text(model.strip_prefix(&root)?)?)?;
            for file in sorted(&model)?.iter().filter(|file| file.is_file()) {
                let name = text(Path::new(file.file_name().unwrap_or_default()))?;
                let bytes = fs::read(file)?;
                let known = packed.iter().position(|other| *other == bytes);
                let place = out.join(known.unwrap_or(packed.len()).to_string());
                if known.is_none() {
                    pack(name, &bytes, &place)?;
                    packed.push(bytes);
                }
                writeln!(list, "        ({name:?}, include_bytes!({:?})),", text(&place)?)?;
            }
            writeln!(list, "    ]),")?;
        }
    }
    list.push(']');
    fs::write(out.join("carried.rs"), list)?;
    Ok(())
}

/// The folders with a model, `folder` and those in it.
fn models(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    if ["config.json", "model.gguf"].iter().any(|file| folder.join(file).exists()) {
        found.push(folder.to_owned());
    }
    for within in sorted(folder)?.iter().filter(|within| within.is_dir()) {
        found.extend(models(within)?);
    }
    Ok(found)
}

/// Writes `bytes` to `place`, compressed. Of numbers of sixteen bits the lower bytes are put first, because they are
/// noise and the upper ones are not: a seventh less than both in turn.
fn pack(name: &str, bytes: &[u8], place: &Path) -> Result<(), Box<dyn Error>> {
    let mut encoder = ZlibEncoder::new(fs::File::create(place)?, Compression::fast());
    if name.ends_with(".safetensors") {
        for upper in [0, 1] {
            let plane: Vec<u8> = bytes.iter().skip(upper).step_by(2).copied().collect();
            encoder.write_all(&plane)?;
        }
    } else {
        encoder.write_all(bytes)?;
    }
    encoder.finish()?;
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn text(path: &Path) -> Result<&str, Box<dyn Error>> {
    path.to_str().ok_or_else(|| format!("{} is no text", path.display()).into())
}
