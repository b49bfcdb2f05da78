//! Products with packed weights: right, and the same bits whatever runs beside them.
#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod sample;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use sample::{Sample, all, bits, pick, values};
use trefoil_kernels::{ErrorKind, Isa, Kernels, Weight, WeightType};

/// Depths to try: every number of blocks up to ten, and what register tiles might trip over.
fn depths(ty: WeightType) -> Vec<usize> {
    match ty.block_elements() {
        1 => vec![1, 2, 3, 5, 16, 31, 64, 100],
        32 => (1..=10).map(|blocks| 32 * blocks).chain([512]).collect(),
        _ => vec![256, 512],
    }
}

/// Compares with a double-precision product of the dequantised weight. Bytes of activations are
/// off by half a step each: at most Σ |w| · greatest / 254 in a block.
fn check(kernels: &Kernels, weight: &Weight, x: &Tensor) {
    let (n, k) = (weight.n(), weight.k());
    let got = values(&kernels.linear(x, weight).unwrap());
    let x = values(x);
    for j in 0..n {
        let w = weight.row(j).unwrap();
        for (i, x) in x.chunks_exact(k).enumerate() {
            let (mut truth, mut bound) = (0.0, 0.0);
            for (w, x) in w.chunks(32).zip(x.chunks(32)) {
                let greatest = x.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
                for (w, x) in w.iter().zip(x) {
                    truth += f64::from(*w) * f64::from(*x);
                    bound += match weight.ty() {
                        WeightType::F32 | WeightType::F16 | WeightType::Bf16 => {
                            f64::from((w * x).abs()) * k as f64 * 6e-8
                        }
                        _ => f64::from(w.abs() * greatest) * (0.5 / 127.0 + 1e-5),
                    };
                }
            }
            let error = (f64::from(got[i * n + j]) - truth).abs();
            assert!(error <= bound + 1e-30, "{weight:?} row {i} output {j}: off by {error}, bound {bound}");
        }
    }
}

#[test]
fn every_type_is_close_to_the_truth() {
    let kernels = Kernels::cpu(2).unwrap();
    let mut sample = Sample::new(1);
    for ty in WeightType::ALL {
        for k in depths(ty) {
            let weight = sample.weight(&kernels, ty, 21, k);
            check(&kernels, &weight, &sample.tensor(&[5, k]));
        }
        let k = depths(ty)[1];
        for m in 1..=9 {
            let weight = sample.weight(&kernels, ty, 99, k);
            check(&kernels, &weight, &sample.tensor(&[m, k]));
        }
    }
}

/// Integer-valued inputs whose blocks reach 127 quantise exactly, so the product is exact too: this
/// catches a swapped code or scale that an error bound would let through.
#[test]
fn exact_inputs_give_exact_products() {
    let kernels = Kernels::cpu(1).unwrap();
    let mut sample = Sample::new(2);
    for ty in [WeightType::Q4_0, WeightType::Q5_0, WeightType::Q8_0, WeightType::Q6K, WeightType::Q4K] {
        let k = ty.block_elements();
        let weight = sample.weight(&kernels, ty, 16, k);
        for at in 0..k {
            let mut x = vec![0.0_f32; k];
            x[at] = 127.0;
            let x = Tensor::from_vec(x, (1, k), &Device::Cpu).unwrap();
            let got = values(&kernels.linear(&x, &weight).unwrap());
            for (j, got) in got.iter().enumerate() {
                let expected = weight.row(j).unwrap()[at] * 127.0;
                assert!(
                    (got - expected).abs() <= expected.abs().max(1.0) * 3e-6,
                    "{ty:?} {at} {j}: {got} {expected}"
                );
            }
        }
    }
}

#[test]
fn every_isa_gives_the_portable_bits() {
    let portable = Kernels::cpu_with(1, Isa::Portable).unwrap();
    let isas = all(2);
    let mut sample = Sample::new(3);
    for ty in WeightType::ALL {
        let shapes = (1..=33).map(|n| (n, depths(ty)[n % 2], 1 + n % 7));
        let deep = depths(ty).into_iter().map(|k| (18, k, 3));
        let rows = (1..=20).map(|m| (17, depths(ty)[1], m));
        // Panels that are walked four at a time, and what is left of them.
        let wide = (1..=9).flat_map(|m| [64, 95, 99, 127].map(|n| (n, depths(ty)[0], m)));
        // More inputs than are walked at a time, in one tile of rows, in a few and in more than a band.
        let dense = ty.block_elements() == 1;
        let long = [(49, 767, 3), (49, 768, 7), (64, 769, 17), (33, 1537, 67)].into_iter().filter(|_| dense);
        for (n, k, m) in shapes.chain(deep).chain(rows).chain(wide).chain(long) {
            let (weight, x) = (sample.weight(&portable, ty, n, k), sample.tensor(&[m, k]));
            let expected = bits(&portable.linear(&x, &weight).unwrap());
            for kernels in &isas {
                let got = bits(&kernels.linear(&x, &weight).unwrap());
                assert_eq!(got, expected, "{kernels:?} {ty:?} n={n} k={k} m={m}");
            }
        }
    }
}

