/**
 * What callers may ask for.
 *
 * Values are checked, and defaults filled in, by the engine, in one place for every binding. Here only what is no data
 * is taken out: a signal, a listener.
 */

import { InvalidOptionError } from './errors.js'

/** A graphics card by its number; `cuda` is `cuda:0`. */
export type Card = 'cuda' | `cuda:${number}`

/** How a model is loaded. */
export interface LoadOptions {
  /**
   * The little model of `bild` and `speculative`: a source as `load` takes it, with the same vocabulary, or the
   * model's own first decoder `layers` under its head. A `model` of its own can have a `device` of its own, with its
   * weights and its cache; without one it runs where the model does, on the first device of several.
   */
  draft?: string | { layers: number } | { model: string; device?: 'cpu' | Card }
  /** A file of `trefoil tune`: what `bild` takes for its thresholds and `maxDraft` where a generation gives none. */
  tuned?: string
  /**
   * Where the model runs: on the `cpu`, or on a card by CUDA, which takes the package `trefoil-cuda`. `auto`, the
   * default, takes the first card where it can be used and has room for the model, and else the CPU; `info.fallback` says why.
   *
   * Several cards, of the same compute capability, share each step's rows out among them: lookahead parallelism, with the
   * text that one card writes. Each has all weights and the whole cache; rows that are kept go from one to the others by
   * NCCL, which has to be where the system finds it, or where the environment's `TREFOIL_NCCL` says.
   */
  device?: 'auto' | 'cpu' | Card | readonly Card[]
  /**
   * Precision of a safetensors model's weights; `auto`, the default, keeps the file's. On a CPU activations are single
   * precision, with two exceptions that are faster and whose text is now and then another one:
   *
   * - `bf16` rounds activations as well where they meet weights, as other frameworks do; sums are single precision. A CPU with
   *   AVX-512 BF16 then has twice the arithmetic, so that many rows, and encoding, take half the time.
   * - `q8_0` quantises matrices when they are read, and activations where they meet them, to eight bits: half the bytes of
   *   sixteen bits and up to four times the arithmetic.
   *
   * GGUF keeps its own types.
   */
  dtype?: 'auto' | 'f32' | 'bf16' | 'f16' | 'q8_0'
  /** Threads of a step; by default one a core. */
  threads?: number
  /**
   * Groups into which the threads are divided, 1 to 64; 1 by default. Each scores a part of a step's rows, with the
   * weights and the cache in common and the same text as one: lookahead parallelism on one CPU, to be measured before it
   * is used. Cards are named in `device` instead.
   */
  workers?: number
  /** Keep each thread on a core of its own; false by default. */
  pinThreads?: boolean
  /**
   * How caches keep keys and values: `f32`, the default, whole, or in half the bytes: `f16`, which is nearer to them, or
   * `bf16`, in which nothing is too large.
   */
  cacheType?: 'f32' | 'f16' | 'bf16'
  /** Tokens that a text may have, its prompt included; by default the model's own limit, at most 8192. */
  contextLength?: number
  /**
   * Bytes that weights, caches and logits may take where the model runs, on each of several cards; by default the
   * machine's memory, or what is free of a card's. A draft model on a device of its own has what is free there.
   */
  memoryLimit?: number
  /** Bytes of documents to keep although nobody holds them any more, so that reading them again is free; 256 MiB by default. */
  documentCache?: number
  /** The file that remembers what steps cost on this machine for `auto`; by default `costs.json` in the cache folder. */
  costCache?: string
  /** Never ask the hub: a model that is not on this machine is a `DownloadError`. */
  offline?: boolean
  /** Ends the load with an `AbortedError`. */
  signal?: AbortSignal
  /** Hears how far the load is. What it throws ends the load and is thrown by `load`. */
  onProgress?: (progress: LoadProgress) => void
}

/** How far a load is, in bytes. */
export interface LoadProgress {
  stage: 'download' | 'load'
  /** The file being downloaded. */
  file?: string
  done: number
  /** All there is to do; 0 where the hub does not say. */
  total: number
}

/** One message of a conversation. */
export interface ChatMessage {
  role: string
  content: string
}

/** How a text is decoded. */
export type Decoding =
  | 'auto'
  | 'plain'
  | 'lookahead'
  | 'bild'
  | 'speculative'
  | { type: 'auto' }
  | { type: 'plain' }
  | Lookahead
  | Jacobi
  | Bild
  | Speculative

/** Guesses a block and iterates on it; exact, for comparison. */
export interface Jacobi {
  type: 'jacobi'
  /** Tokens guessed a step; 8 by default. */
  block?: number
}

/** Lookahead decoding: exact, without a draft model. A step has at most (window + guesses) · (ngram − 1) rows. */
export interface Lookahead {
  type: 'lookahead'
  /** W, the columns of the Jacobi window; 0 decodes from the n-gram pool alone. */
  window?: number
  /** N, the tokens of an n-gram, at least 2. */
  ngram?: number
  /** G, the n-grams that a step verifies; 0 never drafts. */
  guesses?: number
  /** Whether the n-grams of the prompt and of the text itself are guesses too; true by default. */
  poolFromPrompt?: boolean
  /** The published method to the letter, for comparison. */
  reference?: boolean
}

