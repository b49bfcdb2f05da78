//! The kernels of a card against their twins on this CPU: the same bits wherever sums can be made in the same order, and
//! close to the truth where they cannot.
//!
//! Included by the test that has them on a CPU that plays the card, and by `trefoil-gpu-check`, which has a card.
#![expect(clippy::unwrap_used, reason = "a check that fails may panic")]

#[path = "../sample/mod.rs"]
mod sample;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use sample::{Sample, bits, pick, values};
use trefoil_kernels::CacheType::{Bf16, F16, F32};
use trefoil_kernels::{
    Activation, CacheType, ErrorKind, Kernels, KvStore, Lack, Move, PAGE, Readers, Rope, Sight, TOP, Wanted,
    Weight, WeightType, Words, top,
};

/// This CPU, and a card.
pub(crate) struct Pair {
    pub(crate) cpu: Kernels,
    pub(crate) card: Kernels,
}

/// What a check finds: nothing, or what differs.
pub(crate) type Found = Result<(), String>;

/// One check.
pub(crate) type Check = fn(&Pair) -> Found;

/// Every check, by the kernels that it is about.
pub(crate) const CHECKS: [(&str, Check); 10] = [
    ("norm", norm),
    ("elementwise", elementwise),
    ("rope", rope),
    ("embed", embed),
    ("integer", integer),
    ("dense", dense),
    ("store", store),
    ("attend", attend),
    ("shared", shared),
    ("judge", judge),
];

/// `x` where `kernels` run.
fn on(kernels: &Kernels, x: &Tensor) -> Tensor {
    x.to_device(kernels.device()).unwrap()
}

fn same(what: &str, cpu: &Tensor, card: &Tensor) -> Found {
    if cpu.dims() == card.dims() && bits(cpu) == bits(card) {
        return Ok(());
    }
    let differ = bits(cpu).iter().zip(bits(card)).filter(|(a, b)| **a != *b).count();
    Err(format!("{what}: {differ} of {:?} differ from {:?}", card.dims(), cpu.dims()))
}

fn close(what: &str, cpu: &[f32], card: &[f32], tolerance: f32) -> Found {
    let worst = cpu.iter().zip(card).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let numbers = cpu.iter().chain(card).all(|x| x.is_finite());
    if numbers && cpu.len() == card.len() && worst <= tolerance {
        return Ok(());
    }
    Err(format!("{what}: off by {worst}; {tolerance} is allowed"))
}

fn norm(pair: &Pair) -> Found {
    let mut sample = Sample::new(1);
    for (m, width) in [(1, 1), (3, 15), (2, 64), (5, 100), (1, 576), (2, 1000)] {
        let (x, weight) = (sample.tensor(&[m, width]), sample.tensor(&[width]));
        let made =
            |kernels: &Kernels| kernels.rms_norm(&on(kernels, &x), &on(kernels, &weight), 1e-5).unwrap();
        same(&format!("norm [{m}, {width}]"), &made(&pair.cpu), &made(&pair.card))?;
        let y = sample.tensor(&[m, width]);
        let added = |kernels: &Kernels| {
            kernels.add_norm(&on(kernels, &x), &on(kernels, &y), &on(kernels, &weight), 1e-5).unwrap()
        };
        for (cpu, card) in added(&pair.cpu).iter().zip(&added(&pair.card)) {
            same(&format!("norm of a sum [{m}, {width}]"), cpu, card)?;
        }
    }
    Ok(())
}

