/// <reference lib="esnext.disposable" preserve="true" />
/** A loaded model. */

import { ReadDocument, type EncodedDocument } from './document.js'
import { AbortedError, InvalidOptionError } from './errors.js'
import { given } from './failure.js'
import { Writing, type Generation } from './generation.js'
import type { NativeModel } from './native.js'
import { refuse, takeSignal, type ChatMessage, type GenerateOptions } from './options.js'

/** What a model is. */
export interface ModelInfo {
  /** The architecture's name in the model's files: `llama`, `qwen2`, `t5`, … */
  readonly architecture: string
  /** `causal` models continue a text; `seq2seq` models answer one. */
  readonly kind: 'causal' | 'seq2seq'
  readonly parameters: number
  /** Decoder layers. */
  readonly layers: number
  readonly vocabulary: number
  /** Tokens that a text may have, its prompt included. */
  readonly contextLength: number
  /** Where the model runs: `cpu` or `cuda:N`; several are divided by commas. */
  readonly device: string
  /** Where its draft model runs, if it has one. */
  readonly draftDevice?: string
  /** Why it runs on the CPU, where `device: 'auto'` would rather have had a card. */
  readonly fallback?: string
  /** Why a card starts small steps launch by launch, since it has failed to start one as a graph: they take longer. */
  readonly graphFailure?: string
  /** The type of most weights. */
  readonly dtype: string
  /** Memory that the weights take, a draft model's included, on all devices. */
  readonly bytes: number
}

/** A loaded model. Generations can run at the same time; they take turns. */
export interface Model extends AsyncDisposable {
  /** What is known of the model by now. */
  readonly info: ModelInfo
  /**
   * Writes a text. It starts at once; what goes wrong is thrown where the generation is read.
   *
   * @param prompt text that is used as it is, or messages for the model's chat template
   */
  generate(prompt: string | readonly ChatMessage[], options?: GenerateOptions): Generation
  /**
   * Reads a document, so that many prompts can be asked about it: an encoder runs once, and a model without one caches
   * the text as the beginning of every answer. A text that the model still has from before costs nothing.
   *
   * @throws {ContextOverflowError} when the document has more tokens than the context
   * @throws {OutOfMemoryError} when documents in use leave no room for it
   * @throws {AbortedError} when the signal ended the reading
   */
  read(document: string, options?: { signal?: AbortSignal }): Promise<EncodedDocument>
  /** The tokens of a prompt, with the special ones that the tokenizer adds. */
  tokenize(text: string): Promise<number[]>
  /** The text of tokens, without the special ones. */
  detokenize(tokens: readonly number[]): Promise<string>
  /** Ends all work and frees the model. Later calls fail with a `DisposedError`. */
  dispose(): Promise<void>
}

/** A model over a native one. */
export class LoadedModel implements Model {
  readonly #native: NativeModel
  readonly #fallback: { readonly fallback?: string }
  #disposal: Promise<void> | undefined

  constructor(native: NativeModel, fallback: string | undefined) {
    this.#native = native
    this.#fallback = fallback === undefined ? {} : { fallback }
  }

  get info(): ModelInfo {
    const { kind, ...info } = this.#native.info()
    return Object.freeze({ ...this.#fallback, ...info, kind: kind as ModelInfo['kind'] })
  }

  generate(prompt: string | readonly ChatMessage[], options?: GenerateOptions): Generation {
    try {
      const { signal, data } = takeSignal(options)
      const { generation, failure } = this.#native.generate(prompt, data)
      return new Writing(given(generation, failure), signal)
    } catch (error) {
      return Writing.failed(error)
    }
  }

  async read(document: string, options?: { signal?: AbortSignal }): Promise<EncodedDocument> {
    const { signal, data } = takeSignal(options)
    if (typeof (data ?? {}) !== 'object' || Array.isArray(data)) refuse('options', data, 'an object')
    const [unknown] = Object.keys(data ?? {})
    if (unknown !== undefined) throw new InvalidOptionError(`options has an unknown option '${unknown}'; allowed: signal`)
    const reading = this.#native.read(document)
    const cancel = (): void => reading.cancel()
    if (signal?.aborted) cancel()
    else signal?.addEventListener('abort', cancel, { once: true })
    try {
      const { document: read, failure } = await reading.wait()
      if (!signal?.aborted) return new ReadDocument(given(read, failure), this.info.kind)
      // A cancel that came too late for the engine still counts.
      read?.dispose()
      throw new AbortedError('the reading was aborted', { cause: signal.reason })
    } finally {
      signal?.removeEventListener('abort', cancel)
    }
  }

  async tokenize(text: string): Promise<number[]> {
    if (typeof text !== 'string') refuse('text', text, 'a string')
    const { tokens, failure } = await this.#native.tokenize(text)
    return given(tokens, failure)
  }

  async detokenize(tokens: readonly number[]): Promise<string> {
    const { text, failure } = await this.#native.detokenize(tokens)
    return given(text, failure)
  }

  dispose(): Promise<void> {
    this.#disposal ??= this.#native.dispose()
    return this.#disposal
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }
}
