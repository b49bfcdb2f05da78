//! What a template is before it is parsed: refused where it could not be bounded later, rewritten where the engine
//! reads it otherwise than Jinja.
//!
//! The tree of an expression is as deep as a chain of operators is long, and parsing, compiling and freeing it recurse
//! as deep without a limit of their own; so do `elif`s, each of which is a condition within the last one.

use std::fmt::Write;
use std::ops::Range;

use minijinja::Error;
use minijinja::machinery::{Span, Token, WhitespaceConfig, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::budget::{ITEM, refused};

/// How a template's line ends are read.
pub(super) const SPACE: WhitespaceConfig =
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };

/// What a tag may consist of: names, operators, brackets. Published templates have tags of some two hundred.
///
/// The compiler computes what is constant in an expression, before any budget, and again at each level above it: up to
/// half of the parts times the other half.
const PARTS: usize = 500;
/// `elif`s of a template. Published templates have a dozen.
const ELIFS: usize = 200;
/// Products of a template: the compiler computes them where their operands are constant.
const PRODUCTS: usize = 16;
/// Bytes that the constants of a tag may make in its products.
const PRODUCT: u128 = 16 << 10;

/// A template's text as the engine shall read it.
pub(super) struct Source {
    pub(super) text: String,
    /// Bytes of the longest literal text.
    pub(super) longest: usize,
}

impl Source {
    pub(super) fn new(template: &str) -> Result<Self, Error> {
        // As Jinja does: the lines of a template end with \n, whatever they end with in the file.
        let text = template.replace("\r\n", "\n").replace('\r', "\n");
        let mut scan = Scan { text: &text, edits: Vec::new(), products: 0, elifs: 0, longest: 0 };
        let mut tag: Vec<(Token<'_>, Span)> = Vec::new();
        let mut block = false;
        for token in tokenize(&text, false, SyntaxConfig, SPACE) {
            let (token, span) = token?;
            match token {
                Token::TemplateData(data) => scan.longest = scan.longest.max(data.len()),
                Token::VariableStart | Token::BlockStart => block = matches!(token, Token::BlockStart),
                Token::VariableEnd | Token::BlockEnd => scan.tag(&std::mem::take(&mut tag), block)?,
                _ if tag.len() == PARTS => {
                    return Err(refused(format!("a tag has more than {PARTS} parts; allowed are {PARTS}")));
                }
                _ => tag.push((token, span)),
            }
        }
        // The parser sees a tag that has no end as well.
        scan.tag(&tag, block)?;
        let (mut edits, longest) = (scan.edits, scan.longest);
        edits.sort_by_key(|(range, _)| (range.start, range.end));
        let mut edited = String::with_capacity(text.len());
        let mut done = 0;
        for (range, put) in edits {
            edited.push_str(&text[done..range.start]);
            edited.push_str(&put);
            done = range.end;
        }
        edited.push_str(&text[done..]);
        Ok(Self { text: edited, longest })
    }
}

struct Scan<'a> {
    text: &'a str,
    edits: Vec<(Range<usize>, String)>,
    products: usize,
    elifs: usize,
    longest: usize,
}

fn range(span: Span) -> Range<usize> {
    span.start_offset as usize..span.end_offset as usize
}