fn elementwise(pair: &Pair) -> Found {
    let mut sample = Sample::new(2);
    for (m, width) in [(1, 1), (3, 100), (7, 513)] {
        let (a, b) = (sample.tensor(&[m, width]), sample.tensor(&[m, width]));
        let a = (a * 9.0).unwrap();
        let bias = sample.tensor(&[width]);
        let each = |kernels: &Kernels| {
            let [a, b, bias] = [&a, &b, &bias].map(|x| on(kernels, x));
            [
                kernels.add(&a, &b).unwrap(),
                kernels.add_bias(&a, &bias).unwrap(),
                kernels.scale(&a, 0.3).unwrap(),
                kernels.select(&a, &[m as u32 - 1, 0, 0].into()).unwrap(),
                kernels.gate(&a, Some(&b), Activation::Silu).unwrap(),
                kernels.gate(&a, Some(&b), Activation::GeluTanh).unwrap(),
                kernels.gate(&a, None, Activation::Relu).unwrap(),
            ]
        };
        for (i, (cpu, card)) in each(&pair.cpu).iter().zip(&each(&pair.card)).enumerate() {
            same(&format!("elementwise {i} [{m}, {width}]"), cpu, card)?;
        }
        // The error function is the machine's own.
        let gelu =
            |kernels: &Kernels| values(&kernels.gate(&on(kernels, &a), None, Activation::Gelu).unwrap());
        close("gelu", &gelu(&pair.cpu), &gelu(&pair.card), 1e-6)?;
    }
    Ok(())
}

fn rope(pair: &Pair) -> Found {
    let mut sample = Sample::new(3);
    for (m, heads, d, pairs) in [(1, 1, 2, 1), (3, 4, 64, 32), (2, 3, 80, 20), (5, 9, 64, 32)] {
        let x = sample.tensor(&[m, heads, d]);
        let frequencies: Vec<f32> = (0..pairs).map(|i| 0.9_f32.powi(i)).collect();
        let positions: Vec<u32> = (0..m).map(|_| sample.below(4000) as u32).collect();
        let table = Rope::new(&frequencies);
        let made = |kernels: &Kernels| kernels.rope(&on(kernels, &x), &table.turns(&positions)).unwrap();
        same(&format!("rope [{m}, {heads}, {d}]"), &made(&pair.cpu), &made(&pair.card))?;
    }
    Ok(())
}

fn embed(pair: &Pair) -> Found {
    let mut sample = Sample::new(4);
    for ty in WeightType::ALL {
        let (n, k) = (19, if ty.block_elements() == 1 { 45 } else { 2 * ty.block_elements() });
        let bytes = sample.weight_bytes(ty, n, k);
        let made = |kernels: &Kernels| {
            let weight = Weight::pack(kernels, ty, n, k, &bytes).unwrap();
            let rows: Vec<f32> = (0..n).flat_map(|row| weight.row(row).unwrap()).collect();
            let rows = Tensor::from_vec(rows, (n, k), &Device::Cpu).unwrap();
            (kernels.embed(&[0, 18, 3, 16, 15].into(), &weight).unwrap(), rows)
        };
        let (cpu, card) = (made(&pair.cpu), made(&pair.card));
        same(&format!("embed {ty:?}"), &cpu.0, &card.0)?;
        same(&format!("rows of {ty:?}"), &cpu.1, &card.1)?;
    }
    Ok(())
}

