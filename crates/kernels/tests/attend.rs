//! Tree attention: right, and the same bits whether a token is scored in a draft or alone.
#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod sample;

use candle_core::{Device, Tensor};
use sample::{Sample, all, bits, pick, values};
use trefoil_kernels::CacheType::{self, Bf16, F16, F32};
use trefoil_kernels::{ErrorKind, Isa, Kernels, KvStore, Move, PAGE, Sight};

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    d: usize,
    window: Option<usize>,
    /// Entries of the distance bias.
    distances: Option<usize>,
    ty: CacheType,
}

impl Shape {
    /// A key or value as the store keeps it.
    fn kept(self, x: f32) -> f64 {
        match self.ty {
            F32 => f64::from(x),
            F16 => half::f16::from_f32(x).to_f64(),
            Bf16 => half::bf16::from_f32(x).to_f64(),
        }
    }
}

const SHAPES: [Shape; 8] = [
    Shape { heads: 4, kv_heads: 2, d: 64, window: None, distances: None, ty: F32 },
    Shape { heads: 3, kv_heads: 3, d: 16, window: None, distances: Some(40), ty: F32 },
    Shape { heads: 6, kv_heads: 1, d: 128, window: Some(50), distances: None, ty: F16 },
    Shape { heads: 5, kv_heads: 1, d: 7, window: Some(1), distances: Some(1), ty: F16 },
    Shape { heads: 9, kv_heads: 3, d: 80, window: Some(33), distances: Some(200), ty: F16 },
    Shape { heads: 1, kv_heads: 1, d: 1, window: None, distances: None, ty: F32 },
    Shape { heads: 4, kv_heads: 4, d: 50, window: None, distances: Some(70), ty: Bf16 },
    Shape { heads: 6, kv_heads: 2, d: 64, window: Some(40), distances: None, ty: Bf16 },
];

/// One text's queries, keys and values, `[n, ..]` by position.
struct Text {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Option<Tensor>,
}

impl Text {
    fn new(sample: &mut Sample, shape: Shape, n: usize) -> Self {
        Self {
            q: sample.tensor(&[n, shape.heads, shape.d]),
            k: sample.tensor(&[n, shape.kv_heads, shape.d]),
            v: sample.tensor(&[n, shape.kv_heads, shape.d]),
            bias: shape.distances.map(|width| sample.tensor(&[shape.heads, width])),
        }
    }

    /// Scores rows `at` on `sight`.
    fn attend(
        &self,
        kernels: &Kernels,
        shape: Shape,
        store: &KvStore,
        sight: &Sight,
        at: &[usize],
    ) -> Tensor {
        let (q, k, v) = (pick(&self.q, at), pick(&self.k, at), pick(&self.v, at));
        let scale = (shape.d as f32).sqrt().recip();
        kernels.attend(&q, &k, &v, store, sight, scale, shape.window, self.bias.as_ref()).unwrap()
    }

    fn commit(&self, kernels: &Kernels, store: &KvStore, pages: &[u32], at: &[usize], first: usize) {
        let (k, v) = (pick(&self.k, at), pick(&self.v, at));
        let moves: Vec<Move> = (0..at.len())
            .map(|i| Move {
                row: i as u32,
                page: pages[(first + i) / PAGE],
                offset: ((first + i) % PAGE) as u32,
            })
            .collect();
        kernels.write(&[(store, &k, &v)], &moves).unwrap();
    }

    /// Softmax in double precision: row `path.last()` over `path`, positions 0, 1, ….
    fn truth(&self, shape: Shape, path: &[usize]) -> Vec<f64> {
        let (q, k, v) = (values(&self.q), values(&self.k), values(&self.v));
        let bias = self.bias.as_ref().map(values);
        let (d, group) = (shape.d, shape.heads / shape.kv_heads);
        let position = path.len() - 1;
        let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let mut out = Vec::new();
        for h in 0..shape.heads {
            let q = &q[(path[position] * shape.heads + h) * d..][..d];
            let slot = |row: usize| (row * shape.kv_heads + h / group) * d;
            let scores: Vec<f64> = (first..=position)
                .map(|p| {
                    let k = &k[slot(path[p])..][..d];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * shape.kept(*k)).sum();
                    let bias = bias.as_ref().map_or(0.0, |bias| {
                        let width = shape.distances.unwrap();
                        f64::from(bias[h * width + (position - p).min(width - 1)])
                    });
                    dot / (d as f64).sqrt() + bias
                })
                .collect();
            let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - greatest).exp()).sum();
            for i in 0..d {
                let sum: f64 = scores
                    .iter()
                    .enumerate()
                    .map(|(j, s)| (s - greatest).exp() * shape.kept(v[slot(path[first + j]) + i]))
                    .sum();
                out.push(sum / total);
            }
        }
        out
    }
}

