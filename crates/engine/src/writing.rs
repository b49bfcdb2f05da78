//! A session at work: what the engine thread keeps for each call, from admitted prompts to the last event.

use std::time::{Duration, Instant};

use trefoil_decode::{Finish, Kept, Session};
use trefoil_models::Token;

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
    stop: Vec<String>,
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

/// The text side of one branch.
struct Text {
    pieces: Pieces,
    stop: StopText,
    written: String,
    /// Tokens of the text; a step can keep more than a stop string lets in.
    tokens: Vec<Token>,
    accepted: usize,
    stopped: bool,
}

impl Text {
    fn new(pieces: Pieces, stop: StopText) -> Self {
        Self { pieces, stop, written: String::new(), tokens: Vec::new(), accepted: 0, stopped: false }
    }

    /// Takes a step's tokens, up to the one that completes a stop string; drops the others from `kept` and gives the
    /// text that became final.
    fn push(&mut self, kept: &mut Kept) -> String {
        let mut fresh = String::new();
        let mut taken = 0;
        for pick in &kept.picks {
            if self.stopped {
                break;
            }
            taken += 1;
            if let Some(piece) = self.pieces.push(pick.token) {
                self.release(&piece, &mut fresh);
            }
        }
        kept.picks.truncate(taken);
        kept.accepted = kept.accepted.min(taken);
        self.tokens.extend(kept.picks.iter().map(|pick| pick.token));
        self.accepted += kept.accepted;
        if kept.finish.is_some() {
            self.flush(&mut fresh);
        }
        self.written.push_str(&fresh);
        fresh
    }

    /// The whole text, with what was still held back for a longer token or a stop string.
    fn finish(&mut self) -> String {
        let mut rest = String::new();
        self.flush(&mut rest);
        std::mem::take(&mut self.written) + &rest
    }

    fn flush(&mut self, fresh: &mut String) {
        let rest = self.pieces.finish();
        self.release(&rest, fresh);
        if !self.stopped {
            fresh.push_str(&self.stop.finish());
        }
    }

    fn release(&mut self, piece: &str, fresh: &mut String) {
        if !self.stopped {
            let (text, stopped) = self.stop.push(piece);
            fresh.push_str(&text);
            self.stopped = stopped;
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
            stop: options.stop.clone(),
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
        let kept = self.session.step(loaded.decoder.as_ref(), &mut loaded.kv)?;
        let spent = if kept.is_empty() { &mut self.prefill } else { &mut self.decode };
        *spent += before.elapsed();
        for kept in kept {
            self.take(kept, loaded)?;
        }
        self.seats.settle(&mut self.session, loaded, crowded)
    }

    /// Sends what a step added to a text.
    fn take(&mut self, mut kept: Kept, loaded: &mut Loaded) -> Result<()> {
        let branch = kept.branch;
        let answer = &mut self.answers[branch];
        if matches!(answer, Answer::Waiting) {
            let text = Text::new(Pieces::new(&loaded.tokenizer), StopText::new(self.stop.clone()));
            *answer = Answer::Writing(Box::new(text));
        }
        let Answer::Writing(text) = answer else {
            return Err(Error::internal("an answer goes on after its end"));
        };
        let fresh = text.push(&mut kept);
        let ended = kept.finish.is_some() || text.stopped;
        if ended && kept.finish.is_none() {
            self.session.end(branch, Finish::Stop, &mut loaded.kv);
        }
        if !fresh.is_empty() || !kept.picks.is_empty() {
            let Kept { picks: tokens, accepted, .. } = kept;
            self.outbox.send(Event::Chunk(Chunk { prompt: branch, text: fresh, tokens, accepted }));
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
                Answer::Writing(mut text) => (text.finish(), text.tokens, text.accepted, text.stopped),
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