/// Quantised types whose products are integers: the same bits.
fn integer(pair: &Pair) -> Found {
    let mut sample = Sample::new(5);
    for ty in WeightType::ALL.into_iter().filter(|ty| ty.block_elements() > 1) {
        for (m, n, blocks) in [
            (1, 16, 1),
            (2, 33, 3),
            (3, 7, 2),
            (5, 20, 1),
            (8, 17, 9),
            (9, 5, 11),
            (16, 33, 1),
            (19, 31, 2),
            (40, 18, 3),
        ] {
            let k = blocks * ty.block_elements();
            let bytes = sample.weight_bytes(ty, n, k);
            let x = sample.tensor(&[m, k]);
            let made = |kernels: &Kernels| {
                kernels.linear(&on(kernels, &x), &Weight::pack(kernels, ty, n, k, &bytes).unwrap()).unwrap()
            };
            same(&format!("{ty:?} [{m}, {n}, {k}]"), &made(&pair.cpu), &made(&pair.card))?;
        }
    }
    // Products of one x as one launch, where types agree.
    let types = [WeightType::Q4K, WeightType::Q6K, WeightType::Q4K, WeightType::F32, WeightType::Q4K];
    let sizes = [33, 16, 5, 9, 64];
    let bytes: Vec<_> = types.iter().zip(sizes).map(|(&ty, n)| sample.weight_bytes(ty, n, 512)).collect();
    for m in [1, 20] {
        let x = sample.tensor(&[m, 512]);
        let made = |kernels: &Kernels| {
            let weights: [Weight; 5] =
                std::array::from_fn(|i| Weight::pack(kernels, types[i], sizes[i], 512, &bytes[i]).unwrap());
            kernels.linears(&on(kernels, &x), weights.each_ref()).unwrap()
        };
        for (i, (cpu, card)) in made(&pair.cpu).iter().zip(&made(&pair.card)).enumerate() {
            if types[i] == WeightType::F32 {
                close("one of several products", &values(cpu), &values(card), 1e-5)?;
            } else {
                same(&format!("product {i} of {m} rows"), cpu, card)?;
            }
        }
    }
    // A row that is no number stays one, and zeros stay zeros.
    let bytes = sample.weight_bytes(WeightType::Q4_0, 16, 64);
    let mut x = vec![0.0; 3 * 64];
    x[70] = f32::INFINITY;
    x[130..140].fill(1e-42);
    let x = Tensor::from_vec(x, (3, 64), &Device::Cpu).unwrap();
    let made = |kernels: &Kernels| {
        let weight = Weight::pack(kernels, WeightType::Q4_0, 16, 64, &bytes).unwrap();
        let y = kernels.linear(&on(kernels, &x), &weight).unwrap();
        values(&y).into_iter().map(|y| if y.is_nan() { None } else { Some(y.to_bits()) }).collect::<Vec<_>>()
    };
    let (cpu, card) = (made(&pair.cpu), made(&pair.card));
    if cpu == card { Ok(()) } else { Err("rows that are no numbers differ".to_owned()) }
}

/// Dense types: close to the sum over activations rounded to the weight's type, and the same bits in any company.
fn dense(pair: &Pair) -> Found {
    let mut sample = Sample::new(6);
    let to_f32 = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for ty in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 16, 64),
            (3, 17, 33),
            (5, 18, 490),
            (16, 40, 257),
            (17, 9, 300),
            (45, 133, 1096),
            (130, 20, 65),
            (70, 300, 640),
        ] {
            let bytes = sample.weight_bytes(ty, n, k);
            let mut x = sample.floats(m * k);
            // A row beyond the range of half precision.
            x[(m - 1) * k..].iter_mut().for_each(|x| *x *= 1e6);
            let x = Tensor::from_vec(x, (m, k), &Device::Cpu).unwrap();
            let weight = Weight::pack(&pair.card, ty, n, k, &bytes).unwrap();
            let got = pair.card.linear(&on(&pair.card, &x), &weight).unwrap();
            let w: Vec<f64> = match ty {
                WeightType::F32 => bytes.chunks_exact(4).map(|b| f64::from(to_f32(b))).collect(),
                WeightType::F16 => {
                    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
                }
                _ => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
            };
            // Tensor cores take both sides of a product in one type; a CPU does not.
            let rounds = pair.card.name() != pair.cpu.name();
            let rounded = |row: usize, x: f32| match ty {
                _ if !rounds => f64::from(x),
                WeightType::F32 => f64::from(x),
                WeightType::F16 if row == m - 1 => f16::from_f32(x * 2.0_f32.powi(-12)).to_f64() * 4096.0,
                WeightType::F16 => f16::from_f32(x).to_f64(),
                _ => bf16::from_f32(x).to_f64(),
            };
            for (row, (x, got)) in values(&x).chunks_exact(k).zip(values(&got).chunks_exact(n)).enumerate() {
                for (w, got) in w.chunks_exact(k).zip(got) {
                    let products = x.iter().zip(w).map(|(&x, w)| (rounded(row, x) * w, f64::from(x) * w));
                    let (mut sum, mut size) = (0.0, 0.0);
                    for (product, raw) in products {
                        (sum, size) = (sum + product, size + raw.abs());
                    }
                    // Numbers near zero fall below half precision.
                    let allowed = 3e-6 * size + if ty == WeightType::F16 { 1e-6 * (k as f64) } else { 1e-12 };
                    let allowed = if row == m - 1 { allowed * 2.0 } else { allowed };
                    if (f64::from(*got) - sum).abs() > allowed || !got.is_finite() {
                        return Err(format!("{ty:?} [{m}, {n}, {k}] row {row}: {got}, not {sum}"));
                    }
                }
            }
            for row in [0, m - 1, m / 2] {
                let alone = pair.card.linear(&on(&pair.card, &pick(&x, &[row])), &weight).unwrap();
                same(
                    &format!("{ty:?} [{m}, {n}, {k}], row {row} alone"),
                    &pick(&on(&pair.cpu, &got), &[row]),
                    &alone,
                )?;
            }
        }
    }
    Ok(())
}

