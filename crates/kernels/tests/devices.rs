//! A path that some devices have staged is the same in the pages of all.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod sample;

use candle_core::{DType, Tensor};
use sample::{Sample, bits};
use trefoil_kernels::{CacheType, Devices, Kernels, KvStore, Move, PAGE, Path};

/// Heads, and channels a head.
const SIZES: (usize, usize) = (2, 20);
const PAGES: usize = 3;

/// Where rows of a step go.
fn moves(rows: &[u32]) -> Vec<Move> {
    let slot = |(at, &row)| Move { row, page: at as u32 % 2 * 2, offset: (at * 5 % PAGE) as u32 };
    rows.iter().enumerate().map(slot).collect()
}

/// Commits rows of a step that the devices in `having` have staged, each with others before them; says whether the pages
/// of all are those of one device.
fn reaches(kernels: &[Kernels], having: &[usize], layers: usize, ty: CacheType) -> bool {
    let (heads, d) = SIZES;
    let mut sample = Sample::new(layers as u64);
    let step: Vec<[Tensor; 2]> = (0..layers).map(|_| [0; 2].map(|_| sample.tensor(&[9, heads, d]))).collect();
    let rows = [7, 0, 3, 8];
    let stores = |kernels: &Kernels| -> Vec<KvStore> {
        (0..layers).map(|_| KvStore::new(kernels, PAGES, heads, d, ty).unwrap()).collect()
    };
    // Pages lie the other way round on a card.
    let pages = |stores: &[KvStore]| -> Vec<Vec<u32>> {
        let is_plain = |store: &KvStore| store.k.dims() == [PAGES, heads, d, PAGE];
        let sides = stores.iter().flat_map(|store| {
            let sides = [&store.k, &store.v].map(|side| side.to_dtype(DType::F32).unwrap());
            if is_plain(store) { sides } else { sides.map(|side| side.transpose(2, 3).unwrap()) }
        });
        sides.map(|side| bits(&side)).collect()
    };
    let cpu = Kernels::cpu(1).unwrap();
    let alone = stores(&cpu);
    let staged: Vec<_> = alone.iter().zip(&step).map(|(store, [k, v])| (store, k, v)).collect();
    cpu.write(&staged, &moves(&rows)).unwrap();

    let devices = Devices::join(kernels).unwrap();
    // What device `rank` has staged: so many other rows, and then the step's.
    let staged: Vec<Vec<(Tensor, Tensor)>> = (0..kernels.len())
        .map(|rank| {
            let shifted = |x: &Tensor| Tensor::cat(&[&x.narrow(0, 0, rank).unwrap(), x], 0).unwrap();
            step.iter().map(|[k, v]| (shifted(k), shifted(v))).collect()
        })
        .collect();
    let paths: Vec<Option<Path<'_>>> = (0..kernels.len())
        .map(|rank| {
            let rows = rows.map(|row| row + rank as u32);
            having.contains(&rank).then(|| Path { layers: &staged[rank], moves: moves(&rows) })
        })
        .collect();
    let theirs: Vec<_> = devices.each().iter().map(stores).collect();
    devices.write(&theirs, &paths).unwrap();
    devices.each().iter().for_each(|kernels| kernels.settle().unwrap());
    theirs.iter().all(|stores| pages(stores) == pages(&alone))
}

fn each(kernels: &[Kernels]) {
    for having in [&[0][..], &[1], &[2], &[0, 2], &[1, 2], &[0, 1, 2]] {
        for (layers, ty) in [(1, CacheType::F32), (3, CacheType::F16), (70, CacheType::F32)] {
            assert!(reaches(kernels, having, layers, ty), "{having:?}, {layers} layers, {ty:?}");
        }
    }
}

#[test]
fn rows_reach_every_device() {
    each(&[1, 2, 1].map(|threads| Kernels::cpu(threads).unwrap()));
}

#[cfg(feature = "emulate")]
#[test]
fn rows_reach_every_card() {
    each(&[(); 3].map(|()| Kernels::emulated(&[]).unwrap()));
}

/// By NCCL, rows are gathered by a kernel.
#[cfg(all(feature = "emulate", feature = "nccl"))]
#[test]
fn a_broken_kernel_is_noticed() {
    use trefoil_kernels::Mutation;

    for (from, to) in [
        ("(size_t)rows[blockIdx.x] * width", "(size_t)blockIdx.x * width"),
        ("packed[to + (size_t)gridDim.x * width + i]", "packed[to + width + i]"),
    ] {
        let broken = || Kernels::emulated(&[Mutation { file: "kv.cu", from, to }]).unwrap();
        assert!(!reaches(&[broken(), broken()], &[1], 3, CacheType::F32), "{to}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let devices = Devices::join(&[Kernels::cpu(1).unwrap(), Kernels::cpu(1).unwrap()]).unwrap();
    let error = devices.write(&[vec![], vec![]], &[None, None]).unwrap_err();
    assert_eq!(error.to_string(), "no device has staged the rows");
    let error = devices.write(&[vec![]], &[None, None]).unwrap_err();
    assert_eq!(error.to_string(), "1 stores and 2 paths for 2 devices");
}