/// Kernels that round, of every instruction set, with the portable ones that they must agree with.
fn rounding() -> (Kernels, Vec<Kernels>) {
    let portable = Kernels::cpu_with(1, Isa::Portable).unwrap().rounding();
    (portable, all(2).iter().map(Kernels::rounding).collect())
}

#[test]
fn rounded_activations_give_the_products_of_rounded_numbers() {
    let kernels = Kernels::cpu(2).unwrap();
    let mut sample = Sample::new(12);
    for ty in [WeightType::Bf16, WeightType::F16, WeightType::F32] {
        for k in depths(ty) {
            let (weight, x) = (sample.weight(&kernels, ty, 21, k), sample.tensor(&[5, k]));
            let round = |x: f32| match ty {
                WeightType::Bf16 => bf16::from_f32(x).to_f32(),
                WeightType::F16 => f16::from_f32(x).to_f32(),
                _ => x,
            };
            let rounded = values(&x).into_iter().map(round).collect::<Vec<_>>();
            let rounded = Tensor::from_vec(rounded, (5, k), &Device::Cpu).unwrap();
            // What is rounded already stays as it is, and what is not becomes that.
            check(&kernels.rounding(), &weight, &rounded);
            let expected = bits(&kernels.rounding().linear(&rounded, &weight).unwrap());
            assert_eq!(bits(&kernels.rounding().linear(&x, &weight).unwrap()), expected, "{ty:?} k={k}");
        }
    }
}