/// Pages of a store: so many that keys are seen in three pieces.
const PAGES: usize = 37;

/// Page tables in an order of their own.
fn pages(count: usize) -> Vec<u32> {
    (0..count as u32).map(|p| (p * 7 + 3) % PAGES as u32).collect()
}

/// A branch with `len` committed positions, and a chain of `m` rows after it.
fn chain(pages: &[u32], len: usize, m: usize) -> Sight {
    let mut sight = Sight::new();
    let branch = sight.branch(pages, len);
    let path: Vec<u32> = (0..m as u32).collect();
    for i in 0..m {
        sight.row(branch, &path[..=i]);
    }
    sight
}

#[test]
fn attention_is_close_to_the_truth() {
    let kernels = Kernels::cpu(2).unwrap();
    let mut sample = Sample::new(1);
    for shape in SHAPES {
        let short = [(0, 1), (0, 40), (1, 1), (31, 2), (32, 1), (33, 3), (95, 70), (100, 5), (200, 1)];
        for (len, m) in short.into_iter().chain([(510, 4), (1020, 6)]) {
            let text = Text::new(&mut sample, shape, len + m);
            let store = KvStore::new(&kernels, PAGES, shape.kv_heads, shape.d, shape.ty).unwrap();
            let all: Vec<usize> = (0..len + m).collect();
            text.commit(&kernels, &store, &pages(PAGES), &all[..len], 0);
            let sight = chain(&pages(PAGES), len, m);
            let got = values(&text.attend(&kernels, shape, &store, &sight, &all[len..]));
            for (i, got) in got.chunks_exact(shape.heads * shape.d).enumerate() {
                let truth = text.truth(shape, &all[..=len + i]);
                for (got, truth) in got.iter().zip(truth) {
                    assert!((f64::from(*got) - truth).abs() < 2e-6, "len {len}, row {i}: {got}, {truth}");
                }
            }
        }
    }
}

/// The promise itself: one row at a time from the cache, against chains of every length.
#[test]
fn a_chain_gives_the_bits_of_single_rows() {
    let mut sample = Sample::new(2);
    // From the beginning, and over the end of a piece.
    for (threads, from) in [(1, 0), (3, 0), (3, 460)] {
        let kernels = Kernels::cpu(threads).unwrap();
        for shape in SHAPES {
            let n = 110;
            let text = Text::new(&mut sample, shape, from + n);
            let store = KvStore::new(&kernels, PAGES, shape.kv_heads, shape.d, shape.ty).unwrap();
            let table = pages(PAGES);
            text.commit(&kernels, &store, &table, &(0..from).collect::<Vec<_>>(), 0);
            let mut alone = Vec::new();
            for i in from..from + n {
                alone.push(bits(&text.attend(&kernels, shape, &store, &chain(&table, i, 1), &[i])));
                text.commit(&kernels, &store, &table, &[i], i);
            }
            for (len, m) in
                [(0, 110), (0, 33), (5, 27), (30, 4), (32, 32), (63, 2), (64, 46), (90, 20), (109, 1)]
            {
                // Slots beyond the committed length hold later tokens: they must not matter.
                let at: Vec<usize> = (from + len..from + len + m).collect();
                let got = bits(&text.attend(&kernels, shape, &store, &chain(&table, from + len, m), &at));
                let expected = alone[len..len + m].concat();
                assert_eq!(got, expected, "{kernels:?} d={} len {from} + {len}, m {m}", shape.d);
            }
        }
    }
}

