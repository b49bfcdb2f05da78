//! What a product of m rows costs on this machine, against its memory and its arithmetic.
//!
//! `cargo run --release -p trefoil-kernels --example roofline [threads] [isa]`

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use trefoil_kernels::{Isa, Kernels, Result, Weight, WeightType};

const ROWS: [usize; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 120];
/// The weights of one shape are copied until they leave every cache, as a model's would.
const FOOTPRINT: usize = 384 << 20;
const BUDGET: Duration = Duration::from_millis(250);

/// Name, type, n, k, and how many a model has.
const SHAPES: [(&str, WeightType, usize, usize, usize); 14] = [
    ("1.5B q, o", WeightType::Q4K, 1536, 1536, 56),
    ("1.5B k", WeightType::Q4K, 256, 1536, 28),
    ("1.5B v", WeightType::Q6K, 256, 1536, 28),
    ("1.5B gate, up", WeightType::Q4K, 8960, 1536, 56),
    ("1.5B down", WeightType::Q4K, 1536, 8960, 14),
    ("1.5B down", WeightType::Q6K, 1536, 8960, 14),
    ("1.5B head", WeightType::Q6K, 151_936, 1536, 1),
    ("135M q, o", WeightType::Q4_1, 576, 576, 60),
    ("135M k, v", WeightType::Q4_1, 192, 576, 60),
    ("135M gate, up", WeightType::Q4_1, 1536, 576, 60),
    ("135M down", WeightType::Q4_1, 576, 1536, 30),
    ("135M head", WeightType::Q8_0, 49_152, 576, 1),
    ("dense", WeightType::Bf16, 2048, 1024, 0),
    ("dense", WeightType::F32, 2048, 512, 0),
];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(2);
    let isa = match args.next().as_deref() {
        Some("portable") => Isa::Portable,
        Some("avx2") => Isa::Avx2,
        Some("neon") => Isa::Neon,
        _ => Isa::detect(),
    };
    let kernels = Kernels::cpu_with(threads, isa)?;
    println!("{kernels:?}; memory alone: {:.1} GB/s", bandwidth(threads));
    println!("each cell: milliseconds / cost relative to one row; GB/s and GMAC/s of the row above");
    let mut totals = [[0.0; ROWS.len()]; 2];
    for (name, ty, n, k, count) in SHAPES {
        let times = measure(&kernels, ty, n, k)?;
        if count > 0 {
            let total = &mut totals[usize::from(name.starts_with("135M"))];
            for (total, time) in total.iter_mut().zip(times) {
                *total += time * count as f64;
            }
        }
        let bytes = ty.bytes(n, k).unwrap_or(0) as f64;
        println!("\n{name} {ty:?} [{n}, {k}]");
        print_row("rows", ROWS.map(|m| m.to_string()));
        print_row("ms", times.map(|t| format!("{:.3}", t * 1e3)));
        print_row("c(m)", times.map(|t| format!("{:.2}", t / times[0])));
        print_row("GB/s", times.map(|t| format!("{:.1}", bytes / t / 1e9)));
        let mut m = ROWS.iter();
        let macs = times.map(|t| m.next().map_or(0.0, |m| (m * n * k) as f64) / t / 1e9);
        print_row("GMAC/s", macs.map(|x| format!("{x:.0}")));
    }
    for (name, total) in ["1.5B", "135M"].iter().zip(totals) {
        println!("\nall products of {name}");
        print_row("rows", ROWS.map(|m| m.to_string()));
        print_row("ms", total.map(|t| format!("{:.2}", t * 1e3)));
        print_row("c(m)", total.map(|t| format!("{:.2}", t / total[0])));
    }
    Ok(())
}

fn print_row(name: &str, cells: [String; ROWS.len()]) {
    print!("{name:>8}");
    for cell in cells {
        print!("{cell:>9}");
    }
    println!();
}

/// Bytes that `threads` cores can read a second, by summing.
fn bandwidth(threads: usize) -> f64 {
    let data = vec![1_u64; FOOTPRINT / 8];
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in data.chunks(data.len() / threads) {
                scope
                    .spawn(move || std::hint::black_box(part.iter().fold(0, |a: u64, b| a.wrapping_add(*b))));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    FOOTPRINT as f64 / best / 1e9
}

/// Seconds a product for each number of rows: the least of many, since other programs only add.
fn measure(kernels: &Kernels, ty: WeightType, n: usize, k: usize) -> Result<[f64; ROWS.len()]> {
    let bytes = ty.bytes(n, k).unwrap_or(0);
    // The same nonsense in every block; products of it are finite.
    let block: Vec<u8> = (0..ty.block_bytes()).map(|i| (i * 37 % 60) as u8).collect();
    let data = block.repeat(bytes / block.len());
    let copies = FOOTPRINT.div_ceil(bytes).clamp(1, 512);
    let weights: Vec<Weight> =
        (0..copies).map(|_| Weight::pack(kernels, ty, n, k, &data)).collect::<Result<_>>()?;
    let mut least = [f64::INFINITY; ROWS.len()];
    for (m, least) in ROWS.iter().zip(&mut least) {
        let x: Vec<f32> = (0..m * k).map(|i| (i * 31 % 17) as f32 - 8.0).collect();
        let x = Tensor::from_vec(x, (*m, k), &Device::Cpu)?;
        let mut runs = 0;
        let start = Instant::now();
        while runs < 5 || start.elapsed() < BUDGET {
            let weight = &weights[runs % copies];
            let start = Instant::now();
            std::hint::black_box(kernels.linear(&x, weight)?);
            *least = least.min(start.elapsed().as_secs_f64());
            runs += 1;
        }
    }
    Ok(least)
}
