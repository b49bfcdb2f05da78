//! A session at work: what the engine thread keeps for each generation, from admitted prompt to last event.

use std::time::{Duration, Instant};

use trefoil_decode::{Finish, Kept, Session};
use trefoil_models::Token;

use crate::error::{Error, Result};
use crate::loaded::Loaded;
use crate::outbox::{Chunk, Event, Outbox, Outcome, Stats};
use crate::text::{Pieces, StopText};

/// One generation that has been admitted.
pub(crate) struct Writing {
    session: Session,
    texts: Vec<Text>,
    outbox: Outbox,
    prompt_tokens: usize,
    encoder_forwards: usize,
    decoding: &'static str,
    prefill: Duration,
    decode: Duration,
}

/// The text side of one branch.
pub(crate) struct Text {
    pieces: Pieces,
    stop: StopText,
    written: String,
    /// Tokens of the text; a step can keep more than a stop string lets in.
    tokens: Vec<Token>,
    accepted: usize,
    stopped: bool,
}

impl Text {
    pub(crate) fn new(pieces: Pieces, stop: StopText) -> Self {
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
    pub(crate) fn new(
        session: Session,
        texts: Vec<Text>,
        outbox: Outbox,
        decoding: &'static str,
        prompt_tokens: usize,
        encoder_forwards: usize,
        prefill: Duration,
    ) -> Self {
        Self {
            session,
            texts,
            outbox,
            prompt_tokens,
            encoder_forwards,
            decoding,
            prefill,
            decode: Duration::ZERO,
        }
    }

    /// Whether the reader has to catch up before another step.
    pub(crate) fn is_paused(&self) -> bool {
        self.outbox.is_full() && !self.outbox.is_cancelled()
    }

    /// Moves on by one step and sends what it kept. Gives the writing back while there is more to do.
    pub(crate) fn step(mut self, loaded: &mut Loaded) -> Option<Self> {
        if self.outbox.is_cancelled() {
            self.session.end_all(Finish::Abort, &mut loaded.kv);
        }
        if !self.session.is_done()
            && let Err(error) = self.advance(loaded)
        {
            self.fail(loaded, error);
            return None;
        }
        if !self.session.is_done() {
            return Some(self);
        }
        let outcomes = (0..self.texts.len()).map(|branch| self.outcome(branch)).collect();
        self.outbox.send(Event::Done(outcomes));
        None
    }

    /// Ends the writing with an error.
    pub(crate) fn fail(mut self, loaded: &mut Loaded, error: Error) {
        self.session.end_all(Finish::Abort, &mut loaded.kv);
        self.outbox.send(Event::Failed(error));
    }

    fn advance(&mut self, loaded: &mut Loaded) -> Result<()> {
        let before = Instant::now();
        let kept = self.session.step(loaded.lm.decoder(), &mut loaded.kv)?;
        let spent = if kept.is_empty() { &mut self.prefill } else { &mut self.decode };
        *spent += before.elapsed();
        for mut kept in kept {
            let text = &mut self.texts[kept.branch];
            let fresh = text.push(&mut kept);
            if text.stopped && kept.finish.is_none() {
                self.session.end(kept.branch, Finish::Stop, &mut loaded.kv);
            }
            if !fresh.is_empty() || !kept.picks.is_empty() {
                self.outbox.send(Event::Chunk(Chunk {
                    prompt: kept.branch,
                    text: fresh,
                    tokens: kept.picks,
                    accepted: kept.accepted,
                }));
            }
        }
        Ok(())
    }

    fn outcome(&mut self, branch: usize) -> Outcome {
        let tally = self.session.tally(branch);
        let counters = self.session.strategy().counters(branch);
        let text = &mut self.texts[branch];
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let finish = match self.session.finish(branch) {
            _ if text.stopped => Finish::Stop,
            Some(finish) => finish,
            None => Finish::Abort,
        };
        Outcome {
            text: text.finish(),
            finish,
            stats: Stats {
                prompt_tokens: self.prompt_tokens,
                tokens: text.tokens.len(),
                steps: tally.steps,
                draft_forwards: counters.draft_forwards,
                drafted_tokens: tally.drafted,
                accepted_tokens: text.accepted,
                fallbacks: counters.fallbacks,
                rollbacks: counters.rollbacks,
                encoder_forwards: self.encoder_forwards,
                prefill_ms: milliseconds(self.prefill),
                decode_ms: milliseconds(self.decode),
                decoding: self.decoding,
            },
            tokens: std::mem::take(&mut text.tokens),
        }
    }
}
