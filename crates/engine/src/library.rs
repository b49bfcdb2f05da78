//! Documents in memory, read once and asked about many times.
//!
//! A caller's [`Document`] is a claim, not the document itself: keys and values stay on the engine thread, in the
//! [`Library`], which sees a claim's end by its counter. What nobody claims any more is kept within a budget, least
//! recently used out first, so that reading the same text again costs nothing. An encoder-decoder model's document is
//! one copy of its cross-attention's keys and values; a decoder-only model's is a branch of the cache that prompts
//! fork, and its pages are given up earlier than the budget asks wherever a text needs them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use trefoil_kernels::PAGE;
use trefoil_models::{BranchId, CrossKv, Kv, Token};

use crate::error::{Error, ErrorKind, Result};

/// A document that has been read. Clones are the same document; the last one that is dropped frees it.
#[derive(Clone)]
pub struct Document {
    claim: Arc<Claim>,
    encoder_forwards: usize,
}

struct Claim {
    tokens: usize,
    /// Tells the engine to look whether documents are free.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Document {
    /// Tokens of the document, special ones included.
    pub fn tokens(&self) -> usize {
        self.claim.tokens
    }

    /// Runs of the encoder that reading took: none where the text was still in memory, and for decoder-only models.
    pub fn encoder_forwards(&self) -> usize {
        self.encoder_forwards
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        (self.wake)();
    }
}

/// What prompts stand on.
#[derive(Clone)]
pub(crate) enum Body {
    /// Keys and values of an encoded text.
    Encoded(Arc<CrossKv>),
    /// A branch that holds the text's tokens but for the last, which a branch without a prompt needs pending.
    Prefix(BranchId),
}

/// A document and who claims it.
struct Entry {
    tokens: Arc<[Token]>,
    body: Body,
    bytes: u64,
    claim: Weak<Claim>,
    /// The library's clock when a claim on the document was last made.
    used: u64,
    /// Whether the encoder's run has yet to show in an answer's figures.
    unreported: AtomicBool,
}

impl Entry {
    fn is_claimed(&self) -> bool {
        self.claim.strong_count() > 0
    }
}

/// Bytes that a session takes beside its pages, until it is dropped.
pub(crate) struct Loan {
    pub(crate) bytes: u64,
    lent: Arc<AtomicU64>,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.lent.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// All documents of one engine.
pub(crate) struct Library {
    entries: Vec<Entry>,
    clock: u64,
    /// Bytes that unclaimed documents may take.
    budget: u64,
    /// Bytes that all encoded documents, and what is lent, may take.
    room: u64,
    lent: Arc<AtomicU64>,
}

impl Library {
    pub(crate) fn new(budget: u64, room: u64) -> Self {
        Self { entries: Vec::new(), clock: 0, budget, room, lent: Arc::default() }
    }