fn store(pair: &Pair) -> Found {
    let mut sample = Sample::new(7);
    for ty in CacheType::ALL {
        let (heads, d, m) = (3, 20, 5);
        let (k, v) = (sample.tensor(&[m, heads, d]), sample.tensor(&[m, heads, d]));
        let moves = [(4, 2, 31), (0, 0, 0), (2, 2, 7)].map(|(row, page, offset)| Move { row, page, offset });
        let made = |kernels: &Kernels| {
            let store = KvStore::new(kernels, 4, heads, d, ty).unwrap();
            let (k, v) = (on(kernels, &k), on(kernels, &v));
            let stores = [store, KvStore::new(kernels, 4, heads, d, ty).unwrap()];
            let layers = stores.each_ref().map(|store| (store, &k, &v));
            let write = |moves: &[Move]| kernels.write(&layers, moves).unwrap();
            // Some of these meet others that may still wait: a page that was written, a slot, a page that was copied.
            write(&moves[..2]);
            write(&moves[2..]);
            kernels.copy_page(&stores, 2, 1).unwrap();
            write(&[Move { row: 1, page: 2, offset: 7 }]);
            write(&[Move { row: 3, page: 2, offset: 7 }]);
            kernels.copy_page(&stores, 1, 3).unwrap();
            kernels.copy_page(&stores, 0, 3).unwrap();
            write(&[Move { row: 0, page: 3, offset: 0 }]);
            kernels.settle().unwrap();
            let [one, other] = stores;
            [one.k, one.v, other.k, other.v].map(|x| x.to_dtype(candle_core::DType::F32).unwrap())
        };
        for (cpu, card) in made(&pair.cpu).iter().zip(&made(&pair.card)) {
            same(&format!("store {ty:?}"), cpu, card)?;
        }
    }
    Ok(())
}

/// One attention over a forest: shapes, text and sight.
struct Forest {
    heads: usize,
    kv_heads: usize,
    d: usize,
    window: Option<usize>,
    distances: Option<usize>,
    ty: CacheType,
    committed: [usize; 2],
    rows: usize,
}

