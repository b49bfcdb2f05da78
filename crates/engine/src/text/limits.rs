//! How large the parts of a tokenizer may be, and how much longer it may make a text.
//!
//! The `tokenizers` crate builds whatever its files say: a few replacements in a row make gigabytes of one letter, a
//! tree as deep as its longest token overflows the stack when it goes, and a table's size is taken from its first
//! four bytes. An allocation that fails ends the process, so all of this is compared with bounds before anything is
//! built. The bounds are several times what published tokenizers take.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

/// Bytes of one token, as the file writes it or as it is spelled out.
pub(super) const LONGEST_TOKEN: usize = 64 << 10;
/// Bytes of one token of a unigram model, whose tree of tokens is as deep as the longest.
const LONGEST_UNIGRAM: usize = 4 << 10;
/// Tokens that are cut out of a text before anything else.
const MOST_ADDED: usize = 1 << 17;
/// Bytes of all these tokens, after what the normalizer makes of them.
const MOST_ADDED_BYTES: usize = 16 << 20;
/// How many times longer replacements may make a text.
const MOST_REPLACED: usize = 64;
/// How many times longer all normalizers together may make a text. SentencePiece's table makes up to 33 bytes of one,
/// by the estimate that is used here, and T5 replaces spaces after it.
const MOST_GROWN: usize = 256;
/// Bytes that replacements may make of one text.
const MOST_MADE: usize = 128 << 20;

type Checked<T> = std::result::Result<T, String>;

/// How many times longer a text may become: at most, for any text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Growth {
    /// By replacements and what is put before a text.
    replaced: usize,
    /// By tables of characters.
    mapped: usize,
}

impl Growth {
    pub(super) const NONE: Self = Self { replaced: 1, mapped: 1 };

    /// The growth by a `normalizer` as `tokenizer.json` writes it.
    pub(super) fn of(normalizer: &Value) -> Checked<Self> {
        let mut growth = Self::NONE;
        growth.add(normalizer)?;
        growth.checked()
    }

    /// The growth by a table of characters alone.
    pub(super) fn by_charsmap(map: &[u8]) -> Checked<Self> {
        Self { mapped: check_charsmap(map)?, ..Self::NONE }.checked()
    }

    /// The longest text that may be normalized, in bytes.
    pub(super) fn longest_text(self) -> usize {
        MOST_MADE / self.replaced
    }

    fn total(self) -> usize {
        self.replaced.saturating_mul(self.mapped)
    }

    /// Goes by the fields and not by the type's name, because files of old versions have none.
    fn add(&mut self, normalizer: &Value) -> Checked<()> {
        let fields = match normalizer {
            Value::Null => return Ok(()),
            Value::Object(fields) => fields,
            _ => return Err("a normalizer is neither null nor an object".to_owned()),
        };
        let length = |field: &str| fields.get(field).and_then(Value::as_str).map(str::len);
        if let Some(content) = length("content") {
            let literal = fields.get("pattern").and_then(|pattern| pattern["String"].as_str());
            let times = match literal.map(str::len) {
                Some(0) => {
                    return Err("a normalizer replaces \"\"; allowed are texts that are not empty".to_owned());
                }
                Some(pattern) => content.div_ceil(pattern).max(1),
                // A regular expression may match nothing, everywhere.
                None => content.saturating_add(1),
            };
            self.replaced = self.replaced.saturating_mul(times);
        }
        if let Some(prepend) = length("prepend") {
            self.replaced = self.replaced.saturating_mul(prepend.saturating_add(1));
        }
        if let Some(map) = fields.get("precompiled_charsmap").and_then(Value::as_str) {
            let map = BASE64_STANDARD
                .decode(map)
                .map_err(|cause| format!("precompiled_charsmap is not base64: {cause}"))?;
            self.mapped = self.mapped.saturating_mul(check_charsmap(&map)?);
        }
        match fields.get("normalizers") {
            None => Ok(()),
            Some(Value::Array(parts)) => parts.iter().try_for_each(|part| self.add(part)),
            Some(_) => Err("the normalizers are no list".to_owned()),
        }
    }

    fn checked(self) -> Checked<Self> {
        if self.replaced > MOST_REPLACED {
            let replaced = self.replaced;
            return Err(format!(
                "the normalizer's replacements make a text up to {replaced} times longer; allowed are {MOST_REPLACED}"
            ));
        }
        if self.total() > MOST_GROWN {
            let total = self.total();
            return Err(format!(
                "the normalizer makes a text up to {total} times longer; allowed are {MOST_GROWN}"
            ));
        }
        Ok(self)
    }
}

