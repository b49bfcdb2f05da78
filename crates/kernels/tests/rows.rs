//! Operations on rows and single numbers: norm, residual, bias, gate, rotary embedding.
#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a failed test may panic, and here equal means equal"
)]

mod sample;

use candle_core::{Device, Tensor};
use sample::{Sample, all, bits, pick, values};
use trefoil_kernels::{Activation, ErrorKind, Isa, Kernels, Operand, Rope, Turns, Weight, WeightType};

#[test]
fn norm_is_right_and_row_by_row() {
    let mut sample = Sample::new(1);
    let portable = Kernels::cpu_with(1, Isa::Portable).unwrap();
    for width in [1, 7, 16, 33, 576, 1536] {
        let (x, weight) = (sample.tensor(&[50, width]), sample.tensor(&[width]));
        let expected = portable.rms_norm(&x, &weight, 1e-6).unwrap();
        let w = values(&weight);
        for (x, y) in values(&x).chunks(width).zip(values(&expected).chunks(width)) {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            for ((x, y), w) in x.iter().zip(y).zip(&w) {
                let truth = f64::from(*x) / (mean + 1e-6).sqrt() * f64::from(*w);
                assert!((f64::from(*y) - truth).abs() <= truth.abs() * 1e-6);
            }
        }
        for kernels in all(2) {
            assert_eq!(bits(&kernels.rms_norm(&x, &weight, 1e-6).unwrap()), bits(&expected), "{kernels:?}");
            let one = kernels.rms_norm(&pick(&x, &[31]), &weight, 1e-6).unwrap();
            assert_eq!(bits(&one), bits(&pick(&expected, &[31])));
        }
    }
    let (x, weight) = (sample.tensor(&[3, 4, 16]), sample.tensor(&[16]));
    let heads = portable.rms_norm(&x, &weight, 1e-5).unwrap();
    let flat = portable.rms_norm(&x.reshape((12, 16)).unwrap(), &weight, 1e-5).unwrap();
    assert_eq!(bits(&heads), bits(&flat));
    assert_eq!(heads.dims(), [3, 4, 16]);
    let error = portable.rms_norm(&x, &sample.tensor(&[8]), 1e-5).unwrap_err();
    assert_eq!(error.to_string(), "the normalised dimension is 16; 8 is needed");
}

#[test]
fn sums_and_biases() {
    let kernels = Kernels::cpu(2).unwrap();
    let mut sample = Sample::new(2);
    let (a, b, bias) = (sample.tensor(&[3, 5]), sample.tensor(&[3, 5]), sample.tensor(&[5]));
    let expected = (&a + &b).unwrap();
    assert_eq!(bits(&kernels.add(&a, &b).unwrap()), bits(&expected));
    let expected = a.broadcast_add(&bias).unwrap();
    assert_eq!(bits(&kernels.add_bias(&a, &bias).unwrap()), bits(&expected));
    assert_eq!(kernels.add(&a, &bias).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(kernels.add_bias(&a, &sample.tensor(&[3])).unwrap_err().kind(), ErrorKind::Shape);
}

#[test]
fn gates_match_their_definitions_at_every_place() {
    let mut sample = Sample::new(3);
    let portable = Kernels::cpu_with(1, Isa::Portable).unwrap();
    let definition = |activation, x: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        // Φ by integration, so as not to lean on the function under test.
        Activation::Gelu => {
            let steps = 2000;
            let h = x / f64::from(steps);
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let simpson: f64 = (0..steps)
                .map(|i| {
                    let t = f64::from(i) * h;
                    (density(t) + 4.0 * density(t + h / 2.0) + density(t + h)) * h / 6.0
                })
                .sum();
            x * (0.5 + simpson)
        }
    };
    for activation in [Activation::Silu, Activation::Relu, Activation::GeluTanh, Activation::Gelu] {
        let (gate, up) = ((sample.tensor(&[3, 37]) * 8.0).unwrap(), sample.tensor(&[3, 37]));
        let expected = portable.gate(&gate, Some(&up), activation).unwrap();
        for ((x, up), y) in values(&gate).iter().zip(values(&up)).zip(values(&expected)) {
            let truth = definition(activation, f64::from(*x)) * f64::from(up);
            assert!((f64::from(y) - truth).abs() <= 1e-6 * truth.abs() + 1e-7, "{activation:?}({x})");
        }
        for kernels in all(2) {
            assert_eq!(bits(&kernels.gate(&gate, Some(&up), activation).unwrap()), bits(&expected));
            let one = kernels.gate(&pick(&gate, &[2]), Some(&pick(&up, &[2])), activation).unwrap();
            assert_eq!(bits(&one), bits(&pick(&expected, &[2])), "{kernels:?} {activation:?}");
        }
        let alone = portable.gate(&gate, None, activation).unwrap();
        assert_eq!(bits(&(alone * &up).unwrap()), bits(&expected));
        assert_eq!(
            portable.gate(&gate, Some(&pick(&up, &[0])), activation).unwrap_err().kind(),
            ErrorKind::Shape
        );
    }
    let wide = sample.tensor(&[9, 5000]);
    let expected = bits(&portable.gate(&wide, None, Activation::Silu).unwrap());
    for kernels in all(4) {
        assert_eq!(bits(&kernels.gate(&wide, None, Activation::Silu).unwrap()), expected);
    }
}

