//! Which instructions a kernel runs on, chosen when the program runs.
//!
//! A kernel is written once, over [`Lanes`], and compiled once for each
//! instruction set. `target-cpu` is never set: one binary serves every machine.

use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};
#[cfg(target_arch = "aarch64")]
use crate::lanes::Neon;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2, Avx512};
use crate::lanes::{Lanes, Portable};

/// An instruction set. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust; runs everywhere, and is what the others are tested against.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and VNNI, as well as everything of [`Isa::Avx2`].
    Avx512Vnni,
    /// Any aarch64.
    Neon,
}

impl Isa {
    /// Every instruction set, the fastest of each architecture first.
    pub const ALL: [Self; 4] = [Self::Avx512Vnni, Self::Avx2, Self::Neon, Self::Portable];

    /// The fastest instruction set that this CPU has.
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// The name that people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512Vnni => "AVX-512 VNNI",
            Self::Neon => "NEON",
        }
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512Vnni => false,
            Self::Neon => cfg!(target_arch = "aarch64"),
        }
    }
}

/// Whether this CPU has AVX-512 BF16.
fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A task body that is compiled for every instruction set.
///
/// `run` must be `#[inline(always)]`, as must everything in it that uses the lanes: only then does
/// it become part of a function that may use the instructions.
pub(crate) trait Work {
    /// Whether it multiplies pairs of bfloat16.
    const PAIRS: bool = false;
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// An instruction set that was found on this CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    isa: Isa,
    /// Whether it has AVX-512 BF16 as well, which only products of pairs are compiled for.
    pairs: bool,
}

impl Found {
    pub(crate) fn new(isa: Isa) -> Result<Self> {
        if isa.is_available() {
            return Ok(Self { isa, pairs: has_pairs() });
        }
        let best = Isa::detect();
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("this CPU lacks {isa:?}; the best that it has is {best:?}"),
        ))
    }

    /// The fastest that this CPU has.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Found> = OnceLock::new();
        *BEST.get_or_init(|| Self { isa: Isa::detect(), pairs: has_pairs() })
    }

    /// The same without AVX-512 BF16.
    #[cfg(test)]
    pub(crate) fn without_pairs(self) -> Self {
        Self { pairs: false, ..self }
    }

    pub(crate) fn isa(self) -> Isa {
        self.isa
    }

    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Found` exists only where the features were detected.
            Isa::Avx2 => unsafe { on_avx2(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above, and of BF16.
            Isa::Avx512Vnni if W::PAIRS && self.pairs => unsafe { on_avx512_bf16(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Vnni => unsafe { on_avx512(work) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon => unsafe { on_neon(work) },
            _ => work.run(Portable),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn on_avx2<W: Work>(work: W) -> W::Output {
    // SAFETY: this function runs only where the features are.
    work.run(unsafe { Avx2::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn on_avx512<W: Work>(work: W) -> W::Output {
    // SAFETY: this function runs only where the features are.
    work.run(unsafe { Avx512::<false>::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")]
fn on_avx512_bf16<W: Work>(work: W) -> W::Output {
    // SAFETY: this function runs only where the features are.
    work.run(unsafe { Avx512::<true>::new() })
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn on_neon<W: Work>(work: W) -> W::Output {
    // SAFETY: this function runs only where the features are.
    work.run(unsafe { Neon::new() })
}