impl Forest {
    /// Attention on both, over the same text, and on the card each row alone with its path.
    fn run(&self, pair: &Pair, sample: &mut Sample) -> Found {
        let Self { heads, kv_heads, d, window, distances, ty, committed, rows } = *self;
        let name =
            format!("attend {heads}/{kv_heads}×{d} {ty:?} {committed:?}+{rows} {window:?} {distances:?}");
        let longest = committed[0].max(committed[1]);
        let pages = committed[0].div_ceil(PAGE) + committed[1].div_ceil(PAGE) + 1;
        let on_both = [&pair.cpu, &pair.card];
        let stores = on_both.map(|kernels| KvStore::new(kernels, pages, kv_heads, d, ty).unwrap());
        let text = [0, 1].map(|_| sample.tensor(&[longest.max(1), kv_heads, d]));
        let mut sight = Sight::new();
        let mut next = 0;
        let mut tables = Vec::new();
        for len in committed {
            let table: Vec<u32> =
                (0..len.div_ceil(PAGE) as u32).map(|i| (next + i) * 3 % pages as u32).collect();
            let table = if pages.is_multiple_of(3) { table.iter().map(|_| 0).collect() } else { table };
            next += table.len() as u32;
            let moves: Vec<Move> = (0..len)
                .map(|p| Move { row: p as u32, page: table[p / PAGE], offset: (p % PAGE) as u32 })
                .collect();
            for (kernels, store) in on_both.into_iter().zip(&stores) {
                let [k, v] = text.each_ref().map(|x| on(kernels, x));
                kernels.write(&[(store, &k, &v)], &moves).unwrap();
            }
            sight.branch(&table, len);
            tables.push(table);
        }
        let mut paths: Vec<(usize, Vec<u32>)> = Vec::new();
        for row in 0..rows {
            let parent = (row > 1).then(|| sample.below(row + 1)).filter(|&parent| parent < row);
            let (branch, mut path) = match parent {
                Some(parent) => paths[parent].clone(),
                None => (row % 2, Vec::new()),
            };
            path.push(row as u32);
            sight.row(branch, &path);
            paths.push((branch, path));
        }
        let (q, k, v) = (
            sample.tensor(&[rows, heads, d]),
            sample.tensor(&[rows, kv_heads, d]),
            sample.tensor(&[rows, kv_heads, d]),
        );
        let bias = distances.map(|width| sample.tensor(&[heads, width]));
        let scale = (d as f32).sqrt().recip();
        let made = |kernels: &Kernels, store: &KvStore, sight: &Sight, [q, k, v]: [&Tensor; 3]| {
            let ([q, k, v], bias) =
                ([q, k, v].map(|x| on(kernels, x)), bias.as_ref().map(|x| on(kernels, x)));
            kernels.attend(&q, &k, &v, store, sight, scale, window, bias.as_ref()).unwrap()
        };
        let cpu = made(&pair.cpu, &stores[0], &sight, [&q, &k, &v]);
        let card = made(&pair.card, &stores[1], &sight, [&q, &k, &v]);
        let positions = (0..rows).map(|row| sight.position(row) + 1).max().unwrap();
        // Parts of a long text are joined on a card, and tensor cores make those of a cache of sixteen bits.
        if positions <= if ty == F32 { 8 * PAGE } else { 2 * PAGE } {
            same(&name, &cpu, &card)?;
        } else if ty == F32 {
            close(&name, &values(&cpu), &values(&card), 2e-6)?;
        } else {
            let size = scale * greatest_head(&q) * greatest_head(&text[0]).max(greatest_head(&k));
            close(&name, &values(&cpu), &values(&card), roundings(ty, size, d, positions))?;
        }
        let row = rows - 1;
        let (branch, path) = &paths[row];
        let at: Vec<usize> = path.iter().map(|&row| row as usize).collect();
        let mut alone = Sight::new();
        let branch = alone.branch(&tables[*branch], committed[*branch]);
        for depth in 1..=at.len() {
            alone.row(branch, &(0..depth as u32).collect::<Vec<_>>());
        }
        let (q, k, v) = (pick(&q, &at), pick(&k, &at), pick(&v, &at));
        let chain = made(&pair.card, &stores[1], &alone, [&q, &k, &v]);
        same(&format!("{name}, a path alone"), &pick(&on(&pair.cpu, &card), &at), &chain)
    }
}

/// The greatest length of a head.
fn greatest_head(heads: &Tensor) -> f32 {
    let x = values(heads);
    let d = heads.dims()[2];
    x.chunks_exact(d).map(|x| x.iter().map(|x| x * x).sum::<f32>().sqrt()).fold(0.0, f32::max)
}

