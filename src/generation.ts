/**
 * A text being written, as JavaScript wants to read it: a stream, a promise, or both.
 *
 * There is one reader of the native queue, `#pull`, and whoever needs progress waits for it, so that iterating and
 * awaiting `result` at the same time share each event. Reading one event at a time is what lets the engine pause when
 * the iterating side is slow; asking for `result` means "to the end" and lifts that bound, and chunks then wait here.
 * An async generator function would be shorter, but its `return()` waits for a `next()` in progress and does nothing
 * before the first one: `break` would not always cancel.
 */

import { AbortedError, InternalError, InvalidOptionError } from './errors.js'
import { errorOf } from './failure.js'
import type { NativeEvent, NativeGeneration } from './native.js'
import { chunkOf, resultOf, type Chunk, type Result } from './result.js'

/** A text being written. It iterates once. */
export interface Generation extends AsyncIterable<Chunk> {
  /** The finished text, whether or not the chunks are read. After an abort it is the text so far. */
  readonly result: Promise<Result>
  /**
   * The finished text alone.
   *
   * @throws {AbortedError} when the signal ended it, because a part of a text does not say that it is one
   */
  text(): Promise<string>
}

/** The part of a native generation that is used here. */
export type Source = Pick<NativeGeneration, 'next' | 'cancel' | 'unbound'>

type Ending = { result: Result } | { error: unknown }

/** A generation over a native one. */
export class Writing implements Generation {
  readonly #source: Source | undefined
  readonly #signal: AbortSignal | undefined
  readonly #chunks: Chunk[] = []
  readonly #cancel = (): void => this.#source?.cancel()
  #pulling: Promise<void> | undefined
  #ending: Ending | undefined
  #result: Promise<Result> | undefined
  #iterated = false

  constructor(source: Source | undefined, signal?: AbortSignal) {
    this.#source = source
    this.#signal = signal
    if (signal?.aborted) this.#cancel()
    else signal?.addEventListener('abort', this.#cancel, { once: true })
  }

  /** A generation that could not begin: reading it throws `error`. */
  static failed(error: unknown): Writing {
    const writing = new Writing(undefined)
    writing.#ending = { error }
    return writing
  }

  get result(): Promise<Result> {
    if (!this.#result) {
      this.#result = this.#finish()
      // Whoever awaits the promise hears of a failure; asking for it alone must not end the process.
      this.#result.catch(() => {})
    }
    return this.#result
  }

  async text(): Promise<string> {
    const { text, finishReason } = await this.result
    if (finishReason === 'abort' && this.#signal?.aborted) throw this.#aborted()
    return text
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<Chunk> {
    if (this.#iterated) throw new InvalidOptionError('a generation iterates once; await its result, or generate again')
    this.#iterated = true
    let over = false
    const end = (): { done: true; value: undefined } => {
      over = true
      return { done: true, value: undefined }
    }
    const leave = (): { done: true; value: undefined } => {
      this.#cancel()
      this.#chunks.length = 0
      return end()
    }
    const iterator: AsyncIterableIterator<Chunk> = {
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
  async #next(): Promise<Chunk | undefined> {
    while (!this.#ending && (this.#chunks.length === 0 || this.#signal?.aborted)) await this.#pull()
    if (this.#ending && 'result' in this.#ending) {
      const { finishReason } = this.#ending.result
      if (finishReason === 'abort' && this.#signal?.aborted) throw this.#aborted()
    }
    const chunk = this.#chunks.shift()
    if (!chunk && this.#ending && 'error' in this.#ending) throw this.#ending.error
    return chunk
  }

  async #finish(): Promise<Result> {
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
      this.#chunks.push(chunkOf(event))
      return
    }
    const [result] = event?.results ?? []
    if (event?.failure) this.#end({ error: errorOf(event.failure) })
    else if (result) this.#end({ result: resultOf(result) })
    else this.#end({ error: new InternalError('the engine ended a text without a result') })
  }

  #end(ending: Ending): void {
    this.#ending = ending
    this.#signal?.removeEventListener('abort', this.#cancel)
  }

  #aborted(): AbortedError {
    return new AbortedError('the generation was aborted', { cause: this.#signal?.reason })
  }
}
