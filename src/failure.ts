/** Failures of the native engine, which are data, as errors. */

import {
  AbortedError,
  ContextOverflowError,
  DisposedError,
  InternalError,
  InvalidOptionError,
  ModelLoadError,
  OutOfMemoryError,
  OverloadedError,
  type TrefoilError
} from './errors.js'
import type { NativeFailure } from './native.js'

const CLASSES: Record<string, new (message: string, options?: ErrorOptions) => TrefoilError> = {
  Aborted: AbortedError,
  InvalidOption: InvalidOptionError,
  ModelLoad: ModelLoadError,
  ContextOverflow: ContextOverflowError,
  OutOfMemory: OutOfMemoryError,
  Overloaded: OverloadedError,
  Disposed: DisposedError,
  Internal: InternalError
}

/** The error that a failure means; what caused it becomes a chain of `cause`. */
export function errorOf(failure: NativeFailure): TrefoilError {
  const cause = failure.causes.reduceRight<Error | undefined>((inner, message) => new Error(message, because(inner)), undefined)
  return new (CLASSES[failure.kind] ?? InternalError)(failure.message, because(cause))
}

/** What a native answer gives; its failure, as an error, where it gives nothing. */
export function given<T>(value: T | undefined, failure: NativeFailure | undefined): T {
  if (value !== undefined) return value
  throw errorOf(failure ?? { kind: 'Internal', message: 'the engine gave no answer', causes: [] })
}

function because(cause: Error | undefined): ErrorOptions {
  return cause === undefined ? {} : { cause }
}