/// How far attention over `n` values between -1 and 1 may be from the CPU's, where tensor cores make it and scores are
/// sums of `d` products that have at most `size` together.
///
/// What meets keys and values is two numbers of sixteen bits, which lack one in 2^22 or 2^18 of it. Sums add up their
/// roundings as a random walk does, of which four deviations are allowed, and tensor cores, which cut off, one in 2^23
/// for every sixteen products of each of both. An error of a score is one of its weight, and the greatest has its own.
fn roundings(ty: CacheType, size: f32, d: usize, n: usize) -> f32 {
    let lacks = if ty == F16 { 2.0_f32.powi(-22) } else { 2.0_f32.powi(-18) };
    let sums = |n: usize| (n as f32 / 8.0 + 4.0 * (n as f32).sqrt()) * 2.0_f32.powi(-23);
    let score = size * (lacks + sums(d));
    2.0 * (2.0 * score + lacks + sums(n))
}

/// Halves of queries and of weights lack nothing: where all keys but the last of a text weigh the same, and where half
/// of them weigh most.
fn halves(pair: &Pair, ty: CacheType) -> Found {
    let (n, d) = (10 * PAGE, 48);
    let kernels = &pair.card;
    let table: Vec<u32> = (0..n as u32 / PAGE as u32).collect();
    let moves: Vec<Move> =
        (0..n).map(|p| Move { row: p as u32, page: table[p / PAGE], offset: (p % PAGE) as u32 }).collect();
    let mut sight = Sight::new();
    let branch = sight.branch(&table, n);
    sight.row(branch, &[0]);
    let tensor = |x: Vec<f32>, dims: &[usize]| on(kernels, &Tensor::from_vec(x, dims, &Device::Cpu).unwrap());
    let full = |x: f32| tensor(vec![x; d], &[1, 1, d]);
    // The first two tiles of the text are the row's own: their values are 0, and others 1.
    let value = |p: usize| if p < n - PAGE { 1.0 } else { 0.0 };
    let numbers =
        |of: &dyn Fn(usize) -> f32| tensor((0..n).flat_map(|p| vec![of(p); d]).collect(), &[n, 1, d]);
    let made =
        |q: f32, keys: &dyn Fn(usize) -> f32, values_of: &dyn Fn(usize) -> f32, bias: Option<&Tensor>| {
            let store = KvStore::new(kernels, table.len(), 1, d, ty).unwrap();
            kernels.write(&[(&store, &numbers(keys), &numbers(values_of))], &moves).unwrap();
            let (q, k, v) = (full(q), full(0.0), full(0.0));
            values(&kernels.attend(&q, &k, &v, &store, &sight, 1.0, None, bias).unwrap())
        };
    // Weights of 0.7 for all but the row itself.
    let bias = tensor(vec![0.0, 0.7_f32.ln()], &[1, 2]);
    let shares = 0.7 * (n - PAGE) as f64 / (0.7 * n as f64 + 1.0);
    let allowed = roundings(ty, 0.0, d, n);
    close(
        &format!("weights in halves, {ty:?}"),
        &vec![shares as f32; d],
        &made(0.3, &|_| 0.0, &value, Some(&bias)),
        allowed,
    )?;
    // Scores of 1.6 and -1.6, and the row's own, 0.
    let (q, sign) = (0.1 / 3.0_f32, |p: usize| if p.is_multiple_of(2) { 1.0 } else { -1.0 });
    let score = f64::from(q) * d as f64;
    let odds = score.exp() + (-score).exp();
    let half = n as f64 / 2.0;
    let expected = half * score.exp() / (half * odds + 1.0);
    let found = made(q, &sign, &|p| sign(p).max(0.0), None);
    close(
        &format!("queries in halves, {ty:?}"),
        &vec![expected as f32; d],
        &found,
        roundings(ty, score as f32, d, n),
    )
}

