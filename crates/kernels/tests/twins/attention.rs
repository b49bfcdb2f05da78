//! Attention of a card against its twin: the same bits where sums are made in the same order, else within what the
//! roundings of tensor cores add up to.

use candle_core::{Device, Tensor};
use trefoil_kernels::CacheType::{Bf16, F16, F32};
use trefoil_kernels::{CacheType, ErrorKind, Kernels, KvStore, Lack, Move, PAGE, Readers, Sight, Words};

use super::sample::{Sample, pick, values};
use super::{Found, Pair, close, on, same};

/// How the rows of a step hang together.
#[derive(Debug, Clone, Copy)]
enum Draft {
    /// Each row after the second begins on a branch, or hangs under any of those before it.
    Tree,
    /// Chains of so many rows under the first row, all on the first branch.
    Comb(usize),
    /// One row a branch.
    Roots,
}

/// One attention over a forest: shapes, text and sight.
struct Forest<'a> {
    heads: usize,
    kv_heads: usize,
    d: usize,
    window: Option<usize>,
    distances: Option<usize>,
    ty: CacheType,
    committed: &'a [usize],
    rows: usize,
    draft: Draft,
}

impl Forest<'_> {
    /// Attention on both, over the same text, and on the card each row alone with its path.
    fn run(&self, pair: &Pair, sample: &mut Sample) -> Found {
        let Self { heads, kv_heads, d, window, distances, ty, committed, rows, draft } = *self;
        let name = format!(
            "attend {heads}/{kv_heads}×{d} {ty:?} {committed:?}+{rows} {draft:?} {window:?} {distances:?}"
        );
        let longest = committed.iter().copied().max().unwrap();
        let pages = committed.iter().map(|len| len.div_ceil(PAGE)).sum::<usize>() + 1;
        let on_both = [&pair.cpu, &pair.card];
        let stores = on_both.map(|kernels| KvStore::new(kernels, pages, kv_heads, d, ty).unwrap());
        let text = [0, 1].map(|_| sample.tensor(&[longest.max(1), kv_heads, d]));
        let mut sight = Sight::new();
        let mut next = 0;
        let mut tables = Vec::new();
        for &len in committed {
            // The last page first, and one that nobody has.
            let table: Vec<u32> =
                (0..len.div_ceil(PAGE) as u32).map(|i| pages as u32 - 1 - next - i).collect();
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
            let parent = match draft {
                Draft::Tree => (row > 1).then(|| sample.below(row + 1)).filter(|&parent| parent < row),
                Draft::Comb(deep) => (row > 0).then(|| if row % deep == 1 % deep { 0 } else { row - 1 }),
                Draft::Roots => None,
            };
            let (branch, mut path) = match parent {
                Some(parent) => paths[parent].clone(),
                None => (row % committed.len(), Vec::new()),
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
        // Tensor cores make what rows have in common of a cache of sixteen bits.
        if ty == F32 || positions <= 2 * PAGE {
            same(&name, &cpu, &card)?;
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

pub(super) fn attend(pair: &Pair) -> Found {
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
        draft: Draft::Tree,
    };
    for forest in [
        forest(1, 1, 1, None, None, F32, &[0, 0], 1),
        forest(4, 2, 64, None, None, F32, &[31, 40], 9),
        forest(3, 3, 16, None, Some(40), F32, &[32, 0], 12),
        forest(6, 1, 128, Some(50), None, F16, &[70, 33], 5),
        forest(5, 1, 7, Some(1), Some(1), F16, &[3, 0], 4),
        forest(9, 3, 80, Some(33), Some(200), F16, &[100, 64], 40),
        forest(2, 1, 200, None, None, F32, &[65, 1], 3),
        forest(2, 2, 32, None, None, F32, &[300, 20], 4),
        forest(2, 1, 64, Some(100), Some(64), F16, &[700, 256], 3),
        forest(4, 4, 50, None, Some(70), Bf16, &[90, 12], 20),
        // Rows that are staged in tiles of crowds: deep paths, and more rows than a crowd takes.
        forest(3, 1, 64, None, None, Bf16, &[130, 0], 90),
        forest(2, 2, 96, Some(70), Some(90), F16, &[95, 257], 40),
        forest(40, 1, 24, None, Some(3), Bf16, &[100, 90], 5),
        forest(2, 1, 256, Some(300), None, F16, &[800, 64], 19),
        forest(1, 1, 129, None, None, Bf16, &[0, 96], 70),
        // Texts of whole tiles, and of all but one position.
        forest(2, 2, 64, None, None, F16, &[512, 256], 2),
        forest(1, 1, 40, None, None, Bf16, &[319, 63], 7),
        // Groups that are cut where they divide a row's heads, and windows that begin within a part.
        forest(7, 1, 64, None, None, F16, &[290, 31], 9),
        forest(14, 2, 32, Some(200), None, Bf16, &[612, 300], 4),
        forest(7, 1, 24, Some(290), Some(30), F32, &[310, 620], 6),
    ] {
        forest.run(pair, &mut sample)?;
    }
    let drafted = |heads, kv_heads, d, ty, committed, rows, draft| Forest {
        draft,
        ..forest(heads, kv_heads, d, None, None, ty, committed, rows)
    };
    for forest in [
        // Chains of one branch, of which few or many have room beside each other.
        drafted(2, 2, 32, F16, &[96], 41, Draft::Comb(4)),
        drafted(1, 1, 64, F16, &[150], 70, Draft::Comb(4)),
        drafted(2, 1, 128, F16, &[286], 21, Draft::Comb(4)),
        drafted(1, 1, 16, F32, &[190], 42, Draft::Comb(4)),
        drafted(1, 1, 24, F32, &[60], 9, Draft::Comb(1)),
        // A draft, and a prompt that is filled.
        drafted(1, 1, 128, F16, &[320], 9, Draft::Comb(100)),
        drafted(2, 1, 20, Bf16, &[33], 100, Draft::Comb(100)),
        drafted(1, 1, 24, F32, &[3], 90, Draft::Comb(100)),
        drafted(2, 2, 64, F16, &[300, 64, 90, 1, 0, 31, 32, 310, 10, 40, 70], 11, Draft::Roots),
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

pub(super) fn shared(pair: &Pair) -> Found {
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
        if ty == F32 {
            same(&name, &cpu, &card)?;
        } else {
            let size =
                scale * greatest_head(&q) * text.iter().map(|[k, _]| greatest_head(k)).fold(0.0, f32::max);
            let n = lengths[0].max(lengths[1]);
            close(&name, &values(&cpu), &values(&card), roundings(ty, size, d, n))?;
        }
        same(&format!("{name}, a row alone"), &pick(&card, &[rows - 1]), &alone)?;
    }
    Ok(())
}
