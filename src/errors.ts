/**
 * What can go wrong, as classes that a caller can tell apart.
 *
 * A program that both imports and requires the package has it twice, and `instanceof` misses an error of the other
 * copy. `isInstance` looks at a registered symbol and the code instead.
 */

const MARK: unique symbol = Symbol.for('trefoil.error') as never

/** What every error of this package is. */
export abstract class TrefoilError extends Error {
  static readonly code: string = 'TREFOIL'

  /** What a program can act on: `INVALID_OPTION`, `MODEL_LOAD`, … */
  readonly code: string

  constructor(message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = new.target.name
    this.code = new.target.code
    Object.defineProperty(this, MARK, { value: true })
  }

  /** Whether `value` is an error of this class, whichever copy of the package made it. */
  static isInstance<T extends TrefoilError>(
    this: (abstract new (message: string, options?: ErrorOptions) => T) & { readonly code: string },
    value: unknown
  ): value is T {
    if (typeof value !== 'object' || value === null || !(MARK in value)) return false
    return this.code === TrefoilError.code || (value as unknown as TrefoilError).code === this.code
  }
}

/** The caller's signal ended the work. `cause` is the signal's reason. */
export class AbortedError extends TrefoilError {
  static override readonly code: string = 'ABORTED'
}

/** An option or argument is unknown or has a value that is not allowed; the message names it, its value and what is. */
export class InvalidOptionError extends TrefoilError {
  static override readonly code: string = 'INVALID_OPTION'
}

/** The model's files are missing, damaged or not supported. */
export class ModelLoadError extends TrefoilError {
  static override readonly code: string = 'MODEL_LOAD'
}

/** The text does not fit the context; the message has both numbers. */
export class ContextOverflowError extends TrefoilError {
  static override readonly code: string = 'CONTEXT_OVERFLOW'
}

/** The work would need more memory than it may have. Nothing was allocated. */
export class OutOfMemoryError extends TrefoilError {
  static override readonly code: string = 'OUT_OF_MEMORY'
}

/** Why a model can't run on a card. */
export type DeviceReason =
  /** The package `trefoil-cuda` is not installed, or is of another version. */
  | 'package'
  | 'version'
  /** A library of CUDA that it needs is missing. */
  | 'library'
  /** This build has no CUDA. */
  | 'build'
  /** There is no driver, it does not answer, or it is older than what the package was built with. */
  | 'driver'
  | 'driver-too-old'
  /** There is no card of that number, it is too old, or it has no memory left. */
  | 'no-card'
  | 'card-too-old'
  | 'memory'
  /** The model's heads have more channels than a card takes. */
  | 'heads-too-wide'
  /** Cards of different compute capabilities can't work together. */
  | 'cards-differ'
  /** Several cards need NCCL, and it is missing or can't join them. */
  | 'nccl'
  /** The process that tried the card out ended, or did not. */
  | 'crash'
  | 'timeout'

/** The model can't run where it was asked to. */
export class DeviceError extends TrefoilError {
  static override readonly code: string = 'DEVICE'

  readonly reason: DeviceReason

  constructor(message: string, options?: ErrorOptions & { reason?: DeviceReason }) {
    super(message, options)
    this.reason = options?.reason ?? 'driver'
  }
}

/** Too many calls wait already; a later one may fit. */
export class OverloadedError extends TrefoilError {
  static override readonly code: string = 'OVERLOADED'
}

/** The model was disposed. */
export class DisposedError extends TrefoilError {
  static override readonly code: string = 'DISPOSED'
}

/** A model could not be brought from the hub. */
export class DownloadError extends TrefoilError {
  static override readonly code: string = 'DOWNLOAD'
}

/** A field's answer is not what its schema allows. */
export class ExtractionError extends TrefoilError {
  static override readonly code: string = 'EXTRACTION'

  /** The field's path, such as `hotel.area`; empty for the whole value. */
  readonly field: string
  /** What the model said; empty where the trouble is not one field's. */
  readonly text: string

  constructor(message: string, options?: ErrorOptions & { field?: string; text?: string }) {
    super(message, options)
    this.field = options?.field ?? ''
    this.text = options?.text ?? ''
  }
}

/** A fault of the engine itself. */
export class InternalError extends TrefoilError {
  static override readonly code: string = 'INTERNAL'
}
