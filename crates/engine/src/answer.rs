//! The text side of one branch: tokens in, text out.
//!
//! What a step kept becomes text that is final. What a draft model has written ahead of the step becomes *tentative*
//! text on a copy of the assembly, so that a character in several tokens and a stop string are found there as well;
//! the step's own tokens then go on from where the final text stands, as if nobody had guessed.

use trefoil_decode::Kept;
use trefoil_models::Token;

use crate::outbox::Chunk;
use crate::text::{Pieces, StopText};

/// One text being written.
pub(crate) struct Text {
    settled: Assembly,
    tentative: Option<Tentative>,
    written: String,
    /// Tokens of the text; a step can keep more than a stop string lets in.
    pub(crate) tokens: Vec<Token>,
    /// How many of them a draft had.
    pub(crate) accepted: usize,
}

/// Tokens on their way to text.
#[derive(Clone)]
struct Assembly {
    pieces: Pieces,
    stop: StopText,
    stopped: bool,
}

/// What was sent and may be taken back.
struct Tentative {
    assembly: Assembly,
    sent: String,
}

impl Text {
    /// The beginning of a text that ends where `stop` says.
    pub(crate) fn new(pieces: Pieces, stop: StopText) -> Self {
        Self {
            settled: Assembly { pieces, stop, stopped: false },
            tentative: None,
            written: String::new(),
            tokens: Vec::new(),
            accepted: 0,
        }
    }

    /// Whether a stop string is complete.
    pub(crate) fn stopped(&self) -> bool {
        self.settled.stopped
    }

    /// Takes a token that a draft model has written, and gives the text that it adds to what is shown; none behind a
    /// stop string.
    pub(crate) fn hear(&mut self, token: Token) -> Option<String> {
        let settled = &self.settled;
        let begin = || Tentative { assembly: settled.clone(), sent: String::new() };
        let tentative = self.tentative.get_or_insert_with(begin);
        if tentative.assembly.stopped {
            return None;
        }
        let fresh = tentative.assembly.push(token);
        tentative.sent.push_str(&fresh);
        Some(fresh)
    }

    /// Takes a step's tokens, up to the one that completes a stop string, and gives the chunk to send.
    pub(crate) fn keep(&mut self, mut kept: Kept) -> Chunk {
        let mut text = String::new();
        let mut taken = 0;
        for pick in &kept.picks {
            if self.settled.stopped {
                break;
            }
            taken += 1;
            text.push_str(&self.settled.push(pick.token));
        }
        kept.picks.truncate(taken);
        let accepted = kept.accepted.min(taken);
        self.tokens.extend(kept.picks.iter().map(|pick| pick.token));
        self.accepted += accepted;
        if kept.finish.is_some() {
            text.push_str(&self.settled.finish());
        }
        self.written.push_str(&text);
        Chunk {
            prompt: kept.branch,
            revoked: self.tentative.take().map(|tentative| tentative.sent).unwrap_or_default(),
            text,
            tokens: kept.picks,
            accepted,
            replaced: kept.replaced && accepted < taken,
            tentative: false,
        }
    }

    /// The whole text, with what was still held back for a longer token or a stop string.
    pub(crate) fn finish(&mut self) -> String {
        let rest = self.settled.finish();
        std::mem::take(&mut self.written) + &rest
    }
}

impl Assembly {
    /// The text that has become certain with `token`.
    fn push(&mut self, token: Token) -> String {
        self.pieces.push(token).map(|piece| self.release(&piece)).unwrap_or_default()
    }

    /// What was held back.
    fn finish(&mut self) -> String {
        let rest = self.pieces.finish();
        let mut text = self.release(&rest);
        if !self.stopped {
            text.push_str(&self.stop.finish());
        }
        text
    }

    fn release(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        let (text, stopped) = self.stop.push(piece);
        self.stopped = stopped;
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use trefoil_decode::{Finish, Pick};

    use super::*;
    use crate::text::Tokenizer;

    fn kept(tokens: &[Token], accepted: usize, replaced: bool, finish: Option<Finish>) -> Kept {
        let picks = tokens.iter().map(|&token| Pick { token, logprob: None }).collect();
        Kept { branch: 0, picks, accepted, replaced, finish }
    }

    /// What a reader shows: tentative text goes as soon as it is taken back.
    fn fold(shown: &mut String, chunk: &Chunk) {
        assert!(shown.ends_with(&chunk.revoked), "{shown:?} does not end with {:?}", chunk.revoked);
        shown.truncate(shown.len() - chunk.revoked.len());
        shown.push_str(&chunk.text);
    }

    #[test]
    fn eager_chunks_fold_to_the_text_whatever_is_accepted() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/smollm2");
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        let mut seed = 11_u64;
        let mut below = |bound: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % bound
        };
        // Characters of two to four bytes, whose bytes are tokens of their own, beside words that share a beginning.
        let vocabulary = tokenizer.encode("é本🙂 the then hen o\n\no", false).unwrap();
        assert!(vocabulary.iter().any(|&token| tokenizer.decode(&[token]).unwrap().contains('\u{FFFD}')));
        let stops = ["then", "\n\n", "本é", "o th"];
        let (mut took_back, mut stopped_early) = (0, 0);
        for round in 0..4000 {
            let stop: Vec<String> = (0..below(3)).map(|_| stops[below(stops.len())].to_owned()).collect();
            let begin = || Text::new(Pieces::new(&tokenizer), StopText::new(stop.clone()));
            let (mut eager, mut committed) = (begin(), begin());
            let (mut shown, mut text) = (String::new(), String::new());
            let mut all = Vec::new();
            let steps = 1 + below(8);
            for step in 1..=steps {
                let chain: Vec<Token> = (0..below(6)).map(|_| vocabulary[below(vocabulary.len())]).collect();
                for &token in &chain {
                    shown.push_str(&eager.hear(token).unwrap_or_default());
                }
                let accepted = below(chain.len() + 1);
                let mut tokens = chain[..accepted].to_vec();
                tokens.push(vocabulary[below(vocabulary.len())]);
                all.extend_from_slice(&tokens);
                let finish = (step == steps).then_some(Finish::Stop);
                let chunk = eager.keep(kept(&tokens, accepted, accepted < chain.len(), finish));
                took_back +=
                    usize::from(!chunk.revoked.is_empty() && !chunk.text.starts_with(&chunk.revoked));
                fold(&mut shown, &chunk);
                let plain = committed.keep(kept(&tokens, accepted, accepted < chain.len(), finish));
                assert!(plain.revoked.is_empty(), "committed text was taken back");
                assert_eq!(Chunk { revoked: String::new(), ..chunk }, plain, "round {round}");
                text.push_str(&plain.text);
                assert_eq!(shown, text, "round {round}");
                if eager.stopped() {
                    stopped_early += 1;
                    break;
                }
            }
            let whole = eager.finish();
            assert_eq!(shown, whole, "round {round}");
            assert_eq!(committed.finish(), whole);
            let spelt = tokenizer.decode(&all).unwrap();
            assert!(spelt.starts_with(&whole), "round {round}: {spelt:?} {whole:?}");
            assert!(eager.stopped() || spelt == whole, "round {round}: {spelt:?} {whole:?}");
        }
        assert!(took_back > 1000 && stopped_early > 200, "{took_back}, {stopped_early}");
    }
}
