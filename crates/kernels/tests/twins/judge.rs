//! What a card looks up in scores against its twin: the same picks, masses and order.

use candle_core::{Device, Tensor};
use trefoil_kernels::{Kernels, Look, TOP, Wanted, higher, penalise, top};

use super::sample::Sample;
use super::{Found, Pair, on};

/// Looks at row `row`: as it is, and with penalties on the texts' first and last tokens.
fn looks(row: u32, repeated: u32) -> [Look; 4] {
    let (text, draft) = (0..repeated / 2, repeated / 2..repeated);
    let all = [text.clone(), draft.clone()];
    [
        Look { row, temperature: 0.3 + row as f32, penalty: 1.0, repeated: [0..0, 0..0] },
        Look { row, temperature: 0.0, penalty: 1.3, repeated: all.clone() },
        Look { row, temperature: 0.7, penalty: 0.8, repeated: all },
        Look { row, temperature: 1.0, penalty: 1.7, repeated: [draft, text.start..text.start] },
    ]
}

/// What follows from the top on is the row's order, whoever looks.
fn further(pair: &Pair, scores: &Tensor, wanted: &Wanted, look: usize, most: usize) -> Found {
    let [from_cpu, from_card] = [&pair.cpu, &pair.card].map(|kernels| (kernels, on(kernels, scores)));
    let all = |behind, (kernels, scores): &(&Kernels, Tensor), most| {
        kernels.further(scores, wanted, look, behind, most).unwrap()
    };
    let order = all(None, &from_cpu, usize::MAX).next;
    let seen = |&(raw, at): &(f32, u32)| {
        let Look { penalty, repeated, .. } = &wanted.looks()[look];
        let mut named =
            repeated.iter().flat_map(|list| list.clone().map(|at| wanted.repeated()[at as usize]));
        (if named.any(|token| token == at) { penalise(raw, *penalty) } else { raw }, at)
    };
    let mut known = Vec::new();
    loop {
        let mut found = all(known.last().map(seen), &from_card, most);
        let (from, count) = (known.len(), found.next.len());
        found.next.sort_by(|a, b| higher(&seen(a), &seen(b)));
        known.append(&mut found.next);
        let is_right = bits_of(&known) == bits_of(&order[..known.len()]);
        if !is_right || count != most.min(order.len() - from) || found.is_all != (known.len() == order.len())
        {
            return Err(format!("further {look}, {most}: {} of {} known", known.len(), order.len()));
        }
        if found.is_all {
            return Ok(());
        }
    }
}

fn bits_of(entries: &[(f32, u32)]) -> Vec<(u32, u32)> {
    entries.iter().map(|&(score, at)| (score.to_bits(), at)).collect()
}

pub(super) fn judge(pair: &Pair) -> Found {
    let mut sample = Sample::new(10);
    for (m, n) in [(1, 1), (2, 15), (3, 16), (1, 1040), (2, 5003), (1, 66_000)] {
        let mut scores: Vec<f32> = sample.floats(m * n).into_iter().map(|x| x * 20.0).collect();
        let last = scores.len() - 1;
        (scores[last / 2], scores[last]) = (20.0, 20.0);
        // Equal but for their bits.
        scores.iter_mut().step_by(41).for_each(|score| *score = -0.0);
        scores.iter_mut().skip(7).step_by(53).for_each(|score| *score = 0.0);
        let scores = Tensor::from_vec(scores, (m, n), &Device::Cpu).unwrap();
        let asked = (0..7).map(|_| (sample.below(m) as u32, sample.below(n) as u32)).collect();
        // Some are named twice, the best ones are among them, and one is no token at all.
        let mut repeated: Vec<u32> = (0..90).map(|_| sample.below(n) as u32).collect();
        repeated.extend([(n / 2) as u32, n as u32 - 1, n as u32, repeated[0]]);
        let looks = (0..m as u32).rev().flat_map(|row| looks(row, repeated.len() as u32)).collect();
        let wanted = Wanted::new(asked, looks, repeated.clone());
        let [cpu, card] =
            [&pair.cpu, &pair.card].map(|kernels| kernels.judge(&on(kernels, &scores), &wanted).unwrap());
        if cpu != card {
            return Err(format!("judge [{m}, {n}]: {card:?}, not {cpu:?}"));
        }
        if n < 60_000 {
            for (look, most) in
                [(0, 1), (3 * m - 1, 500), (3 * m, 7000)].into_iter().skip(usize::from(n > 100))
            {
                further(pair, &scores, &wanted, look, most)?;
            }
        }
        for (kernels, scores) in [&pair.cpu, &pair.card].map(|kernels| (kernels, on(kernels, &scores))) {
            let row = kernels.row(&scores, m - 1).unwrap();
            if row.len() != n
                || kernels.score(&scores, m - 1, n / 2).unwrap().to_bits() != row[n / 2].to_bits()
            {
                return Err(format!("row [{m}, {n}]"));
            }
        }
    }
    let scores = Tensor::new(&[[f32::NAN, 1.0, 3.0, 3.0, 2.0]], &Device::Cpu).unwrap();
    let look = Look { row: 0, temperature: 1.0, penalty: 1.0, repeated: [0..0, 0..0] };
    let wanted = Wanted::new(Vec::new(), vec![look], Vec::new());
    let found = pair.card.judge(&on(&pair.card, &scores), &wanted).unwrap();
    let (row, look) = (found.rows[0], &found.looks[0]);
    if row.0 != 2 || row.1 != 3.0 || !row.2.is_nan() || !look.mass.is_nan() {
        return Err(format!("NaN: {found:?}"));
    }
    if look.top != [(3.0, 2), (3.0, 3), (2.0, 4), (1.0, 1)] {
        return Err(format!("top of NaN: {:?}", look.top));
    }
    further(pair, &scores, &wanted, 0, 2)?;
    // Among so many that are alike the first ones are not looked for.
    let alike = Tensor::zeros((1, 3000), candle_core::DType::F32, &Device::Cpu).unwrap();
    let look = &pair.card.judge(&on(&pair.card, &alike), &wanted).unwrap().looks[0];
    let none = look.top.is_empty() || look.top == top(&[0.0; 3000], TOP);
    if !none || look.mass != 3000.0 {
        return Err(format!("alike: {look:?}"));
    }
    further(pair, &alike, &wanted, 0, 1024)
}
