//! The product with dense weights, summed in f32: one fused multiply-add for each input, in order, where activations are
//! whole, and where they are rounded to bfloat16 two for each pair of inputs, the second one's first.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::factor::{Factor, INPUTS, Pair};
use crate::flat::filled;
use crate::formats::WeightType;
use crate::isa::{Found, Work};
use crate::lanes::{LANES, LINE, Lanes};
use crate::linear::Product;
use crate::units::{unit_bytes, unit_inputs};

/// Panels that are walked side by side by few rows: a sum waits some four cycles for the one before it while a core
/// starts two each cycle.
const SIDE: usize = 4;

/// Rows that are few: four panels' sums, their weights and a factor fit in registers, with some to spare for the compiler.
const FEW: usize = 4;

/// Panels that are walked side by side by more rows, and the rows whose sums stay in registers at most: as many sums as fit.
/// Pairs are multiplied twice as fast and so wait for memory, where small tasks are better.
const WHOLE_SIDE: usize = 3;
const WHOLE_TALL: usize = 8;
const PAIR_SIDE: usize = 2;
const PAIR_TALL: usize = 12;

/// Inputs that are walked at a time, for one tile of rows after the other: their weights stay in a second-level cache, as
/// do the next ones, which come there meanwhile. As few as stay in a first-level one would have a tile begin too often.
const DEEP: usize = 768;

/// So many inputs before they are multiplied few rows' weights come there: nothing is walked twice, and what is fetched long
/// before it is needed leaves again.
const AHEAD: usize = 64;

/// Rows of tiles that are walked in turn: their sums stay there too.
const BAND: usize = 72;

/// So many bytes before they are multiplied with more than a few rows, a panel's weights come on to a first-level cache: the
/// hardware does not look that far then.
const NEAR: usize = 2048;

/// So many lines of a row before they are multiplied, its factors come there too where they are whole: another core may have
/// made them.
const SOON: usize = 4;

/// Up to so many multiplications a byte of weights the hardware alone fetches as fast as they are done, and hints disturb it.
const EASY: usize = 1;

/// Rows of a tile, at most.
const fn tall<L: Lanes, X: Factor>() -> usize {
    match (L::WIDE, X::NUMBERS) {
        (false, _) => FEW,
        (true, 2) => PAIR_TALL,
        (true, _) => WHOLE_TALL,
    }
}

/// The rows of a tile: about as many for each.
fn tile(m: usize, tiles: usize, tile: usize) -> Range<usize> {
    tile * m / tiles..(tile + 1) * m / tiles
}

/// Panels that are walked side by side at most for `m` rows of activations, in pairs or whole: tasks have whole groups of so
/// many.
pub(crate) fn side(m: usize, pairs: bool) -> usize {
    match (m, pairs) {
        (..=FEW, _) => SIDE,
        (_, true) => PAIR_SIDE,
        (_, false) => WHOLE_SIDE,
    }
}

/// Panels `first..first + count` for all rows of `x`, `[m, k]`.
struct Dense<'a, X, const TY: usize> {
    product: &'a Product<'a>,
    x: &'a [X],
    m: usize,
    first: usize,
    count: usize,
}

impl<X: Factor, const TY: usize> Work for Dense<'_, X, TY> {
    const PAIRS: bool = X::NUMBERS == 2;
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        // As many panels side by side as there are registers for.
        match (self.m, L::WIDE) {
            (0, _) => {}
            (..=FEW, true) => self.groups::<L, SIDE, FEW>(l),
            (..=PAIR_TALL, true) if X::NUMBERS == 2 => self.groups::<L, PAIR_SIDE, PAIR_TALL>(l),
            (_, true) if X::NUMBERS == 2 => self.groups::<L, PAIR_SIDE, BAND>(l),
            (..=WHOLE_TALL, true) => self.groups::<L, WHOLE_SIDE, WHOLE_TALL>(l),
            (_, true) => self.groups::<L, WHOLE_SIDE, BAND>(l),
            (..=2, false) => self.groups::<L, 2, FEW>(l),
            (..=FEW, false) => self.groups::<L, 1, FEW>(l),
            (_, false) => self.groups::<L, 1, BAND>(l),
        }
    }
}

/// Room for a band's sums, of which a vector lies in one cache line. All of it filled with zeros would take as long as some
/// products.
#[repr(align(64))]
struct Sums<const S: usize, const ROWS: usize>([MaybeUninit<[[f32; LANES]; S]>; ROWS]);

/// Some inputs of some panels.
#[derive(Clone, Copy)]
struct Stretch<'a, const S: usize> {
    first: usize,
    depth: usize,
    panels: [&'a [u8]; S],
    /// Factors of a whole row.
    width: usize,
    /// What is fetched meanwhile, a unit for each.
    next: [*const u8; S],
}

