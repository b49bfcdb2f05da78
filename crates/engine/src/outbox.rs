//! What a generation sends to its reader: a bounded queue with one writer, the engine thread.
//!
//! The reader asks for one event at a time and is called back, from whichever thread has the event, so that no binding
//! needs a thread of its own to wait on. The writer never waits: when the queue is full the engine leaves the session
//! alone until the reader has caught up. A reader that wants only the result lifts the bound instead, because nobody
//! empties the queue then.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trefoil_decode::{Finish, Pick};

use crate::error::Error;

/// Events that may wait for a reader.
const BOUND: usize = 16;

/// What one step added to one text, or what a draft model has written ahead of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// The prompt that the text answers.
    pub prompt: usize,
    /// Tentative text that this chunk takes back first: all that was sent since the last chunk that is not tentative.
    pub revoked: String,
    /// Text that became final; of a tentative chunk, text that may be taken back.
    pub text: String,
    /// Every token that the step kept; of a tentative chunk, the draft model's.
    pub tokens: Vec<Pick>,
    /// How many of them, from the first, a draft had; the model wrote the others.
    pub accepted: usize,
    /// Whether the first that the model wrote replaces another token of a draft model.
    pub replaced: bool,
    /// Whether the model has yet to judge it.
    pub tentative: bool,
}

/// A finished text.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The text, without its prompt.
    pub text: String,
    /// Its tokens, without an end-of-text token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// What it took.
    pub stats: Stats,
}

impl Outcome {
    /// The outcome of a text that was cancelled before its first step.
    pub(crate) fn unwritten() -> Self {
        Self { text: String::new(), tokens: Vec::new(), finish: Finish::Abort, stats: Stats::default() }
    }
}

/// What a text took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub tokens: usize,
    /// Forward passes of the model after prefill.
    pub steps: usize,
    /// Forward passes of the draft model after its prefill.
    pub draft_forwards: usize,
    /// Tokens that were drafted.
    pub drafted_tokens: usize,
    /// Drafted tokens that joined the text.
    pub accepted_tokens: usize,
    /// Takeovers by the large model.
    pub fallbacks: usize,
    /// Replacements by the large model.
    pub rollbacks: usize,
    /// Tokens that the model wrote behind a candidate.
    pub candidates: usize,
    /// The highest −ln p under the model of a kept token that it would not have written itself, in nats.
    pub forgiven: f64,
    /// Steps in which the n-gram pool had a guess.
    pub pool_hits: usize,
    /// Bytes of the n-gram pool.
    pub pool_bytes: usize,
    /// Runs of encoders, a draft model's included.
    pub encoder_forwards: usize,
    /// Milliseconds of encoding and prefill; a prompt of a few tokens is part of the first step instead.
    pub prefill_ms: f64,
    /// Milliseconds of the steps after it.
    pub decode_ms: f64,
    /// Milliseconds of those steps that no model took: proposing, judging, and keeping what was judged.
    pub host_ms: f64,
    /// The decoding that ran.
    pub decoding: &'static str,
}

/// One message to the reader. `Done` or `Failed` is the last.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A step's tokens.
    Chunk(Chunk),
    /// All texts, in prompt order.
    Done(Vec<Outcome>),
    /// Nothing more will come.
    Failed(Error),
}

type Deliver = Box<dyn FnOnce(Option<Event>) + Send>;
type Wake = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct State {
    queue: VecDeque<Event>,
    readers: VecDeque<Deliver>,
    unbound: bool,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    cancelled: AtomicBool,
    wake: Wake,
    prompts: usize,
}

/// The writer's end. Dropping it unfinished fails the generation, so that a reader never waits for a dead engine.
pub(crate) struct Outbox(Arc<Shared>);

/// The reader's end: a text being written. Dropping it cancels.
pub struct Generation(Arc<Shared>);

