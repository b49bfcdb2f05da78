//! From a request to a session: text to tokens, the limits checked, a source encoded, branches seated.

use std::collections::VecDeque;
use std::time::Instant;

use trefoil_decode::Session;
use trefoil_kernels::PAGE;
use trefoil_models::Token;

use crate::decoding::{Decoding, SCORED_ROWS};
use crate::error::{Error, ErrorKind, Result};
use crate::library::{Document, Loan};
use crate::lm::Lm;
use crate::loaded::Loaded;
use crate::options::GenerateOptions;
use crate::outbox::{Event, Outbox};
use crate::prompt::Prompt;
use crate::seats::{Ground, STEP_ROWS, Seats};
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
    /// The subject's tokens, once they are known.
    pub(crate) tokens: Option<Tokens>,
}

/// A subject in tokens.
pub(crate) struct Tokens {
    /// What an encoder is still to read.
    source: Vec<Token>,
    /// What each text begins with, behind the ground that all stand on.
    prompts: VecDeque<Vec<Token>>,
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
    match begin(&mut request, loaded, alone) {
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

/// Begins a session, or gives `None` where there is no room for its first branch now.
fn begin(request: &mut Request, loaded: &mut Loaded, alone: bool) -> Result<Option<Beginning>> {
    let before = Instant::now();
    let Request { subject, options, tokens, .. } = request;
    options.decoding.check(loaded)?;
    let Tokens { source, prompts } = match tokens.take() {
        Some(tokens) => tokens,
        None => tokenize(subject, loaded)?,
    };
    let start = loaded.lm.start();
    let mut ground = match subject {
        Subject::Prompt(_) => Ground::bare(start),
        Subject::Asked { document, .. } => Ground::of(document, start, &loaded.library)?,
    };
    let context = loaded.info.context_length;
    let longest = longest(&ground, &prompts, context)?;
    let longest = longest.saturating_add(options.max_tokens.unwrap_or(usize::MAX)).min(context);
    if !prompts.is_empty() && !ground.fits(longest, loaded)? {
        *tokens = Some(Tokens { source, prompts });
        return Ok(None);
    }
    let Some((loan, rows)) = borrow(subject, source.len(), options, loaded, alone)? else {
        *tokens = Some(Tokens { source, prompts });
        return Ok(None);
    };
    ground.loan = Some(loan);
    let mut encoder_forwards = match &*subject {
        Subject::Asked { document, .. } => loaded.library.report(document)?,
        Subject::Prompt(_) => {
            ground.source = loaded.lm.encode(&source)?.map(|encoded| (encoded, source.into()));
            usize::from(ground.source.is_some())
        }
    };
    let (strategy, runs) = options.decoding.strategy(&ground, loaded)?;
    encoder_forwards += runs;
    let (count, source_tokens) = (prompts.len(), ground.about().0.len());
    let mut session = Session::new(strategy, loaded.ends.clone());
    let mut seats = Seats::new(ground, prompts, longest, context, rows, options);
    seats.settle(&mut session, loaded, false)?;
    Ok(Some(Beginning {
        session,
        seats,
        prompts: count,
        source_tokens,
        encoder_forwards,
        prefill: before.elapsed(),
    }))
}

/// Borrows what a session takes beside its pages: encodings of its own, and scores of more rows than every model has memory
/// for. Gives the rows that its steps may have as well, or `None` where there is too little now.
///
/// * `source`: tokens that an encoder is still to read.
fn borrow(
    subject: &Subject,
    source: usize,
    options: &GenerateOptions,
    loaded: &mut Loaded,
    alone: bool,
) -> Result<Option<(Loan, usize)>> {
    let read = if let Subject::Asked { document, .. } = subject { document.tokens() } else { source };
    let little =
        loaded.draft.as_ref().filter(|_| matches!(options.decoding, Decoding::Auto | Decoding::Bild(_)));
    let encodings = loaded.encoding_bytes(source) + little.map_or(0, |draft| draft.encoding_bytes(read));
    let row = (loaded.info.vocabulary * size_of::<f32>()) as u64;
    let beyond = |rows: usize| rows.saturating_sub(SCORED_ROWS) as u64 * row;
    let least = options.decoding.rows();
    let most = least.saturating_mul(subject.prompts()).min(STEP_ROWS).max(least);
    let needed = encodings + beyond(least);
    match loaded.library.lend(needed, encodings + beyond(most), &mut loaded.kv) {
        Some(loan) => {
            let rows = SCORED_ROWS.max(least) + ((loan.bytes - needed) / row) as usize;
            Ok(Some((loan, rows)))
        }
        None if alone => Err(loaded.library.short(&format!("a text with steps of {least} rows"), needed)),
        None => Ok(None),
    }
}

/// The length of the longest text before anything is written.
///
/// # Errors
/// Fails (`ContextOverflow`) for one beyond the context, and (`InvalidOption`) for one without a token.
fn longest(ground: &Ground, prompts: &VecDeque<Vec<Token>>, context: usize) -> Result<usize> {
    let before = ground.tokens.len();
    let mut longest = 0;
    for (at, prompt) in prompts.iter().enumerate() {
        let length = before + prompt.len();
        if length > context {
            let message =
                format!("prompts[{at}] makes a text of {length} tokens; the context holds {context}");
            return Err(Error::new(ErrorKind::ContextOverflow, message));
        }
        longest = longest.max(length);
    }
    if longest == 0 && !prompts.is_empty() {
        let message = "prompt is empty and this model has no token to begin with; allowed: some text";
        return Err(Error::option(message));
    }
    Ok(longest)
}

fn tokenize(subject: &Subject, loaded: &Loaded) -> Result<Tokens> {
    let (tokenizer, context) = (&loaded.tokenizer, loaded.info.context_length);
    let read = match subject {
        Subject::Asked { prompts, .. } => {
            let prompts = prompts.iter().map(|prompt| tokenizer.encode_within(prompt, false, context));
            return Ok(Tokens { source: Vec::new(), prompts: prompts.collect::<Result<_>>()? });
        }
        Subject::Prompt(Prompt::Text(text)) => tokenizer.encode_within(text, true, context)?,
        Subject::Prompt(Prompt::Messages(messages)) => {
            let template = loaded.template.as_ref().ok_or_else(|| {
                Error::option(
                    "prompt is a list of messages, and this model has no chat template; allowed: a string",
                )
            })?;
            // The template writes the special tokens itself.
            tokenizer.encode_within(&template.render(messages, true)?, false, context)?
        }
    };
    Ok(match &loaded.lm {
        Lm::Causal(_) => Tokens { source: Vec::new(), prompts: VecDeque::from([read]) },
        Lm::Seq2Seq { .. } if read.is_empty() => {
            let message = "prompt is empty and this model has no token for that; allowed: some text";
            return Err(Error::option(message));
        }
        Lm::Seq2Seq { .. } => Tokens { source: read, prompts: VecDeque::from([Vec::new()]) },
    })
}
