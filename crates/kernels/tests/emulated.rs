//! The kernels of cards, run on this CPU, against their twins. A broken kernel must be noticed.
#![cfg(feature = "emulate")]
#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod twins;

use candle_core::{Device, Tensor};
use trefoil_kernels::{Kernels, Mutation, Result};
use twins::{CHECKS, Check, Pair, sample::values};

/// This CPU, and a card that it plays.
fn pair(mutations: &[Mutation]) -> Pair {
    Pair { cpu: Kernels::cpu(1).unwrap(), card: Kernels::emulated(mutations).unwrap() }
}

const fn mutation(file: &'static str, from: &'static str, to: &'static str) -> Mutation {
    Mutation { file, from, to }
}

/// Changes to the kernels of each check that it must notice; none makes them read what is not theirs.
const MUTATIONS: [(&str, &[Mutation]); 11] = [
    (
        "norm",
        &[
            mutation("norm.cu", "i < width; i += LANES", "i < width - 1; i += LANES"),
            mutation("norm.cu", "x[at + i] + y[at + i]", "x[at + i] + y[at]"),
        ],
    ),
    (
        "elementwise",
        &[
            mutation("elementwise.cu", "bias[i % width]", "bias[i % width / 2]"),
            mutation("elementwise.cu", "width + i % width]", "width + i % width / 2]"),
        ],
    ),
    ("rope", &[mutation("rope.cu", "y * cos[channel] -", "y * cos[channel] +")]),
    ("embed", &[mutation("weight.cu", "(float)(code - 32)", "(float)(code - 31)")]),
    (
        "integer",
        &[
            mutation("integer.cu", "block->sums[1];", "block->sums[0];"),
            mutation("quantise.cu", "127.0f / greatest", "126.0f / greatest"),
            mutation("integer.cu", "plane >> t & 0x10101010u", "plane >> 1 & 0x10101010u"),
            mutation("integer_many.cu", "await_copies<RING - 2>();", "await_copies<RING - 1>();"),
            mutation("integer_many.cu", "is_there ? panel : 0", "panel % wide"),
            mutation(
                "quantise.cu",
                "row < m ? x[at * BLOCK + lane] : 0.0f",
                "row < m ? x[at * BLOCK] : 0.0f",
            ),
        ],
    ),
    (
        "dense",
        &[
            mutation("dense.cu", "{a[0].x, a[1].x", "{a[1].x, a[0].x"),
            mutation("dense.cu", "next = 1; next < turn.chains", "next = 1; next < turn.chains - 1"),
            mutation("dense.cu", "await_copies<DENSE_RING - 2>();", "await_copies<DENSE_RING - 1>();"),
            mutation("dense_many.cu", "await_copies<STAGES - 2>();", "await_copies<STAGES - 1>();"),
            mutation(
                "dense_many.cu",
                "chain = 1; chain < chains; chain++) {",
                "chain = 1; chain < chains - 1; chain++) {",
            ),
            mutation("dense_many.cu", "chain = at % chains;", "chain = 0;"),
            mutation("round.cu", "row % 8 * 4 + eight % 4", "row % 8 * 4 + eight % 2"),
        ],
    ),
    (
        "store",
        &[
            mutation("kv.cu", "pages_k[tile + slot * d + channel]", "pages_k[tile + channel]"),
            mutation("kv.cu", "store[from * words + i]", "store[from * words]"),
        ],
    ),
    (
        "attend",
        &[
            mutation("attend.cu", "text.v + page, there, d)", "text.v + page, there - 1, d)"),
            mutation("attend.cu", "max(position / PAGE - 1, 0); }", "max((position + 1) / PAGE - 1, 0); }"),
            mutation("attend.cu", "at == tile ? guests + before", "at == tile ? guests"),
            // From here on what both attentions have in common is broken.
            mutation("attend.cu", "first ? seen[1] * weight", "first ? seen[1]"),
            mutation("halves.cuh", "kept<T>(y - wide(high[1]))", "kept<T>(y - y)"),
            mutation(
                "halves.cuh",
                "total = total + in.totals[query][at];",
                "total = total + in.totals[0][at];",
            ),
            mutation("halves.cuh", "in.greatest[query][warp] = here;", "in.greatest[query][0] = here;"),
            mutation("text.cuh", "staged_v[staged(position) + channel]", "staged_v[staged(position)]"),
            mutation("tile.cuh", "await_copies<STAGES - 1>();", "await_copies<STAGES>();"),
            mutation(
                "tile.cuh",
                "__shfl_sync(ALL, looks[h].place, slot)",
                "__shfl_sync(ALL, looks[0].place, slot)",
            ),
            mutation("tile.cuh", "      __syncthreads();\n      fetch(", "      fetch("),
        ],
    ),
    (
        "shared",
        &[
            mutation("shared.cu", "width / 2 - (int)positions[row]", "(width - 1) / 2 + (int)positions[row]"),
            mutation("shared.cu", "none[1] = 0.0f;", "none[1] = 1.0f;"),
            mutation("shared.cu", "(size_t)(head / (heads / kv_heads))", "(size_t)(head % kv_heads)"),
        ],
    ),
    (
        "judge",
        &[
            mutation("softmax.cu", "other.token < best.token", "other.token > best.token"),
            mutation("draw.cu", "few[j] < few[i]", "few[j] > few[i]"),
            mutation("softmax.cu", " * look.scale)", ")"),
            mutation("softmax.cu", "i <= stretches; i++)", "i < stretches; i++)"),
            mutation("look.cuh", "score / penalty : score * penalty", "score / penalty : score"),
            mutation("look.cuh", "list < 4; list += 2", "list < 2; list += 2"),
            mutation("look.cuh", "(score + 0.0f)", "(score)"),
            mutation("draw.cu", "key >= from && key < limit", "key > from && key < limit"),
        ],
    ),
    (
        "operands",
        &[
            mutation("forms.cuh", "8 * eight + i < k ? get(8 * eight + i) : 0.0f", "get(8 * eight)"),
            mutation("forms.cuh", "round_eight<__half>(x, scaling.down)", "round_eight<__half>(x, 1.0f)"),
            mutation(
                "forms.cuh",
                "[(size_t)(row / 16) * depth + b], row % 16",
                "[(size_t)(row / 16) * depth + b], row % 8",
            ),
        ],
    ),
];

