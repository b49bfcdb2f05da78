//! Which decoding runs, and with what parameters.

use trefoil_decode::{Jacobi, Lookahead, LookaheadSettings, Plain, Strategy};
use trefoil_models::Token;

use crate::error::{Error, Result};
use crate::raw::{Raw, Reader};

/// Rows that a step may have, at most: beyond that a step costs more than any draft gains.
const ROWS: usize = 4096;

/// How a text is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// One token a step.
    Plain,
    /// Lookahead decoding.
    Lookahead(LookaheadSettings),
    /// Jacobi decoding with a block of this many guesses.
    Jacobi(usize),
}

/// Names that callers may write where a decoding is asked for.
const ALLOWED: &str = "'plain', 'lookahead', or an object whose type is 'plain', 'lookahead' or 'jacobi'";

impl Decoding {
    /// Reads a name, or an object with a `type` and that type's parameters.
    pub(crate) fn resolve(options: &mut Reader) -> Result<Self> {
        let found = options.take("decoding");
        let (name, mut reader) = match found.clone() {
            Raw::Absent => return Ok(Self::Plain),
            Raw::Map(_) => {
                let mut reader = Reader::new("options.decoding", found)?;
                (reader.take("type"), reader)
            }
            name => (name, Reader::new("options.decoding", Raw::Absent)?),
        };
        let Raw::Text(named) = &name else { return Err(options.refuse("decoding", &name, ALLOWED)) };
        let decoding = match named.as_str() {
            "plain" => Self::Plain,
            "lookahead" => Self::Lookahead(lookahead(&mut reader)?),
            "jacobi" => {
                Self::Jacobi(reader.whole("block", 1, ROWS as u64)?.map_or(8, |block| block as usize))
            }
            _ => return Err(options.refuse("decoding", &name, ALLOWED)),
        };
        reader.finish()?;
        Ok(decoding)
    }

    /// The name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Lookahead(_) => "lookahead",
            Self::Jacobi(_) => "jacobi",
        }
    }

    /// Tokens that one step can keep.
    pub(crate) fn reach(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Lookahead(settings) => settings.ngram,
            Self::Jacobi(block) => block + 1,
        }
    }

    /// Rows that a step has for one text.
    pub(crate) fn rows(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Lookahead(settings) => settings.rows().max(1),
            Self::Jacobi(block) => block + 1,
        }
    }

    /// A strategy for one session.
    ///
    /// * `source`: what the text is about, where that is not part of the text: an encoder's tokens.
    pub(crate) fn strategy(self, source: &[Token]) -> Box<dyn Strategy> {
        match self {
            Self::Plain => Box::new(Plain),
            Self::Lookahead(settings) => Box::new(Lookahead::new(settings, source)),
            Self::Jacobi(block) => Box::new(Jacobi::new(block)),
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