impl<X: Factor, const TY: usize> Dense<'_, X, TY> {
    /// All panels, `S` at a time; `ROWS`: as many as a band has, at most.
    #[inline(always)]
    fn groups<L: Lanes, const S: usize, const ROWS: usize>(&self, l: L) {
        let whole = self.count / S * S;
        for at in (0..whole).step_by(S) {
            self.group::<L, S, ROWS>(l, self.first + at);
        }
        for at in whole..self.count {
            self.group::<L, 1, ROWS>(l, self.first + at);
        }
    }

    /// `S` panels from panel `at` on: some inputs' weights are multiplied with one tile of a band after the other. Sums
    /// rest in memory between, which rounds nothing. Each tile unpacks the weights anew: to keep them unpacked would cost
    /// a store a vector, which is more.
    #[inline(always)]
    fn group<L: Lanes, const S: usize, const ROWS: usize>(&self, l: L, at: usize) {
        let (m, k) = (self.m, self.product.weight.k());
        let width = k.div_ceil(X::NUMBERS);
        let tiles = m.div_ceil(tall::<L, X>());
        let (bytes, inputs) = const { shape::<TY>() };
        let sides = self.sides::<S>(at);
        let last = at + S >= self.product.weight.n().div_ceil(LANES);
        let band = const { ROWS.div_ceil(tall::<L, X>()) };
        // Each stretch fetches the next, which is about as long; few rows have one as long as can be, which fetches itself
        // and then the next panels.
        let (deep, ahead) = if ROWS > FEW {
            let deep = k.div_ceil(k.div_ceil(DEEP).max(1)).next_multiple_of(inputs).max(inputs);
            (deep, deep)
        } else {
            (k.saturating_sub(AHEAD).max(AHEAD).next_multiple_of(inputs), AHEAD)
        };
        for low in (0..tiles).step_by(band) {
            let band = low..tiles.min(low + band);
            let (start, end) = (tile(m, tiles, low).start, tile(m, tiles, band.end - 1).end);
            let mut sums = Sums([const { MaybeUninit::uninit() }; ROWS]);
            let sums = filled(&mut sums.0[..end - start], [[0.0; LANES]; S]);
            for first in (0..k).step_by(deep) {
                let depth = deep.min(k - first);
                let panels = sides.map(|side| &side[first / inputs * bytes..]);
                // What comes next, in this task or the thread's next one, is fetched meanwhile, each panel by one of the
                // tiles: with several rows the hardware's own look-ahead is too short.
                let far = match (low, first + depth) {
                    (0, soon) if soon < k => ahead / inputs * bytes,
                    (0, _) if !last => S * sides[0].len() - first / inputs * bytes,
                    _ => 0,
                };
                for (share, rows) in band.clone().map(|at| tile(m, tiles, at)).enumerate() {
                    let next = std::array::from_fn(|s| {
                        let far = if s % tiles.min(S) == share { far } else { 0 };
                        panels[s].as_ptr().wrapping_add(far)
                    });
                    let stretch = Stretch { first, depth, panels, width, next };
                    let sums = &mut sums[rows.start - start..rows.end - start];
                    self.tile::<L, S>(l, rows, stretch, sums);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (s, lanes) in sums.iter().enumerate() {
                    // SAFETY: tasks own disjoint panels.
                    unsafe { self.product.store(start + r, at + s, lanes) };
                }
            }
        }
    }

    /// Goes on with the sums of a tile.
    #[inline(always)]
    fn tile<L: Lanes, const S: usize>(
        &self,
        l: L,
        rows: Range<usize>,
        stretch: Stretch<'_, S>,
        sums: &mut [[[f32; LANES]; S]],
    ) {
        let width = stretch.width;
        let x = &self.x[rows.start * width + stretch.first / X::NUMBERS..];
        let depth = stretch.depth.div_ceil(X::NUMBERS);
        macro_rules! rows {
            ($($r:literal)*) => {
                match rows.len() {
                    $($r if const { $r <= tall::<L, X>() && (S <= WHOLE_SIDE || $r <= FEW) } => {
                        let x = std::array::from_fn::<_, $r, _>(|r| &x[r * width..][..depth]);
                        multiply::<L, X, TY, $r, S>(l, x, depth, stretch, sums);
                    })*
                    _ => {}
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    }

    /// The bytes of `S` panels from panel `at` on, none of those behind the last.
    #[inline(always)]
    fn sides<const S: usize>(&self, at: usize) -> [&[u8]; S] {
        let weight = self.product.weight;
        let bytes = weight.panel_bytes();
        let panels = weight.panels(at, S.min(weight.n().div_ceil(LANES) - at));
        std::array::from_fn(|s| panels.get(s * bytes..(s + 1) * bytes).unwrap_or_default())
    }
}

/// Goes on with the sums of a tile of `R` rows by `depth` factors of each.
#[inline(always)]
fn multiply<L: Lanes, X: Factor, const TY: usize, const R: usize, const S: usize>(
    l: L,
    x: [&[X]; R],
    depth: usize,
    stretch: Stretch<'_, S>,
    sums: &mut [[[f32; LANES]; S]],
) {
    // Sizes that the compiler knows keep the sums in registers.
    let Some(sums) = sums.first_chunk_mut::<R>() else { return };
    let mut kept = [[l.splat(0.0); S]; R];
    for (kept, sums) in kept.iter_mut().zip(&*sums) {
        for (kept, sum) in kept.iter_mut().zip(sums) {
            *kept = l.load(sum);
        }
    }
    let (bytes, factors) = const { (shape::<TY>().0, met::<X, TY>()) };
    let whole = depth / factors;
    // Here once, and not for every row and factor in the loop.
    assert!(x.iter().all(|x| x.len() >= depth), "{depth} factors a row");
    assert!(
        stretch.panels.iter().all(|panel| panel.len() >= depth.div_ceil(factors) * bytes),
        "units a panel"
    );
    for unit in 0..whole {
        // SAFETY: rows have `depth` factors and panels as many units as that needs, as was seen above.
        unsafe { add::<L, X, TY, R, S>(l, x, &stretch, unit, factors, &mut kept) };
    }
    if whole * factors < depth {
        // SAFETY: as above; the last unit has one factor.
        unsafe { add::<L, X, TY, R, S>(l, x, &stretch, whole, 1, &mut kept) };
    }
    for (kept, sums) in kept.iter().zip(sums) {
        for (kept, sum) in kept.iter().zip(sums) {
            l.store(*kept, sum);
        }
    }
}

/// Adds the products of a unit's first `count` factors.
///
/// # Safety
/// Every row has these factors, and every panel this unit.
#[inline(always)]
unsafe fn add<L: Lanes, X: Factor, const TY: usize, const R: usize, const S: usize>(
    l: L,
    x: [&[X]; R],
    stretch: &Stretch<'_, S>,
    unit: usize,
    count: usize,
    sums: &mut [[L::F; S]; R],
) {
    let (bytes, factors) = const { (shape::<TY>().0, met::<X, TY>()) };
    let Stretch { panels, next, .. } = stretch;
    // The hardware follows a panel alone, but does not know which comes next.
    if const { R * LANES * shape::<TY>().1 > EASY * shape::<TY>().0 } || stretch.depth <= AHEAD {
        for (panel, next) in panels.iter().zip(next) {
            l.prefetch(next.wrapping_add(unit * bytes));
            if S <= WHOLE_SIDE {
                l.prefetch_near(panel.as_ptr().wrapping_add(unit * bytes + NEAR));
            }
        }
        // A line of factors in as many units as it meets: one row's at a time.
        let (line, units) = const { (LINE / size_of::<X>(), LINE / size_of::<X>() / met::<X, TY>()) };
        if X::NUMBERS == 1 && unit % units < R {
            let at = unit % units * stretch.width + (unit / units + SOON) * line;
            l.prefetch_near(x[0].as_ptr().wrapping_add(at).cast());
        }
    }
    let mut w = [X::unit::<L, TY>(l, &[]); S];
    for (w, panel) in w.iter_mut().zip(panels) {
        // SAFETY: the caller's promise.
        *w = X::unit::<L, TY>(l, unsafe { panel.get_unchecked(unit * bytes..(unit + 1) * bytes) });
    }
    for at in 0..count {
        for (sums, x) in sums.iter_mut().zip(x) {
            // SAFETY: the caller's promise.
            let x = unsafe { x.get_unchecked(unit * factors + at) }.splat(l);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = X::add(l, *sum, w, at, x);
            }
        }
    }
}

/// Bytes of a unit, and its inputs.
const fn shape<const TY: usize>() -> (usize, usize) {
    let ty = WeightType::ALL[TY];
    let inputs = unit_inputs(ty);
    assert!(inputs <= INPUTS && DEEP.is_multiple_of(inputs) && AHEAD.is_multiple_of(inputs));
    (unit_bytes(ty), inputs)
}

/// Factors that meet a unit.
const fn met<X: Factor, const TY: usize>() -> usize {
    shape::<TY>().1.div_ceil(X::NUMBERS)
}

/// Runs the kernel that fits the weight's type for panels `first..first + count` and `x`, `[m, k]`.
pub(crate) fn dense(found: Found, product: &Product<'_>, x: &[f32], m: usize, first: usize, count: usize) {
    macro_rules! run {
        ($($ty:ident),*) => {
            match product.weight.ty() {
                $(WeightType::$ty => {
                    found.run(Dense::<f32, { WeightType::$ty as usize }> { product, x, m, first, count });
                })*
                _ => {}
            }
        };
    }
    run!(F32, F16, Bf16);
}

/// [`dense`] for a weight of bfloat16 and activations in pairs, `[m, k / 2]`.
pub(crate) fn paired(found: Found, product: &Product<'_>, x: &[Pair], m: usize, first: usize, count: usize) {
    found.run(Dense::<Pair, { WeightType::Bf16 as usize }> { product, x, m, first, count });
}