#[test]
fn kernels_are_their_twins() {
    let pair = pair(&[]);
    for (_, check) in CHECKS {
        if let Err(found) = check(&pair) {
            panic!("{found}");
        }
    }
}

/// A pass like an earlier one starts at once, with arguments of its own; one that is not starts bit by bit.
#[test]
fn passes_take_their_own_arguments() {
    let card = Kernels::emulated(&[]).unwrap();
    let tensor = |at: usize| Tensor::from_vec(vec![at as f32 + 0.5; 40], (1, 40), &Device::Cpu).unwrap();
    let mut launches = Vec::new();
    for turn in 0..8 {
        let (a, b) = (tensor(turn), tensor(3 * turn));
        let before = card.calls().launches;
        let made: Result<_> = card.pass([0; 4], 1, |lease| {
            let sum = card.add(&a, &b)?;
            // The sixth pass has one more.
            let sum = if turn == 5 { card.scale(&sum, 1.0)? } else { sum };
            Ok((lease, card.scale(&sum, turn as f32)?))
        });
        let (_lease, made) = made.unwrap();
        launches.push(card.calls().launches - before);
        let expected = (4 * turn + 1) as f32 * turn as f32;
        assert_eq!(made.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [expected; 40], "turn {turn}");
    }
    assert_eq!(launches, [2, 1, 1, 1, 1, 3, 2, 1]);
    // A large pass is not gathered.
    let before = card.calls().launches;
    for _ in 0..3 {
        let made: Result<_> = card.pass([1; 4], 17, |_| card.add(&tensor(1), &tensor(2)));
        assert_eq!(made.unwrap().dims(), [1, 40]);
    }
    assert_eq!(card.calls().launches - before, 3);
}

/// A card without graphs computes the same, and says why it takes longer.
#[test]
fn a_card_without_graphs_says_so() {
    let said = "a graph could not be made: this card makes no graphs";
    let x = Tensor::from_vec(vec![1.5f32; 40], (1, 40), &Device::Cpu).unwrap();
    for (card, expected) in [
        (Kernels::cpu(1).unwrap(), None),
        (Kernels::emulated(&[]).unwrap(), None),
        (Kernels::emulated_without_graphs().unwrap(), Some(said)),
    ] {
        let (graphs, before) = (card.graphs(), card.calls().launches);
        for turn in 0..4 {
            let made: Result<_> = card.pass([0; 4], 1, |_| card.add(&x, &card.scale(&x, 3.0)?));
            assert_eq!(values(&made.unwrap()), [6.0; 40], "turn {turn}");
        }
        assert_eq!(graphs.failure(), expected);
        let launches = card.calls().launches - before;
        assert_eq!(
            launches,
            if !card.on_card() {
                0
            } else if expected.is_none() {
                5
            } else {
                8
            }
        );
    }
    let card = Kernels::emulated_without_graphs().unwrap();
    card.try_graphs().unwrap();
    assert_eq!(card.graphs().failure(), Some(said));
}

/// One library a turn: mutations of different checks' kernels do not meet.
#[test]
fn a_broken_kernel_is_noticed() {
    let most = MUTATIONS.iter().map(|(_, mutations)| mutations.len()).max().unwrap();
    for turn in 0..most {
        let some = MUTATIONS.iter().filter_map(|(name, mutations)| {
            let (_, check) = CHECKS.iter().find(|(known, _)| known == name).unwrap();
            Some((*check, *mutations.get(turn)?))
        });
        let (checks, mutations): (Vec<Check>, Vec<Mutation>) = some.unzip();
        let pair = pair(&mutations);
        for (check, mutation) in checks.iter().zip(&mutations) {
            assert!(check(&pair).is_err(), "nobody noticed {mutation:?}");
        }
    }
}
