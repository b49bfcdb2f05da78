/// <reference lib="esnext.disposable" preserve="true" />
/** A document that a model has read. */

import { Answering, type Answers } from './answers.js'
import { given } from './failure.js'
import type { NativeDocument } from './native.js'
import { takeSignal, type GenerateOptions } from './options.js'

/** How answers are written: as any text, and alike for every prompt. */
export type AskOptions = GenerateOptions

/** A document that was read once and can be asked many times. */
export interface EncodedDocument extends AsyncDisposable {
  /** The document's tokens, special ones included. */
  readonly tokens: number
  /** Runs of the encoder that reading took: 0 where the model still had the text, and for models without an encoder. */
  readonly encoderForwards: number
  /**
   * Answers every prompt, all in parallel, each as if it were asked alone. `maxTokens` and `stop` hold for each answer.
   * A prompt begins the decoder's text: an encoder-decoder model reads the document and continues the prompt, any other
   * continues the document with the prompt behind it. What goes wrong is thrown where the answers are read.
   */
  ask(prompts: readonly string[], options?: AskOptions): Answers
  /** Gives the document up; the model keeps it while its cache has room. Answers being written are not cut short. */
  dispose(): Promise<void>
}

/** A document over a native one. */
export class ReadDocument implements EncodedDocument {
  readonly tokens: number
  readonly encoderForwards: number
  readonly #native: NativeDocument

  constructor(native: NativeDocument) {
    this.#native = native
    this.tokens = native.tokens
    this.encoderForwards = native.encoderForwards
  }

  ask(prompts: readonly string[], options?: AskOptions): Answers {
    try {
      const { signal, data } = takeSignal(options)
      const { generation, failure } = this.#native.ask(prompts, data)
      return new Answering(given(generation, failure), signal)
    } catch (error) {
      return Answering.failed(error)
    }
  }

  async dispose(): Promise<void> {
    this.#native.dispose()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }
}
