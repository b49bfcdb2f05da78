/** Failures of the native engine, which are data, as errors. */

import {
  AbortedError,
  ContextOverflowError,
  DeviceError,
  DisposedError,
  InternalError,
  InvalidOptionError,
  ModelLoadError,
  OutOfMemoryError,
  OverloadedError,
  type DeviceReason,
  type TrefoilError
} from './errors.js'
import type { NativeFailure } from './native.js'

type Details = ErrorOptions & { reason?: DeviceReason }

const CLASSES: Record<string, new (message: string, options?: Details) => TrefoilError> = {
  Aborted: AbortedError,
  InvalidOption: InvalidOptionError,
  ModelLoad: ModelLoadError,
  ContextOverflow: ContextOverflowError,
  OutOfMemory: OutOfMemoryError,
  Device: DeviceError,
  Overloaded: OverloadedError,
  Disposed: DisposedError,
  Internal: InternalError
}

/** The error that a failure means; what caused it becomes a chain of `cause`. */
export function errorOf(failure: NativeFailure): TrefoilError {
  const cause = failure.causes.reduceRight<Error | undefined>((inner, message) => new Error(message, because(inner)), undefined)
  const reason = failure.reason === undefined ? {} : { reason: failure.reason as DeviceReason }
  return new (CLASSES[failure.kind] ?? InternalError)(failure.message, { ...because(cause), ...reason })
}

/** What a native answer gives; its failure, as an error, where it gives nothing. */
export function given<T>(value: T | undefined, failure: NativeFailure | undefined): T {
  if (value !== undefined) return value
  throw errorOf(failure ?? { kind: 'Internal', message: 'the engine gave no answer', causes: [] })
}

function because(cause: Error | undefined): ErrorOptions {
  return cause === undefined ? {} : { cause }
}
