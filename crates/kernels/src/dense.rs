//! The product with dense weights, summed in f32: one fused multiply-add for each input, in order, where activations are
//! whole, and where they are rounded to bfloat16 two for each pair of inputs, the second one's first.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::factor::{Factor, INPUTS, Pair};
use crate::flat::filled;
use crate::formats::WeightType;
use crate::isa::{Found, Work};
use crate::lanes::{LANES, LINE, Lanes};
use crate::product::Product;
use crate::units::{BUNDLE, unit_bytes, unit_inputs};

/// Rows that are few: the hardware alone reads nearly as fast as they are multiplied.
const FEW: usize = 4;

/// Rows whose sums of a bundle stay in registers at most: as many as fit. Pairs that no instruction multiplies are two
/// vectors, and leave less room.
const TALL: usize = 8;
const TALL_APART: usize = 6;

/// Inputs that are walked at a time, for one tile of rows after the other: their weights stay in a second-level cache, as
/// do the next ones, which come there meanwhile. As few as stay in a first-level one would have a tile begin too often.
const DEEP: usize = 768;

/// So many bytes of a panel before they are multiplied its weights come there where a tile has all rows, few ones or more:
/// nothing is walked twice, and what is fetched long before it is needed leaves again.
const AHEAD: [usize; 2] = [2048, 4096];

/// Rows of tiles that are walked in turn: their sums stay there too.
const BAND: usize = 72;

/// So many bytes before they are multiplied with more than a few rows, a panel's weights come on to a first-level cache: the
/// hardware does not look that far then.
const NEAR: usize = 1024;

/// So many lines of a row before they are multiplied, its factors come there too where they are whole: another core may have
/// made them.
const SOON: usize = 4;

/// Up to so many multiplications a byte of weights the hardware alone fetches as fast as they are done, and hints disturb it.
const EASY: usize = 1;

/// Rows of a tile, at most.
const fn tall<L: Lanes, X: Factor>() -> usize {
    match (L::WIDE, X::NUMBERS == 2 && !L::PAIRED) {
        (false, _) => FEW,
        (true, true) => TALL_APART,
        (true, false) => TALL,
    }
}

/// The rows of a tile: about as many for each.
fn tile(m: usize, tiles: usize, tile: usize) -> Range<usize> {
    tile * m / tiles..(tile + 1) * m / tiles
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
            (..=FEW, true) | (..=2, false) => self.bundles::<L, BUNDLE, FEW>(l),
            (m, true) if m <= tall::<L, X>() => self.bundles::<L, BUNDLE, TALL>(l),
            (_, true) => self.bundles::<L, BUNDLE, BAND>(l),
            (_, false) => self.bundles::<L, 1, BAND>(l),
        }
    }
}

/// Room for the sums of [`BAND`] rows, of which a vector lies in one cache line. All of it filled with zeros would take as long
/// as some products.
#[repr(align(64))]
struct Room([MaybeUninit<[[f32; LANES]; BUNDLE]>; BAND]);

/// Where a tile's sums come from, and go to.
enum Sums<'a> {
    /// They rest here, one bundle's a row, until the next inputs are added.
    Resting(&'a mut [[[f32; LANES]; BUNDLE]]),
    /// They begin with zeros, and the outputs of this bundle take them.
    Whole { first_panel: usize },
}

/// Some inputs of a bundle, or of one panel of it.
#[derive(Clone, Copy)]
struct Stretch<'a> {
    first: usize,
    depth: usize,
    /// Which panel is the first.
    panel: usize,
    /// The bundle, from its first unit on, and the bytes from one of a panel's units to its next.
    bytes: &'a [u8],
    apart: usize,
    /// Factors of a whole row.
    width: usize,
    /// What is fetched meanwhile: from where on, and how far that goes on with a unit.
    next: *const u8,
    step: usize,
}

impl Stretch<'_> {
    /// The first panel, where `S` are walked side by side: of a whole bundle the compiler knows it.
    #[inline(always)]
    fn panel_of<const S: usize>(&self) -> usize {
        if S == BUNDLE { 0 } else { self.panel }
    }
}