/// Checks SentencePiece's table of characters: the bytes of a tree, the tree, and texts that end with zeros. Gives the
/// bytes of its longest text.
fn check_charsmap(map: &[u8]) -> Checked<usize> {
    let head = map.first_chunk().ok_or_else(|| {
        format!(
            "precompiled_charsmap has {} bytes; allowed are 4 and the table that they announce",
            map.len()
        )
    })?;
    let tree = u32::from_le_bytes(*head) as usize;
    let texts = map[head.len()..].get(tree..).ok_or_else(|| {
        let left = map.len() - head.len();
        format!("precompiled_charsmap announces a tree of {tree} bytes; allowed are the {left} that follow")
    })?;
    Ok(texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1))
}

/// Refuses a vocabulary with a token that is too long for its model.
pub(super) fn check_tokens<'a>(tokens: impl Iterator<Item = &'a str>, unigram: bool) -> Checked<()> {
    let most = if unigram { LONGEST_UNIGRAM } else { LONGEST_TOKEN };
    for token in tokens {
        check_length(token, most)?;
    }
    Ok(())
}

/// Refuses too many, or too long, tokens that are cut out of a text.
pub(super) fn check_added<'a>(tokens: impl Iterator<Item = &'a str>, growth: Growth) -> Checked<()> {
    let (mut count, mut bytes) = (0, 0usize);
    for token in tokens {
        check_length(token, LONGEST_TOKEN)?;
        count += 1;
        bytes = bytes.saturating_add(token.len().saturating_mul(growth.total()));
        if count > MOST_ADDED {
            return Err(format!("more tokens are added to the vocabulary than allowed, {MOST_ADDED}"));
        }
        if bytes > MOST_ADDED_BYTES {
            return Err(format!(
                "the tokens added to the vocabulary may take {bytes} bytes when normalized; allowed are \
                 {MOST_ADDED_BYTES}"
            ));
        }
    }
    Ok(())
}

fn check_length(token: &str, most: usize) -> Checked<()> {
    if token.len() <= most {
        return Ok(());
    }
    let shown: String = token.chars().take(40).collect();
    Err(format!("the token {shown:?}… has {} bytes; allowed are {most}", token.len()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(tree: u32, rest: &[u8]) -> String {
        BASE64_STANDARD.encode([&tree.to_le_bytes(), rest].concat())
    }

    fn replace(from: &str, to: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": from}, "content": to})
    }

    #[test]
    fn published_normalizers_are_within_bounds() {
        let llama = json!({"type": "Sequence", "normalizers":
            [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]});
        assert_eq!(Growth::of(&llama), Ok(Growth { replaced: 12, mapped: 1 }));
        let table = map(4, &[[0; 4].as_slice(), &[b'x'; 33], &[0]].concat());
        let t5 = json!({"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": table},
            {"type": "Strip", "strip_left": false, "strip_right": true},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]});
        assert_eq!(Growth::of(&t5), Ok(Growth { replaced: 4, mapped: 33 }));
        let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true});
        assert_eq!(Growth::of(&bert), Ok(Growth::NONE));
        assert_eq!(Growth::of(&replace("``", "\"")), Ok(Growth::NONE));
        assert_eq!(Growth::of(&Value::Null), Ok(Growth::NONE));
    }

    #[test]
    fn growth_adds_up_over_a_chain() {
        let chain = |times: usize, part: Value| json!({"type": "Sequence", "normalizers": vec![part; times]});
        assert!(Growth::of(&chain(2, replace("a", "aaaaaaaa"))).is_ok());
        assert!(Growth::of(&chain(3, replace("a", "aaaaaaaa"))).unwrap_err().contains("512 times longer"));
        let nested = chain(2, chain(2, replace("a", "aaaa")));
        assert!(Growth::of(&nested).unwrap_err().contains("256 times longer; allowed are 64"));
        assert!(Growth::of(&json!({"prepend": "x".repeat(64)})).unwrap_err().contains("65 times"));
        assert!(Growth::of(&json!(["Prepend", "x"])).is_err());
        assert!(Growth::of(&replace("", "a")).unwrap_err().contains("not empty"));
        assert!(Growth::of(&json!({"normalizers": {"prepend": "x"}})).is_err());
        let mapped = json!({"precompiled_charsmap": map(0, &[b'x'; 300])});
        assert!(Growth::of(&mapped).unwrap_err().contains("300 times longer; allowed are 256"));
    }

    #[test]
    fn a_table_of_characters_holds_what_it_announces() {
        assert_eq!(check_charsmap(&[4, 0, 0, 0, 1, 2, 3, 4, b'a', b'b', 0, b'c', 0]), Ok(2));
        assert!(check_charsmap(&[255; 4000]).unwrap_err().contains("allowed are the 3996 that follow"));
        assert!(check_charsmap(&[1, 0]).is_err());
        assert!(Growth::of(&json!({"precompiled_charsmap": map(u32::MAX, &[0; 8])})).is_err());
        assert!(Growth::of(&json!({"precompiled_charsmap": "?"})).unwrap_err().contains("not base64"));
    }
}
