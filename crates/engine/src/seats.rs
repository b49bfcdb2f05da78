//! Seats: which branches of a session have a place in the cache.
//!
//! Ten thousand prompts must not need ten thousand branches of cache, and how long an answer becomes is not known
//! before. So branches are seated in prompt order, as many as fit, with pages for their next tokens only. The eldest
//! alone has pages to its end: it is sure to finish, and what it gives back then makes its successor sure. Where pages
//! run out, the youngest is parked and later goes on where it was, with the same bits. Reserving every answer's longest
//! possible length was rejected (without `maxTokens` four prompts would fill the cache), as was a smaller limit for
//! answers than for other texts.

use std::collections::VecDeque;
use std::sync::Arc;

use trefoil_decode::{Sampling, Session};
use trefoil_kernels::PAGE;
use trefoil_models::{BranchId, CrossKv, Kv, Token};

use crate::decoding::SCORED_ROWS;
use crate::error::{Error, Result};
use crate::library::{Body, Document, Library, Loan};
use crate::loaded::Loaded;
use crate::options::GenerateOptions;

/// Rows that a step of many branches may have, where memory allows; draft rows count, and a single branch may have more.
pub(crate) const STEP_ROWS: usize = 4 * SCORED_ROWS;

/// What all branches of a session stand on.
pub(crate) struct Ground {
    /// The tokens that every text begins with.
    pub(crate) tokens: Arc<[Token]>,
    /// The source that cross-attention reads, and its tokens.
    pub(crate) source: Option<(Arc<CrossKv>, Arc<[Token]>)>,
    /// A branch that holds a beginning of `tokens`.
    prefix: Option<BranchId>,
    #[expect(dead_code, reason = "a claim: the library keeps the document while it is there")]
    document: Option<Document>,
    /// What is borrowed for the texts beside their pages.
    pub(crate) loan: Option<Loan>,
}

impl Ground {
    /// No document: texts begin with the start token, where the model has one, and their prompt.
    pub(crate) fn bare(start: Option<Token>) -> Self {
        Self { tokens: start.into_iter().collect(), source: None, prefix: None, document: None, loan: None }
    }

    /// A document that has been read; behind an encoder, texts begin with the start token.
    ///
    /// # Errors
    /// Fails (`InvalidOption`) for a document of another model.
    pub(crate) fn of(document: &Document, start: Option<Token>, library: &Library) -> Result<Self> {
        let (tokens, body) = library.get(document)?;
        let bare = Self { document: Some(document.clone()), ..Self::bare(start) };
        Ok(match body {
            Body::Encoded(source) => Self { source: Some((source, tokens)), ..bare },
            Body::Prefix(id) => Self { tokens, prefix: Some(id), ..bare },
        })
    }

    /// Whether the cache has room for a text of `positions` now.
    ///
    /// # Errors
    /// Fails where the cache does.
    pub(crate) fn fits(&self, positions: usize, loaded: &mut Loaded) -> Result<bool> {
        let id = self.open(&mut loaded.kv)?;
        let fits = loaded.library.reserve(id, positions, &mut loaded.kv);
        loaded.kv.close(id);
        fits
    }

    /// What the texts are about and is not part of them, and its encoding.
    pub(crate) fn about(&self) -> (&[Token], Option<&Arc<CrossKv>>) {
        self.source.as_ref().map_or((&[], None), |(source, tokens)| (&**tokens, Some(source)))
    }

    /// Whether the texts begin with a document that is cached once.
    pub(crate) fn shares_prefix(&self) -> bool {
        self.prefix.is_some()
    }

    fn open(&self, kv: &mut Kv) -> Result<BranchId> {
        match self.prefix {
            Some(prefix) => Ok(kv.fork(prefix)?),
            None => Ok(kv.open(self.source.as_ref().map(|(source, _)| Arc::clone(source)))),
        }
    }
}

/// The branches of a session by their place in the cache.
pub(crate) struct Seats {
    ground: Ground,
    sampling: Sampling,
    /// Tokens that a text may have, its prompt and ground included.
    context: usize,
    /// Tokens to write, at most.
    limit: usize,
    /// Positions of the longest possible text.
    longest: usize,
    /// Positions that a branch has pages for beyond its text: more than any step keeps.
    ahead: usize,
    /// Branches in the cache, at most.
    most: usize,
    /// Prompts that no branch was made for yet.
    waiting: VecDeque<Vec<Token>>,
    /// Branches that were sent back, the eldest first.
    parked: VecDeque<usize>,
    /// Branches in the cache, the eldest first.
    seated: VecDeque<usize>,
}

