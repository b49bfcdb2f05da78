//! How GGUF's pre-tokenizers cut a text into words, by their names.
//!
//! # Source
//! The names: `llama-vocab.cpp` of llama.cpp. The patterns: the `tokenizer.json` of the models that the names stand
//! for, which is what those models were trained with.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;

/// How a byte-level tokenizer cuts text.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each with its name in a format")]
pub(super) struct Cut {
    /// Applied one after the other, each within the words of the one before.
    patterns: &'static [&'static str],
    /// Whether every digit is a word.
    digits: bool,
    /// Whether GPT-2's pattern comes last.
    gpt2: bool,
    /// Whether a word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether text is composed (NFC) first.
    pub(super) composed: bool,
}

const PLAIN: Cut = Cut { patterns: &[], digits: false, gpt2: false, ignore_merges: false, composed: false };

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The names that [`cut`] knows, for messages.
pub(super) const ALLOWED: &str = "default, gpt-2, phi-2, olmo, mpt, smollm, starcoder, refact, codeshell, llama-bpe, \
                                  llama3, llama-v3, falcon3, pixtral, dbrx, smaug-bpe, qwen2, megrez, \
                                  deepseek-r1-qwen, deepseek-coder and tekken";

/// The pre-tokenizer of this name.
pub(super) fn cut(name: &str) -> Option<Cut> {
    Some(match name {
        "gpt-2" | "phi-2" | "olmo" | "mpt" => Cut { gpt2: true, ..PLAIN },
        "smollm" | "starcoder" | "refact" | "codeshell" => Cut { digits: true, gpt2: true, ..PLAIN },
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" => {
            Cut { patterns: &[LLAMA3], ignore_merges: true, ..PLAIN }
        }
        "dbrx" | "smaug-bpe" => Cut { patterns: &[LLAMA3], ..PLAIN },
        "qwen2" | "megrez" => Cut { patterns: &[QWEN2], composed: true, ..PLAIN },
        "deepseek-r1-qwen" => Cut { patterns: &[QWEN2], ..PLAIN },
        "tekken" => Cut { patterns: &[TEKKEN], ignore_merges: true, ..PLAIN },
        "deepseek-coder" => Cut {
            patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+"],
            digits: true,
            ..PLAIN
        },
        // What llama.cpp does for files that were made before the names were.
        "default" => Cut {
            patterns: &[
                r"[\p{P}\$\+<=>\^~\|]+",
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
                r"\p{N}+",
                r"[0-9][0-9][0-9]",
            ],
            ..PLAIN
        },
        _ => return None,
    })
}

impl Cut {
    /// The pipeline that cuts so and writes bytes as characters.
    pub(super) fn pipeline(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut parts: Vec<PreTokenizerWrapper> = Vec::new();
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            parts.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        if self.digits {
            parts.push(Digits::new(true).into());
        }
        parts.push(ByteLevel::new(false, true, self.gpt2).into());
        Ok(Sequence::new(parts).into())
    }
}
