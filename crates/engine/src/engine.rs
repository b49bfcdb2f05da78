//! The engine thread: one a model, with a bounded queue of commands before it.
//!
//! The thread owns the model, its cache and every session, so that nothing of them is ever locked. It takes turns
//! between sessions, one step each, and looks at its commands between steps: a cancel, a dispose or a new prompt waits
//! for one forward pass at most. Callers are called back and never wait.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trefoil_models::Token;

use crate::admit::{Admission, admit};
use crate::error::{Error, ErrorKind, Result};
use crate::loaded::{Loaded, ModelInfo, Progress};
use crate::options::{GenerateOptions, LoadOptions};
use crate::outbox::{Event, Generation, Outbox, channel};
use crate::prompt::Prompt;
use crate::writing::Writing;

/// Commands that may wait for the engine thread.
const COMMANDS: usize = 1024;

/// A text to be written.
pub(crate) struct Request {
    pub(crate) prompt: Prompt,
    pub(crate) options: GenerateOptions,
    pub(crate) outbox: Outbox,
    /// The prompt's tokens, once they are known.
    pub(crate) tokens: Option<Vec<Token>>,
}

type Reply<T> = Box<dyn FnOnce(Result<T>) + Send>;

enum Command {
    Generate(Box<Request>),
    Tokenize(String, Reply<Vec<Token>>),
    Detokenize(Vec<Token>, Reply<String>),
    /// Nothing to do but to look at the sessions again.
    Wake,
}

/// Who waits for the model to be freed. Beside the queue, because a full queue must not keep a model alive.
type Disposals = Arc<Mutex<Vec<Reply<()>>>>;

/// A loaded model, from outside its thread.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    disposals: Disposals,
    info: Arc<ModelInfo>,
}

impl Engine {
    /// Starts a thread that loads the model and then serves it; `ready` is called from there, once.
    ///
    /// `progress` hears bytes as they are read; setting `cancel` ends the load with an `Aborted` error.
    pub fn load(
        options: LoadOptions,
        cancel: Arc<AtomicBool>,
        mut progress: impl FnMut(Progress) + Send + 'static,
        ready: impl FnOnce(Result<Engine>) + Send + 'static,
    ) {
        let name = format!("trefoil {}", options.source.display());
        // The work follows once the thread is there: a thread that can't be started would drop it unanswered.
        let (hand_over, work) = sync_channel(1);
        let started = std::thread::Builder::new().name(name).spawn(move || {
            if let Ok((options, ready)) = work.recv() {
                let mut hear = |step: Progress| {
                    if cancel.load(Ordering::Acquire) {
                        return Err(Error::new(ErrorKind::Aborted, "the load was cancelled"));
                    }
                    progress(step);
                    Ok(())
                };
                load(&options, &mut hear, ready);
            }
        });
        match started {
            // The thread waits for exactly this message.
            Ok(_) => drop(hand_over.send((options, ready))),
            Err(error) => ready(Err(Error::internal("no thread for the engine").because(&error))),
        }
    }