/**
 * The big little decoder: the draft model writes, the model takes over where the draft model is unsure and replaces
 * what it finds too unlikely. Lossy: the text may differ from the model's own.
 *
 * Both thresholds look at the models' own probabilities, before temperature, penalty and filters.
 */
export interface Bild {
  type: 'bild'
  /** The draft model writes on while the probability of its best token is at least this; 0.5 by default. 0 never falls back, above 1 nothing is drafted. */
  fallback?: number
  /** Whether `fallback` is held against the probability of all that was written since the model's last call, and not of one token; false by default. */
  cumulative?: boolean
  /**
   * Tokens that the draft model finds this likely, together with what it has written before them, and does not write go along
   * to the model, 0.01 to 1: where the model writes one of them itself, its next token comes with it. 1, the default, is for
   * none; then this is the published algorithm.
   */
  candidates?: number
  /** A drafted token is kept while −ln p under the model is at most this; 3 by default. 0 keeps only the model's own picks, `Infinity` keeps all. */
  rollback?: number
  /** Tokens that the draft model writes between two calls of the model, candidates included, 1 to 63; 7 by default. */
  maxDraft?: number
  /** Whether the model judges what was drafted since its last call before the draft model ends the text; true by default. */
  verifyTail?: boolean
}

/** Exact speculation: a drafted token is kept where the model picks it too. The text is the model's own. */
export interface Speculative {
  type: 'speculative'
  /** As of `bild`; 0.5 by default. */
  fallback?: number
  /** As of `bild`; true by default. */
  cumulative?: boolean
  /** As of `bild`; 0.1 by default. */
  candidates?: number
  /** As of `bild`; 7 by default. */
  maxDraft?: number
}

/** How a text is written. */
export interface GenerateOptions {
  /**
   * `auto`, the default, drafts as much at each step as it expects to pay on this machine, from the text itself, the
   * prompt and the draft model if there is one; the text is that of `plain`, which writes one token a step. `bild` and
   * `speculative` need a model that was loaded with `draft`.
   */
  decoding?: Decoding
  /** Tokens to write, at most; by default up to the end of the context. */
  maxTokens?: number
  /** Ends the text where one of these begins; the stop string is not part of the text. */
  stop?: string | readonly string[]
  /** 0, the default, always takes the likeliest token. */
  temperature?: number
  /** Draw from the likeliest so many tokens only; 0 means all. */
  topK?: number
  /** Draw from the likeliest tokens that together have this probability. */
  topP?: number
  /** Draw from tokens at least this share as likely as the likeliest. */
  minP?: number
  /** Above 1, makes tokens that the text already has less likely. */
  repetitionPenalty?: number
  /** The same seed gives the same text. */
  seed?: number
  /** Give each token's log-probability. */
  logprobs?: boolean
  /**
   * `committed`, the default, gives text once it is final and takes nothing back. `eager` also gives what a draft model
   * writes, at once, as chunks that are `tentative`; where nothing is drafted by a model the two are the same.
   */
  events?: 'committed' | 'eager'
  /** Ends the writing within a step. */
  signal?: AbortSignal
}

/**
 * Takes the signal out of `options`; what remains is data for the engine.
 *
 * @throws {InvalidOptionError} when the signal is none
 */
export function takeSignal(options: unknown): { signal: AbortSignal | undefined; data: unknown } {
  if (!isObject(options)) return { signal: undefined, data: options }
  const { signal, ...data } = options
  if (signal === undefined || signal === null) return { signal: undefined, data }
  if (!isSignal(signal)) refuse('options.signal', signal, 'an AbortSignal')
  return { signal, data }
}

/**
 * Takes the progress listener out of `options`.
 *
 * @throws {InvalidOptionError} when the listener is none
 */
export function takeListener(options: unknown): { onProgress: LoadOptions['onProgress']; data: unknown } {
  if (!isObject(options)) return { onProgress: undefined, data: options }
  const { onProgress, ...data } = options
  if (onProgress === undefined || onProgress === null) return { onProgress: undefined, data }
  if (typeof onProgress !== 'function') refuse('options.onProgress', onProgress, 'a function')
  return { onProgress: onProgress as NonNullable<LoadOptions['onProgress']>, data }
}

/**
 * Says that `name` can't be `value`, in the engine's words.
 *
 * @throws {InvalidOptionError} always
 */
export function refuse(name: string, value: unknown, allowed: string): never {
  throw new InvalidOptionError(`${name} is ${shown(value)}; allowed: ${allowed}`)
}

// Lists have names too ('0', '1', …), but a list of options is a mistake that the engine reports.
function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

// By shape: a signal of another realm or of a polyfill is no instance of this realm's class.
function isSignal(value: unknown): value is AbortSignal {
  return isObject(value) && typeof value['aborted'] === 'boolean' && typeof value['addEventListener'] === 'function'
}

function shown(value: unknown): string {
  if (typeof value === 'string') return value.length > 60 ? `'${value.slice(0, 60)}…'` : `'${value}'`
  if (Array.isArray(value)) return `a list of ${value.length}`
  if (typeof value === 'object' && value !== null) return 'an object'
  if (typeof value === 'function' || typeof value === 'symbol') return `a ${typeof value}`
  return String(value)
}