fn attend(pair: &Pair) -> Found {
    let mut sample = Sample::new(8);
    let forest = |heads, kv_heads, d, window, distances, ty, committed, rows| Forest {
        heads,
        kv_heads,
        d,
        window,
        distances,
        ty,
        committed,
        rows,
    };
    for forest in [
        forest(1, 1, 1, None, None, F32, [0, 0], 1),
        forest(4, 2, 64, None, None, F32, [31, 40], 9),
        forest(3, 3, 16, None, Some(40), F32, [32, 0], 12),
        forest(6, 1, 128, Some(50), None, F16, [70, 33], 5),
        forest(5, 1, 7, Some(1), Some(1), F16, [3, 0], 4),
        forest(9, 3, 80, Some(33), Some(200), F16, [100, 64], 40),
        forest(2, 1, 200, None, None, F32, [65, 1], 3),
        forest(2, 2, 32, None, None, F32, [300, 20], 4),
        forest(2, 1, 64, Some(100), Some(64), F16, [700, 256], 3),
        forest(4, 4, 50, None, Some(70), Bf16, [90, 12], 20),
        // Rows that are staged in tiles of crowds: deep paths, and more rows than a crowd takes.
        forest(3, 1, 64, None, None, Bf16, [130, 0], 90),
        forest(2, 2, 96, Some(70), Some(90), F16, [95, 257], 40),
        forest(40, 1, 24, None, Some(3), Bf16, [100, 90], 5),
        forest(2, 1, 256, Some(300), None, F16, [800, 64], 19),
        forest(1, 1, 129, None, None, Bf16, [0, 96], 70),
    ] {
        forest.run(pair, &mut sample)?;
    }
    halves(pair, F16)?;
    halves(pair, Bf16)?;
    // As a loaded model would find out.
    let wide = pair.card.check_heads(257).map_err(|error| (error.kind(), error.to_string()));
    let lacks = ErrorKind::Device(Lack::Heads);
    let is_card = pair.card.name() != pair.cpu.name();
    let expected = (lacks, "heads of 257 channels; on a card 1 to 256 are allowed".to_owned());
    if pair.card.check_heads(256).is_ok() && wide == if is_card { Err(expected) } else { Ok(()) } {
        return Ok(());
    }
    Err(format!("heads of 257 channels: {wide:?}"))
}

fn shared(pair: &Pair) -> Found {
    let mut sample = Sample::new(9);
    for (heads, kv_heads, d, lengths, rows, width, ty) in [
        (1, 1, 1, [1, 2], 2, None, F32),
        (4, 2, 64, [33, 64], 9, Some(5), F32),
        (3, 3, 20, [31, 90], 70, Some(65), F32),
        (2, 1, 128, [7, 250], 5, None, F32),
        (2, 2, 64, [40, 600], 6, Some(31), F32),
        (2, 1, 1, [1, 33], 3, Some(1), F16),
        (3, 3, 20, [31, 90], 110, Some(65), Bf16),
        (4, 2, 64, [256, 600], 40, Some(31), F16),
        (1, 1, 200, [64, 300], 70, None, Bf16),
    ] {
        let name = format!("shared {heads}/{kv_heads}×{d} {ty:?} {lengths:?}");
        let text = lengths.map(|n| [0, 1].map(|_| sample.tensor(&[n, kv_heads, d])));
        let q = sample.tensor(&[rows, heads, d]);
        let bias = width.map(|width| sample.tensor(&[heads, width]));
        let positions: Vec<u32> = (0..rows).map(|_| sample.below(60) as u32).collect();
        let (mine, theirs) = (0..rows as u32).partition(|row| row % 3 > 0);
        let together = Readers::new(vec![mine, theirs]).unwrap();
        let scale = 0.3;
        let made = |kernels: &Kernels| {
            let share = |[k, v]: &[Tensor; 2]| kernels.share(&on(kernels, k), &on(kernels, v), ty).unwrap();
            let kept = text.each_ref().map(share);
            let attend = |q: &Tensor, positions: &[u32], readers: &Readers| {
                let (q, bias) = (on(kernels, q), bias.as_ref().map(|bias| on(kernels, bias)));
                let positions = Words::from(positions.to_vec());
                let bias = bias.as_ref().map(|bias| (bias, &positions));
                let made = kernels.attend_shared(&q, &kept.each_ref(), readers, scale, bias);
                on(&pair.cpu, &made.unwrap())
            };
            // The last row alone sees what it sees in company.
            let last = rows - 1;
            let alone = if last % 3 > 0 { [vec![0], vec![]] } else { [vec![], vec![0]] };
            let alone = Readers::new(alone.to_vec()).unwrap();
            let single = attend(&pick(&q, &[last]), &positions[last..], &alone);
            (attend(&q, &positions, &together), single)
        };
        let ((cpu, _), (card, alone)) = (made(&pair.cpu), made(&pair.card));
        if ty != F32 {
            let size =
                scale * greatest_head(&q) * text.iter().map(|[k, _]| greatest_head(k)).fold(0.0, f32::max);
            let n = lengths[0].max(lengths[1]);
            close(&name, &values(&cpu), &values(&card), roundings(ty, size, d, n))?;
        } else if lengths.iter().all(|&n| n <= 8 * PAGE) {
            same(&name, &cpu, &card)?;
        } else {
            close(&name, &values(&cpu), &values(&card), 2e-6)?;
        }
        same(&format!("{name}, a row alone"), &pick(&card, &[rows - 1]), &alone)?;
    }
    Ok(())
}