#[test]
fn a_product_is_activated_as_a_gate_does_it() {
    let mut sample = Sample::new(9);
    for ty in [WeightType::F32, WeightType::Bf16, WeightType::Q8_0] {
        for (m, n, k) in [(1, 5, 32), (3, 16, 64), (9, 531, 320)] {
            let (bytes, x) = (sample.weight_bytes(ty, n, k), sample.tensor(&[m, k]));
            let next = sample.weight_bytes(WeightType::F32, 7, n);
            for kernels in all(2) {
                let weight = Weight::pack(&kernels, ty, n, k, &bytes).unwrap();
                let next = Weight::pack(&kernels, WeightType::F32, 7, n, &next).unwrap();
                let y = kernels.linear(&x, &weight).unwrap();
                for activation in [Activation::Silu, Activation::Relu, Activation::GeluTanh, Activation::Gelu]
                {
                    let operand =
                        kernels.activated(&x.clone().into(), &weight, activation, &[&next]).unwrap();
                    let [found] = kernels.linears_of(&operand, [&next]).unwrap();
                    let expected =
                        kernels.linear(&kernels.gate(&y, None, activation).unwrap(), &next).unwrap();
                    assert_eq!(bits(&found), bits(&expected), "{kernels:?} {activation:?} {ty:?} [{m}, {n}]");
                }
            }
        }
    }
    let kernels = Kernels::cpu(1).unwrap();
    let weight = Weight::pack(&kernels, WeightType::F32, 1, 2, &[0; 8]).unwrap();
    let error =
        kernels.activated(&sample.tensor(&[1, 3]).into(), &weight, Activation::Relu, &[]).unwrap_err();
    assert_eq!(error.to_string(), "the width of x is 3; 2 is needed");
}

