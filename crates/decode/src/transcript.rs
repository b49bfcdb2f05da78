//! The text of one branch so far, as its decoder reads it.

use std::collections::HashSet;

use trefoil_models::Token;

/// Prompt and written tokens of one branch. The last token is *pending*: chosen, not yet cached.
#[derive(Clone, Debug)]
pub struct Transcript {
    tokens: Vec<Token>,
    prompt: usize,
    distinct: HashSet<Token>,
}

impl Transcript {
    /// Starts from a prompt: for an encoder-decoder model, the start token and what follows it in the decoder.
    pub fn new(prompt: Vec<Token>) -> Self {
        Self { prompt: prompt.len(), distinct: prompt.iter().copied().collect(), tokens: prompt }
    }

    /// Prompt and written tokens.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Written tokens alone.
    pub fn written(&self) -> &[Token] {
        &self.tokens[self.prompt..]
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt
    }

    /// Number of tokens, which is also the position of the next one.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens that occur in the text, each once.
    pub fn distinct(&self) -> &HashSet<Token> {
        &self.distinct
    }

    /// Appends a chosen token.
    pub fn push(&mut self, token: Token) {
        self.tokens.push(token);
        self.distinct.insert(token);
    }
}