    /// A claim on the document with these tokens, where it is still here.
    pub(crate) fn find(
        &mut self,
        tokens: &[Token],
        wake: &(impl Fn() + Clone + Send + Sync + 'static),
    ) -> Option<Document> {
        let entry = self.entries.iter_mut().find(|entry| *entry.tokens == *tokens)?;
        self.clock += 1;
        entry.used = self.clock;
        let claim = entry.claim.upgrade().unwrap_or_else(|| {
            let claim = Arc::new(Claim { tokens: tokens.len(), wake: Box::new(wake.clone()) });
            entry.claim = Arc::downgrade(&claim);
            claim
        });
        Some(Document { claim, encoder_forwards: 0 })
    }

    /// Takes in a document that has just been read.
    pub(crate) fn insert(
        &mut self,
        tokens: Vec<Token>,
        body: Body,
        kv: &Kv,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Document {
        let bytes = match &body {
            Body::Encoded(source) => source.bytes(),
            Body::Prefix(_) => tokens.len().div_ceil(PAGE) * kv.page_bytes(),
        };
        let claim = Arc::new(Claim { tokens: tokens.len(), wake: Box::new(wake) });
        let encoder_forwards = usize::from(matches!(body, Body::Encoded(_)));
        self.clock += 1;
        self.entries.push(Entry {
            tokens: tokens.into(),
            body,
            bytes: bytes as u64,
            claim: Arc::downgrade(&claim),
            used: self.clock,
            unreported: AtomicBool::new(encoder_forwards > 0),
        });
        Document { claim, encoder_forwards }
    }

    /// A document's tokens and body.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) for a document of another model.
    pub(crate) fn get(&self, document: &Document) -> Result<(Arc<[Token]>, Body)> {
        let entry = self.entry(document)?;
        Ok((Arc::clone(&entry.tokens), entry.body.clone()))
    }

    /// Runs of the encoder that no answer has shown yet.
    ///
    /// # Errors
    /// As [`Library::get`].
    pub(crate) fn report(&self, document: &Document) -> Result<usize> {
        Ok(usize::from(self.entry(document)?.unreported.swap(false, Ordering::Relaxed)))
    }

    fn entry(&self, document: &Document) -> Result<&Entry> {
        let found = self.entries.iter().find(|entry| entry.claim.as_ptr() == Arc::as_ptr(&document.claim));
        found.ok_or_else(|| {
            Error::option("the document was read by another model; allowed: one of this model's")
        })
    }

    /// The error for an encoded document that [`Library::make_room`] has no room for.
    pub(crate) fn full(&self, bytes: u64) -> Error {
        self.short("the document", bytes)
    }

    /// The error for what needs more bytes than are left.
    pub(crate) fn short(&self, what: &str, bytes: u64) -> Error {
        let (taken, room) = (self.taken(), self.room);
        let message = format!(
            "{what} needs {bytes} bytes; documents and texts in use have {taken} of the {room} that the memory limit leaves"
        );
        Error::new(ErrorKind::OutOfMemory, message)
    }

    /// Bytes of encoded documents, and those that are lent. Other documents are pages of the cache.
    fn taken(&self) -> u64 {
        let encoded = self.entries.iter().filter(|entry| matches!(entry.body, Body::Encoded(_)));
        encoded.map(|entry| entry.bytes).sum::<u64>() + self.lent.load(Ordering::Relaxed)
    }

    /// Lends bytes to a session: what it needs, and as much of what it could use as nothing has to be given up for.
    /// None where there is too little.
    pub(crate) fn lend(&mut self, needed: u64, useful: u64, kv: &mut Kv) -> Option<Loan> {
        if !self.make_room(needed, kv) {
            return None;
        }
        let bytes = useful.min(self.room - self.taken()).max(needed);
        self.lent.fetch_add(bytes, Ordering::Relaxed);
        Some(Loan { bytes, lent: Arc::clone(&self.lent) })
    }

    /// What the documents are in memory.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &Body> {
        self.entries.iter().map(|entry| &entry.body)
    }

    /// Frees unclaimed documents until the budget holds.
    pub(crate) fn trim(&mut self, kv: &mut Kv) {
        let kept = |library: &Self| -> u64 {
            library.entries.iter().filter(|entry| !entry.is_claimed()).map(|entry| entry.bytes).sum()
        };
        while kept(self) > self.budget && self.give_up(kv) {}
    }

    /// Makes room for so many bytes beside the pages; false where texts and claimed documents take too much.
    pub(crate) fn make_room(&mut self, bytes: u64, kv: &mut Kv) -> bool {
        while self.taken().saturating_add(bytes) > self.room {
            let encoded = self.entries.iter().any(|entry| matches!(entry.body, Body::Encoded(_)));
            if !encoded || !self.give_up(kv) {
                return false;
            }
        }
        true
    }

    /// Reserves a branch's pages up to `positions`, and gives unclaimed documents up for them.
    ///
    /// # Errors
    /// Fails for a branch that is not open.
    pub(crate) fn reserve(&mut self, id: BranchId, positions: usize, kv: &mut Kv) -> Result<bool> {
        while !kv.reserve(id, positions)? {
            let paged = self.entries.iter().any(|entry| matches!(entry.body, Body::Prefix(_)));
            if !paged || !self.give_up(kv) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Frees the unclaimed document that was used least recently; false where there is none.
    fn give_up(&mut self, kv: &mut Kv) -> bool {
        let unclaimed = self.entries.iter().enumerate().filter(|(_, entry)| !entry.is_claimed());
        let Some((at, _)) = unclaimed.min_by_key(|(_, entry)| entry.used) else { return false };
        if let Body::Prefix(id) = self.entries.swap_remove(at).body {
            kv.close(id);
        }
        true
    }
}
