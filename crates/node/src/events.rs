//! What a generation sends, as JavaScript objects.

use napi::bindgen_prelude::Object;
use napi::{Env, Result};
use napi_derive::napi;
use trefoil_engine::{Error, Event, Finish, Generation, Outcome, Stats};

use crate::promise::promise;

/// A failure, as data: its kind, its message, what caused it, nearest first, and why a device can't be used.
#[napi(object)]
pub struct NativeFailure {
    pub kind: String,
    pub message: String,
    pub causes: Vec<String>,
    pub reason: Option<String>,
}

/// What a text took.
#[napi(object)]
pub struct NativeStats {
    pub prompt_tokens: u32,
    pub tokens: u32,
    pub steps: u32,
    pub tokens_per_step: f64,
    pub draft_forwards: u32,
    pub drafted_tokens: u32,
    pub accepted_tokens: u32,
    pub fallbacks: u32,
    pub rollbacks: u32,
    pub candidates: u32,
    pub forgiven: f64,
    pub pool_hits: u32,
    pub pool_bytes: f64,
    pub encoder_forwards: u32,
    pub prefill_ms: f64,
    pub decode_ms: f64,
    pub host_ms: f64,
    pub tokens_per_second: f64,
    pub decoding: String,
}

/// A finished text.
#[napi(object)]
pub struct NativeResult {
    pub text: String,
    pub tokens: Vec<u32>,
    pub finish_reason: String,
    pub stats: NativeStats,
}

/// One message of a generation: `chunk`, `done` or `failed`.
#[napi(object)]
pub struct NativeEvent {
    pub kind: String,
    pub prompt: Option<u32>,
    pub text: Option<String>,
    pub ids: Option<Vec<u32>>,
    pub logprobs: Option<Vec<f64>>,
    pub accepted: Option<u32>,
    pub replaced: Option<bool>,
    pub tentative: Option<bool>,
    pub revoke: Option<u32>,
    pub results: Option<Vec<NativeResult>>,
    pub failure: Option<NativeFailure>,
}

/// A text being written.
#[napi]
pub struct NativeGeneration(pub(crate) Generation);

#[napi]
impl NativeGeneration {
    /// The next event; null after the last.
    #[napi(ts_return_type = "Promise<NativeEvent | null>")]
    pub fn next<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        promise(env, |settle: Box<dyn FnOnce(Option<NativeEvent>) + Send>| {
            self.0.next(move |event| settle(event.map(NativeEvent::from)));
        })
    }

    /// Stops within a step.
    #[napi]
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Writes on however far the reader is behind.
    #[napi]
    pub fn unbound(&self) {
        self.0.unbound();
    }
}

impl From<Error> for NativeFailure {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind().name().into(),
            message: error.message().into(),
            causes: error.causes().to_vec(),
            reason: error.kind().reason().map(Into::into),
        }
    }
}

impl NativeEvent {
    fn empty(kind: &str) -> Self {
        let kind = kind.into();
        Self {
            kind,
            prompt: None,
            text: None,
            ids: None,
            logprobs: None,
            accepted: None,
            replaced: None,
            tentative: None,
            revoke: None,
            results: None,
            failure: None,
        }
    }
}

impl From<Event> for NativeEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Chunk(chunk) => {
                let logprobs = chunk.tokens.iter().map(|pick| pick.logprob.map(f64::from)).collect();
                Self {
                    prompt: Some(chunk.prompt as u32),
                    text: Some(chunk.text),
                    ids: Some(chunk.tokens.iter().map(|pick| pick.token).collect()),
                    logprobs,
                    accepted: Some(chunk.accepted as u32),
                    replaced: Some(chunk.replaced),
                    tentative: Some(chunk.tentative),
                    // JavaScript counts a text in these.
                    revoke: Some(chunk.revoked.encode_utf16().count() as u32),
                    ..Self::empty("chunk")
                }
            }
            Event::Done(outcomes) => {
                let results = outcomes.into_iter().map(NativeResult::from).collect();
                Self { results: Some(results), ..Self::empty("done") }
            }
            Event::Failed(error) => Self { failure: Some(error.into()), ..Self::empty("failed") },
        }
    }
}

impl From<Outcome> for NativeResult {
    fn from(outcome: Outcome) -> Self {
        let finish_reason = match outcome.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Abort => "abort",
        };
        Self {
            text: outcome.text,
            tokens: outcome.tokens,
            finish_reason: finish_reason.into(),
            stats: outcome.stats.into(),
        }
    }
}

impl From<Stats> for NativeStats {
    fn from(stats: Stats) -> Self {
        Self {
            prompt_tokens: stats.prompt_tokens as u32,
            tokens: stats.tokens as u32,
            steps: stats.steps as u32,
            tokens_per_step: stats.tokens as f64 / stats.steps.max(1) as f64,
            draft_forwards: stats.draft_forwards as u32,
            drafted_tokens: stats.drafted_tokens as u32,
            accepted_tokens: stats.accepted_tokens as u32,
            fallbacks: stats.fallbacks as u32,
            rollbacks: stats.rollbacks as u32,
            candidates: stats.candidates as u32,
            forgiven: stats.forgiven,
            pool_hits: stats.pool_hits as u32,
            pool_bytes: stats.pool_bytes as f64,
            encoder_forwards: stats.encoder_forwards as u32,
            prefill_ms: stats.prefill_ms,
            decode_ms: stats.decode_ms,
            host_ms: stats.host_ms,
            tokens_per_second: if stats.decode_ms > 0.0 {
                stats.tokens as f64 * 1e3 / stats.decode_ms
            } else {
                0.0
            },
            decoding: stats.decoding.into(),
        }
    }
}