/// A queue for the answers to `prompts` prompts, whose reader calls `wake` when the writer may have something to do
/// again.
pub(crate) fn channel(wake: Wake, prompts: usize) -> (Outbox, Generation) {
    let shared =
        Arc::new(Shared { state: Mutex::default(), cancelled: AtomicBool::new(false), wake, prompts });
    (Outbox(Arc::clone(&shared)), Generation(shared))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change to the state is one complete push or pop, so a poisoned lock still guards a sound queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox {
    /// Hands an event to a waiting reader, or queues it.
    pub(crate) fn send(&self, event: Event) {
        let mut state = self.0.state();
        if state.closed {
            return;
        }
        state.closed = !matches!(event, Event::Chunk(_));
        let reader = state.readers.pop_front();
        let late: Vec<Deliver> = if state.closed { state.readers.drain(..).collect() } else { Vec::new() };
        match reader {
            Some(deliver) => {
                drop(state);
                deliver(Some(event));
            }
            None => state.queue.push_back(event),
        }
        for deliver in late {
            deliver(None);
        }
    }

    /// Whether the reader is too far behind for another step.
    pub(crate) fn is_full(&self) -> bool {
        let state = self.0.state();
        !state.unbound && state.queue.len() >= BOUND
    }

    /// Ends a text that was cancelled before its first step.
    pub(crate) fn close_if_cancelled(&self) -> bool {
        if self.is_cancelled() {
            self.send(Event::Done(vec![Outcome::unwritten(); self.0.prompts]));
        }
        self.is_cancelled()
    }

    /// Whether the reader has gone or cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.send(Event::Failed(Error::internal("the engine stopped before the text was finished")));
    }
}

impl Generation {
    /// Calls `deliver` once with the next event, now or when there is one; with `None` after the last.
    pub fn next(&self, deliver: impl FnOnce(Option<Event>) + Send + 'static) {
        let mut state = self.0.state();
        let event = state.queue.pop_front();
        if event.is_none() && !state.closed {
            state.readers.push_back(Box::new(deliver));
            return;
        }
        let freed = state.queue.len() + 1 == BOUND;
        drop(state);
        if event.is_some() && freed {
            (self.0.wake)();
        }
        deliver(event);
    }

    /// Waits for the next event.
    pub fn wait(&self) -> Option<Event> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.next(move |event| {
            // The receiver outlives this call; it waits below.
            let _ = sender.send(event);
        });
        receiver.recv().ok().flatten()
    }

    /// Stops the writing within a step; what was written so far comes with `Done`.
    pub fn cancel(&self) {
        if !self.0.cancelled.swap(true, Ordering::AcqRel) {
            (self.0.wake)();
        }
    }

    /// Lets the writing run to its end however far the reader is behind.
    pub fn unbound(&self) {
        self.0.state().unbound = true;
        (self.0.wake)();
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(prompt: usize) -> Event {
        Event::Chunk(Chunk { prompt, ..Chunk::default() })
    }

    #[test]
    fn events_arrive_in_order_and_end_with_none() {
        let (outbox, generation) = channel(Box::new(|| ()), 1);
        outbox.send(chunk(1));
        outbox.send(chunk(2));
        outbox.send(Event::Done(Vec::new()));
        outbox.send(chunk(3));
        assert_eq!(generation.wait(), Some(chunk(1)));
        assert_eq!(generation.wait(), Some(chunk(2)));
        assert_eq!(generation.wait(), Some(Event::Done(Vec::new())));
        assert_eq!(generation.wait(), None);
    }

    #[test]
    fn a_full_queue_says_so_until_it_is_read_or_unbound() {
        let (outbox, generation) = channel(Box::new(|| ()), 1);
        (0..BOUND).for_each(|at| outbox.send(chunk(at)));
        assert!(outbox.is_full());
        generation.wait();
        assert!(!outbox.is_full());
        outbox.send(chunk(0));
        assert!(outbox.is_full());
        generation.unbound();
        assert!(!outbox.is_full());
    }

    #[test]
    fn a_dead_writer_fails_every_waiting_reader() {
        let (outbox, generation) = channel(Box::new(|| ()), 1);
        let seen = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..2 {
            let seen = Arc::clone(&seen);
            generation.next(move |event| seen.lock().unwrap().push(event));
        }
        drop(outbox);
        let seen = seen.lock().unwrap();
        assert!(matches!(seen[0], Some(Event::Failed(_))));
        assert_eq!(seen[1], None);
    }

    #[test]
    fn a_dropped_reader_cancels() {
        let (outbox, generation) = channel(Box::new(|| ()), 1);
        assert!(!outbox.is_cancelled());
        drop(generation);
        assert!(outbox.is_cancelled());
    }
}
