//! From a request to a session: text to tokens, the limits checked, a source encoded, branches seated.

use std::collections::VecDeque;
use std::time::Instant;

use trefoil_decode::{Plain, Session, Strategy};
use trefoil_kernels::PAGE;
use trefoil_models::Token;

use crate::error::{Error, ErrorKind, Result};
use crate::library::Document;
use crate::loaded::{Lm, Loaded};
use crate::options::{Decoding, GenerateOptions};
use crate::outbox::{Event, Outbox};
use crate::prompt::Prompt;
use crate::seats::{Ground, Seats};
use crate::writing::{Beginning, Writing};

/// What is to be written.
pub(crate) enum Subject {
    /// What follows a prompt.
    Prompt(Prompt),
    /// The answers to prompts about a document.
    Asked { document: Document, prompts: Vec<String> },
}

impl Subject {
    /// Number of texts to be written.
    pub(crate) fn prompts(&self) -> usize {
        match self {
            Self::Prompt(_) => 1,
            Self::Asked { prompts, .. } => prompts.len(),
        }
    }
}

/// Texts to be written.
pub(crate) struct Request {
    pub(crate) subject: Subject,
    pub(crate) options: GenerateOptions,
    pub(crate) outbox: Outbox,
    /// The prompts' tokens, once they are known.
    pub(crate) tokens: Option<VecDeque<Vec<Token>>>,
}

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
    match begin(&mut request, loaded) {
        Ok(Some(beginning)) => {
            let Request { outbox, options, .. } = *request;
            Admission::Writing(Box::new(Writing::new(beginning, outbox, &options)))
        }
        Ok(None) if !alone => Admission::Later(request),
        Ok(None) => {
            let (free, all) = (loaded.kv.available() * PAGE, loaded.kv.capacity() * PAGE);
            let message = format!(
                "the text needs more cache than the memory limit leaves: {free} of {all} tokens are free, the others \
                 are documents'"
            );
            request.outbox.send(Event::Failed(Error::new(ErrorKind::OutOfMemory, message)));
            Admission::Refused
        }
        Err(error) => {
            request.outbox.send(Event::Failed(error));
            Admission::Refused
        }
    }
}

/// Begins a session, or gives `None` where the cache has no room for its first branch now.
fn begin(request: &mut Request, loaded: &mut Loaded) -> Result<Option<Beginning>> {
    let before = Instant::now();
    let Request { subject, options, tokens, .. } = request;
    let prompts = match tokens.take() {
        Some(prompts) => prompts,
        None => tokenize(subject, loaded)?,
    };
    let context = loaded.info.context_length;
    let start = match &loaded.lm {
        Lm::Causal(_) => None,
        Lm::Seq2Seq { start, .. } => Some(*start),
    };
    let limit = options.max_tokens.unwrap_or(usize::MAX);
    let (ground, branches, read) = match (&*subject, start) {
        (Subject::Asked { document, .. }, _) => {
            let read = start.map_or(0, |_| document.tokens());
            (Ground::of(document.clone(), loaded, start)?, prompts.clone(), read)
        }
        (Subject::Prompt(_), Some(start)) => {
            let source = prompts.front().map_or(0, Vec::len);
            (Ground::bare([start].into()), VecDeque::from([Vec::new()]), source)
        }
        (Subject::Prompt(_), None) => (Ground::bare([].into()), prompts.clone(), 0),
    };
    for (at, prompt) in branches.iter().enumerate() {
        let length = ground.tokens.len() + prompt.len();
        if length.max(read) > context {
            let whose = if let Subject::Asked { .. } = subject { format!("prompts[{at}]") } else { "the prompt".into() };
            let (length, behind) = (length.max(read), ground.tokens.len());
            let message = format!("{whose} has {length} tokens, {behind} before it included; the context holds {context}");
            return Err(Error::new(ErrorKind::ContextOverflow, message));
        }
        if length == 0 {
            return Err(Error::option("prompt is empty and this model has no token to begin with; allowed: some text"));
        }
    }
    let mut seats = Seats::new(ground, branches, limit, context, options.sampling);
    if !seats.fit(loaded)? {
        *tokens = Some(prompts);
        return Ok(None);
    }
    let encoder_forwards = match (subject, &loaded.lm) {
        (Subject::Asked { document, .. }, _) => loaded.library.report(document)?,
        (Subject::Prompt(_), Lm::Causal(_)) => 0,
        (Subject::Prompt(_), Lm::Seq2Seq { model, .. }) => {
            seats.read(model.encode(prompts.front().map_or(&[], Vec::as_slice))?);
            1
        }
    };
    let mut session = Session::new(strategy(options), loaded.ends.clone());
    seats.settle(&mut session, loaded)?;
    let (prompts, prefill) = (prompts.len(), before.elapsed());
    Ok(Some(Beginning { session, seats, prompts, prompt_tokens: read, encoder_forwards, prefill }))
}

fn strategy(options: &GenerateOptions) -> Box<dyn Strategy> {
    match options.decoding {
        Decoding::Plain => Box::new(Plain),
    }
}

fn tokenize(subject: &Subject, loaded: &Loaded) -> Result<VecDeque<Vec<Token>>> {
    let tokenizer = &loaded.tokenizer;
    match subject {
        Subject::Prompt(Prompt::Text(text)) => Ok(VecDeque::from([tokenizer.encode(text, true)?])),
        Subject::Prompt(Prompt::Messages(messages)) => {
            let template = loaded.template.as_ref().ok_or_else(|| {
                Error::option("prompt is a list of messages, and this model has no chat template; allowed: a string")
            })?;
            // The template writes the special tokens itself.
            Ok(VecDeque::from([tokenizer.encode(&template.render(messages, true)?, false)?]))
        }
        Subject::Asked { prompts, .. } => prompts.iter().map(|prompt| tokenizer.encode(prompt, false)).collect(),
    }
}