impl<X: Factor, const TY: usize> Dense<'_, X, TY> {
    /// All panels, `S` of a bundle side by side; `ROWS`: as many as a tile that has them all can have, or a band.
    #[inline(always)]
    fn bundles<L: Lanes, const S: usize, const ROWS: usize>(&self, l: L) {
        for at in (self.first..self.first + self.count).step_by(BUNDLE) {
            let (bytes, panels) = self.product.weight.bundle(at);
            match (const { ROWS <= TALL }, panels == S) {
                (true, true) => self.few::<L, S, ROWS>(l, at, bytes, panels),
                (true, false) => self.few::<L, 1, ROWS>(l, at, bytes, panels),
                (false, true) => self.many::<L, S>(l, at, bytes, panels),
                (false, false) => self.many::<L, 1>(l, at, bytes, panels),
            }
        }
    }

    /// The `panels` from panel `at` on for the few rows of one tile: its sums stay in registers until they are outputs.
    #[inline(always)]
    fn few<L: Lanes, const S: usize, const ROWS: usize>(&self, l: L, at: usize, bytes: &[u8], panels: usize) {
        let k = self.product.weight.k();
        let apart = panels * const { shape::<TY>().0 };
        let next = bytes.as_ptr().wrapping_add(AHEAD[usize::from(ROWS > FEW)] * panels);
        let width = k.div_ceil(X::NUMBERS);
        for panel in (0..panels).step_by(S) {
            let stretch = Stretch { first: 0, depth: k, panel, bytes, apart, width, next, step: apart };
            self.tile::<L, S, true>(l, 0..self.m, stretch, Sums::Whole { first_panel: at });
        }
    }

    /// The `panels` from panel `at` on for many rows: some inputs' weights are multiplied with one tile of a band after the
    /// other. Sums rest in memory between, which rounds nothing. Each tile unpacks the weights anew: to keep them unpacked
    /// would cost a store a vector, which is more.
    #[inline(always)]
    fn many<L: Lanes, const S: usize>(&self, l: L, at: usize, bundle: &[u8], panels: usize) {
        let (m, k) = (self.m, self.product.weight.k());
        let width = k.div_ceil(X::NUMBERS);
        let tiles = m.div_ceil(tall::<L, X>());
        let (bytes, inputs) = const { shape::<TY>() };
        let apart = panels * bytes;
        let band = const { BAND / tall::<L, X>() };
        // What comes next lies behind, in this task or the thread's next one. Each stretch fetches the one that follows, which
        // is about as long.
        let deep = k.div_ceil(k.div_ceil(DEEP).max(1)).next_multiple_of(inputs);
        let is_last = at + panels >= self.product.weight.n().div_ceil(LANES);
        for low in (0..tiles).step_by(band) {
            let band = low..tiles.min(low + band);
            let (start, end) = (tile(m, tiles, low).start, tile(m, tiles, band.end - 1).end);
            let mut room = Room([const { MaybeUninit::uninit() }; BAND]);
            let sums = filled(&mut room.0[..end - start], [[0.0; LANES]; BUNDLE]);
            for first in (0..k).step_by(deep) {
                let depth = deep.min(k - first);
                let bytes = &bundle[first / inputs * apart..];
                let is_nothing_next = low > 0 || is_last && first + deep >= k;
                let ahead = if is_nothing_next { 0 } else { deep / inputs * apart };
                // Each tile and panel fetches as much as the others, so that memory is as busy with each.
                let shares = panels / S * band.len();
                let mut share = 0;
                for panel in (0..panels).step_by(S) {
                    for rows in band.clone().map(|at| tile(m, tiles, at)) {
                        let next = bytes.as_ptr().wrapping_add(ahead + share * (ahead / shares));
                        share += 1;
                        let step = apart / shares;
                        let stretch = Stretch { first, depth, panel, bytes, apart, width, next, step };
                        let sums = Sums::Resting(&mut sums[rows.start - start..rows.end - start]);
                        self.tile::<L, S, false>(l, rows, stretch, sums);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (s, lanes) in sums.iter().take(panels).enumerate() {
                    // SAFETY: tasks own disjoint panels.
                    unsafe { self.product.store(start + r, at + s, lanes) };
                }
            }
        }
    }

    /// Multiplies a tile; `ALL`: whether it has all rows.
    #[inline(always)]
    fn tile<L: Lanes, const S: usize, const ALL: bool>(
        &self,
        l: L,
        rows: Range<usize>,
        stretch: Stretch<'_>,
        sums: Sums<'_>,
    ) {
        let width = stretch.width;
        let x = &self.x[rows.start * width + stretch.first / X::NUMBERS..];
        let depth = stretch.depth.div_ceil(X::NUMBERS);
        let panel = stretch.panel_of::<S>();
        macro_rules! rows {
            ($($r:literal)*) => {
                match rows.len() {
                    // Where there are several, none has less than half of what is most.
                    $($r if const { $r <= tall::<L, X>() && (ALL || 2 * $r + 1 >= tall::<L, X>()) } => {
                        let x = std::array::from_fn::<_, $r, _>(|r| &x[r * width..][..depth]);
                        match sums {
                            Sums::Resting(sums) => {
                                // Sizes that the compiler knows keep the sums in registers.
                                let Some(resting) = sums.first_chunk_mut::<$r>() else { return };
                                let mut sums = load(l, resting, panel);
                                multiply::<L, X, TY, $r, S, ALL>(l, x, depth, &stretch, &mut sums);
                                for (sums, resting) in sums.iter().zip(resting) {
                                    for (sum, resting) in sums.iter().zip(&mut resting[panel..]) {
                                        l.store(*sum, resting);
                                    }
                                }
                            }
                            Sums::Whole { first_panel } => {
                                let mut sums = [[l.splat(0.0); S]; $r];
                                multiply::<L, X, TY, $r, S, ALL>(l, x, depth, &stretch, &mut sums);
                                // SAFETY: tasks own disjoint panels.
                                unsafe { self.product.store_tile(l, first_panel + panel, &sums) };
                            }
                        }
                    })*
                    rows => debug_assert!(false, "a tile of {rows} rows"),
                }
            };
        }
        rows!(1 2 3 4 5 6 7 8);
    }
}

/// The sums of a tile's panels that rest in memory.
#[inline(always)]
fn load<L: Lanes, const R: usize, const S: usize>(
    l: L,
    resting: &[[[f32; LANES]; BUNDLE]; R],
    panel: usize,
) -> [[L::F; S]; R] {
    let mut sums = [[l.splat(0.0); S]; R];
    for (sums, resting) in sums.iter_mut().zip(resting) {
        for (sum, resting) in sums.iter_mut().zip(&resting[panel..]) {
            *sum = l.load(resting);
        }
    }
    sums
}

/// Adds to the sums of a tile of `R` rows the products with `depth` factors of each.
#[inline(always)]
fn multiply<L: Lanes, X: Factor, const TY: usize, const R: usize, const S: usize, const ALL: bool>(
    l: L,
    x: [&[X]; R],
    depth: usize,
    stretch: &Stretch<'_>,
    sums: &mut [[L::F; S]; R],
) {
    let panel = stretch.panel_of::<S>();
    let (bytes, factors) = const { (shape::<TY>().0, met::<X, TY>()) };
    let whole = depth / factors;
    // Rows that the compiler knows to be as far apart as each other it reads together, and has no registers left for sums.
    let x = black_box(x);
    // Here once, and not for every row and factor in the loop.
    assert!(x.iter().all(|x| x.len() >= depth), "{depth} factors a row");
    let (units, apart) = (depth.div_ceil(factors), stretch.apart);
    assert!(S < BUNDLE || apart == BUNDLE * bytes, "units {apart} bytes apart");
    assert!(units == 0 || stretch.bytes.len() >= (units - 1) * apart + (panel + S) * bytes, "{units} units");
    for unit in 0..whole {
        // SAFETY: rows have `depth` factors and panels as many units as that needs, as was seen above.
        unsafe { add::<L, X, TY, R, S, ALL>(l, x, stretch, unit, factors, sums) };
    }
    if whole * factors < depth {
        // SAFETY: as above; the last unit has one factor.
        unsafe { add::<L, X, TY, R, S, ALL>(l, x, stretch, whole, 1, sums) };
    }
}

/// Adds the products of a unit's first `count` factors.
///
/// # Safety
/// Every row has these factors, and every panel this unit.
#[inline(always)]
unsafe fn add<L: Lanes, X: Factor, const TY: usize, const R: usize, const S: usize, const ALL: bool>(
    l: L,
    x: [&[X]; R],
    stretch: &Stretch<'_>,
    unit: usize,
    count: usize,
    sums: &mut [[L::F; S]; R],
) {
    let (bytes, factors) = const { (shape::<TY>().0, met::<X, TY>()) };
    let weights = stretch.bytes;
    // One that the compiler knows, where it can.
    let apart = if S == BUNDLE { BUNDLE * bytes } else { stretch.apart };
    let at = unit * apart + stretch.panel_of::<S>() * bytes;
    // Up to some multiplications a byte the hardware follows a line in memory alone.
    if const { !ALL || R * LANES * shape::<TY>().1 > EASY * shape::<TY>().0 } {
        let (from, lines) = if ALL { (at, S) } else { (unit * stretch.step, S.div_ceil(2)) };
        for line in 0..lines {
            l.prefetch(stretch.next.wrapping_add(from + line * bytes));
        }
        if !ALL || R > FEW || S < BUNDLE {
            for s in 0..S {
                l.prefetch_near(weights.as_ptr().wrapping_add(at + s * bytes + NEAR / bytes * apart));
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
    for (s, w) in w.iter_mut().enumerate() {
        let at = at + s * bytes;
        // SAFETY: the caller's promise.
        *w = X::unit::<L, TY>(l, unsafe { weights.get_unchecked(at..at + bytes) });
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
    assert!(inputs <= INPUTS && DEEP.is_multiple_of(inputs));
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
