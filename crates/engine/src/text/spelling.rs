//! What each token adds to a text, looked up once.
//!
//! A tokenizer's decoder is a pipeline over lists of strings. All that models use comes down to bytes a token, plus a
//! rule for how a text begins, so that is what is kept: no decoder runs while a text is written.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::limits::LONGEST_TOKEN;
use crate::error::{Error, Result};

/// Bytes of all tokens together, several times what the largest published vocabularies take.
const MOST_BYTES: usize = 64 << 20;

/// The bytes of all tokens, and how a text begins.
pub(super) struct Spelling {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<u32>,
    special: Vec<bool>,
    opening: Opening,
}

/// How a text begins, in tokenizers that mark the beginning of words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// As its first token does.
    Plain,
    /// Without up to this many of the spaces that it begins with.
    Spaces(usize),
    /// Without the marks of its first token, of which these are the bytes.
    FirstToken(Vec<Vec<u8>>),
}

/// One step from a token to its bytes.
enum Step {
    Replace {
        from: String,
        to: String,
    },
    /// `<0x0A>` is the byte 10.
    Bytes,
    /// Every character stands for a byte, by GPT-2's table.
    Characters,
}

impl Spelling {
    /// Spells out the tokens below `size`.
    pub(super) fn of(tokenizer: &Tokenizer, size: usize, file: &str) -> Result<Self> {
        let decoder = tokenizer.get_decoder().map(serde_json::to_value).transpose();
        let decoder = decoder.ok().flatten().unwrap_or(Value::Null);
        let mut pipeline = Pipeline::default();
        pipeline.add(&decoder).map_err(|what| {
            Error::load(format!(
                "{file}: the decoder {what} is not supported; allowed are ByteLevel, Metaspace, \
                                 Replace, ByteFallback, Fuse and Strip of leading spaces"
            ))
        })?;
        let table = byte_characters();
        let added = tokenizer.get_added_tokens_decoder();
        let mut spelling =
            Self { bytes: Vec::new(), ends: Vec::new(), special: Vec::new(), opening: Opening::Plain };
        let mut unmarked = Vec::new();
        let mut taken = 0;
        let mut spelled = |id: u32, token: &str| {
            let bytes = pipeline.spell(token, &table).ok_or_else(|| {
                Error::load(format!(
                    "{file}: the decoder makes too many bytes of token {id}; allowed are {LONGEST_TOKEN}"
                ))
            })?;
            taken += bytes.len();
            if taken > MOST_BYTES {
                return Err(Error::load(format!(
                    "{file}: the tokens up to {id} take {taken} bytes; allowed are {MOST_BYTES}"
                )));
            }
            Ok(bytes)
        };
        for id in 0..size as u32 {
            let special = added.get(&id).is_some_and(|token| token.special);
            let token = tokenizer.id_to_token(id).filter(|_| !special).unwrap_or_default();
            spelling.bytes.extend(spelled(id, &token)?);
            spelling.ends.push(spelling.bytes.len() as u32);
            spelling.special.push(special);
            if let Some(mark) = pipeline.mark {
                unmarked.push(spelled(id, &token.replace(mark, ""))?);
            }
        }
        spelling.opening = match pipeline.mark {
            Some(_) => Opening::FirstToken(unmarked),
            None if pipeline.spaces > 0 => Opening::Spaces(pipeline.spaces),
            None => Opening::Plain,
        };
        Ok(spelling)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; none for a special or unknown one.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else { return &[] };
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }

    pub(super) fn is_special(&self, token: u32) -> bool {
        self.special.get(token as usize).copied().unwrap_or(false)
    }

    pub(super) fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Gives the first difference to `other`, in words.
    pub(super) fn same(&self, other: &Self) -> std::result::Result<(), String> {
        if self.len() != other.len() {
            return Err(format!("one vocabulary has {} tokens, the other {}", self.len(), other.len()));
        }
        for token in 0..self.len() as u32 {
            let (ours, theirs) = (self.bytes(token), other.bytes(token));
            if ours != theirs || self.is_special(token) != other.is_special(token) {
                let (ours, theirs) = (String::from_utf8_lossy(ours), String::from_utf8_lossy(theirs));
                return Err(format!(
                    "token {token} is {ours:?} in one vocabulary and {theirs:?} in the other"
                ));
            }
        }
        if self.opening != other.opening {
            return Err("texts begin by different rules".to_owned());
        }
        Ok(())
    }
}

#[derive(Default)]
struct Pipeline {
    steps: Vec<Step>,
    spaces: usize,
    mark: Option<char>,
}

impl Pipeline {
    /// Takes in a decoder as `tokenizer.json` writes it; names what it cannot do.
    fn add(&mut self, decoder: &Value) -> std::result::Result<(), String> {
        let kind = decoder["type"].as_str().unwrap_or("none");
        let unsupported = || kind.to_owned();
        let character = |field: &str| decoder[field].as_str().and_then(|text| text.chars().next());
        match kind {
            "Sequence" => {
                for part in decoder["decoders"].as_array().ok_or_else(unsupported)? {
                    self.add(part)?;
                }
            }
            "ByteLevel" => self.steps.push(Step::Characters),
            "ByteFallback" => self.steps.push(Step::Bytes),
            "Fuse" => {}
            "Replace" => {
                let from = decoder["pattern"]["String"].as_str().filter(|from| !from.is_empty());
                let from = from.ok_or_else(unsupported)?.to_owned();
                let to = decoder["content"].as_str().ok_or_else(unsupported)?.to_owned();
                self.steps.push(Step::Replace { from, to });
            }
            "Strip" => {
                let start = decoder["start"].as_u64().unwrap_or(0);
                if decoder["stop"].as_u64() != Some(0) || character("content") != Some(' ') {
                    return Err(unsupported());
                }
                self.spaces = start as usize;
            }
            "Metaspace" => {
                let mark = character("replacement").ok_or_else(unsupported)?;
                self.steps.push(Step::Replace { from: mark.into(), to: " ".into() });
                if decoder["prepend_scheme"].as_str() != Some("never") {
                    self.mark = Some(mark);
                }
            }
            _ => return Err(unsupported()),
        }
        Ok(())
    }

    /// The bytes of a token; nothing where they are more than [`LONGEST_TOKEN`].
    fn spell(&self, token: &str, table: &[Option<u8>]) -> Option<Vec<u8>> {
        let mut text = token.to_owned();
        for step in &self.steps {
            match step {
                Step::Replace { from, to } => {
                    let found = text.matches(from.as_str()).count();
                    if found > 0 {
                        // Counted before it is made: a few replacements in a row make more than memory holds.
                        let kept = text.len() - found * from.len();
                        if found.saturating_mul(to.len()).saturating_add(kept) > LONGEST_TOKEN {
                            return None;
                        }
                        text = text.replace(from, to);
                    }
                }
                Step::Bytes => {
                    if let Some(byte) = byte_token(&text) {
                        return Some(vec![byte]);
                    }
                }
                Step::Characters => {
                    let byte = |c: char| table.get(c as usize).copied().flatten();
                    // A token added later may hold characters that stand for no byte; it stands for itself.
                    let bytes = text.chars().map(byte).collect::<Option<_>>();
                    return Some(bytes.unwrap_or_else(|| text.into_bytes()));
                }
            }
        }
        Some(text.into_bytes())
    }
}

/// The byte of a token like `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// GPT-2's table: the byte that each character stands for. Bytes that print stand for themselves; the others, in
/// order, are the characters from U+0100 on.
fn byte_characters() -> Vec<Option<u8>> {
    let mut table = vec![None; 0x144];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            table[byte as usize] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
}
