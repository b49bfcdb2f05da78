//! From a request to a session: text to tokens, the limits checked, a document encoded, a branch opened.

use std::time::{Duration, Instant};

use trefoil_decode::Session;
use trefoil_models::{Seq2SeqLm, Token};

use crate::engine::Request;
use crate::error::{Error, ErrorKind, Result};
use crate::loaded::{Lm, Loaded};
use crate::outbox::Event;
use crate::prompt::Prompt;
use crate::text::{Pieces, StopText};
use crate::writing::{Text, Writing};

/// What becomes of a request.
pub(crate) enum Admission {
    /// It can be written now.
    Writing(Box<Writing>),
    /// It can't be; its reader knows why.
    Refused,
    /// There is no room in the cache until another session ends.
    Later(Box<Request>),
}

/// Admits a request. `alone` says that no other session holds cache, so that waiting would not help.
pub(crate) fn admit(mut request: Box<Request>, loaded: &mut Loaded, alone: bool) -> Admission {
    match open(&mut request, loaded) {
        Ok(Some(opened)) => {
            let Request { outbox, options, .. } = *request;
            let Opened { session, text, prompt_tokens, encoder_forwards, prefill } = opened;
            let name = options.decoding.name();
            let texts = vec![text];
            let writing =
                Writing::new(session, texts, outbox, name, prompt_tokens, encoder_forwards, prefill);
            Admission::Writing(Box::new(writing))
        }
        Ok(None) if !alone => Admission::Later(request),
        Ok(None) => {
            let tokens = loaded.kv.capacity() * trefoil_kernels::PAGE;
            let message = format!("the text needs more cache than the memory limit leaves: {tokens} tokens");
            request.outbox.send(Event::Failed(Error::new(ErrorKind::OutOfMemory, message)));
            Admission::Refused
        }
        Err(error) => {
            request.outbox.send(Event::Failed(error));
            Admission::Refused
        }
    }
}

struct Opened {
    session: Session,
    text: Text,
    prompt_tokens: usize,
    encoder_forwards: usize,
    prefill: Duration,
}

/// Opens a session, or gives `None` where the cache has no room for it now.
fn open(request: &mut Request, loaded: &mut Loaded) -> Result<Option<Opened>> {
    let options = &request.options;
    options.decoding.check(loaded)?;
    let context = loaded.info.context_length;
    let prompt = match request.tokens.take() {
        Some(tokens) => tokens,
        None => tokens(&request.prompt, loaded)?,
    };
    let begin = match &loaded.lm {
        Lm::Causal(_) => prompt.clone(),
        Lm::Seq2Seq { start, .. } => vec![*start],
    };
    if begin.is_empty() {
        return Err(Error::option(
            "prompt is empty and this model has no token to begin with; allowed: some text",
        ));
    }
    let limit = options.max_tokens.unwrap_or(usize::MAX).min(context - begin.len());

    let before = Instant::now();
    let id = loaded.kv.open(None);
    // The pending token is never cached, so the last position is the limit's last but one.
    let fits = loaded.kv.reserve(id, begin.len() + limit)?;
    loaded.kv.close(id);
    if !fits {
        request.tokens = Some(prompt);
        return Ok(None);
    }
    let (source, mut encoder_forwards) = match &loaded.lm {
        Lm::Causal(_) => (None, 0),
        Lm::Seq2Seq { model, .. } => (Some(model.encode(&prompt)?), 1),
    };
    let (strategy, runs) = options.decoding.strategy(&prompt, source.as_ref(), loaded)?;
    encoder_forwards += runs;
    let id = loaded.kv.open(source);
    loaded.kv.reserve(id, begin.len() + limit)?;
    let mut session = Session::new(strategy, loaded.ends.clone());
    session.add(id, begin, limit, options.sampling, 0);
    let text = Text::new(Pieces::new(&loaded.tokenizer), StopText::new(options.stop.clone()));
    let prompt_tokens = prompt.len();
    Ok(Some(Opened { session, text, prompt_tokens, encoder_forwards, prefill: before.elapsed() }))
}

fn tokens(prompt: &Prompt, loaded: &Loaded) -> Result<Vec<Token>> {
    let context = loaded.info.context_length;
    match prompt {
        Prompt::Text(text) => loaded.tokenizer.encode_within(text, true, context),
        Prompt::Messages(messages) => {
            let template = loaded.template.as_ref().ok_or_else(|| {
                Error::option(
                    "prompt is a list of messages, and this model has no chat template; allowed: a string",
                )
            })?;
            // The template writes the special tokens itself.
            loaded.tokenizer.encode_within(&template.render(messages, true)?, false, context)
        }
    }
}
