/** One text being written. */

import { chunkOf, resultOf, type Chunk, type Result } from './result.js'
import { Stream, type Reader, type Source } from './stream.js'

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

const READER: Reader<Chunk, Result> = {
  chunk: chunkOf,
  result: ([result]) => result && resultOf(result),
  isCut: ({ finishReason }) => finishReason === 'abort'
}

/** A generation over a native one. */
export class Writing extends Stream<Chunk, Result> implements Generation {
  constructor(source: Source | undefined, signal?: AbortSignal) {
    super(READER, source, signal)
  }

  /** A generation that could not begin: reading it throws `error`. */
  static failed(error: unknown): Writing {
    return new Writing(undefined).failed(error)
  }

  async text(): Promise<string> {
    return (await this.whole()).text
  }
}