fn judge(pair: &Pair) -> Found {
    let mut sample = Sample::new(10);
    for (m, n) in [(1, 1), (2, 15), (3, 16), (1, 1040), (2, 5003), (1, 66_000)] {
        let mut scores: Vec<f32> = sample.floats(m * n).into_iter().map(|x| x * 20.0).collect();
        let last = scores.len() - 1;
        (scores[last / 2], scores[last]) = (20.0, 20.0);
        let scores = Tensor::from_vec(scores, (m, n), &Device::Cpu).unwrap();
        let asked = (0..7).map(|_| (sample.below(m) as u32, sample.below(n) as u32)).collect();
        let drawn = (0..m as u32).rev().map(|row| (row, 0.3 + row as f32)).collect();
        let wanted = Wanted::new(asked, drawn);
        let [cpu, card] =
            [&pair.cpu, &pair.card].map(|kernels| kernels.judge(&on(kernels, &scores), &wanted).unwrap());
        if cpu != card {
            return Err(format!("judge [{m}, {n}]: {card:?}, not {cpu:?}"));
        }
    }
    let scores = Tensor::new(&[[f32::NAN, 1.0, 3.0, 3.0, 2.0]], &Device::Cpu).unwrap();
    let wanted = Wanted::new(Vec::new(), vec![(0, 1.0)]);
    let found = pair.card.judge(&on(&pair.card, &scores), &wanted).unwrap();
    let (row, drawn) = (found.rows[0], &found.drawn[0]);
    if row.0 != 2 || row.1 != 3.0 || !row.2.is_nan() || !drawn.mass.is_nan() {
        return Err(format!("NaN: {found:?}"));
    }
    if drawn.top != [(3.0, 2), (3.0, 3), (2.0, 4), (1.0, 1)] {
        return Err(format!("top of NaN: {:?}", drawn.top));
    }
    // Among so many that are alike the first ones are not looked for.
    let alike = Tensor::zeros((1, 3000), candle_core::DType::F32, &Device::Cpu).unwrap();
    let drawn = &pair.card.judge(&on(&pair.card, &alike), &wanted).unwrap().drawn[0];
    let none = drawn.top.is_empty() || drawn.top == top(&[0.0; 3000], TOP);
    if none && drawn.mass == 3000.0 { Ok(()) } else { Err(format!("alike: {drawn:?}")) }
}
