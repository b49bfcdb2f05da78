//! A document: read once, asked many times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use napi::bindgen_prelude::{Object, Unknown};
use napi::{Env, Result};
use napi_derive::napi;
use trefoil_engine::{Document, Engine, Error, ErrorKind};

use crate::events::{NativeFailure, NativeGeneration};
use crate::model::NativeStarted;
use crate::promise::promise;
use crate::value::raw;

/// A document, or why there is none.
#[napi(object, object_from_js = false)]
pub struct NativeRead {
    pub document: Option<NativeDocument>,
    pub failure: Option<NativeFailure>,
}

/// A document being read.
#[napi]
pub struct NativeReading {
    engine: Engine,
    text: trefoil_engine::Result<String>,
    cancelled: Arc<AtomicBool>,
}

impl NativeReading {
    pub(crate) fn new(engine: Engine, text: trefoil_engine::Result<String>) -> Self {
        Self { engine, text, cancelled: Arc::default() }
    }
}

#[napi]
impl NativeReading {
    /// Reads the document.
    #[napi(ts_return_type = "Promise<NativeRead>")]
    pub fn wait<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let engine = self.engine.clone();
        promise(env, |settle: Box<dyn FnOnce(NativeRead) + Send>| {
            let settle = move |read: trefoil_engine::Result<Document>| {
                settle(match read {
                    Ok(document) => {
                        NativeRead { document: Some(NativeDocument::new(engine, document)), failure: None }
                    }
                    Err(error) => NativeRead { document: None, failure: Some(error.into()) },
                });
            };
            match &self.text {
                Ok(text) => self.engine.read(text.clone(), Arc::clone(&self.cancelled), settle),
                Err(error) => settle(Err(error.clone())),
            }
        })
    }

    /// Ends the reading; its promise settles with an `Aborted` failure.
    #[napi]
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// A document that has been read.
#[napi]
pub struct NativeDocument {
    engine: Engine,
    document: Option<Document>,
    tokens: u32,
    encoder_forwards: u32,
}

impl NativeDocument {
    fn new(engine: Engine, document: Document) -> Self {
        let (tokens, encoder_forwards) = (document.tokens() as u32, document.encoder_forwards() as u32);
        Self { engine, document: Some(document), tokens, encoder_forwards }
    }
}

#[napi]
impl NativeDocument {
    /// Tokens of the document, special ones included.
    #[napi(getter)]
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Runs of the encoder that reading took.
    #[napi(getter)]
    pub fn encoder_forwards(&self) -> u32 {
        self.encoder_forwards
    }

    /// Starts answering.
    #[napi(ts_args_type = "prompts: unknown, options?: unknown")]
    pub fn ask(&self, prompts: Unknown<'_>, options: Unknown<'_>) -> Result<NativeStarted> {
        let (prompts, options) = (raw(prompts)?, raw(options)?);
        let document = self.document.as_ref();
        let disposed = || Error::new(ErrorKind::Disposed, "the document has been disposed");
        let resolved = document.ok_or_else(disposed).and_then(|document| {
            Ok((document, trefoil_engine::prompts(prompts)?, self.engine.options(options)?))
        });
        Ok(match resolved {
            Ok((document, prompts, options)) => NativeStarted {
                generation: Some(NativeGeneration(self.engine.ask(document, prompts, options))),
                failure: None,
            },
            Err(error) => NativeStarted { generation: None, failure: Some(error.into()) },
        })
    }

    /// Gives the document up. What is being answered is answered to its end.
    #[napi]
    pub fn dispose(&mut self) {
        self.document = None;
    }
}
