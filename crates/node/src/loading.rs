//! Loading a model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use napi::bindgen_prelude::{Function, Object, Unknown};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Result, Status};
use napi_derive::napi;
use trefoil_engine::{Engine, LoadOptions, Progress, Raw};

use crate::events::NativeFailure;
use crate::model::NativeModel;
use crate::promise::promise;
use crate::value::raw;

/// Progress of a load, in bytes.
#[napi(object)]
pub struct NativeProgress {
    pub stage: String,
    pub done: f64,
    pub total: f64,
}

/// A model, or why there is none.
#[napi(object, object_from_js = false)]
pub struct NativeLoaded {
    pub model: Option<NativeModel>,
    pub failure: Option<NativeFailure>,
}

/// Progress events that may wait for JavaScript; later ones replace nothing and are dropped.
const PROGRESS: usize = 64;

type Listener =
    ThreadsafeFunction<NativeProgress, Unknown<'static>, NativeProgress, Status, false, true, PROGRESS>;

/// A model being loaded.
#[napi]
pub struct NativeLoading {
    source: String,
    options: Raw,
    listener: Option<Arc<Listener>>,
    cancelled: Arc<AtomicBool>,
}

#[napi]
impl NativeLoading {
    /// Names a folder or a .gguf file; nothing is read yet.
    #[napi(
        constructor,
        ts_args_type = "source: string, options?: unknown, onProgress?: (progress: NativeProgress) => void"
    )]
    pub fn new(
        source: String,
        options: Unknown<'_>,
        on_progress: Option<Function<'_, NativeProgress, Unknown<'static>>>,
    ) -> Result<Self> {
        let listener = on_progress
            .map(|function| {
                function
                    .build_threadsafe_function()
                    .weak::<true>()
                    .max_queue_size::<PROGRESS>()
                    .build()
                    .map(Arc::new)
            })
            .transpose()?;
        Ok(Self { source, options: raw(options)?, listener, cancelled: Arc::default() })
    }

    /// Loads the model.
    #[napi(ts_return_type = "Promise<NativeLoaded>")]
    pub fn wait<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        let listener = self.listener.clone();
        let progress = move |step: Progress| {
            if let Some(listener) = &listener {
                let step =
                    NativeProgress { stage: "load".into(), done: step.done as f64, total: step.total as f64 };
                listener.call(step, ThreadsafeFunctionCallMode::NonBlocking);
            }
        };
        promise(env, |settle: Box<dyn FnOnce(NativeLoaded) + Send>| {
            let settle = move |engine: trefoil_engine::Result<Engine>| {
                settle(match engine {
                    Ok(engine) => NativeLoaded { model: Some(NativeModel(engine)), failure: None },
                    Err(error) => NativeLoaded { model: None, failure: Some(error.into()) },
                });
            };
            match LoadOptions::resolve(&self.source, self.options.clone()) {
                Ok(options) => Engine::load(options, Arc::clone(&self.cancelled), progress, settle),
                Err(error) => settle(Err(error)),
            }
        })
    }

    /// Ends the load; its promise settles with an `Aborted` failure.
    #[napi]
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}
