//! Attention over shared keys.
#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod sample;

use candle_core::{DType, Tensor};
use sample::{Sample, all, bits, pick, values};
use trefoil_kernels::CacheType::{self, Bf16, F16, F32};
use trefoil_kernels::{ErrorKind, Isa, Kernels, Readers, Result, SharedKv, Words};

/// Softmax in double precision over all keys.
fn truth(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, bias: Option<(&Tensor, &[u32])>) -> Vec<f64> {
    let (m, heads, d) = q.dims3().unwrap();
    let (n, kv_heads) = (k.dims()[0], k.dims()[1]);
    let (q, k, v) = (values(q), values(k), values(v));
    let mut out = Vec::new();
    for row in 0..m {
        for h in 0..heads {
            let slot = |key: usize| (key * kv_heads + h / (heads / kv_heads)) * d;
            let scores: Vec<f64> = (0..n)
                .map(|key| {
                    let q = &q[(row * heads + h) * d..][..d];
                    let k = &k[slot(key)..][..d];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    let bias = bias.map_or(0.0, |(table, positions)| {
                        let width = table.dims()[1] as i64;
                        let index = (key as i64 - i64::from(positions[row]) + width / 2).clamp(0, width - 1);
                        f64::from(values(table)[h * width as usize + index as usize])
                    });
                    dot * scale + bias
                })
                .collect();
            let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - greatest).exp()).sum();
            for i in 0..d {
                let weighted = scores.iter().enumerate();
                let sum: f64 =
                    weighted.map(|(key, s)| (s - greatest).exp() * f64::from(v[slot(key) + i])).sum();
                out.push(sum / total);
            }
        }
    }
    out
}

/// Keys or values as they are kept.
fn kept(x: &Tensor, ty: CacheType) -> Tensor {
    let ty = match ty {
        F32 => DType::F32,
        F16 => DType::F16,
        Bf16 => DType::BF16,
    };
    x.to_dtype(ty).unwrap().to_dtype(DType::F32).unwrap()
}

/// Attention of all rows over one document.
fn attend(
    kernels: &Kernels,
    q: &Tensor,
    kv: &SharedKv,
    scale: f32,
    bias: Option<(&Tensor, &[u32])>,
) -> Result<Tensor> {
    let readers = Readers::new(vec![(0..q.dims()[0] as u32).collect()])?;
    let positions = bias.map(|(table, positions)| (table, Words::from(positions.to_vec())));
    let bias = positions.as_ref().map(|(table, positions)| (*table, positions));
    kernels.attend_shared(q, &[kv], &readers, scale, bias)
}