#[test]
fn every_isa_rounds_to_the_portable_bits() {
    let (portable, isas) = rounding();
    let mut sample = Sample::new(13);
    let ty = WeightType::Bf16;
    let few = (1..=20).map(|m| (m, 17 + m % 3 * 50, 100 + m % 2));
    for (m, n, k) in
        few.chain([(1, 129, 1), (9, 33, 767), (17, 48, 768), (64, 31, 769), (67, 17, 1537), (130, 49, 400)])
    {
        let (weight, x) = (sample.weight(&portable, ty, n, k), sample.tensor(&[m, k]));
        let alone = |i| bits(&portable.linear(&pick(&x, &[i]), &weight).unwrap());
        let expected: Vec<_> = (0..m).flat_map(alone).collect();
        for kernels in &isas {
            let got = bits(&kernels.linear(&x, &weight).unwrap());
            assert_eq!(got, expected, "{kernels:?} m={m} n={n} k={k}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let mut sample = Sample::new(4);
    for kernels in [Kernels::cpu(1).unwrap(), Kernels::cpu(2).unwrap(), Kernels::cpu(5).unwrap()] {
        for ty in WeightType::ALL {
            let k = 2 * ty.block_elements().max(32);
            let weight = sample.weight(&kernels, ty, 100, k);
            let x = sample.tensor(&[41, k]);
            let whole = kernels.linear(&x, &weight).unwrap();
            let mut at: Vec<usize> = (0..41).collect();
            for m in [1, 2, 3, 4, 7, 8, 9, 16, 17, 40] {
                at.rotate_left(m);
                let expected = bits(&pick(&whole, &at[..m]));
                let got = bits(&kernels.linear(&pick(&x, &at[..m]), &weight).unwrap());
                assert_eq!(got, expected, "{kernels:?} {ty:?} m={m}");
            }
        }
    }
}

/// Many rows are walked in bands, tiles and blocks of inputs, one row in none of them.
#[test]
fn many_rows_give_the_bits_of_each_alone() {
    let portable = Kernels::cpu_with(1, Isa::Portable).unwrap();
    let mut sample = Sample::new(11);
    for ty in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
        for (m, n, k) in
            [(9, 33, 383), (17, 48, 384), (64, 31, 385), (67, 17, 769), (130, 49, 400), (65, 16, 1)]
        {
            let (weight, x) = (sample.weight(&portable, ty, n, k), sample.tensor(&[m, k]));
            let alone = |i| bits(&portable.linear(&pick(&x, &[i]), &weight).unwrap());
            let expected: Vec<_> = (0..m).flat_map(alone).collect();
            for kernels in all(2) {
                let got = bits(&kernels.linear(&x, &weight).unwrap());
                assert_eq!(got, expected, "{kernels:?} {ty:?} m={m} n={n} k={k}");
            }
        }
    }
}

#[test]
fn several_weights_at_once_give_the_bits_of_each_alone() {
    let kernels = Kernels::cpu(2).unwrap();
    let mut sample = Sample::new(9);
    let types = [WeightType::Q4K, WeightType::F16, WeightType::Q6K];
    let [a, b, c] = types.map(|ty| sample.weight(&kernels, ty, 70, 256));
    for m in [0, 1, 3, 20] {
        let x = sample.tensor(&[m, 256]);
        let together = kernels.linears(&x, [&a, &b, &c]).unwrap();
        for (y, w) in together.iter().zip([&a, &b, &c]) {
            assert_eq!(bits(y), bits(&kernels.linear(&x, w).unwrap()), "{w:?} m={m}");
        }
    }
    let narrow = sample.weight(&kernels, WeightType::F32, 3, 128);
    let error = kernels.linears(&sample.tensor(&[1, 256]), [&a, &narrow]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert!(kernels.linears(&sample.tensor(&[1, 256]), []).unwrap().is_empty());
}

#[test]
fn odd_numbers_stay_in_their_row() {
    let kernels = Kernels::cpu(2).unwrap();
    let mut sample = Sample::new(5);
    let kinds = [WeightType::F32, WeightType::Q4K, WeightType::Q8_0, WeightType::Bf16];
    for (ty, kernels) in kinds
        .into_iter()
        .map(|ty| (ty, if ty == WeightType::Bf16 { kernels.rounding() } else { kernels.clone() }))
    {
        let weight = sample.weight(&kernels, ty, 20, 256);
        let mut x = sample.floats(4 * 256);
        x[256 + 7] = f32::NAN;
        x[512 + 9] = f32::INFINITY;
        x[768..].fill(0.0);
        let x = Tensor::from_vec(x, (4, 256), &Device::Cpu).unwrap();
        let y = values(&kernels.linear(&x, &weight).unwrap());
        assert!(y[..20].iter().all(|y| y.is_finite()), "{ty:?}");
        assert!(y[20..40].iter().all(|y| y.is_nan()), "{ty:?}");
        assert!(y[40..60].iter().all(|y| !y.is_finite()), "{ty:?}");
        assert!(y[60..].iter().all(|y| *y == 0.0), "{ty:?}");
    }
}

#[test]
fn tiny_and_huge_activations_keep_their_scale() {
    let kernels = Kernels::cpu(1).unwrap();
    let mut sample = Sample::new(6);
    let weight = sample.weight(&kernels, WeightType::Q8_0, 16, 64);
    for scale in [1e-30_f32, 1e-12, 1e12, 1e30] {
        let x: Vec<f32> = sample.floats(64).iter().map(|x| x * scale).collect();
        check(&kernels, &weight, &Tensor::from_vec(x, (1, 64), &Device::Cpu).unwrap());
    }
}

#[test]
fn embedding_takes_rows() {
    let kernels = Kernels::cpu(2).unwrap();
    for ty in WeightType::ALL {
        let weight = Sample::new(7).weight(&kernels, ty, 50, 256);
        let got = values(&kernels.embed(&[49, 0, 17, 17].into(), &weight).unwrap());
        let expected: Vec<f32> = [49, 0, 17, 17].iter().flat_map(|&i| weight.row(i).unwrap()).collect();
        assert_eq!(got, expected, "{ty:?}");
        let error = kernels.embed(&[3, 50].into(), &weight).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Range);
        assert_eq!(error.to_string(), "token 50 is not below the vocabulary's 50");
        assert_eq!(kernels.embed(&[].into(), &weight).unwrap().dims(), [0, 256]);
    }
}

#[test]
fn bad_shapes_are_errors() {
    let kernels = Kernels::cpu(1).unwrap();
    let mut sample = Sample::new(8);
    let weight = sample.weight(&kernels, WeightType::Q8_0, 16, 64);
    let fails = |x: &Tensor| kernels.linear(x, &weight).unwrap_err();
    assert_eq!(fails(&sample.tensor(&[2, 32])).to_string(), "the width of x is 32; 64 is needed");
    assert_eq!(fails(&sample.tensor(&[64])).kind(), ErrorKind::Shape);
    assert_eq!(fails(&sample.tensor(&[64, 64]).t().unwrap()).kind(), ErrorKind::Shape);
    let wide = sample.tensor(&[2, 64]).to_dtype(candle_core::DType::F64).unwrap();
    assert_eq!(fails(&wide).kind(), ErrorKind::Shape);
    assert_eq!(kernels.linear(&sample.tensor(&[0, 64]), &weight).unwrap().dims(), [0, 16]);
    // A slice of rows is contiguous, and begins inside its storage.
    let x = sample.tensor(&[5, 64]);
    let slice = x.narrow(0, 2, 2).unwrap();
    let expected = bits(&kernels.linear(&pick(&x, &[2, 3]), &weight).unwrap());
    assert_eq!(bits(&kernels.linear(&slice, &weight).unwrap()), expected);
}
