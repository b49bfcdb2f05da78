//! What a product of m rows costs on this machine, against its memory and its arithmetic.
//!
//! `cargo run --release -p trefoil-kernels --example roofline [threads] [isa] [--json]`
//!
//! With `--serve` it answers each line that says `memory` or `f32` with one measurement of it, so that another program's
//! times can be held against the machine as it was at that moment.

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use trefoil_kernels::{Isa, Kernels, Result, Weight, WeightType};

/// The addon's allocator: what is timed here is timed as users have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: [usize; 13] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 120];
/// The weights of one shape are copied until they leave every cache, as a model's would.
const FOOTPRINT: usize = 384 << 20;
const BUDGET: Duration = Duration::from_millis(200);

/// A product of some model.
struct Shape {
    model: &'static str,
    name: &'static str,
    ty: WeightType,
    n: usize,
    k: usize,
    /// How many the model has.
    count: usize,
}

const fn shape(
    model: &'static str,
    name: &'static str,
    ty: WeightType,
    [n, k]: [usize; 2],
    count: usize,
) -> Shape {
    Shape { model, name, ty, n, k, count }
}

const SHAPES: [Shape; 22] = [
    shape("1.5B", "q, o", WeightType::Q4K, [1536, 1536], 56),
    shape("1.5B", "k", WeightType::Q4K, [256, 1536], 28),
    shape("1.5B", "v", WeightType::Q6K, [256, 1536], 28),
    shape("1.5B", "gate, up", WeightType::Q4K, [8960, 1536], 56),
    shape("1.5B", "down", WeightType::Q4K, [1536, 8960], 14),
    shape("1.5B", "down", WeightType::Q6K, [1536, 8960], 14),
    shape("1.5B", "head", WeightType::Q6K, [151_936, 1536], 1),
    shape("0.5B", "q, o", WeightType::Q5_0, [896, 896], 48),
    shape("0.5B", "k, v", WeightType::Q8_0, [128, 896], 48),
    shape("0.5B", "gate, up", WeightType::Q5_0, [4864, 896], 48),
    shape("0.5B", "down", WeightType::Q4K, [896, 4864], 24),
    shape("0.5B", "head", WeightType::Q8_0, [151_936, 896], 1),
    shape("135M", "q, o", WeightType::Q4_1, [576, 576], 60),
    shape("135M", "k, v", WeightType::Q4_1, [192, 576], 60),
    shape("135M", "gate, up", WeightType::Q4_1, [1536, 576], 60),
    shape("135M", "down", WeightType::Q4_1, [576, 1536], 30),
    shape("135M", "head", WeightType::Q8_0, [49_152, 576], 1),
    shape("7B", "q, k, v, o", WeightType::Q4K, [4096, 4096], 128),
    shape("7B", "gate, up", WeightType::Q4K, [11_008, 4096], 64),
    shape("7B", "down", WeightType::Q4K, [4096, 11_008], 32),
    shape("T5-base", "feed-forward", WeightType::Bf16, [3072, 768], 1),
    shape("T5-base", "feed-forward", WeightType::F32, [3072, 768], 1),
];

