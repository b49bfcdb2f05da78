//! Echoes: what followed the text's last tokens where they stood before.
//!
//! A pool that keeps no n-grams: the text, and what it is about, are the pool, and an index over their runs of two
//! tokens and of one finds where the text's end occurred before. What followed there is a guess of any length, ranked by
//! how many tokens before it agree. Copying, which is most of what can be guessed without a model, comes in long runs.

use std::collections::HashMap;

use trefoil_models::Token;

/// Tokens of a guess, at most.
pub(crate) const LONGEST: usize = 16;

/// Guesses of one search, at most; each begins with another token.
pub(crate) const GUESSES: usize = 3;

/// Agreeing tokens that are counted, at most.
pub(crate) const COUNTED: usize = 32;

/// Places that a search looks at, at most: a run that occurs more often says little.
const LOOKED: usize = 32;

/// No place.
const NONE: u32 = u32::MAX;

/// Where each run of two tokens, and each token, ends in a growing sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pairs: Places,
    singles: Places,
}

/// The last place of each run, and for each place the one before it that ends the same run.
#[derive(Clone, Debug, Default)]
struct Places {
    last: HashMap<[Token; 2], u32>,
    before: Vec<u32>,
}

/// A guess at what follows a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    /// The tokens that may follow, at least one.
    pub(crate) tokens: Vec<Token>,
    /// Tokens before them that agree with the text's end, at least one.
    pub(crate) agree: usize,
}

impl Index {
    /// An index that leaves the first `skipped` tokens out.
    pub(crate) fn after(skipped: usize) -> Self {
        let places = || Places { last: HashMap::new(), before: vec![NONE; skipped] };
        Self { pairs: places(), singles: places() }
    }

    /// Takes in what `tokens` has beyond the tokens that are known already.
    pub(crate) fn extend(&mut self, tokens: &[Token]) {
        for at in self.singles.before.len()..tokens.len() {
            let pair = at.checked_sub(1).map(|before| [tokens[before], tokens[at]]);
            self.pairs.push(pair, at);
            self.singles.push(Some([tokens[at]; 2]), at);
        }
    }
}

impl Places {
    fn push(&mut self, run: Option<[Token; 2]>, at: usize) {
        let last = run.and_then(|run| self.last.insert(run, at as u32));
        self.before.push(last.unwrap_or(NONE));
    }

    /// The places that end `run`, the last one first.
    fn of(&self, run: [Token; 2]) -> impl Iterator<Item = usize> + '_ {
        let known = |at: u32| (at != NONE).then_some(at);
        let first = self.last.get(&run).copied();
        std::iter::successors(first, move |&at| known(self.before[at as usize])).map(|at| at as usize)
    }
}

/// Guesses what follows `text` from `text` itself and from `about`, each with its index; the best comes first.
pub(crate) fn echoes(text: (&[Token], &Index), about: (&[Token], &Index)) -> Vec<Echo> {
    let [.., second, last] = *text.0 else { return Vec::new() };
    // Where the text's last two tokens occur together, places of the last one alone say less.
    let runs = [(true, [second, last]), (false, [last; 2])];
    let mut found = Vec::new();
    for (paired, run) in runs {
        for (tokens, index) in [text, about] {
            let places = if paired { &index.pairs } else { &index.singles };
            // A sequence's end has no successor.
            for at in places.of(run).filter(|at| at + 1 < tokens.len()).take(LOOKED) {
                found.push((agreement(&tokens[..=at], text.0), tokens, at));
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    // Stable: among equals the text comes before what it is about, and late places before early ones.
    found.sort_by_key(|&(agree, ..)| std::cmp::Reverse(agree));
    let mut guesses: Vec<Echo> = Vec::with_capacity(GUESSES);
    for (agree, tokens, at) in found {
        let next = tokens[at + 1];
        if guesses.iter().all(|guess| guess.tokens[0] != next) {
            // A text that repeats itself goes on repeating: behind its end its own guess begins again.
            let own = std::ptr::eq(tokens, text.0);
            let rest = &tokens[at + 1..];
            let tokens = if own {
                rest.iter().copied().cycle().take(LONGEST).collect()
            } else {
                rest.iter().copied().take(LONGEST).collect()
            };
            guesses.push(Echo { tokens, agree });
        }
        if guesses.len() == GUESSES {
            break;
        }
    }
    guesses
}

/// How many tokens at the ends of `a` and `b` are the same, up to [`COUNTED`].
fn agreement(a: &[Token], b: &[Token]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take(COUNTED).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(text: &[Token], about: &[Token]) -> Vec<Echo> {
        let (mut own, mut other) = (Index::default(), Index::default());
        own.extend(text);
        other.extend(about);
        echoes((text, &own), (about, &other))
    }

    #[test]
    fn the_longest_agreement_comes_first() {
        // 1 2 occurs twice; behind 9 1 2 came 5, behind 8 1 2 came 6.
        let found = guess(&[9, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2], &[]);
        assert_eq!(found[0].agree, 3);
        assert_eq!(found[0].tokens[..2], [5, 8]);
        assert_eq!((found[1].agree, found[1].tokens[0]), (2, 6));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_single_token_is_the_last_resort() {
        assert_eq!(
            guess(&[3, 4, 7, 3], &[]),
            [Echo { tokens: [4, 7, 3].repeat(6)[..16].to_vec(), agree: 1 }]
        );
        assert!(guess(&[3, 4, 5], &[]).is_empty());
        assert!(guess(&[3], &[3, 4]).is_empty());
    }

    #[test]
    fn what_the_text_is_about_is_a_source_that_ends() {
        let found = guess(&[1, 2], &[5, 1, 2, 6, 7]);
        assert_eq!(found, [Echo { tokens: vec![6, 7], agree: 2 }]);
    }

    #[test]
    fn an_index_grows_with_its_text() {
        let text = [1, 2, 3, 1, 2, 4, 1, 2];
        let mut index = Index::default();
        (1..=text.len()).for_each(|len| index.extend(&text[..len]));
        assert_eq!(echoes((&text, &index), (&[], &Index::default())), guess(&text, &[]));
        let mut late = Index::after(4);
        late.extend(&text);
        let found = echoes((&text, &late), (&[], &Index::default()));
        assert_eq!(found.iter().map(|echo| echo.tokens[0]).collect::<Vec<_>>(), [4]);
    }
}
