/// <reference lib="esnext.disposable" preserve="true" />
/** A document that a model has read. */

import { Answering, type Answers } from './answers.js'
import { extractFrom, type Extracted, type ExtractOptions } from './extract.js'
import { given } from './failure.js'
import type { ModelInfo } from './model.js'
import type { NativeDocument } from './native.js'
import { takeSignal, type GenerateOptions } from './options.js'
import type { Infer, JsonSchema, StandardSchema } from './schema.js'

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
  /**
   * Fills a schema from the document: every leaf field is one prompt, its description or else its path (`hotel area:`),
   * and all are answered at once. An answer is read as its field's type: a string, a number, a truth value (`yes`,
   * `no`), one of an enumeration, a date, or a list of these between commas. A field that may be left out is, where the
   * answer is empty or `none`. The schema's own validation has the last word; of a JSON Schema all keywords are checked,
   * and defaults filled in.
   *
   * @param schema a Standard Schema that also implements Standard JSON Schema, such as zod's, or a JSON Schema
   * @throws {ExtractionError} when an answer is not what its field allows; it names the field and has the answer
   * @throws {InvalidOptionError} when the schema has what no prompt can ask for, such as a list of objects or
   *   more than 4096 fields, or is no schema
   */
  extract<S extends StandardSchema | JsonSchema>(schema: S, options: ExtractOptions & { confidence: true }): Promise<Extracted<Infer<S>>>
  extract<S extends StandardSchema | JsonSchema>(schema: S, options?: ExtractOptions & { confidence?: false }): Promise<Infer<S>>
  extract<S extends StandardSchema | JsonSchema>(schema: S, options?: ExtractOptions): Promise<Infer<S> | Extracted<Infer<S>>>
  /** Gives the document up; the model keeps it while its cache has room. Answers being written are not cut short. */
  dispose(): Promise<void>
}

/** A document over a native one. */
export class ReadDocument implements EncodedDocument {
  readonly tokens: number
  readonly encoderForwards: number
  readonly #native: NativeDocument
  readonly #lead: string

  constructor(native: NativeDocument, kind: ModelInfo['kind']) {
    this.#native = native
    // A model that continues the document takes a prompt for a field where it has a line of its own.
    this.#lead = kind === 'causal' ? '\n' : ''
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

  extract<S extends StandardSchema | JsonSchema>(schema: S, options: ExtractOptions & { confidence: true }): Promise<Extracted<Infer<S>>>
  extract<S extends StandardSchema | JsonSchema>(schema: S, options?: ExtractOptions & { confidence?: false }): Promise<Infer<S>>
  extract<S extends StandardSchema | JsonSchema>(schema: S, options?: ExtractOptions): Promise<Infer<S> | Extracted<Infer<S>>>
  extract<S extends StandardSchema | JsonSchema>(schema: S, options?: ExtractOptions): Promise<Infer<S> | Extracted<Infer<S>>> {
    return extractFrom((prompts, options) => this.ask(prompts, options), this.#lead, schema, options)
  }

  async dispose(): Promise<void> {
    this.#native.dispose()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }
}
