/**
 * Text being written, as JavaScript wants to read it: a stream, a promise, or both.
 *
 * There is one reader of the native queue, `#pull`, and whoever needs progress waits for it, so that iterating and
 * awaiting `result` at the same time share each event. Reading one event at a time is what lets the engine pause when
 * the iterating side is slow; asking for `result` means "to the end" and lifts that bound, and chunks then wait here.
 * An async generator function would be shorter, but its `return()` waits for a `next()` in progress and does nothing
 * before the first one: `break` would not always cancel.
 */

import { AbortedError, InternalError, InvalidOptionError } from './errors.js'
import { errorOf } from './failure.js'
import type { NativeEvent, NativeGeneration, NativeResult } from './native.js'

/** The part of a native generation that is used here. */
export type Source = Pick<NativeGeneration, 'next' | 'cancel' | 'unbound'>

/** How native events become what a reader gets. */
export interface Reader<C, R> {
  chunk(event: NativeEvent): C
  /** The result; undefined where the native one is none. */
  result(results: readonly NativeResult[]): R | undefined
  /** Whether a signal or its reader ended it early. */
  isCut(result: R): boolean
}

type Ending<R> = { result: R } | { error: unknown }

/** Streams that nobody has read to their end: a signal that lives longer lets go of them. */
const FORGOTTEN = new FinalizationRegistry<{ signal: AbortSignal; cancel: () => void }>(({ signal, cancel }) => {
  signal.removeEventListener('abort', cancel)
})

/** A stream over a native generation. */
export class Stream<C, R> implements AsyncIterable<C> {
  readonly #source: Source | undefined
  readonly #signal: AbortSignal | undefined
  readonly #chunks: C[] = []
  readonly #reader: Reader<C, R>
  readonly #cancel: () => void
  /** Whether the signal had ended the work before it began; the engine may have been done before it heard of that. */
  readonly #stillborn: boolean
  #pulling: Promise<void> | undefined
  #ending: Ending<R> | undefined
  #result: Promise<R> | undefined
  #iterated = false

  constructor(reader: Reader<C, R>, source: Source | undefined, signal?: AbortSignal) {
    this.#reader = reader
    this.#source = source
    this.#signal = signal
    this.#stillborn = signal?.aborted === true
    const held = source && new WeakRef(source)
    this.#cancel = () => held?.deref()?.cancel()
    if (this.#stillborn) this.#cancel()
    else if (signal) {
      signal.addEventListener('abort', this.#cancel, { once: true })
      FORGOTTEN.register(this, { signal, cancel: this.#cancel }, this)
    }
  }

  /** Makes a stream that could not begin: reading it throws `error`. */
  protected failed(error: unknown): this {
    this.#ending = { error }
    return this
  }

  get result(): Promise<R> {
    if (!this.#result) {
      this.#result = this.#finish()
      // Whoever awaits the promise hears of a failure; asking for it alone must not end the process.
      this.#result.catch(() => {})
    }
    return this.#result
  }

  /** The result, where nothing cut it short. */
  protected async whole(): Promise<R> {
    const result = await this.result
    if (this.#isAborted(result)) throw this.#aborted()
    return result
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<C> {
    if (this.#iterated) throw new InvalidOptionError('this iterates once; await its result, or ask for it again')
    this.#iterated = true
    let over = false
    const end = (): { done: true; value: undefined } => {
      over = true
      return { done: true, value: undefined }
    }
    const leave = (): { done: true; value: undefined } => {
      this.#cancel()
      this.#forget()
      this.#chunks.length = 0
      return end()
    }
    const iterator: AsyncIterableIterator<C> = {
      next: async () => {
        if (over) return end()
        try {
          const value = await this.#next()
          return value && !over ? { done: false, value } : end()
        } catch (error) {
          over = true
          throw error
        }
      },
      return: async () => leave(),
      throw: async (error) => {
        leave()
        throw error
      },
      [Symbol.asyncIterator]: () => iterator
    }
    return iterator
  }

  /** The next chunk; undefined after the last. */
  async #next(): Promise<C | undefined> {
    while (!this.#ending && (this.#chunks.length === 0 || this.#signal?.aborted)) await this.#pull()
    if (this.#ending && 'result' in this.#ending && this.#isAborted(this.#ending.result)) throw this.#aborted()
    const chunk = this.#chunks.shift()
    if (!chunk && this.#ending && 'error' in this.#ending) throw this.#ending.error
    return chunk
  }

  async #finish(): Promise<R> {
    this.#source?.unbound()
    while (!this.#ending) await this.#pull()
    if ('error' in this.#ending) throw this.#ending.error
    return this.#ending.result
  }

  /** Reads one event. Two that wait at the same time wait for the same one. */
  #pull(): Promise<void> {
    this.#pulling ??= this.#read().finally(() => {
      this.#pulling = undefined
    })
    return this.#pulling
  }

  async #read(): Promise<void> {
    try {
      this.#take(await this.#source?.next())
    } catch (error) {
      this.#end({ error })
    }
  }

  #take(event: NativeEvent | null | undefined): void {
    if (event?.kind === 'chunk') {
      this.#chunks.push(this.#reader.chunk(event))
      return
    }
    const result = event?.results && this.#reader.result(event.results)
    if (event?.failure) this.#end({ error: errorOf(event.failure) })
    else if (result) this.#end({ result })
    else this.#end({ error: new InternalError('the engine ended a text without a result') })
  }

  #end(ending: Ending<R>): void {
    this.#ending = ending
    this.#forget()
  }

  /** There is nothing left for the signal to end. */
  #forget(): void {
    this.#signal?.removeEventListener('abort', this.#cancel)
    FORGOTTEN.unregister(this)
  }

  #isAborted(result: R): boolean {
    return this.#stillborn || (this.#reader.isCut(result) && this.#signal?.aborted === true)
  }

  #aborted(): AbortedError {
    return new AbortedError('the generation was aborted', { cause: this.#signal?.reason })
  }
}
