//! A session at work: what the engine thread keeps for each call, from admitted prompts to the last event.

use std::time::{Duration, Instant};

use trefoil_decode::{Finish, Kept, Pick, Session};
use trefoil_models::Token;

use crate::answer::Text;
use crate::error::{Error, Result};
use crate::loaded::Loaded;
use crate::options::GenerateOptions;
use crate::outbox::{Chunk, Event, Outbox, Outcome, Stats};
use crate::seats::Seats;
use crate::text::{Pieces, StopText};

/// Texts that have been admitted together.
pub(crate) struct Writing {
    session: Session,
    seats: Seats,
    answers: Vec<Answer>,
    outbox: Outbox,
    stop: StopText,
    /// Whether what a draft model writes is sent before it is judged.
    eager: bool,
    decoding: &'static str,
    source_tokens: usize,
    encoder_forwards: usize,
    prefill: Duration,
    decode: Duration,
}

/// What a writing is made of.
pub(crate) struct Beginning {
    pub(crate) session: Session,
    pub(crate) seats: Seats,
    pub(crate) prompts: usize,
    /// Tokens of what the texts are about, where they are not part of the texts.
    pub(crate) source_tokens: usize,
    pub(crate) encoder_forwards: usize,
    pub(crate) prefill: Duration,
}

/// Where the answer to one prompt stands.
enum Answer {
    Waiting,
    Writing(Box<Text>),
    Written(Outcome),
}

impl Answer {
    /// The text of an answer that is not finished, begun where there is none.
    fn text(&mut self, begin: impl FnOnce() -> Text) -> Option<&mut Text> {
        if matches!(self, Self::Waiting) {
            *self = Self::Writing(Box::new(begin()));
        }
        match self {
            Self::Writing(text) => Some(text),
            Self::Waiting | Self::Written(_) => None,
        }
    }
}

impl Writing {
    pub(crate) fn new(beginning: Beginning, outbox: Outbox, options: &GenerateOptions) -> Self {
        let Beginning { session, seats, prompts, source_tokens, encoder_forwards, prefill } = beginning;
        Self {
            session,
            seats,
            answers: (0..prompts).map(|_| Answer::Waiting).collect(),
            outbox,
            stop: StopText::new(options.stop.clone()),
            eager: options.eager,
            decoding: options.decoding.name(),
            source_tokens,
            encoder_forwards,
            prefill,
            decode: Duration::ZERO,
        }
    }

    /// Whether the reader has to catch up before another step.
    pub(crate) fn is_paused(&self) -> bool {
        self.outbox.is_full() && !self.outbox.is_cancelled()
    }

    /// Whether it has a place in the cache.
    pub(crate) fn is_seated(&self) -> bool {
        self.seats.is_seated()
    }

    /// Gives its place in the cache up for now.
    pub(crate) fn leave(&mut self, loaded: &mut Loaded) {
        self.seats.leave(&mut self.session, &mut loaded.kv);
    }

    /// Moves on by one step and sends what it kept. Gives the writing back while there is more to do. `crowded` says
    /// that others wait for room.
    pub(crate) fn step(mut self, loaded: &mut Loaded, crowded: bool) -> Option<Self> {
        let cancelled = self.outbox.is_cancelled();
        if cancelled {
            self.session.end_all(Finish::Abort, &mut loaded.kv);
        } else if let Err(error) = self.advance(loaded, crowded) {
            self.fail(loaded, error);
            return None;
        }
        if !cancelled && (!self.session.is_done() || !self.seats.is_empty()) {
            return Some(self);
        }
        let outcomes = (0..self.answers.len()).map(|branch| self.outcome(branch)).collect();
        self.outbox.send(Event::Done(outcomes));
        None
    }

    /// Ends the writing with an error.
    pub(crate) fn fail(mut self, loaded: &mut Loaded, error: Error) {
        self.session.end_all(Finish::Abort, &mut loaded.kv);
        self.outbox.send(Event::Failed(error));
    }