impl Scan<'_> {
    fn tag(&mut self, tag: &[(Token<'_>, Span)], block: bool) -> Result<(), Error> {
        let (mut bytes, mut numbers, mut products, mut powers) = (0u128, 1u128, 0, 0);
        let joined = tag.iter().any(|(token, _)| matches!(token, Token::Tilde));
        let mut subscript = false;
        for (token, span) in tag {
            match token {
                Token::Mul => products += 1,
                Token::Pow => powers += 1,
                Token::Str(text) => bytes += text.len() as u128,
                Token::String(text) => bytes += text.len() as u128,
                // Numbers become texts as well. The largest fraction has some three hundred digits.
                Token::Tilde => bytes += 40,
                Token::Float(_) if joined => bytes += 400,
                Token::BracketOpen if !subscript => bytes += (tag.len() * ITEM) as u128,
                Token::Int(number) => numbers = numbers.saturating_add(u128::from(*number)),
                Token::Int128(number) => numbers = numbers.saturating_add(**number),
                _ => {}
            }
            if matches!(token, Token::Str(_) | Token::String(_)) {
                self.literal(range(*span));
            }
            // A bracket behind a value looks into it, and makes no list.
            subscript = match token {
                Token::Ident(name) => !matches!(*name, "in" | "not" | "and" | "or" | "if" | "else" | "is"),
                Token::BracketClose | Token::ParenClose => true,
                _ => false,
            };
        }
        self.products += products + powers;
        if self.products > PRODUCTS {
            let products = self.products;
            return Err(refused(format!("it has {products} multiplications; allowed are {PRODUCTS}")));
        }
        let made = (0..products).fold(bytes, |made, _| made.saturating_mul(numbers));
        if products > 0 && (made > PRODUCT || bytes > 0 && powers > 0) {
            let what = format!("it multiplies a text to more than {PRODUCT} bytes; allowed are {PRODUCT}");
            return Err(refused(what));
        }
        match tag {
            _ if !block => {}
            [(Token::Ident("elif"), _), ..] => self.elifs += 1,
            [(Token::Ident("for"), _), rest @ ..] => self.list(rest),
            // What marks the tokens to train on writes its content. Its variables end with it, as in a `with`.
            [(Token::Ident("generation"), span)] => self.edits.push((range(*span), "with".to_owned())),
            [(Token::Ident("endgeneration"), span)] => self.edits.push((range(*span), "endwith".to_owned())),
            _ => {}
        }
        if self.elifs > ELIFS {
            return Err(refused(format!("it has more than {ELIFS} elifs; allowed are {ELIFS}")));
        }
        Ok(())
    }

    /// Puts a filter behind what a loop goes through, since starting on a text counts all its characters, and nothing
    /// draws from a budget there.
    fn list(&mut self, tag: &[(Token<'_>, Span)]) {
        let Some(start) = tag.iter().position(|(token, _)| matches!(token, Token::Ident("in"))) else {
            return;
        };
        let (mut depth, mut end) = (0usize, tag.len());
        for (at, (token, _)) in tag.iter().enumerate().skip(start + 1) {
            match token {
                Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => depth += 1,
                Token::ParenClose | Token::BracketClose | Token::BraceClose => {
                    depth = depth.saturating_sub(1);
                }
                // A condition begins, where this is no attribute's name.
                Token::Ident("if") if depth == 0 && !matches!(tag[at - 1].0, Token::Dot) => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        if end == tag.len() && end > start + 2 && matches!(tag[end - 1].0, Token::Ident("recursive")) {
            end -= 1;
        }
        if end > start + 1 {
            let (first, last) = (range(tag[start + 1].1).start, range(tag[end - 1].1).end);
            self.edits.push((first..first, "(".to_owned()));
            self.edits.push((last..last, ")|iter".to_owned()));
        }
    }

    /// Python's escapes in a text that the engine reads otherwise.
    fn literal(&mut self, range: Range<usize>) {
        let text = &self.text[range.clone()];
        if !text.contains('\\') {
            return;
        }
        let mut read = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('\\') {
            read.push_str(&rest[..at]);
            let mut escape = rest[at + 1..].chars();
            let code = |len: usize| {
                let digits = rest.get(at + 2..at + 2 + len)?;
                u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)
            };
            match escape.next() {
                Some('\n') => {}
                Some('/') => read.push_str("\\\\/"),
                Some('a') => read.push_str("\\x07"),
                Some('v') => read.push_str("\\x0b"),
                Some('U') if code(8).is_some() => {
                    for unit in code(8).unwrap_or_default().encode_utf16(&mut [0; 2]) {
                        let _ = write!(read, "\\u{unit:04x}");
                    }
                    escape = rest[at + 10..].chars();
                }
                Some(other) => read.extend(['\\', other]),
                None => read.push('\\'),
            }
            rest = escape.as_str();
        }
        read.push_str(rest);
        if read != text {
            self.edits.push((range, read));
        }
    }
}
