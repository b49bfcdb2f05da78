//! A tokenizer from what a GGUF file says of it.
//!
//! GGUF names the kind of tokenizer and lists its tokens; how it cuts text is known by name only. Rebuilding the
//! pipelines of the `tokenizers` crate gives one encoder for both formats.

use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{NFC, Precompiled, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, Tokenizer};
use trefoil_models::weights::gguf::{Metadata, Value};

use super::guard::{check_merge, contained};
use super::limits::{Growth, check_added, check_tokens};
use super::pre_tokenizer::{ALLOWED, cut};
use crate::error::{Error, Result};

/// Token types, as GGUF numbers them.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// SentencePiece's mark for the beginning of a word.
const MARK: char = '▁';

/// What the file lists.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: Vec<String>,
    types: Vec<i64>,
    ids: HashMap<String, u32>,
}

/// Builds the tokenizer. Gives how much longer its normalizer may make a text, too.
pub(super) fn build(metadata: &Metadata) -> Result<(Tokenizer, Growth)> {
    let vocabulary = Vocabulary::read(metadata)?;
    let model = vocabulary.text("model")?.unwrap_or("none");
    check_tokens(vocabulary.tokens.iter().map(String::as_str), model == "t5")
        .map_err(|what| vocabulary.broken(&what))?;
    let growth = match vocabulary.charsmap().filter(|_| model == "t5") {
        Some(map) => Growth::by_charsmap(map).map_err(|what| vocabulary.broken(&what))?,
        None => Growth::NONE,
    };
    let mut tokenizer = match model {
        "gpt2" => vocabulary.byte_level()?,
        "llama" => vocabulary.sentencepiece()?,
        "t5" => vocabulary.unigram()?,
        other => {
            return Err(vocabulary
                .broken(&format!("tokenizer.ggml.model is {other:?}; allowed are gpt2, llama and t5")));
        }
    };
    let (bos, eos) = match model {
        "llama" => (true, false),
        "t5" => (false, true),
        _ => (vocabulary.begins_by_default()?, false),
    };
    vocabulary.frame(&mut tokenizer, bos, eos)?;
    vocabulary.add(&mut tokenizer)?;
    Ok((tokenizer, growth))
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let broken = |what: &str| Error::load(format!("{}: {what}", metadata.file()));
        let listed = metadata.texts("tokenizer.ggml.tokens").filter(|tokens| !tokens.is_empty());
        let listed = listed.ok_or_else(|| broken("tokenizer.ggml.tokens is missing"))?;
        let types = match metadata.integers("tokenizer.ggml.token_type") {
            Some(types) if types.len() == listed.len() => types.to_vec(),
            Some(types) => {
                let (types, tokens) = (types.len(), listed.len());
                return Err(broken(&format!(
                    "tokenizer.ggml.token_type has {types} entries for {tokens} tokens"
                )));
            }
            None => vec![NORMAL; listed.len()],
        };
        let mut tokens = Vec::with_capacity(listed.len());
        let mut ids = HashMap::with_capacity(listed.len());
        for (id, token) in listed.iter().enumerate() {
            // An empty token can be written by nothing; it still takes its number.
            let token = if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() };
            if let Some(other) = ids.insert(token.clone(), id as u32) {
                return Err(broken(&format!("tokens {other} and {id} are both {token:?}")));
            }
            tokens.push(token);
        }
        Ok(Self { metadata, tokens, types, ids })
    }

    /// Byte-level BPE, with merges by rank.
    fn byte_level(&self) -> Result<Tokenizer> {
        let name = self.text("pre")?.unwrap_or("default");
        let cut = cut(name).ok_or_else(|| {
            self.broken(&format!(
                "tokenizer.ggml.pre is {name:?}, which is not supported; allowed are {ALLOWED}"
            ))
        })?;
        let merges = self.metadata.texts("tokenizer.ggml.merges");
        let merges = merges.ok_or_else(|| self.broken("tokenizer.ggml.merges is missing"))?;
        let merges = merges.iter().map(|merge| {
            let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
            let (left, right) =
                pair.ok_or_else(|| self.broken(&format!("the merge {merge:?} is not a pair")))?;
            Ok((left.to_owned(), right.to_owned()))
        });
        let mut tokenizer = self.bpe(merges.collect::<Result<_>>()?, cut.ignore_merges, false)?;
        if cut.composed {
            self.normalize(&mut tokenizer, vec![NFC.into()])?;
        }
        tokenizer.with_pre_tokenizer(Some(self.built(|| cut.pipeline())?));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        Ok(tokenizer)
    }

    /// SentencePiece's BPE: of all pairs whose union is a token, the one with the best score is merged first.
    fn sentencepiece(&self) -> Result<Tokenizer> {
        let mut tokenizer = self.bpe(self.merges_by_score()?, false, true)?;
        let spaced = self.flag("add_space_prefix", true)?;
        let mark = MARK.to_string();
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        if spaced {
            normalizers.push(Prepend::new(mark.clone()).into());
        }
        normalizers.push(self.built(|| Replace::new(" ", mark.as_str()))?.into());
        self.normalize(&mut tokenizer, normalizers)?;
        let mut decoders: Vec<DecoderWrapper> = vec![
            self.built(|| Replace::new(mark.as_str(), " "))?.into(),
            ByteFallback::default().into(),
            Fuse::default().into(),
        ];
        if spaced {
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        tokenizer.with_decoder(Some(Decoders::new(decoders)));
        Ok(tokenizer)
    }

    /// SentencePiece's unigram model, as T5 has it.
    fn unigram(&self) -> Result<Tokenizer> {
        let scores = self.scores()?;
        let unknown = self.token("unknown_token_id")?.unwrap_or(2);
        let scored = self.tokens.iter().cloned().zip(scores.iter().map(|&score| f64::from(score)));
        let model = self.built(|| Unigram::from(scored.collect(), Some(unknown as usize), false))?;
        let mut tokenizer = Tokenizer::new(model);
        let spaced = self.flag("add_space_prefix", true)?;
        let collapsed = self.flag("remove_extra_whitespaces", true)?;
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        if let Some(map) = self.charsmap() {
            normalizers
                .push(self.built(|| Precompiled::from(map).map_err(|cause| cause.to_string()))?.into());
        }
        if spaced && !collapsed {
            // A mark goes before every text, before one that begins with a space too.
            normalizers.push(Prepend::new(MARK.to_string()).into());
        }
        if collapsed && !spaced {
            // Cutting at spaces would lose those that no word's own mark stands for.
            for (from, to) in [(" {2,}", " "), ("^ | $", "")] {
                let pattern = ReplacePattern::Regex(from.to_owned());
                normalizers.push(self.built(|| Replace::new(pattern, to))?.into());
            }
        }
        if !normalizers.is_empty() {
            self.normalize(&mut tokenizer, normalizers)?;
        }
        let scheme = if spaced { PrependScheme::Always } else { PrependScheme::Never };
        tokenizer.with_decoder(Some(Metaspace::new(MARK, scheme, true)));
        if collapsed && spaced {
            let words = Metaspace::new(MARK, scheme, true);
            tokenizer
                .with_pre_tokenizer(Some(PreTokenizers::new(vec![WhitespaceSplit.into(), words.into()])));
        } else {
            tokenizer.with_pre_tokenizer(Some(Metaspace::new(MARK, PrependScheme::Never, true)));
        }
        Ok(tokenizer)
    }

    /// SentencePiece's table of characters.
    fn charsmap(&self) -> Option<&[u8]> {
        self.metadata.bytes("tokenizer.ggml.precompiled_charsmap").filter(|map| !map.is_empty())
    }

    fn bpe(&self, merges: Vec<(String, String)>, ignore_merges: bool, bytes: bool) -> Result<Tokenizer> {
        let longest = self.tokens.iter().map(String::len).max().unwrap_or(0);
        for (left, right) in &merges {
            check_merge(left, right, "", longest).map_err(|what| self.broken(&what))?;
        }
        let ids: Vocab = self.ids.iter().map(|(token, id)| (token.clone(), *id)).collect();
        let mut builder = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(ignore_merges);
        if bytes {
            let unknown = self.token("unknown_token_id")?.unwrap_or(0);
            builder =
                builder.unk_token(self.tokens[unknown as usize].clone()).fuse_unk(true).byte_fallback(true);
        }
        Ok(Tokenizer::new(self.built(|| builder.build())?))
    }

    /// All pairs whose union is a token, best union first.
    ///
    /// # Source
    /// Ties are broken as transformers' `generate_merges` does: by the longer left part, then the longer right part.
    fn merges_by_score(&self) -> Result<Vec<(String, String)>> {
        /// Looking up every cut of every token takes the square of its length; real vocabularies take 1/50 of this.
        const MOST_WORK: usize = 1 << 30;
        let scores = self.scores()?;
        let normal = |id: usize| matches!(self.types[id], NORMAL | USER_DEFINED);
        let work = self.tokens.iter().map(|token| token.len().saturating_mul(token.len()));
        if work.fold(0, usize::saturating_add) > MOST_WORK {
            return Err(self.broken("the tokens are too long for a SentencePiece vocabulary"));
        }
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| normal(*id)) {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                let part = |part: &str| self.ids.get(part).filter(|&&id| normal(id as usize));
                if let (Some(&l), Some(&r)) = (part(left), part(right)) {
                    merges.push((scores[id], left.chars().count(), right.chars().count(), l, r, left, right));
                }
            }
        }
        merges.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))).then((a.3, a.4).cmp(&(b.3, b.4)))
        });
        Ok(merges.into_iter().map(|merge| (merge.5.to_owned(), merge.6.to_owned())).collect())
    }

    fn scores(&self) -> Result<&[f32]> {
        let scores = self.metadata.floats("tokenizer.ggml.scores");
        let scores = scores.ok_or_else(|| self.broken("tokenizer.ggml.scores is missing"))?;
        if scores.len() != self.tokens.len() || scores.iter().any(|score| score.is_nan()) {
            let (scores, tokens) = (scores.len(), self.tokens.len());
            let what = format!(
                "tokenizer.ggml.scores has {scores} entries for {tokens} tokens; allowed is one number each"
            );
            return Err(self.broken(&what));
        }
        Ok(scores)
    }

    /// Puts the tokens around a text that the model wants there.
    fn frame(&self, tokenizer: &mut Tokenizer, begins: bool, ends: bool) -> Result<()> {
        let (begins, ends) = (self.flag("add_bos_token", begins)?, self.flag("add_eos_token", ends)?);
        // The tokens themselves may hold what a frame reads as syntax, so they go by these names.
        let mut parts = vec!["$A"];
        let mut special = Vec::new();
        let mut named = |name: &'static str, id: u32| -> Result<&'static str> {
            let token = self.tokens[id as usize].clone();
            special.push(self.built(|| SpecialToken::new(name.to_owned(), vec![id], vec![token]))?);
            Ok(name)
        };
        if let Some(id) = self.token("bos_token_id")?.filter(|_| begins) {
            parts.insert(0, named("begin", id)?);
        }
        if let Some(id) = self.token("eos_token_id")?.filter(|_| ends) {
            parts.push(named("end", id)?);
        }
        if special.is_empty() {
            return Ok(());
        }
        let frame = self.built(|| {
            TemplateProcessing::builder()
                .try_single(parts)?
                .special_tokens(special)
                .build()
                .map_err(|cause| cause.to_string())
        })?;
        tokenizer.with_post_processor(Some(frame));
        Ok(())
    }

    /// Makes the tokens known that are cut out of a text before anything else.
    fn add(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let of_type = |wanted: &'static [i64], special: bool| {
            let listed = self.tokens.iter().zip(&self.types).filter(move |(_, ty)| wanted.contains(ty));
            listed.map(move |(token, _)| AddedToken::from(token.clone(), special).normalized(false))
        };
        let all = self.tokens.iter().zip(&self.types);
        let all = all.filter(|(_, ty)| matches!(**ty, CONTROL | UNKNOWN | USER_DEFINED));
        // They are found in texts as they are, whatever the normalizer does.
        check_added(all.map(|(token, _)| token.as_str()), Growth::NONE).map_err(|what| self.broken(&what))?;
        self.built(|| tokenizer.add_special_tokens(of_type(&[CONTROL, UNKNOWN], true).collect::<Vec<_>>()))?;
        self.built(|| tokenizer.add_tokens(of_type(&[USER_DEFINED], false).collect::<Vec<_>>()))?;
        Ok(())
    }

    fn normalize(&self, tokenizer: &mut Tokenizer, normalizers: Vec<NormalizerWrapper>) -> Result<()> {
        self.built(|| tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map(|_| ()))
    }

    /// Whether texts begin with a token where the file does not say: Llama 3's do.
    fn begins_by_default(&self) -> Result<bool> {
        Ok(matches!(
            self.text("pre")?,
            Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "tekken")
        ))
    }

    fn text(&self, name: &str) -> Result<Option<&str>> {
        self.value(name, "a string", Value::text)
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.value(name, "true and false", Value::flag)?.unwrap_or(default))
    }

    fn token(&self, name: &str) -> Result<Option<u32>> {
        let size = self.tokens.len() as u64;
        let token = self
            .value(name, &format!("tokens below {size}"), |value| value.unsigned().filter(|&n| n < size))?;
        Ok(token.map(|token| token as u32))
    }

    fn value<'v, T>(
        &'v self,
        name: &str,
        allowed: &str,
        read: impl Fn(&'v Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let key = format!("tokenizer.ggml.{name}");
        let Some(value) = self.metadata.get(&key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.broken(&format!("{key} is {value}; allowed are {allowed}")))
    }

    fn built<T, E: std::fmt::Display>(&self, work: impl FnOnce() -> std::result::Result<T, E>) -> Result<T> {
        contained(work).map_err(|cause| self.broken(&format!("the tokenizer cannot be built: {cause}")))
    }

    fn broken(&self, what: &str) -> Error {
        Error::load(format!("{}: {what}", self.metadata.file()))
    }
}
