//! A loaded model.

use napi::bindgen_prelude::{Object, Unknown};
use napi::{Env, Result};
use napi_derive::napi;
use trefoil_engine::{Engine, Prompt};

use crate::document::NativeReading;
use crate::events::{NativeFailure, NativeGeneration};
use crate::promise::promise;
use crate::value::raw;

/// What a model is.
#[napi(object)]
pub struct NativeInfo {
    pub architecture: String,
    pub kind: String,
    pub parameters: f64,
    pub layers: u32,
    pub vocabulary: u32,
    pub context_length: u32,
    pub device: String,
    pub draft_device: Option<String>,
    pub dtype: String,
    pub bytes: f64,
    pub fallback: Option<String>,
    pub graph_failure: Option<String>,
}

/// Tokens, or why there are none.
#[napi(object)]
pub struct NativeTokens {
    pub tokens: Option<Vec<u32>>,
    pub failure: Option<NativeFailure>,
}

/// Text, or why there is none.
#[napi(object)]
pub struct NativeText {
    pub text: Option<String>,
    pub failure: Option<NativeFailure>,
}

/// A generation, or why there is none.
#[napi(object, object_from_js = false)]
pub struct NativeStarted {
    pub generation: Option<NativeGeneration>,
    pub failure: Option<NativeFailure>,
}

/// A loaded model.
#[napi]
pub struct NativeModel(pub(crate) Engine);

#[napi]
impl NativeModel {
    /// What the model is.
    #[napi]
    pub fn info(&self) -> NativeInfo {
        let info = self.0.info();
        NativeInfo {
            architecture: info.architecture.clone(),
            kind: info.kind.into(),
            parameters: info.parameters as f64,
            layers: info.layers as u32,
            vocabulary: info.vocabulary as u32,
            context_length: info.context_length as u32,
            device: info.device.clone(),
            draft_device: info.draft_device.clone(),
            dtype: info.dtype.clone(),
            bytes: info.bytes as f64,
            fallback: info.fallback.clone(),
            graph_failure: info.graph_failure(),
        }
    }

    /// Starts writing.
    #[napi(ts_args_type = "prompt: unknown, options?: unknown")]
    pub fn generate(&self, prompt: Unknown<'_>, options: Unknown<'_>) -> Result<NativeStarted> {
        let (prompt, options) = (raw(prompt)?, raw(options)?);
        let resolved = Prompt::resolve(prompt).and_then(|prompt| Ok((prompt, self.0.options(options)?)));
        Ok(match resolved {
            Ok((prompt, options)) => NativeStarted {
                generation: Some(NativeGeneration(self.0.generate(prompt, options))),
                failure: None,
            },
            Err(error) => NativeStarted { generation: None, failure: Some(error.into()) },
        })
    }

    /// Prepares to read a document; nothing is read yet.
    #[napi(ts_args_type = "document: unknown")]
    pub fn read(&self, document: Unknown<'_>) -> Result<NativeReading> {
        Ok(NativeReading::new(self.0.clone(), trefoil_engine::document(raw(document)?)))
    }

    /// Encodes text.
    #[napi(ts_return_type = "Promise<NativeTokens>")]
    pub fn tokenize<'env>(&self, env: &'env Env, text: String) -> Result<Object<'env>> {
        promise(env, |settle: Box<dyn FnOnce(NativeTokens) + Send>| {
            self.0.tokenize(text, move |tokens| {
                settle(match tokens {
                    Ok(tokens) => NativeTokens { tokens: Some(tokens), failure: None },
                    Err(error) => NativeTokens { tokens: None, failure: Some(error.into()) },
                });
            });
        })
    }

    /// Decodes tokens.
    #[napi(ts_args_type = "tokens: unknown", ts_return_type = "Promise<NativeText>")]
    pub fn detokenize<'env>(&self, env: &'env Env, tokens: Unknown<'_>) -> Result<Object<'env>> {
        let tokens = trefoil_engine::tokens(raw(tokens)?);
        promise(env, |settle: Box<dyn FnOnce(NativeText) + Send>| {
            let settle = move |text: trefoil_engine::Result<String>| {
                settle(match text {
                    Ok(text) => NativeText { text: Some(text), failure: None },
                    Err(error) => NativeText { text: None, failure: Some(error.into()) },
                });
            };
            match tokens {
                Ok(tokens) => self.0.detokenize(tokens, settle),
                Err(error) => settle(Err(error)),
            }
        })
    }

    /// Ends all work and frees the model.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn dispose<'env>(&self, env: &'env Env) -> Result<Object<'env>> {
        promise(env, |settle: Box<dyn FnOnce(()) + Send>| self.0.dispose(move |_| settle(())))
    }
}
