//! Which decoding runs, and with what parameters.

use trefoil_decode::{AUTO_REACH, BildSettings, LookaheadSettings, Rule};

use crate::error::{Error, Result};
use crate::raw::{Raw, Reader};

/// Rows whose logits a step may hold at once, which memory is kept for.
pub(crate) const SCORED_ROWS: usize = 64;

/// Rows that a lookahead step may have, at most: beyond that a step costs more than any draft gains.
const ROWS: usize = 4096;

/// Jacobi's `block` where nobody gives one.
const BLOCK: u64 = 8;

/// `maxDraft` where nobody gives one: with its root a chain fills the eight rows that one pass over dense weights serves.
const MAX_DRAFT: usize = 7;

/// `maxDraft` at most: a chain and its root are as many rows as the memory budget counts.
const LONGEST_DRAFT: u64 = SCORED_ROWS as u64 - 1;

/// `candidates` at least: a hundred tokens for a place, of which a draft takes a few.
const LEAST_CANDIDATE: f64 = 0.01;

/// Names that callers may write where a decoding is asked for.
const ALLOWED: &str =
    "'auto', 'plain', 'lookahead', 'bild', 'speculative', or an object with one of these or 'jacobi' as type";

/// The parameters of BiLD, or those of exact speculation, where a caller gives none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BildDefaults {
    /// `fallback`.
    pub fallback: f64,
    /// `cumulative`.
    pub cumulative: bool,
    /// `candidates`.
    pub candidates: f64,
    /// `rollback`.
    pub rollback: f64,
    /// `maxDraft`.
    pub max_draft: usize,
}

impl Default for BildDefaults {
    fn default() -> Self {
        Self { fallback: 0.5, cumulative: false, candidates: 1.0, rollback: 3.0, max_draft: MAX_DRAFT }
    }
}

impl BildDefaults {
    /// Those of exact speculation, which drafts what is worth its rows.
    fn exact() -> Self {
        Self { fallback: 0.5, cumulative: true, candidates: 0.1, ..Self::default() }
    }
}

/// How a text is decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decoding {
    /// Whatever lossless decoding pays at each step.
    Auto,
    /// One token a step.
    Plain,
    /// Lookahead decoding.
    Lookahead(LookaheadSettings),
    /// Jacobi decoding with a block of this many guesses.
    Jacobi(usize),
    /// A draft model writes, the model judges, by either rule.
    Bild(BildSettings),
}

impl Decoding {
    /// Reads a name, or an object with a `type` and that type's parameters.
    pub(crate) fn resolve(options: &mut Reader, defaults: &BildDefaults) -> Result<Self> {
        let found = options.take("decoding");
        let (name, mut reader) = match found {
            Raw::Absent => return Ok(Self::Auto),
            Raw::Map(_) => {
                let mut reader = Reader::new("options.decoding", found)?;
                (reader.take("type"), reader)
            }
            name => (name, Reader::new("options.decoding", Raw::Absent)?),
        };
        let Raw::Text(named) = &name else { return Err(options.refuse("decoding", &name, ALLOWED)) };
        let decoding = match named.as_str() {
            "auto" => Self::Auto,
            "plain" => Self::Plain,
            "lookahead" => Self::Lookahead(lookahead(&mut reader)?),
            "jacobi" => Self::Jacobi(reader.whole("block", 1, ROWS as u64)?.unwrap_or(BLOCK) as usize),
            "bild" => {
                let rule = Rule::Bild {
                    rollback: threshold(&mut reader, "rollback")?.unwrap_or(defaults.rollback),
                    verify_tail: reader.flag("verifyTail")?.unwrap_or(true),
                };
                Self::Bild(bild(&mut reader, rule, defaults)?)
            }
            "speculative" => Self::Bild(bild(&mut reader, Rule::Exact, &BildDefaults::exact())?),
            _ => return Err(options.refuse("decoding", &name, ALLOWED)),
        };
        reader.finish()?;
        Ok(decoding)
    }

    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Plain => "plain",
            Self::Lookahead(_) => "lookahead",
            Self::Jacobi(_) => "jacobi",
            Self::Bild(BildSettings { rule: Rule::Exact, .. }) => "speculative",
            Self::Bild(BildSettings { rule: Rule::Bild { .. }, .. }) => "bild",
        }
    }

    /// Tokens that one step can keep, at most, which is also how many rows a text's path can have.
    pub(crate) fn reach(self) -> usize {
        match self {
            Self::Auto => AUTO_REACH,
            Self::Plain => 1,
            Self::Lookahead(settings) if settings.reference => settings.ngram,
            // Guesses hang behind each other's ends, as far as there are rows.
            Self::Lookahead(settings) => settings.rows().max(settings.ngram),
            Self::Jacobi(block) => block + 1,
            Self::Bild(settings) => settings.max_draft + 1,
        }
    }

    /// Rows that a step has for one text, at most.
    pub(crate) fn rows(self) -> usize {
        match self {
            Self::Lookahead(settings) => settings.rows().max(1),
            // It drafts within the rows that a step's other texts leave.
            Self::Auto => 1,
            other => other.reach(),
        }
    }
}

fn lookahead(reader: &mut Reader) -> Result<LookaheadSettings> {
    let mut size = |name, least, or| -> Result<usize> {
        Ok(reader.whole(name, least, ROWS as u64)?.map_or(or, |value| value as usize))
    };
    let (window, ngram, guesses) = (size("window", 0, 5)?, size("ngram", 2, 4)?, size("guesses", 0, 5)?);
    let settings = LookaheadSettings {
        window,
        ngram,
        guesses,
        pool_from_prompt: reader.flag("poolFromPrompt")?.unwrap_or(true),
        reference: reader.flag("reference")?.unwrap_or(false),
    };
    if settings.rows() > ROWS {
        return Err(Error::option(format!(
            "options.decoding asks for {} rows a step, (window + guesses) · (ngram − 1); allowed: at most {ROWS}",
            settings.rows()
        )));
    }
    Ok(settings)
}

fn bild(reader: &mut Reader, rule: Rule, defaults: &BildDefaults) -> Result<BildSettings> {
    Ok(BildSettings {
        fallback: threshold(reader, "fallback")?.unwrap_or(defaults.fallback),
        cumulative: reader.flag("cumulative")?.unwrap_or(defaults.cumulative),
        candidates: candidates(reader)?.unwrap_or(defaults.candidates),
        max_draft: max_draft(reader)?.unwrap_or(defaults.max_draft),
        rule,
    })
}

/// A threshold: infinity is a value like any other, and so is 0.
pub(crate) fn threshold(reader: &mut Reader, name: &'static str) -> Result<Option<f64>> {
    match reader.take(name) {
        Raw::Absent => Ok(None),
        Raw::Number(value) if value >= 0.0 => Ok(Some(value)),
        other => Err(reader.refuse(name, &other, "a number from 0, or Infinity")),
    }
}

pub(crate) fn candidates(reader: &mut Reader) -> Result<Option<f64>> {
    reader.number("candidates", LEAST_CANDIDATE, 1.0)
}

pub(crate) fn max_draft(reader: &mut Reader) -> Result<Option<usize>> {
    Ok(reader.whole("maxDraft", 1, LONGEST_DRAFT)?.map(|most| most as usize))
}