fn main() -> Result<()> {
    let (mut json, mut serves) = (false, false);
    let mut threads = 2;
    let mut isa = Isa::detect();
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--json" => json = true,
            "--serve" => serves = true,
            "portable" => isa = Isa::Portable,
            "avx2" => isa = Isa::Avx2,
            "neon" => isa = Isa::Neon,
            number => threads = number.parse().unwrap_or(threads),
        }
    }
    let data = vec![1_u64; FOOTPRINT / 8];
    if serves {
        serve(threads, &data);
        return Ok(());
    }
    let kernels = Kernels::cpu_with(threads, isa)?;
    let memory = best(|| bandwidth(threads, &data));
    let (int8, f32) = (best(|| peak(threads, peak::int8)), best(|| peak(threads, peak::f32)));
    drop(data);
    let mut times = Vec::with_capacity(SHAPES.len());
    for shape in &SHAPES {
        times.push(measure(&kernels, shape)?);
    }
    if json {
        print_json(memory, int8, f32, &times);
        return Ok(());
    }
    println!("{kernels:?}; {memory:.1} GB/s, int8 {int8:.0} and f32 {f32:.0} GMAC/s");
    for (shape, times) in SHAPES.iter().zip(&times) {
        let Shape { model, name, ty, n, k, .. } = *shape;
        let bytes = ty.bytes(n, k).unwrap_or(0) as f64;
        println!("\n{model} {name} {} [{n}, {k}]", ty.name());
        print_row("rows", ROWS.map(|m| m.to_string()));
        print_row("ms", times.map(|t| format!("{:.3}", t * 1e3)));
        print_row("c(m)", times.map(|t| format!("{:.2}", t / times[0])));
        print_row("GB/s", times.map(|t| format!("{:.1}", bytes / t / 1e9)));
        let mut m = ROWS.iter();
        let macs = times.map(|t| m.next().map_or(0.0, |m| (m * n * k) as f64) / t / 1e9);
        print_row("GMAC/s", macs.map(|x| format!("{x:.0}")));
    }
    for (model, total) in totals(&times) {
        println!("\nall products of {model}");
        print_row("rows", ROWS.map(|m| m.to_string()));
        print_row("ms", total.map(|t| format!("{:.2}", t * 1e3)));
        print_row("c(m)", total.map(|t| format!("{:.2}", t / total[0])));
    }
    Ok(())
}

/// Seconds of all products of each model.
fn totals(times: &[[f64; ROWS.len()]]) -> Vec<(&'static str, [f64; ROWS.len()])> {
    let mut totals: Vec<(&'static str, [f64; ROWS.len()])> = Vec::new();
    for (shape, times) in SHAPES.iter().zip(times) {
        if totals.iter().all(|(model, _)| *model != shape.model) {
            totals.push((shape.model, [0.0; ROWS.len()]));
        }
        for (_, total) in totals.iter_mut().filter(|(model, _)| *model == shape.model) {
            for (total, time) in total.iter_mut().zip(times) {
                *total += time * shape.count as f64;
            }
        }
    }
    totals
}

fn print_json(memory: f64, int8: f64, f32: f64, times: &[[f64; ROWS.len()]]) {
    let list = |times: &[f64; ROWS.len()]| times.map(|t| format!("{:.4}", t * 1e3)).join(",");
    let mut out = format!(
        "{{\"bandwidth\":{memory:.2},\"peak\":{{\"int8\":{int8:.1},\"f32\":{f32:.1}}},\"rows\":{ROWS:?},\"products\":["
    );
    for (at, (shape, times)) in SHAPES.iter().zip(times).enumerate() {
        let Shape { model, name, ty, n, k, .. } = *shape;
        let (ty, bytes) = (ty.name(), ty.bytes(n, k).unwrap_or(0));
        let plotted = name == "gate, up" || name == "feed-forward";
        let comma = if at == 0 { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "{comma}{{\"name\":\"{model} {name}\",\"type\":\"{ty}\",\"n\":{n},\"k\":{k},\"bytes\":{bytes},\
             \"plotted\":{plotted},\"ms\":[{}]}}",
            list(times)
        );
    }
    let models = totals(times);
    let models =
        models.iter().map(|(name, times)| format!("{{\"name\":\"{name}\",\"ms\":[{}]}}", list(times)));
    println!("{out}],\"models\":[{}]}}", models.collect::<Vec<_>>().join(","));
}

fn print_row(name: &str, cells: [String; ROWS.len()]) {
    print!("{name:>8}");
    for cell in cells {
        print!("{cell:>9}");
    }
    println!();
}

fn serve(threads: usize, data: &[u64]) {
    println!("ready");
    for line in std::io::stdin().lines().map_while(std::result::Result::ok) {
        let found = match line.as_str() {
            "memory" => bandwidth(threads, data),
            "bf16" => peak(threads, peak::bf16),
            _ => peak(threads, peak::f32),
        };
        println!("{found}");
    }
}

/// The greatest of several measurements.
fn best(measure: impl Fn() -> f64) -> f64 {
    (0..8).map(|_| measure()).fold(0.0, f64::max)
}

/// Bytes of `data` that `threads` cores read a second, by summing, in units of 10⁹.
fn bandwidth(threads: usize, data: &[u64]) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in data.chunks(data.len() / threads) {
            scope.spawn(move || black_box(part.iter().fold(0, |a: u64, b| a.wrapping_add(*b))));
        }
    });
    size_of_val(data) as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Products that `threads` cores add a second, with all operands in registers, in units of 10⁹; `work` gives how many
