//! Weights are read as the format's own tools read them.
#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod sample;

use half::f16;
use sample::Sample;
use trefoil_kernels::{ErrorKind, Kernels, Weight, WeightType};

/// Four blocks of bytes from a linear congruential generator, with chosen scales.
fn blocks(ty: WeightType, scales: &[usize]) -> Vec<u8> {
    let mut state = 12_345 + ty.block_bytes() as u32;
    let mut bytes: Vec<u8> = (0..4 * ty.block_bytes())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    for (b, block) in bytes.chunks_exact_mut(ty.block_bytes()).enumerate() {
        for (i, &at) in scales.iter().enumerate() {
            let b = b as f64;
            let scale = match (b as usize % 2, i) {
                (0, 0) => 0.01 + 0.003 * b,
                (0, _) => (0.01 + 0.003 * b) * -0.7,
                (_, 0) => -(0.02 + 0.001 * b),
                _ => -(0.02 + 0.001 * b) * 1.3,
            };
            block[at..at + 2].copy_from_slice(&f16::from_f64(scale).to_le_bytes());
        }
    }
    bytes
}

/// FNV-1a over the bits, one step a number; minus zero counts as zero.
fn digest(values: &[f32]) -> u64 {
    values.iter().fold(0xcbf2_9ce4_8422_2325, |hash, x| {
        let bits = if *x == 0.0 { 0 } else { x.to_bits() };
        (hash ^ u64::from(bits)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Expected: the same blocks as the `gguf` Python package's `quants.dequantize` reads them, all of it
/// as a digest and elements 0, 1 and the last but one in figures.
#[test]
fn every_quantised_type_reads_as_the_reference_does() {
    let expected = [
        (WeightType::Q4_0, &[0][..], 0x19d9_6710_30ae_2525, [0.060_012_817, 0.050_010_68, 0.091_979_98]),
        (WeightType::Q4_1, &[0, 2], 0xbbf8_eef8_7ceb_8a25, [0.123_027_8, 0.003_002_166_7, -0.374_832_15]),
        (WeightType::Q5_0, &[0], 0x3d9d_29ba_6c60_1d25, [0.100_021_36, 0.040_008_545, 0.344_924_93]),
        (WeightType::Q5_1, &[0, 2], 0xa84a_f06d_9b5a_5d25, [0.293_064_12, 0.243_053_44, -0.098_892_21]),
        (WeightType::Q8_0, &[0], 0xe6f1_3d25_7c5a_76e5, [-0.460_098_27, -0.280_059_8, -2.069_549_6]),
        (WeightType::Q4K, &[0, 2], 0xb6c4_06e7_b6f7_5585, [1.165_210_7, 1.825_351_7, 0.469_757_08]),
        (WeightType::Q5K, &[0, 2], 0x731e_fb95_ab9b_8caf, [0.761_112_2, 6.062_244_4, -9.328_918]),
        (WeightType::Q6K, &[208], 0x3288_1f11_7b46_6513, [5.641_205, 30.086_426, -6.898_498_5]),
    ];
    let kernels = Kernels::cpu(1).unwrap();
    for (ty, scales, hash, [first, second, second_last]) in expected {
        let k = 4 * ty.block_elements();
        let weight = Weight::pack(&kernels, ty, 1, k, &blocks(ty, scales)).unwrap();
        let row = weight.row(0).unwrap();
        assert_eq!((row[0], row[1], row[k - 2]), (first, second, second_last), "{ty:?}");
        assert_eq!(digest(&row), hash, "{ty:?}");
    }
}

#[test]
fn dense_types_are_kept_exactly() {
    let kernels = Kernels::cpu(2).unwrap();
    for ty in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
        let bytes = Sample::new(3).weight_bytes(ty, 35, 7);
        let weight = Weight::pack(&kernels, ty, 35, 7, &bytes).unwrap();
        for (i, row) in bytes.chunks_exact(7 * ty.block_bytes()).enumerate() {
            let expected: Vec<f32> = row
                .chunks_exact(ty.block_bytes())
                .map(|b| match ty {
                    WeightType::F32 => f32::from_le_bytes(b.try_into().unwrap()),
                    WeightType::F16 => f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
                    _ => f32::from_bits(u32::from(u16::from_le_bytes(b.try_into().unwrap())) << 16),
                })
                .collect();
            assert_eq!(weight.row(i).unwrap(), expected, "{ty:?} row {i}");
        }
    }
}

#[test]
fn rows_are_independent_of_their_panel() {
    let kernels = Kernels::cpu(2).unwrap();
    for ty in WeightType::ALL {
        let (n, k) = (37, 2 * ty.block_elements().max(3));
        let bytes = Sample::new(5).weight_bytes(ty, n, k);
        let whole = Weight::pack(&kernels, ty, n, k, &bytes).unwrap();
        for (i, row) in bytes.chunks_exact(bytes.len() / n).enumerate() {
            let alone = Weight::pack(&kernels, ty, 1, k, row).unwrap();
            assert_eq!(whole.row(i).unwrap(), alone.row(0).unwrap(), "{ty:?} row {i}");
        }
    }
}

#[test]
fn packed_weights_are_about_as_large_as_files() {
    let kernels = Kernels::cpu(1).unwrap();
    for ty in WeightType::ALL {
        let (n, k) = (64, 1024);
        let weight = Sample::new(9).weight(&kernels, ty, n, k);
        let file = ty.bytes(n, k).unwrap();
        assert!(
            weight.bytes() >= file && weight.bytes() <= file * 103 / 100 + 64,
            "{ty:?}: {}",
            weight.bytes()
        );
    }
}

#[test]
fn bad_weights_are_errors() {
    let kernels = Kernels::cpu(1).unwrap();
    let pack = |ty, n, k, len| Weight::pack(&kernels, ty, n, k, &vec![0; len]).unwrap_err();
    for (ty, n, k, len) in [
        (WeightType::Q4_0, 1, 33, 18),
        (WeightType::Q4_0, 1, 32, 17),
        (WeightType::Q4_0, 0, 32, 0),
        (WeightType::F32, 1, 0, 0),
        (WeightType::Q6K, 2, 128, 210),
        (WeightType::F32, 1 << 62, 4, 0),
        (WeightType::Q8_0, 1 << 60, 256, 0),
    ] {
        let error = pack(ty, n, k, len);
        assert_eq!(error.kind(), ErrorKind::Shape, "{error}");
    }
    assert_eq!(
        pack(WeightType::Q4_0, 2, 32, 35).to_string(),
        "a Q4_0 weight [2, 32] has 35 bytes; 36 are needed"
    );
    assert_eq!(WeightType::Q8_0.bytes(1 << 60, 256), None);
    let weight = Sample::new(1).weight(&kernels, WeightType::Q8_0, 3, 32);
    assert_eq!(weight.row(3).unwrap_err().kind(), ErrorKind::Range);
}