/// Kernels that round have pairs made by what writes the numbers: products must find those that they make themselves.
#[test]
fn what_is_made_for_products_is_what_they_make() {
    let mut sample = Sample::new(14);
    for (m, width) in [(1, 1), (3, 7), (2, 64), (9, 531), (5, 4099)] {
        let (x, y, scale) = (sample.tensor(&[m, width]), sample.tensor(&[m, width]), sample.tensor(&[width]));
        let (first, second) = (
            sample.weight_bytes(WeightType::Bf16, width, width % 100),
            sample.weight_bytes(WeightType::Bf16, 21, width),
        );
        for kernels in all(2).iter().map(Kernels::rounding) {
            let next = Weight::pack(&kernels, WeightType::Bf16, 21, width, &second).unwrap();
            let same = |name: &str, operand: &Operand, whole: &Tensor| {
                let [found] = kernels.linears_of(operand, [&next]).unwrap();
                let expected = kernels.linear(whole, &next).unwrap();
                assert_eq!(bits(&found), bits(&expected), "{name} {kernels:?} [{m}, {width}]");
            };
            let normed = kernels.norm_for(&x, &scale, 1e-5, &[&next]).unwrap();
            same("a norm", &normed, &kernels.rms_norm(&x, &scale, 1e-5).unwrap());
            let (sum, normed) = kernels.add_norm_for(&x, &y, &scale, 1e-5, &[&next]).unwrap();
            same("a sum's norm", &normed, &kernels.rms_norm(&sum, &scale, 1e-5).unwrap());
            for up in [None, Some(&y)] {
                let gated = kernels.gate_for(&x, up, Activation::Silu, &[&next]).unwrap();
                same("a gate", &gated, &kernels.gate(&x, up, Activation::Silu).unwrap());
            }
            let first = Weight::pack(&kernels, WeightType::Bf16, width, width % 100, &first).unwrap();
            let from = x.narrow(1, 0, width % 100).unwrap().contiguous().unwrap();
            let activated =
                kernels.activated(&from.clone().into(), &first, Activation::Relu, &[&next]).unwrap();
            let product = kernels.linear(&from, &first).unwrap();
            same("a product", &activated, &kernels.gate(&product, None, Activation::Relu).unwrap());
        }
    }
}

#[test]
fn rope_turns_pairs_by_position() {
    let kernels = Kernels::cpu(1).unwrap();
    let mut sample = Sample::new(4);
    let d = 16;
    // Six of the eight pairs turn.
    let frequencies: Vec<f32> = (0..6).map(|i| 10_000_f32.powf(-f32::from(i as u8) / 6.0)).collect();
    let rope = Rope::new(&frequencies);
    let x = sample.tensor(&[3, 2, d]);
    let positions = [0, 5, 1000];
    let turned = |x: &Tensor, turns: &Turns| values(&kernels.rope([x], turns).unwrap()[0]);
    let y = turned(&x, &rope.turns(&positions));
    for (i, (x, y)) in values(&x).chunks(d).zip(y.chunks(d)).enumerate() {
        for (pair, frequency) in frequencies.iter().enumerate() {
            let angle = f64::from(positions[i / 2] as f32 * frequency);
            let (a, b) = (f64::from(x[pair]), f64::from(x[pair + 6]));
            assert!((f64::from(y[pair]) - (a * angle.cos() - b * angle.sin())).abs() < 1e-6);
            assert!((f64::from(y[pair + 6]) - (b * angle.cos() + a * angle.sin())).abs() < 1e-6);
        }
        assert_eq!(x[12..], y[12..]);
    }
    assert_eq!(y[..2 * d], values(&x)[..2 * d], "position 0 turns nothing");
    assert_eq!(turned(&pick(&x, &[2]), &rope.turns(&[1000])), y[4 * d..]);
    let twice = Rope::scaled(&frequencies, 2.0);
    assert_eq!(turned(&x, &twice.turns(&positions))[0], 2.0 * y[0]);
    assert_eq!(kernels.rope([&x], &rope.turns(&[0, 1])).unwrap_err().kind(), ErrorKind::Shape);
    let many = Rope::new(&[1.0; 9]);
    assert_eq!(kernels.rope([&x], &many.turns(&positions)).unwrap_err().kind(), ErrorKind::Shape);
}

#[test]
fn kernels_say_what_they_are() {
    assert_eq!(Kernels::cpu(0).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(Kernels::cpu(1 << 20).unwrap_err().kind(), ErrorKind::Unsupported);
    let kernels = Kernels::cpu(3).unwrap();
    assert_eq!((kernels.threads(), kernels.isa()), (3, Isa::detect()));
    assert!(matches!(kernels.device(), Device::Cpu));
    for isa in Isa::ALL {
        assert_eq!(Kernels::cpu_with(1, isa).is_ok(), isa.is_available());
    }
    let x = Tensor::zeros((2, 0), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(kernels.add(&x, &x).unwrap().dims(), [2, 0]);
    assert_eq!(kernels.gate(&x, None, Activation::Relu).unwrap().dims(), [2, 0]);
}
