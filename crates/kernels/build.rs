//! Compiles the kernels of cards, with the feature `cuda` only: machine code for three architectures, and PTX from
//! which drivers make code for those that came later, in one file. `TREFOIL_CUDA_ARCHITECTURES` names others, such as `90`
//! for a build that is used here.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Machine code for these, and PTX for all from the first one on.
const ARCHITECTURES: &str = "80,90,100";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    println!("cargo::rerun-if-env-changed=TREFOIL_CUDA_ARCHITECTURES");
    for folder in ["src", "src/card"] {
        for file in fs::read_dir(folder)? {
            let path = file?.path();
            if path.extension().is_some_and(|kind| kind == "cu" || kind == "cuh") {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    let built = PathBuf::from(env::var("OUT_DIR")?).join("kernels.fatbin");
    let nvcc = env::var_os("CUDA_HOME").map_or("nvcc".into(), |home| Path::new(&home).join("bin/nvcc"));
    let mut command = Command::new(&nvcc);
    // Sums are written with fused multiply-adds where they are meant; the compiler makes no others, so that numbers
    // are the CPU's.
    command.args(["-fatbin", "-O3", "-std=c++17", "-fmad=false", "--compress-mode=size"]);
    // An architecture a thread.
    command.arg("--threads=0");
    let architectures = env::var("TREFOIL_CUDA_ARCHITECTURES").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    for architecture in architectures.split(',') {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    let oldest = architectures.split(',').next().unwrap_or(ARCHITECTURES);
    command.arg(format!("-gencode=arch=compute_{oldest},code=compute_{oldest}"));
    let output =
        command.args(["-I", "src", "-o"]).arg(&built).arg("src/kernels.cu").output().map_err(|cause| {
            format!("{} cannot be run: {cause}; see scripts/cuda-toolkit.mjs", nvcc.display())
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("nvcc refuses the kernels:\n{}", String::from_utf8_lossy(&output.stderr)).into())
}
