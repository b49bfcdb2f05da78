//! Promises that another thread settles.

use napi::bindgen_prelude::{Object, ToNapiValue};
use napi::{Env, Result};

type Resolver<T> = Box<dyn FnOnce(Env) -> Result<T> + Send>;

/// Makes a promise and hands `start` the function that settles it, from any thread, once.
pub(crate) fn promise<T: ToNapiValue + Send + 'static>(
    env: &Env,
    start: impl FnOnce(Box<dyn FnOnce(T) + Send>),
) -> Result<Object<'_>> {
    let (deferred, promise) = env.create_deferred::<T, Resolver<T>>()?;
    start(Box::new(move |value| deferred.resolve(Box::new(move |_| Ok(value)))));
    Ok(promise)
}