/// Random forests over several branches: each row equals the last row of its own path alone.
#[test]
fn a_forest_gives_the_bits_of_single_paths() {
    let mut sample = Sample::new(3);
    for round in 0..16 {
        let shape = SHAPES[round % SHAPES.len()];
        let isas = all(2);
        let kernels = &isas[round % isas.len()];
        let branches = 1 + round % 3;
        // Some branches are seen in one piece, some in two.
        let lens: Vec<usize> = (0..branches).map(|_| sample.below(100) + 440 * sample.below(2)).collect();
        let m = 1 + sample.below(60);
        // Rows 0..m are staged; each branch's committed rows follow.
        let text = Text::new(&mut sample, shape, m + 540 * branches);
        let store = KvStore::new(kernels, 17 * branches, shape.kv_heads, shape.d, shape.ty).unwrap();
        let mut sight = Sight::new();
        for (b, len) in lens.iter().enumerate() {
            let table: Vec<u32> = (0..17).map(|p| (p * branches + b) as u32).collect();
            let rows: Vec<usize> = (0..*len).map(|i| m + 540 * b + i).collect();
            text.commit(kernels, &store, &table, &rows, 0);
            sight.branch(&table, *len);
        }
        let mut paths: Vec<(usize, Vec<u32>)> = Vec::new();
        for row in 0..m {
            let (branch, mut path) = if row == 0 || sample.below(6) == 0 {
                (sample.below(branches), Vec::new())
            } else {
                // Parents are mostly recent, so that some chains grow longer than a page.
                paths[row - 1 - sample.below(row.min(4))].clone()
            };
            path.push(row as u32);
            sight.row(branch, &path);
            paths.push((branch, path));
        }
        let at: Vec<usize> = (0..m).collect();
        let whole = text.attend(kernels, shape, &store, &sight, &at);
        for (row, (branch, path)) in paths.iter().enumerate() {
            assert_eq!(sight.position(row), lens[*branch] + path.len() - 1);
            // The same path as a chain, whose rows are the path's.
            let table: Vec<u32> = (0..17).map(|p| (p * branches + branch) as u32).collect();
            let rows: Vec<usize> = path.iter().map(|&i| i as usize).collect();
            let single =
                text.attend(kernels, shape, &store, &chain(&table, lens[*branch], path.len()), &rows);
            assert_eq!(
                bits(&pick(&whole, &[row])),
                bits(&pick(&single, &[path.len() - 1])),
                "round {round} row {row}"
            );
        }
    }
}

#[test]
fn every_isa_gives_the_portable_bits() {
    let mut sample = Sample::new(4);
    let portable = Kernels::cpu_with(1, Isa::Portable).unwrap();
    for (shape, len) in SHAPES.iter().flat_map(|shape| [75, 500].map(|len| (*shape, len))) {
        let text = Text::new(&mut sample, shape, len + 45);
        let store = KvStore::new(&portable, PAGES, shape.kv_heads, shape.d, shape.ty).unwrap();
        let all_rows: Vec<usize> = (0..len + 45).collect();
        text.commit(&portable, &store, &pages(PAGES), &all_rows[..len], 0);
        let sight = chain(&pages(PAGES), len, 45);
        let expected = bits(&text.attend(&portable, shape, &store, &sight, &all_rows[len..]));
        for kernels in all(2) {
            let got = bits(&text.attend(&kernels, shape, &store, &sight, &all_rows[len..]));
            assert_eq!(got, expected, "{kernels:?} d={} len {len}", shape.d);
        }
    }
}

/// What lies in slots that no row may see, even NaN, changes nothing.
#[test]
fn hidden_slots_do_not_leak() {
    let kernels = Kernels::cpu(2).unwrap();
    let mut sample = Sample::new(5);
    let shape = SHAPES[0];
    let text = Text::new(&mut sample, shape, 50);
    let rows: Vec<usize> = (0..50).collect();
    let clean = KvStore::new(&kernels, 3, shape.kv_heads, shape.d, shape.ty).unwrap();
    let dirty = KvStore::new(&kernels, 3, shape.kv_heads, shape.d, shape.ty).unwrap();
    let nan = Tensor::full(f32::NAN, (3 * PAGE, shape.kv_heads, shape.d), &Device::Cpu).unwrap();
    let everywhere: Vec<Move> = (0..3 * PAGE as u32)
        .map(|i| Move { row: i, page: i / PAGE as u32, offset: i % PAGE as u32 })
        .collect();
    kernels.write(&[(&dirty, &nan, &nan)], &everywhere).unwrap();
    let sight = chain(&[2, 0], 40, 10);
    let mut outputs = Vec::new();
    for store in [&clean, &dirty] {
        text.commit(&kernels, store, &[2, 0], &rows[..40], 0);
        outputs.push(bits(&text.attend(&kernels, shape, store, &sight, &rows[40..])));
    }
    assert_eq!(outputs[0], outputs[1]);
}