#[test]
fn attention_is_close_to_the_truth() {
    let kernels = Kernels::cpu(2).unwrap();
    let mut sample = Sample::new(1);
    for (n, heads, kv_heads, d, ty) in [
        (1, 2, 2, 64, F32),
        (31, 1, 1, 16, F32),
        (32, 4, 2, 7, F32),
        (33, 2, 2, 64, F32),
        (500, 2, 1, 32, F32),
        (33, 4, 2, 50, F16),
        (70, 3, 3, 64, Bf16),
    ] {
        let (k, v) = (sample.tensor(&[n, kv_heads, d]), sample.tensor(&[n, kv_heads, d]));
        let kv = kernels.share(&k, &v, ty).unwrap();
        let (k, v) = (kept(&k, ty), kept(&v, ty));
        assert_eq!((kv.len(), kv.is_empty()), (n, false));
        assert_eq!(kv.bytes(), 2 * ty.bytes() * n.next_multiple_of(32) * kv_heads * d);
        let q = sample.tensor(&[9, heads, d]);
        let table = sample.tensor(&[heads, 2 * 20 + 1]);
        let positions: Vec<u32> = (0..9).map(|i| i * 13 % n as u32).collect();
        for bias in [None, Some((&table, positions.as_slice()))] {
            let got = values(&attend(&kernels, &q, &kv, 0.7, bias).unwrap());
            for (got, truth) in got.iter().zip(truth(&q, &k, &v, f64::from(0.7_f32), bias)) {
                assert!((f64::from(*got) - truth).abs() < 2e-6, "n {n}: {got}, {truth}");
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let mut sample = Sample::new(2);
    let (k, v) = (sample.tensor(&[77, 3, 48]), sample.tensor(&[77, 3, 48]));
    let q = sample.tensor(&[40, 3, 48]);
    let table = sample.tensor(&[3, 65]);
    let positions: Vec<u32> = (0..40).map(|i| i * 2).collect();
    let portable = Kernels::cpu_with(1, Isa::Portable).unwrap();
    for ty in CacheType::ALL {
        let kv = portable.share(&k, &v, ty).unwrap();
        let expected = attend(&portable, &q, &kv, 1.0, Some((&table, &positions))).unwrap();
        for kernels in all(1).into_iter().chain(all(3)) {
            let got = attend(&kernels, &q, &kv, 1.0, Some((&table, &positions))).unwrap();
            assert_eq!(bits(&got), bits(&expected), "{kernels:?} {ty:?}");
            for m in [1, 2, 5, 17] {
                let at: Vec<usize> = (0..m).map(|i| (i * 7 + m) % 40).collect();
                let some: Vec<u32> = at.iter().map(|&i| positions[i]).collect();
                let got = attend(&kernels, &pick(&q, &at), &kv, 1.0, Some((&table, &some))).unwrap();
                assert_eq!(bits(&got), bits(&pick(&expected, &at)), "{kernels:?} {ty:?} m={m}");
            }
        }
    }
}

#[test]
fn rows_of_several_documents_see_their_own() {
    let mut sample = Sample::new(4);
    let portable = Kernels::cpu_with(1, Isa::Portable).unwrap();
    let documents: Vec<SharedKv> = [40, 1, 97]
        .map(|n| {
            let (k, v) = (sample.tensor(&[n, 2, 24]), sample.tensor(&[n, 2, 24]));
            portable.share(&k, &v, F32).unwrap()
        })
        .into();
    let q = sample.tensor(&[50, 4, 24]);
    let rows: Vec<Vec<u32>> =
        (0..3).map(|document| (0..50).rev().filter(|row| row * row % 3 == document).collect()).collect();
    assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [17, 33, 0]);
    let seen: Vec<&SharedKv> = documents.iter().collect();
    let readers = Readers::new(rows.clone()).unwrap();
    for kernels in all(1).into_iter().chain(all(3)) {
        let got = kernels.attend_shared(&q, &seen, &readers, 0.3, None).unwrap();
        for (kv, rows) in documents.iter().zip(&rows).filter(|(_, rows)| !rows.is_empty()) {
            let at: Vec<usize> = rows.iter().map(|&row| row as usize).collect();
            let alone = attend(&kernels, &pick(&q, &at), kv, 0.3, None).unwrap();
            assert_eq!(bits(&pick(&got, &at)), bits(&alone), "{kernels:?}");
        }
    }
}

#[test]
fn mistakes_are_errors() {
    let kernels = Kernels::cpu(1).unwrap();
    let mut sample = Sample::new(3);
    let k = sample.tensor(&[5, 2, 8]);
    let kv = kernels.share(&k, &k, F32).unwrap();
    let q = sample.tensor(&[3, 2, 8]);
    let kind = |result: trefoil_kernels::Result<Tensor>| result.unwrap_err().kind();
    assert_eq!(kernels.share(&k, &q, F32).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(kernels.share(&q.narrow(0, 0, 0).unwrap(), &q, F32).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(kind(attend(&kernels, &sample.tensor(&[3, 2, 4]), &kv, 1.0, None)), ErrorKind::Shape);
    assert_eq!(kind(attend(&kernels, &sample.tensor(&[3, 3, 8]), &kv, 1.0, None)), ErrorKind::Shape);
    let (even, odd) = (sample.tensor(&[2, 4]), sample.tensor(&[2, 5]));
    assert_eq!(kind(attend(&kernels, &q, &kv, 1.0, Some((&even, &[0; 3])))), ErrorKind::Shape);
    assert_eq!(kind(attend(&kernels, &q, &kv, 1.0, Some((&odd, &[0; 2])))), ErrorKind::Shape);
    assert!(attend(&kernels, &q, &kv, 1.0, Some((&odd, &[0, u32::MAX, 9]))).is_ok());
    for rows in [&[0, 1, 1][..], &[0, 1, 3], &[0, 2]] {
        assert_eq!(Readers::new(vec![rows.to_vec()]).unwrap_err().kind(), ErrorKind::Shape);
    }
    let shared = |documents: &[&SharedKv], groups| kernels.attend_shared(&q, documents, &groups, 1.0, None);
    let groups = |groups: &[&[u32]]| Readers::new(groups.iter().map(|rows| rows.to_vec()).collect()).unwrap();
    assert!(shared(&[&kv, &kv], groups(&[&[2, 0], &[1]])).is_ok());
    assert_eq!(kind(shared(&[&kv], groups(&[&[0, 1]]))), ErrorKind::Shape);
    assert_eq!(kind(shared(&[&kv], groups(&[&[2, 0], &[1]]))), ErrorKind::Shape);
    let k = sample.tensor(&[5, 1, 8]);
    let half = sample.tensor(&[5, 2, 8]);
    for other in [kernels.share(&k, &k, F32), kernels.share(&half, &half, F16)] {
        assert_eq!(kind(shared(&[&kv, &other.unwrap()], groups(&[&[2, 0], &[1]]))), ErrorKind::Shape);
    }
}
