//! What attention costs a layer, for one row, small drafts and prefill, at several lengths.
//!
//! `cargo run --release -p trefoil-kernels --example attention [threads]`

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use trefoil_kernels::{CacheType, Kernels, KvStore, PAGE, Result, Sight};

/// The addon's allocator: what is timed here is timed as users have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: [usize; 6] = [1, 2, 4, 8, 64, 512];
const LENGTHS: [usize; 3] = [0, 1000, 4000];
const BUDGET: Duration = Duration::from_millis(200);

/// Name, query heads, key heads, channels.
const SHAPES: [(&str, usize, usize, usize); 3] =
    [("1.5B", 12, 2, 128), ("135M", 9, 3, 64), ("T5-small", 8, 8, 64)];

fn main() -> Result<()> {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2);
    let kernels = Kernels::cpu(threads)?;
    println!("{kernels:?}; milliseconds a layer (the least of many), GMAC/s");
    for (name, heads, kv_heads, d) in SHAPES {
        for len in LENGTHS {
            print!("{name:>9} {len:>5} committed:");
            for m in ROWS {
                let time = measure(&kernels, (heads, kv_heads, d), len, m)?;
                let keys = (m * len + m * (m + 1) / 2) as f64;
                let rate = 2.0 * keys * (heads * d) as f64 / time / 1e9;
                print!("  {m:>4}: {:.3} ({rate:.0})", time * 1e3);
            }
            println!();
        }
    }
    Ok(())
}

/// Seconds for a chain of `m` rows after `len` committed positions.
fn measure(
    kernels: &Kernels,
    (heads, kv_heads, d): (usize, usize, usize),
    len: usize,
    m: usize,
) -> Result<f64> {
    let random = |dims: &[usize]| Tensor::randn(0.0_f32, 1.0, dims, &Device::Cpu);
    let (q, k, v) = (random(&[m, heads, d])?, random(&[m, kv_heads, d])?, random(&[m, kv_heads, d])?);
    let pages: Vec<u32> = (0..=len.div_ceil(PAGE) as u32).collect();
    let store = KvStore::new(kernels, pages.len(), kv_heads, d, CacheType::F16)?;
    let mut sight = Sight::new();
    let branch = sight.branch(&pages, len);
    let path: Vec<u32> = (0..m as u32).collect();
    for row in 0..m {
        sight.row(branch, &path[..=row]);
    }
    let (mut least, mut runs, begin) = (f64::INFINITY, 0, Instant::now());
    while runs < 5 || begin.elapsed() < BUDGET {
        let start = Instant::now();
        std::hint::black_box(kernels.attend(&q, &k, &v, &store, &sight, 0.1, None, None)?);
        least = least.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(least)
}
