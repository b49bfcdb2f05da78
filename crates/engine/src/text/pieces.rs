//! Text as its tokens arrive.

use std::sync::Arc;

use super::spelling::{Opening, Spelling};
use super::tokenizer::Tokenizer;

/// Turns tokens into text, each as early as it is certain.
///
/// What `push` and `finish` give, one after the other, is what [`Tokenizer::decode`] gives for all tokens at once. A
/// character whose bytes come in several tokens waits for the last of them, so at most three bytes are ever held.
#[derive(Clone)]
pub struct Pieces {
    spelling: Arc<Spelling>,
    held: Vec<u8>,
    opening: Opened,
}

/// How much of the rule for beginnings is still to be applied.
#[derive(Clone)]
enum Opened {
    Spaces(usize),
    FirstToken,
    Done,
}

impl Pieces {
    /// The beginning of a text.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let spelling = Arc::clone(tokenizer.spelling());
        let opening = match spelling.opening() {
            Opening::Plain => Opened::Done,
            Opening::Spaces(count) => Opened::Spaces(*count),
            Opening::FirstToken(_) => Opened::FirstToken,
        };
        Self { spelling, held: Vec::new(), opening }
    }

    /// Takes a token and gives the text that has become certain, if any has.
    pub fn push(&mut self, token: u32) -> Option<String> {
        if self.spelling.is_special(token) {
            return None;
        }
        let bytes = self.spelling.bytes(token);
        match &mut self.opening {
            Opened::Done => self.held.extend_from_slice(bytes),
            Opened::FirstToken => {
                let first = match self.spelling.opening() {
                    Opening::FirstToken(unmarked) => {
                        unmarked.get(token as usize).map_or(bytes, Vec::as_slice)
                    }
                    _ => bytes,
                };
                self.held.extend_from_slice(first);
                self.opening = Opened::Done;
            }
            Opened::Spaces(left) => {
                let spaces = bytes.iter().take(*left).take_while(|byte| **byte == b' ').count();
                *left -= spaces;
                self.held.extend_from_slice(&bytes[spaces..]);
                if *left == 0 || spaces < bytes.len() {
                    self.opening = Opened::Done;
                }
            }
        }
        let text = take_certain(&mut self.held);
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text and gives what was still held: U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

/// Takes all but an unfinished character at the end. Bytes that can begin no character become U+FFFD, as
/// `String::from_utf8_lossy` has it.
fn take_certain(held: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(held.len());
    let mut kept = 0;
    for chunk in held.utf8_chunks() {
        let invalid = chunk.invalid();
        text.push_str(chunk.valid());
        kept += chunk.valid().len();
        if invalid.is_empty() {
            break;
        }
        let rest = &held[kept..];
        // Only at the very end may bytes that are not valid yet become so.
        if rest.len() == invalid.len()
            && std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none())
        {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        kept += invalid.len();
    }
    held.drain(..kept);
    text
}