impl Seats {
    /// Seats for `prompts`, each of which, behind the ground's tokens, fits into `context`.
    ///
    /// * `longest`: positions of the longest possible text.
    /// * `rows`: of a step, at most, unless one text has more.
    pub(crate) fn new(
        ground: Ground,
        prompts: VecDeque<Vec<Token>>,
        longest: usize,
        context: usize,
        rows: usize,
        options: &GenerateOptions,
    ) -> Self {
        Self {
            ground,
            sampling: options.sampling,
            context,
            limit: options.max_tokens.unwrap_or(usize::MAX),
            longest,
            ahead: PAGE + options.decoding.reach(),
            most: (rows / options.decoding.rows()).clamp(1, SCORED_ROWS),
            waiting: prompts,
            parked: VecDeque::new(),
            seated: VecDeque::new(),
        }
    }

    /// Whether every prompt has had its branch.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.parked.is_empty()
    }

    /// Whether some branch is in the cache.
    pub(crate) fn is_seated(&self) -> bool {
        !self.seated.is_empty()
    }

    /// Sends all branches back.
    pub(crate) fn leave(&mut self, session: &mut Session, kv: &mut Kv) {
        while self.is_seated() {
            self.park(session, kv);
        }
    }

    /// Takes the seats of branches that have ended, makes sure that the others can go on, and, where nobody else waits
    /// for room (`crowded`), seats who fits.
    ///
    /// # Errors
    /// Fails where the cache does.
    pub(crate) fn settle(&mut self, session: &mut Session, loaded: &mut Loaded, crowded: bool) -> Result<()> {
        self.seated.retain(|&branch| session.seat(branch).is_some());
        let mut sure = 0;
        while let Some(&branch) = self.seated.get(sure) {
            let positions = self.positions(session.text(branch).len(), sure == 0);
            let Some(id) = session.seat(branch) else { break };
            if loaded.library.reserve(id, positions, &mut loaded.kv)? && session.reserve(branch, positions)? {
                sure += 1;
            } else if self.seated.len() > 1 {
                self.park(session, &mut loaded.kv);
            } else {
                return Err(Error::internal("the eldest text has no pages to go on"));
            }
        }
        while !crowded && self.seated.len() < self.most && self.seat(session, loaded)? {}
        Ok(())
    }

    /// Seats the next branch; false where there is none or no room for it.
    fn seat(&mut self, session: &mut Session, loaded: &mut Loaded) -> Result<bool> {
        let ground = self.ground.tokens.len();
        let length = match (self.parked.front(), self.waiting.front()) {
            (Some(&branch), _) => session.text(branch).len(),
            (None, Some(prompt)) => ground + prompt.len(),
            (None, None) => return Ok(false),
        };
        let id = self.ground.open(&mut loaded.kv)?;
        let positions = self.positions(length, self.seated.is_empty());
        let branch = self.parked.front().copied().unwrap_or(session.len());
        if !(loaded.library.reserve(id, positions, &mut loaded.kv)? && session.reserve(branch, positions)?) {
            loaded.kv.close(id);
            return Ok(false);
        }
        let branch = if let Some(branch) = self.parked.pop_front() {
            session.unpark(branch, id);
            branch
        } else {
            let prompt = self.waiting.pop_front().unwrap_or_default();
            let text: Vec<Token> = self.ground.tokens.iter().copied().chain(prompt).collect();
            let limit = self.limit.min(self.context - length);
            // One key for all: the same seed gives a prompt the same text among others, alone, and by `generate`.
            session.add(id, text, limit, self.sampling, 0)
        };
        match session.finish(branch) {
            Some(finish) => session.end(branch, finish, &mut loaded.kv),
            None => self.seated.push_back(branch),
        }
        Ok(true)
    }

    /// Sends the youngest back.
    fn park(&mut self, session: &mut Session, kv: &mut Kv) {
        if let Some(branch) = self.seated.pop_back() {
            session.park(branch, kv);
            self.parked.push_front(branch);
        }
    }

    /// Positions that a text of this length needs pages for.
    fn positions(&self, length: usize, eldest: bool) -> usize {
        if eldest { self.longest } else { self.longest.min(length + self.ahead) }
    }
}