#[test]
fn a_copied_page_serves_as_the_original() {
    let kernels = Kernels::cpu(1).unwrap();
    let mut sample = Sample::new(6);
    let shape = SHAPES[0];
    let text = Text::new(&mut sample, shape, 41);
    let rows: Vec<usize> = (0..41).collect();
    let store = KvStore::new(&kernels, 4, shape.kv_heads, shape.d, shape.ty).unwrap();
    text.commit(&kernels, &store, &[0, 1], &rows[..40], 0);
    kernels.copy_page(std::slice::from_ref(&store), 1, 3).unwrap();
    let one = text.attend(&kernels, shape, &store, &chain(&[0, 1], 40, 1), &[40]);
    let other = text.attend(&kernels, shape, &store, &chain(&[0, 3], 40, 1), &[40]);
    assert_eq!(bits(&one), bits(&other));
    assert_eq!(kernels.copy_page(&[store], 0, 4).unwrap_err().kind(), ErrorKind::Range);
}

#[test]
fn mistakes_are_errors() {
    let kernels = Kernels::cpu(1).unwrap();
    let mut sample = Sample::new(7);
    let shape = SHAPES[0];
    let store = KvStore::new(&kernels, 2, 2, 64, F32).unwrap();
    let text = Text::new(&mut sample, shape, 3);
    let try_sight = |sight: &Sight| {
        kernels.attend(&text.q, &text.k, &text.v, &store, sight, 1.0, None, None).map_err(|e| e.kind())
    };
    assert!(try_sight(&chain(&[0], 0, 3)).is_ok());
    assert_eq!(try_sight(&chain(&[0], 33, 3)).unwrap_err(), ErrorKind::Range);
    assert_eq!(try_sight(&chain(&[2], 3, 3)).unwrap_err(), ErrorKind::Range);
    assert_eq!(try_sight(&chain(&[0], 0, 2)).unwrap_err(), ErrorKind::Shape);
    for path in [&[][..], &[3], &[1], &[0, 7]] {
        let mut sight = Sight::new();
        let branch = sight.branch(&[0], 0);
        sight.row(branch, path);
        sight.row(branch, &[1]);
        sight.row(branch, &[2]);
        assert_eq!(try_sight(&sight).unwrap_err(), ErrorKind::Range, "{path:?}");
    }
    let mut nowhere = Sight::new();
    for i in 0..3 {
        nowhere.row(4, &[i]);
    }
    assert_eq!(try_sight(&nowhere).unwrap_err(), ErrorKind::Range);
    assert_eq!(nowhere.position(0), 0);

    let good = chain(&[0], 0, 3);
    let attend = |q: &Tensor, k: &Tensor, window, bias: Option<&Tensor>| {
        kernels.attend(q, k, &text.v, &store, &good, 1.0, window, bias).map_err(|e| e.kind())
    };
    assert_eq!(attend(&text.q, &text.q, None, None).unwrap_err(), ErrorKind::Shape);
    assert_eq!(attend(&sample.tensor(&[3, 3, 64]), &text.k, None, None).unwrap_err(), ErrorKind::Shape);
    assert_eq!(attend(&sample.tensor(&[3, 4, 32]), &text.k, None, None).unwrap_err(), ErrorKind::Shape);
    assert_eq!(attend(&text.q, &text.k, Some(0), None).unwrap_err(), ErrorKind::Shape);
    let bias = Tensor::zeros((4, 0), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(attend(&text.q, &text.k, None, Some(&bias)).unwrap_err(), ErrorKind::Shape);

    for at in [
        Move { row: 3, page: 0, offset: 0 },
        Move { row: 0, page: 2, offset: 0 },
        Move { row: 0, page: 0, offset: 32 },
    ] {
        assert_eq!(kernels.write(&[(&store, &text.k, &text.v)], &[at]).unwrap_err().kind(), ErrorKind::Range);
    }
    let before = bits(&store.k);
    let flipped = sample.tensor(&[2, 3, 64]).transpose(0, 1).unwrap();
    assert_eq!(kernels.write(&[(&store, &text.k, &flipped)], &[]).unwrap_err().kind(), ErrorKind::Shape);
    let view = store.k.flatten_all().unwrap().narrow(0, 0, 384).unwrap().reshape((3, 2, 64)).unwrap();
    let zero = Move { row: 0, page: 0, offset: 0 };
    assert_eq!(kernels.write(&[(&store, &view, &text.v)], &[zero]).unwrap_err().kind(), ErrorKind::Backend);
    assert_eq!(bits(&store.k), before);
    assert_eq!(KvStore::new(&kernels, usize::MAX, 2, 64, F32).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(KvStore::new(&kernels, 1 << 50, 2, 64, F32).unwrap_err().kind(), ErrorKind::Memory);
}
