//! Lists the models that the binary carries: every fixture, and the small ones of those that are trained.

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of models, and which of their models are carried; all where none is named.
const FOLDERS: [(&str, &[&str]); 3] = [("fixtures", &[]), ("models/de-en", &["small"]), ("models", &["dst"])];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    let mut list = String::from("[\n");
    for (folder, only) in FOLDERS {
        let folder = root.join(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
        for model in sorted(&folder)? {
            let name = file_name(&model);
            let files = if model.is_dir() { sorted(&model)? } else { Vec::new() };
            let is_model =
                files.iter().any(|file| ["config.json", "model.gguf"].contains(&file_name(file).as_str()));
            if !is_model || !(only.is_empty() || only.contains(&name.as_str())) {
                continue;
            }
            writeln!(list, "    ({name:?}, &[")?;
            for file in files {
                writeln!(
                    list,
                    "        ({:?}, include_bytes!({:?})),",
                    file_name(&file),
                    file.display().to_string()
                )?;
            }
            writeln!(list, "    ]),")?;
        }
    }
    list.push(']');
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("carried.rs"), list)?;
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
