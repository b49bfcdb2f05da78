//! The n-gram pool: what has followed each token so far.
//!
//! A key is one token; its entries are the N−1 tokens that followed it, most recent first, at most a fixed number a key.
//! Each entry also remembers the two tokens before its key, so that candidates whose longer suffix matches the text can
//! come first. All memory is taken when the pool is made: a full pool drops its least recently used entry, and neither a
//! look-up nor an insertion allocates.

use std::collections::HashMap;

use trefoil_models::Token;

/// A fixed-size pool of n-grams.
#[derive(Clone, Debug)]
pub struct Ngrams {
    /// Tokens after a key: N−1.
    tail: usize,
    per_key: usize,
    capacity: usize,
    keys: HashMap<Token, Chain>,
    entries: Vec<Entry>,
    tokens: Vec<Token>,
    recent: Chain,
    /// The keys with the most insertions and their numbers, the most first.
    common: Vec<(u32, Token)>,
}

/// The two tokens before a place in a text, nearest first, as far as there are any.
pub type Before = [Option<Token>; 2];

/// The two tokens before the end of `text`.
pub fn before(text: &[Token]) -> Before {
    let mut last = text.iter().rev().copied();
    [last.next(), last.next()]
}

/// How many tokens before an entry's key are those of the text.
fn agreement(entry: Before, text: Before) -> usize {
    entry.iter().zip(&text).take_while(|(entry, text)| entry.is_some() && entry == text).count()
}

/// A doubly linked list through the entries.
#[derive(Clone, Copy, Debug)]
struct Chain {
    first: u32,
    last: u32,
    len: u32,
    /// Insertions, for a list of one key.
    uses: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: Token,
    before: Before,
    /// Neighbours among the entries of the same key, then among all: (previous, next).
    links: [(u32, u32); 2],
}

/// Common tokens that the pool knows: with more of them a step has more rows and finds no more.
const COMMON: usize = 8;

const NONE: u32 = u32::MAX;
const OF_KEY: usize = 0;
const OF_ALL: usize = 1;

impl Chain {
    const EMPTY: Self = Self { first: NONE, last: NONE, len: 0, uses: 0 };
}

impl Ngrams {
    /// A pool of n-grams of `n` tokens, at most `per_key` a first token, within about `bytes`.
    pub fn new(n: usize, per_key: usize, bytes: usize) -> Self {
        let tail = n - 1;
        let capacity = (bytes / Self::entry_bytes(tail)).clamp(1, NONE as usize - 1);
        Self {
            tail,
            per_key: per_key.max(1),
            capacity,
            keys: HashMap::with_capacity(capacity),
            entries: Vec::with_capacity(capacity),
            tokens: Vec::with_capacity(capacity * tail),
            recent: Chain::EMPTY,
            common: Vec::with_capacity(COMMON),
        }
    }

    /// Bytes that an entry takes, its share of the key table included.
    fn entry_bytes(tail: usize) -> usize {
        // A hash table of this size keeps up to an eighth, and after growth up to half, of its slots free.
        size_of::<Entry>() + tail * size_of::<Token>() + 2 * size_of::<(Token, Chain)>()
    }

    /// Bytes set aside.
    pub fn bytes(&self) -> usize {
        self.capacity * Self::entry_bytes(self.tail)
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Remembers that `tail` (N−1 tokens) followed `key`, and `before` came before it.
    pub fn insert(&mut self, before: Before, key: Token, tail: &[Token]) {
        debug_assert_eq!(tail.len(), self.tail);
        self.insert_entry(before, key, tail);
        self.count(key);
    }

    /// The tokens that were keys most often, the most frequent first: guesses where a key has too few of its own.
    pub fn common(&self) -> impl Iterator<Item = Token> + '_ {
        self.common.iter().map(|&(_, key)| key)
    }

    /// Counts a use of `key` and keeps the common keys in order.
    fn count(&mut self, key: Token) {
        let Some(chain) = self.keys.get_mut(&key) else { return };
        chain.uses = chain.uses.saturating_add(1);
        let uses = chain.uses;
        let known = self.common.iter().position(|&(_, known)| known == key);
        let rarest = self.common.last().map_or(0, |&(uses, _)| uses);
        match known {
            Some(at) => self.common[at].0 = uses,
            None if self.common.len() < COMMON => self.common.push((uses, key)),
            None if rarest < uses => self.common[COMMON - 1] = (uses, key),
            None => return,
        }
        // Stable, so that of equals the one that got there first stays first; in place, for so few.
        self.common.sort_by_key(|&(uses, _)| std::cmp::Reverse(uses));
    }

