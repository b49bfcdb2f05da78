//! A model's tokenizer.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use trefoil_models::weights::gguf::Metadata;

use super::gguf_tokenizer;
use super::guard::{self, contained};
use super::limits::Growth;
use super::pieces::Pieces;
use super::spelling::Spelling;
use crate::error::{Error, ErrorKind, Result};

const FILE: &str = "tokenizer.json";
/// The largest published vocabularies take about 35 MB.
const LARGEST_FILE: u64 = 128 << 20;
/// Encoding takes about half a second and up to 300 bytes of memory a byte for a text of a million.
const LARGEST_TEXT: usize = 8 << 20;
/// Texts are estimated by parts of this many bytes; a cut between parts costs a few tokens at most.
const PART: usize = 64 << 10;
const TOKENS_PER_CUT: usize = 16;
/// Bytes that few texts reach as the mean of their tokens.
const LONG_TOKEN: usize = 16;
/// Token ids beyond this are not ids of any model, and tables run along them.
const LARGEST_VOCABULARY: usize = 1 << 21;
/// Bytes of a text that is encoded at once.
const SHORT: usize = 64;

/// Text to tokens and back. Clones share their tables.
#[derive(Clone)]
pub struct Tokenizer {
    encoder: Arc<tokenizers::Tokenizer>,
    spelling: Arc<Spelling>,
    growth: Growth,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in this folder.
    ///
    /// # Errors
    /// Fails (`ModelLoad`) where the file is missing or broken, or asks for a decoder that is not built.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let failed =
            |cause: std::io::Error| Error::load(format!("{} cannot be read", path.display())).because(&cause);
        let kind = fs::metadata(&path).map_err(failed)?;
        if !kind.is_file() || kind.len() > LARGEST_FILE {
            let message = format!("{} is not a file of at most {LARGEST_FILE} bytes", path.display());
            return Err(Error::load(message));
        }
        let bytes = fs::read(&path).map_err(failed)?;
        Self::from_json(&bytes, &path.display().to_string())
    }

    /// Rebuilds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// Fails (`ModelLoad`) where the description is incomplete or broken, or names a kind of tokenizer that is not
    /// built.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        let (encoder, growth) = gguf_tokenizer::build(metadata)?;
        Self::new(encoder, growth, metadata.file())
    }

    /// Reads the text of a `tokenizer.json`; `file` names it in errors.
    pub(super) fn from_json(bytes: &[u8], file: &str) -> Result<Self> {
        let growth = guard::check(bytes, file)?;
        let encoder = contained(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|cause| Error::load(format!("{file} is not a tokenizer: {cause}")))?;
        Self::new(encoder, growth, file)
    }

    fn new(mut encoder: tokenizers::Tokenizer, growth: Growth, file: &str) -> Result<Self> {
        // A file may ask to cut or to pad every text; a prompt must reach the model as it is.
        encoder
            .with_padding(None)
            .with_truncation(None)
            .map_err(|cause| Error::load(format!("{file} is not a tokenizer: {cause}")))?;
        let largest = encoder.get_vocab(true).into_values().max();
        let size = largest.map_or(0, |id| id as usize + 1);
        if size == 0 || size > LARGEST_VOCABULARY {
            let message =
                format!("{file} has token ids up to {size}; allowed are 1 to {LARGEST_VOCABULARY} tokens");
            return Err(Error::load(message));
        }
        let spelling = Spelling::of(&encoder, size, file)?;
        let tokenizer = Self { encoder: Arc::new(encoder), spelling: Arc::new(spelling), growth };
        tokenizer.try_out(file)?;
        Ok(tokenizer)
    }

    /// Encodes one token's text, because the crate finds some faults of a file (a frame without its token, pieces of
    /// no length) only then.
    fn try_out(&self, file: &str) -> Result<()> {
        let mut words =
            (0..self.vocabulary() as u32).filter_map(|token| std::str::from_utf8(self.piece(token)).ok());
        let word = words.find(|text| text.len() <= SHORT && text.contains(char::is_alphanumeric));
        let word = word.unwrap_or("a");
        contained(|| self.encoder.encode_fast(word, true)).map(|_| ()).map_err(|cause| {
            Error::load(format!("{file} is not a tokenizer: the text {word:?} cannot be tokenized: {cause}"))
        })
    }

    /// The tokens of `text`. Special tokens written out in the text are read as such; `special` adds those with which
    /// the model wants every text to begin and end.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) for a text of more than 8 MiB, less where the tokenizer makes texts much longer, and
    /// (`Internal`) where the tokenizer cannot cut the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let most = self.growth.longest_text().min(LARGEST_TEXT);
        if text.len() > most {
            let message = format!("the text has {} bytes; allowed are {most}", text.len());
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        contained(|| self.encoder.encode_fast(text, special))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|cause| Error::internal(format!("the text cannot be tokenized: {cause}")))
    }

    /// The tokens of `text`, which may be at most `most`. A text that is far too long is refused without reading it to
    /// its end.
    ///
    /// # Errors
    /// As [`Self::encode`], and (`ContextOverflow`) for a text of more tokens.
    pub fn encode_within(&self, text: &str, special: bool, most: usize) -> Result<Vec<u32>> {
        let overflow = |found: String| {
            Err(Error::new(
                ErrorKind::ContextOverflow,
                format!("the text has {found} tokens; allowed are {most}"),
            ))
        };
        // A text of ordinary length is cut once; only where tokens would have to be unusually long is it estimated first.
        let mut rest = if text.len() > most.saturating_mul(LONG_TOKEN) { text } else { "" };
        let (mut least, mut allowance) = (0, 0);
        while rest.len() > PART {
            let border = (1..=PART).rev().find(|&at| rest.is_char_boundary(at)).unwrap_or(PART);
            let (part, after) = rest.split_at(border);
            least += self.encode(part, false)?.len();
            allowance += TOKENS_PER_CUT;
            if least > most.saturating_add(allowance) {
                return overflow(format!("more than {}", least - allowance));
            }
            rest = after;
        }
        let tokens = self.encode(text, special)?;
        if tokens.len() > most { overflow(tokens.len().to_string()) } else { Ok(tokens) }
    }

    /// The text of `tokens`, without special tokens. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) for a token outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let size = self.vocabulary();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= size) {
            let message = format!("token {token} is not in the vocabulary; allowed are 0 to {}", size - 1);
            return Err(Error::new(ErrorKind::InvalidOption, message));
        }
        let mut pieces = Pieces::new(self);
        let mut text: String = tokens.iter().filter_map(|&token| pieces.push(token)).collect();
        text.push_str(&pieces.finish());
        Ok(text)
    }

    /// One more than the largest token.
    pub fn vocabulary(&self) -> usize {
        self.spelling.len()
    }

    /// The bytes that a token adds to a text; a special token, or one that is not in the vocabulary, adds none.
    pub fn piece(&self, token: u32) -> &[u8] {
        self.spelling.bytes(token)
    }

    /// Whether a token is special: part of no text.
    pub fn is_special(&self, token: u32) -> bool {
        self.spelling.is_special(token)
    }

    /// Whether both give every token the same meaning, as a draft model's must.
    ///
    /// # Errors
    /// Gives the first difference, in words.
    pub fn same_vocabulary(&self, other: &Self) -> std::result::Result<(), String> {
        self.spelling.same(&other.spelling)
    }

    pub(super) fn spelling(&self) -> &Arc<Spelling> {
        &self.spelling
    }
}
