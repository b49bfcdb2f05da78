/** The answers to prompts about one document, all being written at once. */

import { chunkOf, resultOf, type Chunk, type Result } from './result.js'
import { Stream, type Reader, type Source } from './stream.js'

/** What one step added to the answer to one prompt. */
export interface AnswerChunk extends Chunk {
  /** The prompt's place in the list that was asked. */
  prompt: number
}

/** Answers being written. They iterate once, as they come. */
export interface Answers extends AsyncIterable<AnswerChunk> {
  /** The finished answers in the prompts' order, whether or not the chunks are read; after an abort, as far as they are. */
  readonly result: Promise<Result[]>
  /**
   * The finished texts alone.
   *
   * @throws {AbortedError} when the signal ended them
   */
  texts(): Promise<string[]>
}

const READER: Reader<AnswerChunk, Result[]> = {
  chunk: (event) => ({ prompt: event.prompt ?? 0, ...chunkOf(event) }),
  result: (results) => results.map(resultOf),
  isCut: (results) => results.some(({ finishReason }) => finishReason === 'abort')
}

/** Answers over a native generation. */
export class Answering extends Stream<AnswerChunk, Result[]> implements Answers {
  constructor(source: Source | undefined, signal?: AbortSignal) {
    super(READER, source, signal)
  }

  /** Answers that could not begin: reading them throws `error`. */
  static failed(error: unknown): Answering {
    return new Answering(undefined).failed(error)
  }

  async texts(): Promise<string[]> {
    return (await this.whole()).map(({ text }) => text)
  }
}