    /// Loads a model and waits for it.
    ///
    /// # Errors
    /// Fails as [`Engine::load`] does.
    pub fn open(options: LoadOptions) -> Result<Engine> {
        let (sender, receiver) = sync_channel(1);
        Self::load(
            options,
            Arc::default(),
            |_| (),
            move |engine| {
                // The receiver waits below.
                let _ = sender.send(engine);
            },
        );
        receiver.recv().unwrap_or_else(|_| Err(Error::internal("the engine thread could not start")))
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Starts writing. Whatever goes wrong arrives as an event.
    pub fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Generation {
        let commands = self.commands.clone();
        let (outbox, generation) = channel(Box::new(move || {
            // A full queue wakes the engine just as well.
            let _ = commands.try_send(Command::Wake);
        }));
        self.send(Command::Generate(Box::new(Request { prompt, options, outbox, tokens: None })));
        generation
    }

    /// Encodes `text`, with the special tokens that the tokenizer adds to a prompt.
    pub fn tokenize(&self, text: String, reply: impl FnOnce(Result<Vec<Token>>) + Send + 'static) {
        self.send(Command::Tokenize(text, Box::new(reply)));
    }

    /// Decodes `tokens`, without the special ones.
    pub fn detokenize(&self, tokens: Vec<Token>, reply: impl FnOnce(Result<String>) + Send + 'static) {
        self.send(Command::Detokenize(tokens, Box::new(reply)));
    }

    /// Ends all work, frees the model, and replies when that is done. Later calls fail with `Disposed`.
    pub fn dispose(&self, reply: impl FnOnce(Result<()>) + Send + 'static) {
        lock(&self.disposals).push(Box::new(reply));
        // A full queue wakes the engine just as well; one that is gone has nothing left to free.
        if let Err(TrySendError::Disconnected(_)) = self.commands.try_send(Command::Wake) {
            answer(&self.disposals);
        }
    }

    fn send(&self, command: Command) {
        match self.commands.try_send(command) {
            Ok(()) => {}
            Err(TrySendError::Full(command)) => {
                let message = format!("{COMMANDS} calls are waiting already; that is the limit");
                command.refuse(Error::new(ErrorKind::Overloaded, message));
            }
            Err(TrySendError::Disconnected(command)) => command.refuse(Error::disposed()),
        }
    }
}

/// Loads and serves a model, on its own thread.
fn load(
    options: &LoadOptions,
    hear: &mut dyn FnMut(Progress) -> Result<()>,
    ready: impl FnOnce(Result<Engine>),
) {
    let loaded = catch_unwind(AssertUnwindSafe(|| Loaded::open(options, hear)))
        .unwrap_or_else(|_| Err(Error::internal("loading the model failed unexpectedly")));
    match loaded {
        Err(error) => ready(Err(error)),
        Ok(loaded) => {
            let (commands, inbox) = sync_channel(COMMANDS);
            let disposals = Disposals::default();
            let info = Arc::new(loaded.info.clone());
            ready(Ok(Engine { commands, disposals: Arc::clone(&disposals), info }));
            serve(loaded, inbox, &disposals);
        }
    }
}

impl Command {
    /// Answers the caller without doing the work.
    fn refuse(self, error: Error) {
        match self {
            Self::Generate(request) => request.outbox.send(Event::Failed(error)),
            Self::Tokenize(_, reply) => reply(Err(error)),
            Self::Detokenize(_, reply) => reply(Err(error)),
            Self::Wake => {}
        }
    }
}

/// The sessions of one engine thread.
#[derive(Default)]
struct Desk {
    waiting: VecDeque<Box<Request>>,
    writing: VecDeque<Writing>,
}

/// Serves commands until the model is disposed or nobody can send any more and all work is done.
fn serve(mut loaded: Loaded, inbox: Receiver<Command>, disposals: &Disposals) {
    let mut desk = Desk::default();
    let served = catch_unwind(AssertUnwindSafe(|| {
        while desk.listen(&loaded, &inbox) && lock(disposals).is_empty() {
            desk.turn(&mut loaded);
        }
    }));
    let error = match served {
        Ok(()) => Error::disposed(),
        Err(_) => Error::internal("the engine stopped unexpectedly"),
    };
    desk.close(&mut loaded, &error);
    drop(loaded);
    for command in inbox.try_iter() {
        command.refuse(error.clone());
    }
    // Whoever asked before the inbox closed is answered here; whoever asks later finds it closed.
    drop(inbox);
    answer(disposals);
}

/// Tells everybody who waits for it that the model is freed.
fn answer(disposals: &Disposals) {
    let waiting = std::mem::take(&mut *lock(disposals));
    for reply in waiting {
        reply(Ok(()));
    }
}

fn lock(disposals: &Disposals) -> MutexGuard<'_, Vec<Reply<()>>> {
    // A push or a take leaves the list whole, so a poisoned lock still guards a sound one.
    disposals.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// Takes all commands that are there; first waits for one where no session can move. False once nothing can come
    /// any more.
    fn listen(&mut self, loaded: &Loaded, inbox: &Receiver<Command>) -> bool {
        // With nothing being written the first in the queue is admitted or refused; it never waits for a command.
        let stuck = self.waiting.is_empty() || !self.writing.is_empty();
        let idle = stuck && self.writing.iter().all(Writing::is_paused);
        let first = if idle { inbox.recv().ok() } else { None };
        if idle && first.is_none() {
            return false;
        }
        for command in first.into_iter().chain(inbox.try_iter()) {
            match command {
                Command::Generate(request) => self.waiting.push_back(request),
                Command::Tokenize(text, reply) => reply(loaded.tokenizer.encode(&text, true)),
                Command::Detokenize(tokens, reply) => reply(loaded.tokenizer.decode(&tokens)),
                Command::Wake => {}
            }
        }
        true
    }

    /// Admits what fits, then moves one session on by one step.
    fn turn(&mut self, loaded: &mut Loaded) {
        self.waiting.retain(|request| !request.outbox.close_if_cancelled());
        while let Some(request) = self.waiting.pop_front() {
            match admit(request, loaded, self.writing.is_empty()) {
                Admission::Writing(writing) => self.writing.push_back(*writing),
                Admission::Refused => {}
                Admission::Later(request) => {
                    self.waiting.push_front(request);
                    break;
                }
            }
        }
        let ready = self.writing.iter().position(|writing| !writing.is_paused());
        let Some(writing) = ready.and_then(|at| self.writing.remove(at)) else { return };
        if let Some(writing) = writing.step(loaded) {
            self.writing.push_back(writing);
        }
    }

    fn close(&mut self, loaded: &mut Loaded, error: &Error) {
        for writing in self.writing.drain(..) {
            writing.fail(loaded, error.clone());
        }
        for request in self.waiting.drain(..) {
            request.outbox.send(Event::Failed(error.clone()));
        }
    }
}
