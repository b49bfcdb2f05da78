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

use crate::admit::{Admission, Request, Subject, admit};
use crate::error::{Error, ErrorKind, Result};
use crate::library::Document;
use crate::loaded::{Loaded, ModelInfo, Progress};
use crate::options::{GenerateOptions, LoadOptions};
use crate::outbox::{Event, Generation, channel};
use crate::prompt::Prompt;
use crate::raw::Raw;
use crate::reading::{Reading, Reply};
use crate::usage::Usage;
use crate::writing::Writing;

/// Commands that may wait for the engine thread.
const COMMANDS: usize = 1024;

/// Prompts that one call may ask.
const PROMPTS: usize = 1 << 16;

enum Command {
    Write(Box<Request>),
    Read(Box<Reading>),
    Usage(Reply<Usage>),
    Tokenize(String, Reply<Vec<Token>>),
    Detokenize(Vec<Token>, Reply<String>),
    /// Nothing to do but to look at the sessions again.
    Wake,
}

/// Who waits for the model to be freed. Beside the queue, because a full queue must not keep a model alive.
type Disposals = Arc<Mutex<Vec<Reply<()>>>>;

/// Whether a [`Command::Wake`] waits in the queue: a second one would only take a place there.
type Woken = Arc<AtomicBool>;

/// A loaded model, from outside its thread.
#[derive(Clone)]
pub struct Engine {
    commands: SyncSender<Command>,
    disposals: Disposals,
    woken: Woken,
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

    /// Reads and checks options of a generation; what they leave open is as this model was loaded.
    ///
    /// # Errors
    /// As [`GenerateOptions::resolve`].
    pub fn options(&self, raw: Raw) -> Result<GenerateOptions> {
        GenerateOptions::resolve_for(raw, &self.info.bild)
    }

    /// Starts writing. Whatever goes wrong arrives as an event.
    pub fn generate(&self, prompt: Prompt, options: GenerateOptions) -> Generation {
        self.write(Subject::Prompt(prompt), options)
    }

    /// Reads a document, so that prompts can be asked about it; `reply` is called once, from the engine's thread or
    /// this one. Setting `cancel` ends the reading of a long text with an `Aborted` error.
    pub fn read(
        &self,
        text: String,
        cancel: Arc<AtomicBool>,
        reply: impl FnOnce(Result<Document>) + Send + 'static,
    ) {
        self.send(Command::Read(Box::new(Reading::new(text, cancel, self.waker(), Box::new(reply)))));
    }

    /// Asks every prompt about `document`: all are answered in parallel, each as if it were alone. Chunks name their
    /// prompt, and outcomes come in prompt order. Whatever goes wrong arrives as an event.
    pub fn ask(&self, document: &Document, prompts: Vec<String>, options: GenerateOptions) -> Generation {
        self.write(Subject::Asked { document: document.clone(), prompts }, options)
    }

    fn write(&self, subject: Subject, options: GenerateOptions) -> Generation {
        let (outbox, generation) = channel(Box::new(self.waker()), subject.prompts());
        match &subject {
            Subject::Asked { prompts, .. } if prompts.len() > PROMPTS => {
                let message = format!("prompts is a list of {}; allowed: at most {PROMPTS}", prompts.len());
                outbox.send(Event::Failed(Error::option(message)));
            }
            _ => self.send(Command::Write(Box::new(Request { subject, options, outbox, tokens: None }))),
        }
        generation
    }

    fn waker(&self) -> impl Fn() + Clone + Send + Sync + 'static {
        let (commands, woken) = (self.commands.clone(), Arc::clone(&self.woken));
        move || {
            // A full queue wakes the engine just as well.
            if !woken.swap(true, Ordering::AcqRel) && commands.try_send(Command::Wake).is_err() {
                woken.store(false, Ordering::Release);
            }
        }
    }

    /// Says what is in memory between this step and the next.
    pub fn usage(&self, reply: impl FnOnce(Result<Usage>) + Send + 'static) {
        self.send(Command::Usage(Box::new(reply)));
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
            let (disposals, woken) = (Disposals::default(), Woken::default());
            let info = Arc::new(loaded.info.clone());
            ready(Ok(Engine {
                commands,
                disposals: Arc::clone(&disposals),
                woken: Arc::clone(&woken),
                info,
            }));
            serve(loaded, inbox, &disposals, &woken);
        }
    }
}

impl Command {
    /// Answers the caller without doing the work.
    fn refuse(self, error: Error) {
        match self {
            Self::Write(request) => request.outbox.send(Event::Failed(error)),
            Self::Read(reading) => reading.fail(error),
            Self::Usage(reply) => reply(Err(error)),
            Self::Tokenize(_, reply) => reply(Err(error)),
            Self::Detokenize(_, reply) => reply(Err(error)),
            Self::Wake => {}
        }
    }
}