    fn advance(&mut self, loaded: &mut Loaded, crowded: bool) -> Result<()> {
        if !self.seats.is_seated() {
            return self.seats.settle(&mut self.session, loaded, crowded);
        }
        let before = Instant::now();
        let Self { session, answers, outbox, stop, eager, .. } = self;
        let Loaded { decoder, kv, tokenizer, ends, .. } = loaded;
        let mut hear = |branch: usize, token: Token| {
            if *eager && !ends.contains(&token) {
                let text = answers[branch].text(|| Text::new(Pieces::new(tokenizer), stop.clone()));
                if let Some(text) = text.and_then(|text| text.hear(token)) {
                    let tokens = vec![Pick { token, logprob: None }];
                    let ahead = Chunk { prompt: branch, text, tokens, accepted: 1, ..Chunk::default() };
                    outbox.send(Event::Chunk(Chunk { tentative: true, ..ahead }));
                }
            }
        };
        let kept = session.step_aloud(decoder.as_ref(), kv, &mut hear)?;
        let spent = if kept.is_empty() { &mut self.prefill } else { &mut self.decode };
        *spent += before.elapsed();
        for kept in kept {
            self.take(kept, loaded)?;
        }
        self.seats.settle(&mut self.session, loaded, crowded)
    }

    /// Sends what a step added to a text.
    fn take(&mut self, kept: Kept, loaded: &mut Loaded) -> Result<()> {
        let (branch, finish) = (kept.branch, kept.finish);
        let begin = || Text::new(Pieces::new(&loaded.tokenizer), self.stop.clone());
        let text = self.answers[branch].text(begin);
        let text = text.ok_or_else(|| Error::internal("an answer goes on after its end"))?;
        let chunk = text.keep(kept);
        let ended = finish.is_some() || text.stopped();
        if ended && finish.is_none() {
            self.session.end(branch, Finish::Stop, &mut loaded.kv);
        }
        if !(chunk.tokens.is_empty() && chunk.text.is_empty() && chunk.revoked.is_empty()) {
            self.outbox.send(Event::Chunk(chunk));
        }
        if ended {
            self.answers[branch] = Answer::Written(self.outcome(branch));
            self.session.forget(branch);
        }
        Ok(())
    }

    /// The outcome of an answer that has ended, or of what there is of it.
    fn outcome(&mut self, branch: usize) -> Outcome {
        let (text, tokens, accepted, stopped) =
            match std::mem::replace(&mut self.answers[branch], Answer::Waiting) {
                Answer::Written(outcome) => return outcome,
                Answer::Waiting if branch >= self.session.len() => return Outcome::unwritten(),
                Answer::Waiting => (String::new(), Vec::new(), 0, false),
                Answer::Writing(mut text) => {
                    let (whole, stopped) = (text.finish(), text.stopped());
                    (whole, text.tokens, text.accepted, stopped)
                }
            };
        let tally = self.session.tally(branch);
        let counters = self.session.strategy().counters(branch);
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let finish = match self.session.finish(branch) {
            _ if stopped => Finish::Stop,
            Some(finish) => finish,
            None => Finish::Abort,
        };
        Outcome {
            text,
            finish,
            stats: Stats {
                prompt_tokens: self.prompt_tokens(branch),
                tokens: tokens.len(),
                steps: tally.steps,
                draft_forwards: counters.draft_forwards,
                drafted_tokens: tally.drafted,
                accepted_tokens: accepted,
                fallbacks: counters.fallbacks,
                rollbacks: counters.rollbacks,
                candidates: counters.candidates,
                forgiven: counters.forgiven,
                pool_hits: counters.pool_hits,
                pool_bytes: counters.pool_bytes,
                // One run served all: the first answer shows it, so that the sum over answers is the truth.
                encoder_forwards: if branch == 0 { self.encoder_forwards } else { 0 },
                prefill_ms: milliseconds(self.prefill),
                decode_ms: milliseconds(self.decode),
                host_ms: milliseconds(self.session.host()),
                decoding: self.session.strategy().ran().unwrap_or(self.decoding),
            },
            tokens,
        }
    }

    /// Tokens that were read for a text: what it is about, and what it continues but for the decoder's start token.
    fn prompt_tokens(&self, branch: usize) -> usize {
        let own = self.session.text(branch).prompt_len();
        if self.source_tokens > 0 { self.source_tokens + own - 1 } else { own }
    }
}
