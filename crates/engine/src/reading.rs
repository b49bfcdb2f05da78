//! A document being read: tokens, then the encoder in one run, or the cache filled some hundred rows at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use trefoil_decode::fill;
use trefoil_models::{BranchId, Draft, Token};

use crate::error::{Error, ErrorKind, Result};
use crate::library::{Body, Document};
use crate::lm::Lm;
use crate::loaded::Loaded;

/// Answers a caller, on the thread of the engine.
pub(crate) type Reply<T> = Box<dyn FnOnce(Result<T>) + Send>;

type Wake = Arc<dyn Fn() + Send + Sync>;

/// A document being read.
pub(crate) struct Reading {
    text: String,
    tokens: Option<Vec<Token>>,
    /// The branch of a decoder-only model's document, once it has its pages.
    branch: Option<BranchId>,
    cancel: Arc<AtomicBool>,
    wake: Wake,
    reply: Reply<Document>,
}

impl Reading {
    pub(crate) fn new(
        text: String,
        cancel: Arc<AtomicBool>,
        wake: impl Fn() + Send + Sync + 'static,
        reply: Reply<Document>,
    ) -> Self {
        Self { text, tokens: None, branch: None, cancel, wake: Arc::new(wake), reply }
    }

    /// Whether it has its place in the cache.
    pub(crate) fn is_seated(&self) -> bool {
        self.branch.is_some()
    }

    /// Whether its caller has given it up.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// Ends a reading that its caller has given up.
    pub(crate) fn abort(self, loaded: &mut Loaded) {
        self.close(loaded, Error::new(ErrorKind::Aborted, "the reading was cancelled"));
    }

    /// Reads on by one forward pass, and gives itself back while there is more to read. `alone` says that nothing else
    /// holds cache, so that waiting would not help.
    pub(crate) fn step(mut self: Box<Self>, loaded: &mut Loaded, alone: bool) -> Option<Box<Self>> {
        match self.advance(loaded, alone) {
            Ok(None) => return Some(self),
            Ok(Some(document)) => (self.reply)(Ok(document)),
            Err(error) => self.close(loaded, error),
        }
        None
    }

    /// Ends the reading with an error before it began.
    pub(crate) fn fail(self, error: Error) {
        (self.reply)(Err(error));
    }

    /// Ends the reading with an error.
    pub(crate) fn close(self, loaded: &mut Loaded, error: Error) {
        if let Some(id) = self.branch {
            loaded.kv.close(id);
        }
        self.fail(error);
    }

    fn advance(&mut self, loaded: &mut Loaded, alone: bool) -> Result<Option<Document>> {
        let tokens = match self.tokens.take() {
            Some(tokens) => tokens,
            None => loaded.tokenizer.encode_within(&self.text, true, loaded.info.context_length)?,
        };
        if tokens.is_empty() {
            return Err(Error::option(
                "document is empty and this model has no token for that; allowed: some text",
            ));
        }
        if self.branch.is_none()
            && let Some(document) = loaded.library.find(&tokens, &self.wake())
        {
            return Ok(Some(document));
        }
        let body = match &loaded.lm {
            lm @ Lm::Seq2Seq { .. } => {
                let bytes = loaded.encoding_bytes(tokens.len());
                if !loaded.library.make_room(bytes, &mut loaded.kv) {
                    return Err(loaded.library.full(bytes));
                }
                lm.encode(&tokens)?.map(Body::Encoded)
            }
            Lm::Causal(_) => self.prefill(&tokens, loaded, alone)?.map(Body::Prefix),
        };
        let Some(body) = body else {
            self.tokens = Some(tokens);
            return Ok(None);
        };
        self.branch = None;
        Ok(Some(loaded.library.insert(tokens, body, &loaded.kv, self.wake())))
    }

    /// Caches the next rows of the document but for its last token; gives the branch when all are there.
    fn prefill(&mut self, tokens: &[Token], loaded: &mut Loaded, alone: bool) -> Result<Option<BranchId>> {
        let known = &tokens[..tokens.len() - 1];
        let Some(id) = self.branch else {
            let id = loaded.kv.open(None);
            if loaded.library.reserve(id, known.len(), &mut loaded.kv)? {
                self.branch = Some(id);
                return Ok(None);
            }
            loaded.kv.close(id);
            let room = loaded.kv.available() * trefoil_kernels::PAGE;
            return if alone {
                Err(Error::new(
                    ErrorKind::OutOfMemory,
                    format!("the document has {} tokens; the cache has room for {room} more", tokens.len()),
                ))
            } else {
                Ok(None)
            };
        };
        let filled = fill(loaded.decoder.as_ref(), &mut loaded.kv, &mut Draft::new(), &[(id, known)])?;
        Ok(filled.is_empty().then_some(id))
    }

    fn wake(&self) -> impl Fn() + Clone + Send + Sync + 'static {
        let wake = Arc::clone(&self.wake);
        move || wake()
    }
}