    fn insert_entry(&mut self, before: Before, key: Token, tail: &[Token]) {
        let known = self.of(key).find(|&at| self.tail_at(at) == tail);
        if let Some(known) = known {
            self.entries[known as usize].before = before;
            for list in [OF_KEY, OF_ALL] {
                self.unlink(known, list);
                self.link_first(known, list);
            }
            return;
        }
        let at = self.place(key);
        self.entries[at as usize] = Entry { key, before, links: [(NONE, NONE); 2] };
        self.tokens[at as usize * self.tail..][..self.tail].copy_from_slice(tail);
        self.link_first(at, OF_KEY);
        self.link_first(at, OF_ALL);
    }

    /// Remembers every n-gram of `text` that ends in its last `fresh` tokens.
    pub fn insert_text(&mut self, text: &[Token], fresh: usize) {
        let n = self.tail + 1;
        let from = text.len().saturating_sub(fresh + self.tail);
        for (at, gram) in text.windows(n).enumerate().skip(from) {
            self.insert(before(&text[..at]), gram[0], &gram[1..]);
        }
    }

    /// What followed `key`, most recent first: (the tokens before, the N−1 tokens after).
    pub fn after(&self, key: Token) -> impl Iterator<Item = (Before, &[Token])> + '_ {
        self.of(key).map(|at| (self.entries[at as usize].before, self.tail_at(at)))
    }

    /// The N−1 tokens after `key`, most recent first; where a `context` is given, those with a longer suffix of it
    /// before the key come first.
    pub fn ranked(&self, key: Token, context: Option<Before>) -> impl Iterator<Item = &[Token]> + '_ {
        let agreement = move |entry: &Before| context.map_or(0, |context| agreement(*entry, context));
        let most = context.map_or(0, |context| context.len());
        // A walk for every length of suffix, instead of a sort, needs no memory.
        (0..=most).rev().flat_map(move |wanted| {
            let alike = self.after(key).filter(move |(before, _)| agreement(before) == wanted);
            alike.map(|(_, tail)| tail)
        })
    }

    fn of(&self, key: Token) -> impl Iterator<Item = u32> + '_ {
        let first = self.keys.get(&key).map_or(NONE, |chain| chain.first);
        std::iter::successors((first != NONE).then_some(first), |&at| {
            let next = self.entries[at as usize].links[OF_KEY].1;
            (next != NONE).then_some(next)
        })
    }

    fn tail_at(&self, at: u32) -> &[Token] {
        &self.tokens[at as usize * self.tail..][..self.tail]
    }

    /// An unlinked place for a new entry: a fresh one, or the oldest of this key or of all.
    fn place(&mut self, key: Token) -> u32 {
        let chain = self.keys.get(&key).copied().unwrap_or(Chain::EMPTY);
        let oldest = if chain.len as usize >= self.per_key {
            chain.last
        } else if self.entries.len() < self.capacity {
            self.entries.push(Entry { key, before: [None; 2], links: [(NONE, NONE); 2] });
            self.tokens.resize(self.entries.len() * self.tail, 0);
            return self.entries.len() as u32 - 1;
        } else {
            self.recent.last
        };
        self.unlink(oldest, OF_KEY);
        self.unlink(oldest, OF_ALL);
        oldest
    }

    fn chain(&mut self, at: u32, list: usize) -> &mut Chain {
        match list {
            OF_KEY => self.keys.entry(self.entries[at as usize].key).or_insert(Chain::EMPTY),
            _ => &mut self.recent,
        }
    }

    fn link_first(&mut self, at: u32, list: usize) {
        let chain = self.chain(at, list);
        let second = std::mem::replace(&mut chain.first, at);
        chain.len += 1;
        if second == NONE {
            chain.last = at;
        } else {
            self.entries[second as usize].links[list].0 = at;
        }
        self.entries[at as usize].links[list] = (NONE, second);
    }

    fn unlink(&mut self, at: u32, list: usize) {
        let (previous, next) = self.entries[at as usize].links[list];
        let chain = self.chain(at, list);
        chain.len -= 1;
        if previous == NONE {
            chain.first = next;
        }
        if next == NONE {
            chain.last = previous;
        }
        let emptied = chain.len == 0;
        if previous != NONE {
            self.entries[previous as usize].links[list].1 = next;
        }
        if next != NONE {
            self.entries[next as usize].links[list].0 = previous;
        }
        if list == OF_KEY && emptied {
            self.keys.remove(&self.entries[at as usize].key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tails(pool: &Ngrams, key: Token) -> Vec<Vec<Token>> {
        pool.after(key).map(|(_, tail)| tail.to_vec()).collect()
    }

    #[test]
    fn the_most_recent_comes_first_and_the_oldest_of_a_key_goes() {
        let mut pool = Ngrams::new(3, 2, 1 << 16);
        for tail in [[1, 2], [3, 4], [1, 2], [5, 6]] {
            pool.insert([None; 2], 9, &tail);
        }
        assert_eq!(tails(&pool, 9), [vec![5, 6], vec![1, 2]]);
        assert!(tails(&pool, 8).is_empty());
    }

    #[test]
    fn text_gives_every_n_gram_that_is_new() {
        let mut pool = Ngrams::new(3, 8, 1 << 16);
        pool.insert_text(&[1, 2, 3, 4, 5], 5);
        assert_eq!(pool.len(), 3);
        pool.insert_text(&[1, 2, 3, 4, 5, 6], 1);
        assert_eq!(pool.len(), 4);
        assert_eq!(pool.after(4).collect::<Vec<_>>(), [([Some(3), Some(2)], &[5, 6][..])]);
    }

    #[test]
    fn the_most_frequent_keys_are_common() {
        let mut pool = Ngrams::new(2, 4, 1 << 16);
        for key in 0..20 {
            (0..key).for_each(|tail| pool.insert([None; 2], key, &[tail % 3]));
        }
        assert_eq!(pool.common().collect::<Vec<_>>(), [19, 18, 17, 16, 15, 14, 13, 12]);
        (0..30).for_each(|_| pool.insert([None; 2], 1, &[7]));
        assert_eq!(pool.common().take(2).collect::<Vec<_>>(), [1, 19]);
    }

    /// A pool that is plainly right: a list of entries, most recent first.
    #[derive(Default)]
    struct Naive(Vec<(Token, Before, Vec<Token>)>);

    impl Naive {
        fn insert(&mut self, before: Before, key: Token, tail: &[Token], per_key: usize, capacity: usize) {
            let known = self.0.iter().position(|(k, _, t)| *k == key && t == tail);
            if let Some(at) = known {
                self.0.remove(at);
            } else if self.0.iter().filter(|(k, ..)| *k == key).count() >= per_key {
                let oldest = self.0.iter().rposition(|(k, ..)| *k == key).unwrap();
                self.0.remove(oldest);
            } else if self.0.len() == capacity {
                self.0.pop();
            }
            self.0.insert(0, (key, before, tail.to_vec()));
        }
    }

    #[test]
    fn it_agrees_with_a_plain_list_and_never_grows() {
        for (per_key, bytes) in [(1, 400), (3, 900), (4, 3000)] {
            let mut pool = Ngrams::new(3, per_key, bytes);
            let (entries, tokens, keys) =
                (pool.entries.capacity(), pool.tokens.capacity(), pool.keys.capacity());
            let mut naive = Naive::default();
            let mut state = 1u64;
            let mut random = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % below) as Token
            };
            for _ in 0..5000 {
                let (before, key, tail) = ([Some(random(3)), None], random(7), [random(3), random(3)]);
                pool.insert(before, key, &tail);
                naive.insert(before, key, &tail, per_key, pool.capacity);
                let expected: Vec<_> =
                    naive.0.iter().filter(|(k, ..)| *k == key).map(|(_, b, t)| (*b, t.as_slice())).collect();
                assert_eq!(pool.after(key).collect::<Vec<_>>(), expected);
            }
            assert_eq!(pool.len(), naive.0.len());
            assert_eq!((entries, tokens), (pool.entries.capacity(), pool.tokens.capacity()));
            assert_eq!(keys, pool.keys.capacity());
        }
    }
}