/// The sessions of one engine thread.
#[derive(Default)]
struct Desk {
    reading: VecDeque<Box<Reading>>,
    waiting: VecDeque<Box<Request>>,
    writing: VecDeque<Writing>,
}

/// Serves commands until the model is disposed or nobody can send any more and all work is done.
fn serve(mut loaded: Loaded, inbox: Receiver<Command>, disposals: &Disposals, woken: &Woken) {
    let mut desk = Desk::default();
    let served = catch_unwind(AssertUnwindSafe(|| {
        while desk.listen(&mut loaded, &inbox, woken) && lock(disposals).is_empty() {
            desk.turn(&mut loaded);
        }
    }));
    let error = match served {
        Ok(()) => Error::disposed(),
        Err(_) => Error::internal("the engine stopped unexpectedly"),
    };
    desk.close(&mut loaded, &error);
    loaded.costs.keep();
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
    fn listen(&mut self, loaded: &mut Loaded, inbox: &Receiver<Command>, woken: &Woken) -> bool {
        // Who waits for room gets it from a session whose reader is behind, or is refused: that needs no command.
        let waiting = !self.waiting.is_empty() || !self.reading.is_empty();
        let idle = !waiting && self.writing.iter().all(Writing::is_paused);
        let first = if idle { inbox.recv().ok() } else { None };
        if idle && first.is_none() {
            return false;
        }
        for command in first.into_iter().chain(inbox.try_iter()) {
            match command {
                Command::Write(request) => self.waiting.push_back(request),
                Command::Read(reading) => self.reading.push_back(reading),
                Command::Usage(reply) => {
                    loaded.library.trim(&mut loaded.kv);
                    reply(Ok(Usage::of(loaded)));
                }
                Command::Tokenize(text, reply) => reply(loaded.tokenizer.encode(&text, true)),
                Command::Detokenize(tokens, reply) => reply(loaded.tokenizer.decode(&tokens)),
                // What it was sent for is seen from here on.
                Command::Wake => woken.store(false, Ordering::Release),
            }
        }
        true
    }

    /// Reads on, admits what fits, then moves one session on by one step.
    fn turn(&mut self, loaded: &mut Loaded) {
        loaded.library.trim(&mut loaded.kv);
        while let Some(at) = self.reading.iter().position(|reading| reading.is_cancelled()) {
            self.reading.remove(at).into_iter().for_each(|reading| reading.abort(loaded));
        }
        self.read(loaded);
        self.waiting.retain(|request| !request.outbox.close_if_cancelled());
        while let Some(request) = self.waiting.pop_front() {
            let alone = !self.is_seated() && self.reading.is_empty();
            match admit(request, loaded, alone) {
                Admission::Writing(writing) => self.writing.push_back(*writing),
                Admission::Refused => {}
                Admission::Later(request) => {
                    self.waiting.push_front(request);
                    if !self.make_way(loaded) {
                        break;
                    }
                }
            }
        }
        let ready = self.writing.iter().position(|writing| !writing.is_paused());
        let Some(writing) = ready.and_then(|at| self.writing.remove(at)) else { return };
        let crowded = !self.waiting.is_empty() || !self.reading.is_empty();
        let Some(writing) = writing.step(loaded, crowded) else { return };
        // Where others wait for room they get it first, and then it is this one's turn again.
        if writing.is_seated() || crowded || self.make_way(loaded) || self.is_seated() {
            self.writing.push_back(writing);
        } else {
            let message =
                "the text has lost its place in the cache to documents, and there is no room for it now";
            writing.fail(loaded, Error::new(ErrorKind::OutOfMemory, message));
        }
    }

    /// Reads documents, one at a time, so that the same text asked for twice is read once.
    fn read(&mut self, loaded: &mut Loaded) {
        let alone = !self.is_seated();
        let Some(reading) = self.reading.pop_front().and_then(|reading| reading.step(loaded, alone)) else {
            return;
        };
        if !reading.is_seated() {
            self.make_way(loaded);
        }
        self.reading.push_front(reading);
    }

    fn is_seated(&self) -> bool {
        self.writing.iter().any(Writing::is_seated)
    }

    /// Takes the cache from a session whose reader is behind; false where there is none.
    fn make_way(&mut self, loaded: &mut Loaded) -> bool {
        let paused = self.writing.iter_mut().find(|writing| writing.is_paused() && writing.is_seated());
        paused.map(|writing| writing.leave(loaded)).is_some()
    }

    fn close(&mut self, loaded: &mut Loaded, error: &Error) {
        for writing in self.writing.drain(..) {
            writing.fail(loaded, error.clone());
        }
        for reading in self.reading.drain(..) {
            reading.close(loaded, error.clone());
        }
        for request in self.waiting.drain(..) {
            request.outbox.send(Event::Failed(error.clone()));
        }
    }
}