/// it did.
fn peak(threads: usize, work: fn() -> u64) -> f64 {
    let start = Instant::now();
    let done: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
    });
    done as f64 / start.elapsed().as_secs_f64() / 1e9
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::{
        __m256, __m256i, __m512, __m512bh, __m512i, _mm256_fmadd_ps, _mm256_maddubs_epi16, _mm256_set1_epi8,
        _mm256_set1_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_set1_epi8,
        _mm512_set1_epi32, _mm512_set1_ps,
    };
    use std::hint::black_box;

    /// Enough chains to hide an instruction's latency on two ports.
    const CHAINS: usize = 12;
    const TURNS: u64 = 4 << 20;

    fn wide() -> bool {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
    }

    pub(super) fn int8() -> u64 {
        if wide() {
            // SAFETY: the CPU has AVX-512 VNNI.
            unsafe { int8_wide() };
            return TURNS * CHAINS as u64 * 64;
        }
        // SAFETY: every x86-64 CPU that the kernels have a fast path for has AVX2.
        unsafe { int8_narrow() };
        TURNS * CHAINS as u64 * 32
    }

    pub(super) fn f32() -> u64 {
        if wide() {
            // SAFETY: the CPU has AVX-512.
            unsafe { f32_wide() };
            return TURNS * CHAINS as u64 * 16;
        }
        // SAFETY: as above, with FMA.
        unsafe { f32_narrow() };
        TURNS * CHAINS as u64 * 8
    }

    pub(super) fn bf16() -> u64 {
        if is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the CPU has AVX-512 BF16.
            unsafe { bf16_wide() };
            return TURNS * CHAINS as u64 * 32;
        }
        f32()
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_wide() {
        let ones = black_box(_mm512_set1_epi32(0x3f80_3f80));
        // SAFETY: both are 512 bits, and any are numbers.
        let ones = unsafe { std::mem::transmute::<__m512i, __m512bh>(ones) };
        let mut sums: [__m512; CHAINS] = [_mm512_set1_ps(0.5); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_wide() {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums: [__m512i; CHAINS] = [_mm512_set1_epi32(0); CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    fn f32_wide() {
        let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        let mut sums: [__m512; CHAINS] = [a; CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    fn int8_narrow() {
        let a = black_box(_mm256_set1_epi8(3));
        let mut sums: [__m256i; CHAINS] = [a; CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm256_maddubs_epi16(*sum, a);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    fn f32_narrow() {
        let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
        let mut sums: [__m256; CHAINS] = [a; CHAINS];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod peak {
    /// Not known here.
    pub(super) fn int8() -> u64 {
        0
    }
    /// Not known here.
    pub(super) fn bf16() -> u64 {
        0
    }
    /// Not known here.
    pub(super) fn f32() -> u64 {
        0
    }
}

/// Seconds a product for each number of rows: the least of many, since other programs only add.
fn measure(kernels: &Kernels, shape: &Shape) -> Result<[f64; ROWS.len()]> {
    let Shape { ty, n, k, .. } = *shape;
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
            black_box(kernels.linear(&x, weight)?);
            *least = least.min(start.elapsed().as_secs_f64());
            runs += 1;
        }
    }
    Ok(least)
}
