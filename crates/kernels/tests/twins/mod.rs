//! The kernels of a card against their twins on this CPU: the same bits wherever sums can be made in the same order, and
//! close to the truth where they cannot.
//!
//! Included by the test that has them on a CPU that plays the card, and by `trefoil-gpu-check`, which has a card.
#![expect(clippy::unwrap_used, reason = "a check that fails may panic")]

mod attention;
mod judge;
#[path = "../sample/mod.rs"]
pub(crate) mod sample;

use attention::{attend, shared};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use judge::judge;
use sample::{Sample, bits, pick, values};
use trefoil_kernels::{Activation, CacheType, Kernels, KvStore, Move, Rope, Weight, WeightType};

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
pub(crate) const CHECKS: [(&str, Check); 11] = [
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
    ("operands", operands),
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
            let [x, y, weight] = [&x, &y, &weight].map(|x| on(kernels, x));
            kernels.add_norm_for(&x, &y, &weight, 1e-5, &[]).unwrap().0
        };
        same(&format!("a sum and its norm [{m}, {width}]"), &added(&pair.cpu), &added(&pair.card))?;
    }
    Ok(())
}

/// What is made for a product's weights gives the product's own bits: of a norm, a norm of a sum, and a gate.
fn operands(pair: &Pair) -> Found {
    let mut sample = Sample::new(11);
    let card = &pair.card;
    for ty in [WeightType::F32, WeightType::F16, WeightType::Bf16, WeightType::Q4_0, WeightType::Q6K] {
        for (m, blocks) in [(1, 1), (3, 2), (16, 1), (18, 2), (33, 5)] {
            let width = if ty.block_elements() == 1 { blocks * 64 - 7 } else { blocks * ty.block_elements() };
            let bytes = sample.weight_bytes(ty, 24, width);
            let weight = Weight::pack(card, ty, 24, width, &bytes).unwrap();
            let scale = sample.tensor(&[width]);
            let [x, y] = [0, 1].map(|_| sample.floats(m * width));
            // A row that half precision holds only when it is scaled.
            let large = y.iter().enumerate().map(|(at, y)| if at / width == m / 2 { 3e5 * y } else { *y });
            let tensor = |x: Vec<f32>| on(card, &Tensor::from_vec(x, (m, width), &Device::Cpu).unwrap());
            let (scale, y) = (on(card, &(scale * 2e5).unwrap()), tensor(large.collect()));
            let x = tensor(x);
            let sum = card.add(&x, &y).unwrap();
            let (added, normed_sum) = card.add_norm_for(&x, &y, &scale, 1e-5, &[&weight]).unwrap();
            same("a sum", &sum, &added)?;
            let pairs = [
                (
                    card.rms_norm(&x, &scale, 1e-5).unwrap(),
                    card.norm_for(&x, &scale, 1e-5, &[&weight]).unwrap(),
                ),
                (card.rms_norm(&sum, &scale, 1e-5).unwrap(), normed_sum),
                (
                    card.gate(&x, Some(&y), Activation::Silu).unwrap(),
                    card.gate_for(&x, Some(&y), Activation::Silu, &[&weight]).unwrap(),
                ),
                (
                    card.gate(&y, None, Activation::Relu).unwrap(),
                    card.gate_for(&y, None, Activation::Relu, &[&weight]).unwrap(),
                ),
            ];
            for (at, (whole, operand)) in pairs.iter().enumerate() {
                let [made] = card.linears_of(operand, [&weight]).unwrap();
                same(
                    &format!("operand {at}, {ty:?} [{m}, {width}]"),
                    &card.linear(whole, &weight).unwrap(),
                    &made,
                )?;
            }
        }
    }
    // Where weights want different forms, numbers stay as they are.
    let [one, other] = [WeightType::Q4_0, WeightType::Bf16].map(|ty| {
        let bytes = sample.weight_bytes(ty, 24, 64);
        Weight::pack(card, ty, 24, 64, &bytes).unwrap()
    });
    let (x, scale) = (on(card, &sample.tensor(&[2, 64])), on(card, &sample.tensor(&[64])));
    let normed = card.rms_norm(&x, &scale, 1e-5).unwrap();
    let operand = card.norm_for(&x, &scale, 1e-5, &[&one, &other]).unwrap();
    let (expected, found) =
        (card.linears(&normed, [&one, &other]).unwrap(), card.linears_of(&operand, [&one, &other]).unwrap());
    same("of one form", &expected[0], &found[0])?;
    same("of another", &expected[1], &found[1])?;
    // One call or two.
    let next =
        Weight::pack(card, WeightType::F32, 8, 24, &sample.weight_bytes(WeightType::F32, 8, 24)).unwrap();
    let whole = card.gate(&card.linear(&normed, &one).unwrap(), None, Activation::Relu).unwrap();
    let operand = card.activated(&normed.into(), &one, Activation::Relu, &[&next]).unwrap();
    let [found] = card.linears_of(&operand, [&next]).unwrap();
    same("an activated product", &card.linear(&whole, &next).unwrap(), &found)
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
        let other = sample.tensor(&[m, heads + 1, d]);
        let made = |kernels: &Kernels| {
            let both = [&on(kernels, &x), &on(kernels, &other)];
            kernels.rope(both, &table.turns(&positions)).unwrap()
        };
        for (cpu, card) in made(&pair.cpu).iter().zip(&made(&pair.card)) {
            same(&format!("rope [{m}, {heads}, {d}]"), cpu, card)?;
        }
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
            (33, 17, 29),
            (70, 295, 1),
            (128, 20, 2),
            (150, 100, 1),
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
    for m in [1, 20, 90] {
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
            // Fewer chains, the more outputs.
            (2, 40, 2100),
            (20, 9, 2048),
            (2, 3080, 1100),
            (18, 3073, 1025),
            (5, 8200, 130),
            (40, 8195, 65),
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
            // A card's pages lie the other way round.
            let card = if cpu.dims() == card.dims() { card.clone() } else { card.transpose(2, 3).unwrap() };
            same(&format!("store {ty:?}"), cpu, &card)?;
        }
    }
    Ok(())
}
